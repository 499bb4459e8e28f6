"""Lanes of a CUDA device in host memory: shapes and their order, captures, memory that runs out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import engines.cuda
import engines.predictor
from engines.cuda import CudaDevice, CudaNetworks, Inputs, Lane, Outputs, TorchProgram, Work
from engines.export import part_module
from engines.predictor import Choice, EnginePredictor
from engines.shapes import BATCHES, Sizes, bucket, common_shapes, corner, extent
from engines.spec import GraphSpec, Range, RunSettings, TensorSpec, graph_spec
from engines.store import Store
from telme.bundle import Bundle
from telme.errors import EngineError, OutOfMemory, PredictorError
from telme.predictor import TorchNetworks
from tests.engines.fake_cuda import FakeDevice

LIMITS = {"batch": Range(1, 1, 16), "tokens": Range(2, 96, 200)}
# Answers the sum of its real tokens and how many there are; rows are independent.
SPEC = GraphSpec(
    "text",
    tuple(TensorSpec(name, "int64", ("batch", "tokens")) for name in ("ids", "mask")),
    (TensorSpec("sum", "float32", ("batch",)),),
    LIMITS,
)


class Summing:
    """A program that sums; notes the shapes it was made ready for, and may run out of memory."""

    def __init__(self, most_rows: int = 16) -> None:
        self.prepared: list[Sizes | None] = []
        self._most_rows = most_rows

    def work(self, sizes: Sizes | None) -> Work:
        self.prepared.append(sizes)
        return self._sum

    def keep(self) -> None:
        """It compiles nothing."""

    def _sum(self, inputs: Inputs) -> Outputs:
        if len(inputs["ids"]) > self._most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [(inputs["ids"] * inputs["mask"]).sum(1).float()]


def prompts(rows: int, tokens: int) -> dict[str, Tensor]:
    made = {name: torch.ones(rows, tokens, dtype=torch.int64) for name in ("ids", "mask")}
    made["ids"] *= torch.arange(1, rows + 1)[:, None]
    return made


@given(st.integers(1, 16), st.integers(1, 200))
def test_a_bucket_has_room_and_is_one_of_few(rows: int, tokens: int) -> None:
    sizes = bucket({"batch": rows, "tokens": tokens}, LIMITS)
    assert rows <= sizes["batch"] < 2 * rows
    assert sizes["batch"] in BATCHES
    assert tokens <= sizes["tokens"] <= min(tokens + 63, 200)
    assert sizes["tokens"] in (64, 128, 192, 200)


def test_an_utterance_alone_finds_its_shape_ready() -> None:
    ready = common_shapes(LIMITS)
    assert ready == [{"batch": 1, "tokens": tokens} for tokens in (64, 128, 192, 200)]
    assert all(bucket({"batch": 1, "tokens": tokens}, LIMITS) in ready for tokens in range(1, 201))
    assert common_shapes({**LIMITS, "tokens": Range(2, 96, 128)}) == ready[:2]
    assert common_shapes({"batch": Range(1, 1, 16)}) == [{"batch": 1}]
    assert common_shapes({"batch": Range(1, 1, 16), "samples": Range(400, 16000, 400_000)}) == []


def test_an_input_lies_at_the_top_and_at_the_right() -> None:
    sizes = {"batch": 2, "tokens": 3}
    assert extent(TensorSpec("x", "float32", ("batch", "tokens", 8)), sizes) == (2, 3, 8)
    assert corner(SPEC.inputs[0], sizes) == (slice(0, 2), slice(-3, None))
    assert corner(TensorSpec("x", "float32", ("batch", 8)), {"batch": 2}) == (slice(0, 2), slice(None))


@pytest.mark.parametrize("graphs", [True, False])
def test_every_size_is_answered_whatever_was_there_before(graphs: bool) -> None:
    lane = Lane(SPEC, Summing(), FakeDevice(), graphs)
    for rows, tokens in ((16, 200), (3, 5), (1, 64), (4, 7), (3, 2)) * 3:  # launched, captured, replayed
        (answer,) = lane.run(prompts(rows, tokens))
        assert answer.tolist() == [tokens * row for row in range(1, rows + 1)]


def test_answers_stay_when_the_next_ones_come() -> None:
    lane = Lane(SPEC, Summing(), FakeDevice(), graphs=True)
    lane.run(prompts(2, 7))
    (first,) = lane.run(prompts(2, 5))
    (second,) = lane.run(prompts(2, 9))
    assert (first.tolist(), second.tolist()) == ([5, 10], [9, 18])


def test_a_shape_is_captured_when_it_comes_again_and_once() -> None:
    device, program = FakeDevice(), Summing()
    lane = Lane(SPEC, program, device, graphs=True)
    for tokens in (3, 60, 100, 1, 99):
        lane.run(prompts(2, tokens))
    assert [event for event in device.events if "captured" in event or "replayed" in event] == [
        "captured on stream1",
        "replayed on stream1",
        "replayed on stream1",
        "captured on stream1",
        "replayed on stream1",
    ]
    assert program.prepared == [{"batch": 2, "tokens": 64}, {"batch": 2, "tokens": 128}]
    # The staged inputs of a run are sent before those of the next are written over them.
    assert device.events.count("inputs of stream1 sent") == 5
    assert device.events.count("caller waits for stream1") == 5


def test_an_utterance_alone_is_captured_before_it_comes() -> None:
    device = FakeDevice()
    lane = Lane(SPEC, Summing(), device, graphs=True)
    lane.warm()
    ready = [event for event in device.events if "captured" in event]
    assert len(ready) == len(common_shapes(LIMITS))
    lane.run(prompts(1, 70))
    assert [event for event in device.events if "captured" in event or "replayed" in event] == [
        *ready,
        "replayed on stream1",
    ]


def test_wrong_input_is_refused_before_it_reaches_the_device() -> None:
    device = FakeDevice()
    lane = Lane(SPEC, Summing(), device, graphs=True)
    with pytest.raises(PredictorError, match=r"ids float32 \[1, 9\]"):
        lane.run({"ids": torch.ones(1, 9), "mask": torch.ones(1, 9, dtype=torch.int64)})
    assert device.events == []


@pytest.mark.parametrize("graphs", [True, False])
def test_no_room_is_told_as_such_and_a_smaller_batch_goes_on(graphs: bool) -> None:
    lane = Lane(SPEC, Summing(most_rows=4), FakeDevice(), graphs)
    with pytest.raises(OutOfMemory, match=r"text network at .*'batch': 9.*out of memory"):
        lane.run(prompts(9, 5))
    assert lane.run(prompts(4, 5))[0].tolist() == [5, 10, 15, 20]


def test_weights_without_room_are_told_as_such() -> None:
    """So that the program may choose another backend."""

    class Large(nn.Module):
        def to(self, *place: object) -> Large:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(OutOfMemory, match="no room on cpu for a network's weights: CUDA out of memory"):
        TorchProgram(Large(), torch.device("cpu"))


def test_a_network_that_cannot_be_run_is_an_error_of_the_start() -> None:
    """So that the program may choose another backend."""

    class Broken(Summing):
        def _sum(self, inputs: Inputs) -> Outputs:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    with pytest.raises(EngineError, match=r"text network at .*'tokens': 64.* cannot be made ready.*no kernel image"):
        Lane(SPEC, Broken(), FakeDevice(), graphs=True).warm()
    Lane(SPEC, Broken(), FakeDevice(), graphs=False).warm()


class Uncapturable(FakeDevice):
    """A device that records nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def capture(self, stream: str, pool: None, work: object) -> NoReturn:
        self.events.append("capture")
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing"),
        PredictorError("the text plan refused it: operation not permitted when stream is capturing", "an answer", "-"),
    ],
)
def test_what_cannot_be_captured_runs_slower_and_says_so_once(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    device = Uncapturable(error)
    lane = Lane(SPEC, Summing(), device, graphs=True)
    lane.warm()
    for rows, tokens in ((1, 5), (3, 100), (3, 90), (1, 200)):
        (answer,) = lane.run(prompts(rows, tokens))
        assert answer.tolist() == [tokens * row for row in range(1, rows + 1)]
    assert device.events.count("capture") == 1
    assert len(caplog.messages) == 1
    assert "text network at {'batch': 1, 'tokens': 64} cannot be captured and runs slower: " in caplog.text
    assert "operation not permitted when stream is capturing" in caplog.text


def test_a_capture_without_room_is_told_as_such() -> None:
    device = Uncapturable(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(OutOfMemory, match=r"text network at .*'tokens': 64.*out of memory"):
        Lane(SPEC, Summing(), device, graphs=True).warm()


class Filling(FakeDevice):
    """A device that has room for one recording."""

    def capture(self, stream: str, pool: None, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        if self.events:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().capture(stream, pool, work)


def test_what_had_no_room_gives_its_memory_back_before_the_next_is_tried(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reference = TorchNetworks(bundle.model)
    held: list[weakref.ref[TorchProgram]] = []

    def no_room(given: Bundle, *_: object) -> CudaNetworks:
        program = TorchProgram(part_module(given, "text", "fp32"), FakeDevice.place)
        held.append(weakref.ref(program))
        return CudaNetworks(given, {"text": program}, Filling(), "tensorrt", graphs=True)

    def next_one(*_: object) -> TorchNetworks:
        assert held[0]() is None
        return reference

    monkeypatch.setattr(engines.predictor, "tensorrt_networks", no_room)
    monkeypatch.setattr(engines.predictor, "torch_networks", next_one)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ranked = [Choice("tensorrt", "fp16", "-"), Choice("torch", "fp16", "-")]
    gc.disable()
    try:
        made = EnginePredictor(bundle, ranked, RunSettings(), Store(tmp_path))
    finally:
        gc.enable()
    assert made.choice.backend == "torch"


def test_what_is_captured_has_run_before(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers leaves out a mask that hides nothing, except in a capture: other kernels, not chosen before."""
    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    attention = functional.scaled_dot_product_attention

    def noted(*given: Any, **named: Any) -> Tensor:
        seen[torch.cuda.is_current_stream_capturing()].add(named.get("attn_mask") is not None)
        return attention(*given, **named)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", noted)
    program = TorchProgram(part_module(bundle, "text", "fp32"), FakeDevice.place)
    lane = Lane(graph_spec(bundle.config, "text"), program, FakeDevice(), graphs=True)
    lane.warm()
    assert seen == {True: {True}, False: {True}}


def test_a_recording_that_cannot_be_ended_leaves_stream_and_allocator_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As torch's own does: its end raises before it has given back the stream and stopped the allocator."""
    now, done = ["callers"], list[Any]()

    class Stream:
        def __init__(self, stream: str) -> None:
            self._stream, self._before = stream, ""

        def __enter__(self) -> None:
            self._before, now[0] = now[0], self._stream

        def __exit__(self, *error: object) -> None:
            now[0] = self._before

    class Graph:
        def __init__(self, graph: object, pool: object, stream: str, capture_error_mode: str) -> None:
            done.append(capture_error_mode)
            self._stream = stream

        def __enter__(self) -> None:
            now[0] = self._stream

        def __exit__(self, *error: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(engines.cuda, "need_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", Stream)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *given: done.append(given))
    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaDevice().capture("lanes", (0, 1), list)  # type: ignore[arg-type]
    assert now == ["callers"]
    assert done == ["thread_local", (0, (0, 1))]
