"""Plans of tiny bundles, really built by TensorRT-RTX, which needs no GPU for that; and what goes wrong."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import engines.build
from engines.build import (
    NO_GPU,
    PLAN_FILE,
    Phases,
    Toolkit,
    build_plan,
    builder_config,
    cached_plan,
    carried_plan,
    first_errors,
    gpu_name,
    shapes,
    toolkit,
)
from engines.export import export_graph
from engines.spec import BuildSettings, GraphSpec, Range, TensorSpec, default_profiles, graph_spec
from engines.store import MANIFEST_FILE, Store, verify
from telme.bundle import Bundle, load_bundle
from telme.config import Part
from telme.errors import EngineError, MissingDependency
from tests.bundles import make_full_bundle

PARTS: tuple[Part, ...] = ("text", "audio", "video", "fusion")
# A graph that is quick to build: one product.
SPEC = GraphSpec(
    "text",
    (TensorSpec("x", "float32", ("batch", "tokens", 8)),),
    (TensorSpec("y", "float32", ("batch", "tokens", 4)),),
    {"batch": Range(1, 1, 16), "tokens": Range(2, 96, 512)},
)
SETTINGS = BuildSettings("fp32", default_profiles(SPEC))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_full_bundle(tmp_path_factory.mktemp("bundle"))))


def write_graph(folder: Path, operator: str = "MatMul") -> Path:
    weights = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    nodes = [helper.make_node(operator, ["x", "w"], ["y"], name="the_product")]
    edges = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", n]) for name, n in (("x", 8), ("y", 4))
    }
    graph = helper.make_graph(nodes, "graph", [edges["x"]], [edges["y"]], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "g.onnx")
    return folder / "g.onnx"


def faults(plan: Path) -> set[str]:
    """What TensorRT-RTX finds wrong with a plan, from its header."""
    runtime = tensorrt_rtx.Runtime(tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR))
    _, found = runtime.get_engine_validity(plan.read_bytes())
    return {name for name, flag in tensorrt_rtx.EngineInvalidityDiagnostics.__members__.items() if found & int(flag)}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_builds_with_its_profiles(tmp_path: Path, bundle: Bundle, part: Part) -> None:
    spec = graph_spec(bundle.config, part)
    settings = BuildSettings("fp16", default_profiles(spec))
    told: list[float] = []
    build_plan(toolkit(), spec, settings, export_graph(bundle, part, "fp16", tmp_path), tmp_path / "plan", told.append)
    assert faults(tmp_path / "plan") <= {"CUDA_ERROR"}
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 10


def test_turing_gets_a_plan_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the plan for all others, made without a GPU or with a newer one, would not be."""
    found, builder = toolkit(), tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, targets in (((8, 6), []), ((7, 5), [tensorrt_rtx.ComputeCapability.SM75])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        config = builder_config(found, builder)
        assert [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)] == targets
    with pytest.raises(EngineError, match=r"Turing \(SM75\): FP32 GEMM is not supported"):
        build_plan(found, SPEC, SETTINGS, write_graph(tmp_path), tmp_path / "plan")


