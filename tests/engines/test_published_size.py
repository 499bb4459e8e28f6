"""Graphs and plans of the published size: hundreds of megabytes, minutes on two cores, and up to 8 GB of memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.random_bundle import make_random_bundle
from engines.build import cached_plan, toolkit
from engines.export import example_inputs, export_graph
from engines.spec import BuildSettings, default_profiles, graph_spec
from engines.store import Store
from telme.bundle import Bundle, load_bundle, open_bundle
from telme.config import Part
from tests.engines.graphs import run_plain, run_torch
from tests.engines.test_build import faults

# Half precision takes two bytes a parameter, and the plan is hardly smaller: so many megabytes at least.
LEAST_MB: dict[Part, int] = {"text": 600, "audio": 180, "video": 240, "fusion": 15}


# Float32 sums in another order, through 24 layers.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_bundle(tmp_path_factory.mktemp("published") / "bundle", "published")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", LEAST_MB)
def test_onnx_runtime_answers_as_torch(folder: Path, tmp_path: Path, part: Part) -> None:
    bundle: Bundle = open_bundle(str(folder))
    graph = export_graph(bundle, part, "fp32", tmp_path)
    inputs = example_inputs(graph_spec(bundle.config, part), length={"text": 40, "audio": 8000}.get(part))
    expected = run_torch(bundle, part, inputs)
    vars(bundle).pop("model")  # 2.3 GB that the session needs as well
    for name, found in run_plain(graph, inputs).items():
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_four_graphs_build_in_half_precision(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(str(folder))
    store = Store(tmp_path / "cache")
    assert set(bundle.config.parts) == set(LEAST_MB)
    for part in bundle.config.parts:
        settings = BuildSettings("fp16", default_profiles(graph_spec(bundle.config, part)))
        plan = cached_plan(store, toolkit(), bundle, part, settings)
        assert plan.stat().st_size > 1e6 * LEAST_MB[part]
        assert faults(plan) <= {"CUDA_ERROR"}
