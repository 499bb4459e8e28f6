"""Tiny bundles under ONNX Runtime: torch's answers, bad input, caches that are deleted or damaged, memory."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, load, numpy_helper, save

from engines import onnx, predictor
from engines.onnx import onnx_networks
from engines.predictor import Choice, EnginePredictor, choices
from engines.spec import RunSettings
from engines.store import Store
from telme.bundle import Bundle, open_bundle
from telme.errors import EngineError, MissingDependency, OutOfMemory, PredictorError, UsageError
from telme.predictor import NetworkPredictor, TorchPredictor
from telme.processor import adds_int8_exactly
from tests.bundles import make_tiny_bundle
from tests.telme.test_predictor import mixed

RUN = RunSettings(threads=1)


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-5), ("int8", 0.05)])
def test_the_answers_are_those_of_torch(bundle: Bundle, store: Store, precision: Any, within: float) -> None:
    batch = mixed(bundle)
    expected = TorchPredictor(bundle).predict(batch)
    networks = onnx_networks(bundle, precision, RUN, store)
    assert networks.backend == f"onnx-{precision}"
    assert networks.most_rows == {"fp32": 16, "int8": 1}[precision]
    found = NetworkPredictor(bundle, networks).predict(batch)
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=within)
        assert one.unused == other.unused
    assert (found == expected) is False  # another arithmetic


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-6), ("int8", 0.0)])
def test_neighbours_change_no_answer(bundle: Bundle, store: Store, precision: Any, within: float) -> None:
    batch = mixed(bundle)
    made = NetworkPredictor(bundle, onnx_networks(bundle, precision, RUN, store))
    together = made.predict(batch)
    for one, item in zip(together, batch, strict=True):
        (alone,) = made.predict([item])
        assert one.probabilities == pytest.approx(alone.probabilities, abs=within)


def test_bad_input_is_refused_and_the_next_is_answered(bundle: Bundle, store: Store) -> None:
    networks = onnx_networks(bundle, "fp32", RUN, store)
    good = torch.tensor([[5, 6, 7]])
    for ids, mask in ((good.int(), good), (good, good[:, :2]), (good[0], good), (torch.full((1, 3), 10_000), good)):
        with pytest.raises(PredictorError, match="text graph"):
            networks.text(ids, torch.ones_like(mask))
    assert networks.text(good, torch.ones_like(good)).feature.shape == (1, 768)


def test_a_cache_deleted_in_mid_run_changes_nothing_and_is_made_again(tmp_path: Path) -> None:
    bundle = open_bundle(str(make_tiny_bundle(tmp_path / "bundle")))
    store = Store(tmp_path / "cache")
    made = NetworkPredictor(bundle, onnx_networks(bundle, "int8", RUN, store))
    batch = mixed(bundle)
    before = made.predict(batch)
    shutil.rmtree(store.root)
    assert made.predict(batch) == before
    again = NetworkPredictor(bundle, onnx_networks(bundle, "int8", RUN, store))
    assert again.predict(batch) == before
    assert len(store.folders()) == 1


def test_a_damaged_graph_is_named_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = open_bundle(str(make_tiny_bundle(tmp_path / "bundle")))
    store = Store(tmp_path / "cache")
    onnx_networks(bundle, "int8", RUN, store)
    (graph,) = store.root.rglob("text.onnx")
    graph.write_bytes(graph.read_bytes()[:-100])
    caplog.set_level("INFO")
    onnx_networks(bundle, "int8", RUN, store)
    assert "text.onnx is damaged" in caplog.text
    assert "making the text graph of bundle-" in caplog.text


def test_torchs_networks_are_not_loaded_for_graphs_that_are_kept(tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    store = Store(tmp_path / "cache")
    onnx_networks(open_bundle(str(folder)), "fp32", RUN, store)
    bundle = open_bundle(str(folder))
    onnx_networks(bundle, "fp32", RUN, store)
    assert "model" not in vars(bundle)


def test_a_graph_that_onnx_runtime_refuses_is_a_clear_error(tmp_path: Path) -> None:
    graph = tmp_path / "text.onnx"
    graph.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"text\.onnx cannot be loaded"):
        onnx._session(graph, RUN)


NO_ROOM = [
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException("Exception during initialization: std::bad_alloc"),
    onnxruntime.capi.onnxruntime_pybind11_state.Fail("Failed to allocate memory for requested buffer of size 65536"),
    MemoryError(),  # of its bindings, for what they make themselves
]


class Full:
    """A session without room."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, names: object, arrays: object) -> None:
        raise self._error


