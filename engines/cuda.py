"""Networks on a CUDA device: what TensorRT and torch share there, and torch's own.

Each network has a lane: a stream of its own, so that the encoders run beside one another, pinned and device buffers
made beforehand, and the work of each shape (`engines.shapes`) captured once as a CUDA graph and replayed. Where shapes
are an open set, the work is launched kernel by kernel.

Shapes: B utterances, T tokens, S samples, F video frames, D = 768 feature, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engines.export import part_module, sdpa_timesformer
from engines.networks import GraphNetworks
from engines.shapes import BATCHES, OPEN, Sizes, bucket, common_shapes, corner, extent
from engines.spec import GraphSpec, Precision, RunSettings, graph_spec
from telme.bundle import Bundle
from telme.config import Part
from telme.errors import EngineError, PredictorError
from telme.memory import lacks_memory, memory_needed

_DTYPES = {"int64": torch.int64, "float32": torch.float32, "bool": torch.bool}

_log = logging.getLogger(__name__)

Inputs = Mapping[str, Tensor]
Outputs = Sequence[Tensor]
# Launches a network on the current stream: device tensors in, device tensors out.
Work = Callable[[Inputs], Outputs]


class Program(Protocol):
    """A network that can be made ready for shapes."""

    def work(self, sizes: Sizes | None) -> Work:
        """The network for exactly one shape, which is to be captured; or, for None, for whatever shapes come."""
        ...

    def keep(self) -> None:
        """Keep what has been compiled for the shapes so far, for the next start.

        Raises:
            EngineError: It cannot be kept.
        """
        ...


class Device(Protocol):
    """What lanes need of a CUDA device; `CudaDevice` in earnest."""

    @property
    def place(self) -> torch.device: ...
    def stream(self) -> Any: ...
    def current(self) -> int: ...
    def on(self, stream: Any) -> AbstractContextManager[Any]: ...
    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...
    def wait_for_caller(self, stream: Any) -> None: ...
    def let_caller_wait(self, stream: Any, outputs: Outputs) -> None: ...
    def mark(self, stream: Any) -> Callable[[], None]: ...
    def pool(self) -> Any: ...
    def capture(self, stream: Any, pool: Any, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]: ...


class CudaDevice:
    """The first device that torch.cuda sees; CUDA_VISIBLE_DEVICES chooses another one.

    Raises:
        EngineError: torch sees none.
    """

    def __init__(self) -> None:
        need_gpu()
        self.place = torch.device("cuda", 0)

    def stream(self) -> torch.cuda.Stream:
        """A new stream."""
        return torch.cuda.Stream(self.place)  # type: ignore[no-untyped-call]

    def current(self) -> int:
        """CUDA's handle of the current stream."""
        return int(torch.cuda.current_stream(self.place).cuda_stream)

    def on(self, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
        """Make a stream the current one."""
        return torch.cuda.stream(stream)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory that the device reads without the processor's help."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def wait_for_caller(self, stream: torch.cuda.Stream) -> None:
        """What is launched on the stream from now on waits for what the caller has launched so far."""
        stream.wait_stream(torch.cuda.current_stream(self.place))

    def let_caller_wait(self, stream: torch.cuda.Stream, outputs: Outputs) -> None:
        """What the caller launches from now on waits for the stream; the outputs' memory lives until that is done."""
        caller = torch.cuda.current_stream(self.place)
        caller.wait_stream(stream)
        for output in outputs:
            output.record_stream(caller)

    def mark(self, stream: torch.cuda.Stream) -> Callable[[], None]:
        """Returns what waits until all that has been launched on the stream so far is done."""
        waits: Callable[[], None] = stream.record_event().synchronize
        return waits

    def pool(self) -> Any:
        """Memory that graphs may share which never run at the same time."""
        return torch.cuda.graph_pool_handle()

    def capture(
        self, stream: torch.cuda.Stream, pool: Any, work: Callable[[], Outputs]
    ) -> tuple[Callable[[], None], Outputs]:
        """Record work as a CUDA graph; returns what replays it on the current stream, and where its outputs appear.

        Raises:
            RuntimeError: It cannot be recorded; the current stream and the allocator are as before.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # Where torch cannot end a recording, its stream stays the current one: `on` puts that right.
            with self.on(stream), torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                outputs = work()
        except RuntimeError:
            # And its allocator goes on recording: no output's memory would come free again.
            with suppress(RuntimeError, AttributeError):  # it does not; a torch before 2.8 has another name for it
                torch._C._cuda_endAllocateToPool(self.place.index, pool)
            raise
        return graph.replay, outputs


def need_gpu() -> None:
    """Check that torch sees a CUDA device.

    Raises:
        EngineError: It was built without CUDA, or sees none.
    """
    if torch.cuda.is_available():
        return
    remedy = "use --backend onnx or torch here, or a machine with an NVIDIA GPU and its driver"
    if torch.version.cuda is None:
        raise EngineError(f"torch {torch.__version__} was built without CUDA", "torch for a GPU, and a GPU", remedy)
    raise EngineError(f"torch {torch.__version__} sees no CUDA device", "a GPU and its driver", remedy)


class Lane:
    """One network on a stream of its own.

    A shape of an utterance alone is captured at the start, another one when it comes for the second time. What cannot
    be captured costs speed only: that shape and those after it are launched kernel by kernel, and the log says why.

    Args:
        spec: Its interface.
        program: The network.
        device: Where.
        graphs: Whether to capture.
    """

    def __init__(self, spec: GraphSpec, program: Program, device: Device, graphs: bool) -> None:
        self.spec = spec
        self.program = program
        self.device = device
        self.stream = device.stream()
        self.pool = device.pool()
        self._captures = graphs and OPEN not in spec.limits
        self._slots: dict[tuple[int, ...], _Slot] = {}
        self._any_shape = None if self._captures else program.work(None)

    def warm(self) -> None:
        """Make the shapes of one utterance alone ready.

        Raises:
            OutOfMemory: The device has no room.
            EngineError: The network cannot be run.
        """
        for sizes in common_shapes(self.spec.limits) if self._captures else ():
            try:
                with memory_needed(self._at(sizes), self.device.place):
                    slot = _Slot(self, sizes)
                    self._ready(slot, sizes)
                    self._slots[self._key(sizes)] = slot
            except RuntimeError as error:
                raise EngineError(
                    f"{self._at(sizes)} cannot be made ready on {self.device.place}: {error}",
                    "a network that CUDA runs",
                    "use another --backend, and report this",
                ) from error

    def run(self, inputs: Inputs) -> Outputs:
        """Launch the network; the caller's stream waits for its outputs.

        Args:
            inputs: By name, on the CPU or on the device.

        Raises:
            PredictorError: An input has another type or shape than the graph takes.
            OutOfMemory: The device has no room.
        """
        sizes = self.spec.sizes(inputs)
        if any(tensor.device.type != "cpu" for tensor in inputs.values()):
            self.device.wait_for_caller(self.stream)
        with memory_needed(self._at(sizes), self.device.place), self.device.on(self.stream):
            if self._any_shape is None:
                outputs = self._at_shape(bucket(sizes, self.spec.limits), inputs, sizes)
            else:
                outputs = self._any_shape({name: self._sent(tensor) for name, tensor in inputs.items()})
        self.device.let_caller_wait(self.stream, outputs)
        return outputs

    def _sent(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu":
            return tensor
        staged = self.device.pinned(tensor.shape, tensor.dtype)
        return staged.copy_(tensor).to(self.device.place, non_blocking=True)

    def _at_shape(self, shape: Sizes, inputs: Inputs, sizes: Sizes) -> Outputs:
        slot = self._slots.get(self._key(shape))
        if slot is None:
            slot = _Slot(self, shape)
        else:
            self._ready(slot, shape)
        outputs = slot.run(inputs, sizes)
        self._slots[self._key(shape)] = slot  # not before: one without room is not kept
        return outputs

    def _key(self, shape: Sizes) -> tuple[int, ...]:
        return tuple(shape[name] for name in self.spec.limits)

    def _ready(self, slot: _Slot, sizes: Sizes) -> None:
        """Capture a slot's work, where that is possible and not done."""
        if slot.captured or not self._captures:
            return
        slot.rehearse()
        try:
            slot.capture()
        except (RuntimeError, PredictorError) as error:
            if lacks_memory(error):
                raise
            self._captures = False
            reason = " ".join(str(error).split())
            _log.warning("%s cannot be captured and runs slower: %s", self._at(sizes), reason)
            slot.rehearse()
            self.device.mark(self.stream)()  # a device that is lost says so here

    def _at(self, sizes: Sizes) -> str:
        return f"the {self.spec.part} network at {dict(sizes)}"


class _Slot:
    """A network's buffers and work at one shape, captured or not.

    Attributes:
        captured: Whether the work is replayed.
    """

    def __init__(self, lane: Lane, sizes: Sizes) -> None:
        self._lane = lane
        device = lane.device
        shapes = {tensor.name: (extent(tensor, sizes), _DTYPES[tensor.dtype]) for tensor in lane.spec.inputs}
        self._staged = {name: device.pinned(shape, dtype) for name, (shape, dtype) in shapes.items()}
        with device.on(lane.stream):
            self._buffers = {
                name: torch.ones(shape, dtype=dtype, device=device.place) for name, (shape, dtype) in shapes.items()
            }
        self._work = lane.program.work(sizes)  # owns what the captured kernels use
        self._launch: Callable[[], Outputs] = lambda: self._work(self._buffers)
        self._sent = device.mark(lane.stream)
        self.captured = False

    def rehearse(self) -> None:
        """Run as a capture does: the first run allocates and chooses kernels, which cannot be captured.

        A prompt's first token is hidden, since transformers leaves out a mask that hides nothing, but not in a capture.
        """
        with self._lane.device.on(self._lane.stream):
            for tensor in self._lane.spec.inputs:
                if "tokens" in tensor.shape:
                    self._buffers[tensor.name][:, 0] = 0
            self._work(self._buffers)

    def capture(self) -> None:
        """Record the work, which is replayed from now on.

        Raises:
            RuntimeError: It cannot be recorded.
        """
        lane = self._lane
        again, outputs = lane.device.capture(lane.stream, lane.pool, lambda: self._work(self._buffers))

        def launch() -> Outputs:
            again()
            return outputs

        self._launch, self.captured = launch, True

    def run(self, inputs: Inputs, sizes: Sizes) -> Outputs:
        """Fill the buffers and launch; rows beyond the inputs' hold what they held, and nobody reads their answers."""
        self._sent()  # else the last inputs could be overwritten on their way
        for tensor in self._lane.spec.inputs:
            given, buffer = inputs[tensor.name], self._buffers[tensor.name]
            if given.device.type != "cpu":
                buffer[corner(tensor, sizes)] = given
                continue
            staged = self._staged[tensor.name]
            if "tokens" in tensor.shape:
                staged.zero_()
            staged[corner(tensor, sizes)] = given
            buffer.copy_(staged, non_blocking=True)
        self._sent = self._lane.device.mark(self._lane.stream)
        # Copies, since the next replay overwrites them.
        return [output[: sizes["batch"]].clone() for output in self._launch()]


class CudaNetworks(GraphNetworks):
    """A bundle's networks on a CUDA device, each on its lane.

    Args:
        bundle: Gives the interfaces.
        programs: Its parts on the device.
        device: Where.
        backend: What runs them.
        graphs: Whether to capture CUDA graphs.
    """

    def __init__(
        self, bundle: Bundle, programs: Mapping[Part, Program], device: Device, backend: str, graphs: bool
    ) -> None:
        lanes = {
            part: Lane(graph_spec(bundle.config, part), program, device, graphs) for part, program in programs.items()
        }
        for lane in lanes.values():
            lane.warm()
        super().__init__(backend, BATCHES[-1], bundle.config, {part: lane.run for part, lane in lanes.items()})
        self._keeping = list(programs.values())

    def keep(self) -> None:
        """Keep what has been compiled so far, for the next start; where that fails, say so once and do without."""
        try:
            for program in self._keeping:
                program.keep()
        except EngineError as error:
            self._keeping = []
            _log.warning("%s; the next start compiles for the GPU again; %s", error.seen, error.remedy)


class TorchProgram:
    """A part under torch, in half precision or not.

    Raises:
        OutOfMemory: The device has no room for its weights.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        with memory_needed("a network's weights", device):
            self._module = module.to(device)

    def work(self, sizes: Sizes | None) -> Work:
        """See Program: torch runs at any shape."""
        return self._run

    def keep(self) -> None:
        """Nothing is compiled."""

    def _run(self, inputs: Inputs) -> Outputs:
        with torch.inference_mode(), sdpa_timesformer():
            outputs: Outputs = self._module(*inputs.values())
        return outputs


def torch_networks(
    bundle: Bundle, precision: Precision, run: RunSettings, device: Device | None = None
) -> CudaNetworks:
    """The networks under torch on CUDA: fused attention, CUDA graphs; where TensorRT cannot run.

    Raises:
        EngineError: There is no GPU, or torch has no such precision.
        OutOfMemory: The device has no room for them.
    """
    where = CudaDevice() if device is None else device
    programs: dict[Part, Program] = {
        part: TorchProgram(part_module(bundle, part, precision), where.place) for part in bundle.config.parts
    }
    return CudaNetworks(bundle, programs, where, f"torch-cuda-{precision}", run.cuda_graphs)