def test_attention_in_float32_which_has_no_kernel_of_its_own_is_built_of_several(tmp_path: Path) -> None:
    shape = ("batch", 2, "tokens", 16)
    names = ("q", "k", "v")
    edges = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (*names, "y")}
    node = helper.make_node("Attention", names, ["y"])
    graph = helper.make_graph([node], "graph", [edges[name] for name in names], [edges["y"]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "g.onnx")
    spec = GraphSpec("text", tuple(TensorSpec(name, "float32", shape) for name in names), (), SPEC.limits)
    build_plan(toolkit(), spec, SETTINGS, tmp_path / "g.onnx", tmp_path / "plan")
    assert faults(tmp_path / "plan") <= {"CUDA_ERROR"}


def test_plans_are_cached_and_a_stale_one_is_named(
    tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    settings = BuildSettings("fp16", default_profiles(graph_spec(bundle.config, "fusion")))
    store, found = Store(tmp_path / "cache"), toolkit()
    plan = cached_plan(store, found, bundle, "fusion", settings)
    assert {path.name for path in plan.parent.iterdir()} == {PLAN_FILE, MANIFEST_FILE}
    manifest = verify(plan.parent)
    assert {"backend": "tensorrt-rtx", "graph": "fusion", "gpu": gpu_name()}.items() <= manifest.key.items()
    built = plan.stat().st_mtime_ns
    assert cached_plan(store, found, bundle, "fusion", settings).stat().st_mtime_ns == built
    with caplog.at_level(logging.INFO, "engines.store"):
        newer = cached_plan(store, replace(found, version="9.9"), bundle, "fusion", settings)
    assert newer != plan
    assert f"the nearest has version '{found.version}' instead of '9.9'" in caplog.text


def test_a_plan_made_without_a_gpu_is_found_on_one(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BuildSettings("fp16", default_profiles(graph_spec(bundle.config, "fusion")))
    store, found = Store(tmp_path / "cache"), toolkit()
    monkeypatch.setattr(engines.build, "gpu_name", lambda: NO_GPU)
    plan = cached_plan(store, found, bundle, "fusion", settings)
    assert carried_plan(store, found, bundle, "fusion", settings) is None, "where there is none, it cannot run"
    monkeypatch.setattr(engines.build, "gpu_name", lambda: "NVIDIA L4 8.9")
    assert carried_plan(store, found, bundle, "fusion", settings) == plan
    for other in (replace(found, name="tensorrt"), replace(found, version="9.9")):
        assert carried_plan(store, other, bundle, "fusion", settings) is None
    assert carried_plan(store, found, bundle, "text", settings) is None
    plan.write_bytes(b"damage")
    assert carried_plan(store, found, bundle, "fusion", settings) is None


def test_a_plan_of_int8_says_which_there_are(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"text in int8 .*fp32, fp16, bf16"):
        cached_plan(Store(tmp_path), toolkit(), bundle, "text", BuildSettings("int8"))
    assert Store(tmp_path).folders() == []


def test_a_header_that_is_no_plan_is_found(tmp_path: Path) -> None:
    """So that the check above can fail."""
    (tmp_path / "plan").write_bytes(bytes(1000))
    assert faults(tmp_path / "plan") == {"MALFORMED_ENGINE"}


def test_each_profile_gives_its_shapes() -> None:
    profile = {"batch": Range(1, 8, 16), "tokens": Range(8, 64, 128)}
    assert shapes(SPEC.inputs[0], profile) == ((1, 8, 8), (8, 64, 8), (16, 128, 8))


def test_more_profiles_make_another_plan(tmp_path: Path) -> None:
    graph = write_graph(tmp_path)
    for number, profiles in enumerate((SETTINGS.profiles[:1], SETTINGS.profiles)):
        build_plan(toolkit(), SPEC, BuildSettings("fp32", profiles), graph, tmp_path / f"plan{number}")
    assert (tmp_path / "plan0").stat().st_size < (tmp_path / "plan1").stat().st_size


def test_either_module_is_taken_and_tensorrt_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two have one interface; here TensorRT-RTX stands in for its sister, which needs a GPU."""
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_rtx)
    found = toolkit()
    assert found.name == "tensorrt"
    build_plan(found, SPEC, SETTINGS, write_graph(tmp_path), tmp_path / "plan")
    assert faults(tmp_path / "plan") <= {"CUDA_ERROR"}


def test_without_any_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"neither tensorrt nor tensorrt-rtx.*pip install"):
        toolkit()


def test_libraries_that_cannot_be_loaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> types.ModuleType:
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingDependency, match=r"tensorrt-rtx cannot be loaded: libnvinfer"):
        toolkit()


def test_a_builder_that_needs_a_gpu_says_so(tmp_path: Path) -> None:
    """As `tensorrt` without a driver: its bindings get no builder and raise TypeError."""

    class Builder:
        def __init__(self, log: Any) -> None:
            log.log(tensorrt_rtx.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    api = types.SimpleNamespace(ILogger=tensorrt_rtx.ILogger, Builder=Builder)
    with pytest.raises(
        EngineError, match=r"tensorrt 11\.4 makes no builder: CUDA init.*error: 35.*telme-stream doctor"
    ):
        build_plan(Toolkit("tensorrt", "11.4", api), SPEC, SETTINGS, write_graph(tmp_path), tmp_path / "plan")


def test_a_node_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    graph = write_graph(tmp_path, operator="Guess")
    with pytest.raises(EngineError, match=r"cannot read the text graph: node 0 the_product \(Guess\).*use --backend"):
        build_plan(toolkit(), SPEC, SETTINGS, graph, tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_a_damaged_graph_and_none_at_all_say_so(tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"garbage")
    with pytest.raises(EngineError, match="Failed to parse the ONNX model"):
        build_plan(toolkit(), SPEC, SETTINGS, tmp_path / "damaged.onnx", tmp_path / "plan")
    with pytest.raises(EngineError, match="cannot be found"):
        build_plan(toolkit(), SPEC, SETTINGS, tmp_path / "none.onnx", tmp_path / "plan")


def test_profiles_that_do_not_fit_say_so(tmp_path: Path) -> None:
    upside_down = BuildSettings("fp32", ({"batch": Range(1, 1, 1), "tokens": Range(128, 64, 8)},))
    with pytest.raises(EngineError, match=r"cannot build the text graph.*MIN<=OPT<=MAX"):
        build_plan(toolkit(), SPEC, upside_down, write_graph(tmp_path), tmp_path / "plan")


def test_ctrl_c_ends_a_build(tmp_path: Path) -> None:
    """The bindings swallow what is raised in a callback, which is where a signal would find the main thread."""
    told: list[float] = []

    def interrupt_once(share: float) -> None:
        if not told:
            os.kill(os.getpid(), signal.SIGINT)
        told.append(share)

    with pytest.raises(KeyboardInterrupt):
        build_plan(toolkit(), SPEC, SETTINGS, write_graph(tmp_path), tmp_path / "plan", interrupt_once)
    assert told[-1] < 1
    assert not (tmp_path / "plan").exists()


def test_errors_are_told_once() -> None:
    assert first_errors(["a\n b", "a b", "c", "d"]) == "a b; c"
    assert first_errors([]) == "it does not say why"


def test_phases_add_up() -> None:
    told: list[float] = []
    phases = Phases(told.append)
    phases.start("build", None, 2)
    phases.start("graph", "build", 4)
    phases.step("graph", 0)
    phases.start("kernels", "graph", 2)
    phases.step("kernels", 0)
    phases.finish("kernels")
    phases.step("graph", 3)
    phases.finish("graph")
    phases.step("build", 0)
    phases.step("unheard of", 0)
    phases.step("build", 1)
    assert told == [0.125, 0.1875, 0.5, 1.0]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from([None, *"abcd"]), st.integers(-1, 5), st.integers(0, 7))
    )
)
def test_phases_never_go_back_nor_beyond_the_end(events: list[tuple[str, str | None, int, int]]) -> None:
    told: list[float] = []
    phases = Phases(told.append)
    for name, parent, steps, step in events:
        phases.start(name, parent, steps) if step == 0 else phases.step(name, step)
    assert told == sorted(set(told))
    assert all(0 < share <= 1 for share in told)