@pytest.mark.parametrize("error", NO_ROOM, ids=lambda error: type(error).__name__)
def test_no_room_is_told_apart(bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(onnx, "_session", lambda graph, run: Full(error))
    networks = onnx_networks(bundle, "fp32", RUN, store)
    with pytest.raises(OutOfMemory, match="onnx-fp32 has no room for one utterance"):
        NetworkPredictor(bundle, networks).predict(mixed(bundle))


def test_a_graph_without_room_is_no_broken_graph(bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to remove it."""

    def full(*given: object, **named: object) -> None:
        Full(NO_ROOM[0]).run(None, None)

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(OutOfMemory, match=r"text\.onnx: .*bad_alloc; expected memory for it; stop what else"):
        onnx_networks(bundle, "fp32", RUN, store)


def test_auto_on_the_cpu_is_onnx_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "multiplies_bfloat16", lambda: False)
    first, second = choices()
    assert (first.backend, first.precision) == ("onnx", "fp32")
    assert "no GPU" in first.why
    assert (second.backend, second.precision) == ("torch", "fp32")


def test_what_is_asked_for_is_what_there_is() -> None:
    assert choices("torch") == [Choice("torch", "fp32", "as asked")]
    assert choices("onnx", "int8") == [Choice("onnx", "int8", "as asked")]
    with pytest.raises(UsageError, match="cuda"):
        choices("cuda")


def test_what_cannot_run_gives_way_only_where_the_program_chooses(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise EngineError("the graph is odd", "another", "nothing")

    monkeypatch.setattr(predictor, "onnx_networks", broken)
    monkeypatch.setattr(predictor, "multiplies_bfloat16", lambda: False)
    made = EnginePredictor(bundle, choices(), RUN, store)
    assert made.backend == "torch-cpu"
    assert made.choice.backend == "torch"
    assert "onnx in fp32 cannot run here: the graph is odd" in caplog.text
    with pytest.raises(EngineError, match="odd"):
        EnginePredictor(bundle, choices("onnx"), RUN, store)


def test_precisions_that_a_backend_lacks_are_refused(bundle: Bundle, store: Store) -> None:
    with pytest.raises(UsageError, match="bf16 on ONNX Runtime"):
        EnginePredictor(bundle, choices("onnx", "bf16"), RUN, store)
    with pytest.raises(UsageError, match="torch in fp16"):
        EnginePredictor(bundle, choices("torch", "fp16"), RUN, store)


def test_quantising_needs_a_graph(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(np.zeros(9, np.uint8).tobytes())
    with pytest.raises(EngineError, match="cannot be quantised"):
        onnx.quantise(tmp_path / "text.onnx", tmp_path / "out.onnx", signed=True)


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"], "product")


def save_graph(path: Path, nodes: list[Any], weight: NDArray[np.float32]) -> None:
    """A graph from x [1, 64] to y [1, 8] with one weight, w."""
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def answer_of(graph: Path, given: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": given})
    return np.asarray(answer)


@pytest.mark.parametrize("signed", sorted({adds_int8_exactly(), False}))
def test_the_largest_numbers_are_multiplied_as_well_as_others(tmp_path: Path, signed: bool) -> None:
    """With signed weights, AVX2 alone would end at half of this."""
    weight = np.full((64, 8), 1.0, np.float32)
    weight[:, ::2] = -1.0
    weight[0] = 0.5
    save_graph(tmp_path / "one.onnx", [PRODUCT], weight)
    onnx.quantise(tmp_path / "one.onnx", tmp_path / "out.onnx", signed)
    given = np.full((1, 64), 3.0, np.float32)
    np.testing.assert_allclose(answer_of(tmp_path / "out.onnx", given), given @ weight, rtol=0.01)


@pytest.mark.parametrize("signed", sorted({adds_int8_exactly(), False}))
def test_small_numbers_count_beside_large_ones(tmp_path: Path, signed: bool) -> None:
    """In an activation, where rounding by the largest alone would leave none of them, and between outputs."""
    weight = np.ones((64, 8), np.float32) * np.logspace(-6, 1, 8, dtype=np.float32)
    weight[0] = 0.0
    save_graph(tmp_path / "one.onnx", [PRODUCT], weight)
    onnx.quantise(tmp_path / "one.onnx", tmp_path / "out.onnx", signed)
    given = np.full((1, 64), 0.1, np.float32)
    given[0, 0] = 100.0
    np.testing.assert_allclose(answer_of(tmp_path / "out.onnx", given), given @ weight, rtol=0.02)


def test_what_is_no_product_of_a_linear_layer_is_not_rounded(tmp_path: Path) -> None:
    """Attention, whose both sides are activations, and a head, whose row decides the label."""
    weight = np.linspace(-1.0, 1.0, 64 * 8, dtype=np.float32).reshape(64, 8)
    nodes = [
        helper.make_node("Transpose", ["x"], ["z"], "turn"),
        helper.make_node("MatMul", ["x", "z"], ["scores"], "attention"),
        helper.make_node("MatMul", ["scores", "x"], ["seen"], "sum"),
        helper.make_node("Gemm", ["seen", "w"], ["y"], "head"),
    ]
    save_graph(tmp_path / "one.onnx", nodes, weight)
    onnx.quantise(tmp_path / "one.onnx", tmp_path / "out.onnx", signed=False)
    given = np.linspace(-3.0, 5.0, 64, dtype=np.float32)[None]
    np.testing.assert_allclose(answer_of(tmp_path / "out.onnx", given), given @ given.T @ given @ weight, rtol=1e-4)


def test_quantising_says_nothing_and_what_comes_after_is_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_graph(tmp_path / "one.onnx", [PRODUCT], np.ones((64, 8), np.float32))
    onnx.quantise(tmp_path / "one.onnx", tmp_path / "out.onnx", signed=False)
    assert caplog.text == ""
    logging.getLogger("engines.onnx").warning("heard")
    assert caplog.messages == ["heard"]


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    save_graph(tmp_path / "one.onnx", [PRODUCT], np.ones((64, 8), np.float32))
    (tmp_path / "out.onnx").symlink_to("/dev/full")
    with pytest.raises(EngineError, match=r"cannot be quantised: .*No space left on device.*free some space"):
        onnx.quantise(tmp_path / "one.onnx", tmp_path / "out.onnx", signed=False)


def test_the_fusion_is_never_rounded(bundle: Bundle, store: Store) -> None:
    """It is small, and its answer is the last."""
    assert onnx.cached_graph(bundle, "fusion", "int8", store) == onnx.cached_graph(bundle, "fusion", "fp32", store)


def test_a_graph_of_another_processors_int8_is_not_taken(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, made = Store(tmp_path), {}
    for exact in (True, False):
        monkeypatch.setattr("engines.onnx.adds_int8_exactly", lambda exact=exact: exact)
        made[exact] = onnx.cached_graph(bundle, "text", "int8", store)
    assert made[True] != made[False]
    types = {
        exact: {value.data_type for value in load(path).graph.initializer if value.name.endswith("_quantized")}
        for exact, path in made.items()
    }
    assert types == {True: {TensorProto.INT8}, False: {TensorProto.UINT8}}
    # What is not rounded asks for no processor.
    monkeypatch.setattr("engines.onnx.adds_int8_exactly", None)
    assert onnx.cached_graph(bundle, "text", "fp32", store) not in made.values()


def test_a_graph_made_for_another_onnx_runtime_is_not_taken(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = onnx.cached_graph(bundle, "fusion", "fp32", store)
    monkeypatch.setattr(onnxruntime, "__version__", "1.0.0")
    assert onnx.cached_graph(bundle, "fusion", "fp32", store) != made


def test_a_session_has_the_threads_that_were_asked_for_and_they_sleep_while_they_wait(
    bundle: Bundle, store: Store
) -> None:
    """The recognizer and the capture need the cores."""
    session = onnx._session(onnx.cached_graph(bundle, "fusion", "fp32", store), RunSettings(threads=3))
    options = session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependency, match=r"onnx and onnxruntime.*pip install"):
        onnx.quantise(tmp_path / "text.onnx", tmp_path / "out.onnx", signed=True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"onnxruntime cannot be imported.*pip install.*--backend torch"):
        onnx.check_onnx("fp32")


def test_onnx_runtime_reports_to_nobody() -> None:
    """It looks once, when it is imported."""
    script = "import os, sys, engines.onnx; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


@pytest.mark.parametrize(
    ("known", "exact"),
    [
        ({"avx2": True}, False),
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx2": True, "avx512_vnni": True}, True),
        ({"avx2": True, "avx_vnni": True}, True),
        ({"neon": True}, True),
    ],
)
def test_which_processors_add_int8_exactly(
    known: dict[str, bool], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert adds_int8_exactly() is exact
