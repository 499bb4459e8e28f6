"""A CUDA device and a TensorRT engine in host memory: what lanes and plans do with them is done and noted."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engines.cuda import Outputs
from engines.spec import GraphSpec, Profile

_OF_THE_HOST = (
    *(torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor),
    *(Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
)


class FakeDevice:
    """Host memory as a device.

    Attributes:
        events: What was asked of it, in order.
    """

    place = torch.device("cpu")

    def __init__(self) -> None:
        self.events: list[str] = []
        self._streams = 0
        self._now = "caller"

    def stream(self) -> str:
        self._streams += 1
        return f"stream{self._streams}"

    def current(self) -> int:
        return int(self._now.removeprefix("stream"))

    def on(self, stream: str) -> AbstractContextManager[Any]:
        return self._on(stream)

    @contextmanager
    def _on(self, stream: str) -> Any:
        before, self._now = self._now, stream
        try:
            yield
        finally:
            self._now = before

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        # What memory that nobody cleared may hold.
        return (
            torch.full(tuple(shape), 7, dtype=dtype) if dtype != torch.float32 else torch.full(tuple(shape), torch.nan)
        )

    def wait_for_caller(self, stream: str) -> None:
        self.events.append(f"{stream} waits for caller")

    def let_caller_wait(self, stream: str, outputs: Outputs) -> None:
        self.events.append(f"caller waits for {stream}")

    def mark(self, stream: str) -> Callable[[], None]:
        return lambda: self.events.append(f"inputs of {stream} sent")

    def pool(self) -> None:
        return None

    def capture(self, stream: str, pool: None, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """As a CUDA graph: work runs again on the same inputs, and its outputs stay where they were."""
        with (
            self.on(stream),
            patch.object(torch.cuda, "is_current_stream_capturing", return_value=True),
            _NothingOfTheHost(),
        ):
            outputs = work()
        self.events.append(f"captured on {stream}")

        def replay() -> None:
            assert self._now == stream
            for output, new in zip(outputs, work(), strict=True):
                output.copy_(new)
            self.events.append(f"replayed on {stream}")

        return replay, outputs


class _NothingOfTheHost(TorchFunctionMode):
    """Refuses what CUDA refuses while a graph is recorded: numbers that come from the host, or go to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OF_THE_HOST:
            raise RuntimeError(f"{func.__name__}: operation not permitted when stream is capturing")
        return func(*args, **(kwargs or {}))


class FakeContext:
    """An execution context that reads and writes the addresses it is given, by running a torch module."""

    def __init__(self, engine: FakeEngine, settings: Any) -> None:
        self._engine = engine
        self._settings = weakref.ref(settings)
        kernels = getattr(settings, "kernels", None)
        self._kernels = FakeRuntimeCache() if kernels is None else kernels
        self.active_optimization_profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        self._memory = memory

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream > 0
        self.active_optimization_profile = profile
        self._engine.profiles_set.append(profile)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = self._engine.profiles[self.active_optimization_profile]
        spec = next(tensor for tensor in self._engine.spec.inputs if tensor.name == name)
        self._shapes[name] = shape
        return all(
            profile[dimension].least <= size <= profile[dimension].most if isinstance(dimension, str) else True
            for size, dimension in zip(shape, spec.shape, strict=True)
        )

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self._engine.refusal:
            self._engine.log(self._engine.refusal)
            return False
        assert stream > 0
        assert self._memory
        assert self._settings() is not None, "a context uses its settings for as long as it lives"
        spec = self._engine.spec
        needed = f"{spec.part} {sorted(self._shapes.items())}"
        if needed not in self._kernels.names:
            self._engine.compiled.append(needed)
            self._kernels.names.append(needed)
        inputs = [
            _at(self._addresses[tensor.name], self._shapes[tensor.name], getattr(torch, tensor.dtype))
            for tensor in spec.inputs
        ]
        with torch.inference_mode():
            answers = self._engine.module(*inputs)
        for tensor, answer in zip(spec.outputs, answers, strict=True):
            _at(self._addresses[tensor.name], tuple(answer.shape), torch.float32).copy_(answer)
        return True


class FakeRuntimeCache:
    """Names of kernels, one a shape.

    Attributes:
        names: What has been compiled or read.
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    def serialize(self) -> bytes:
        return "\n".join(self.names).encode()

    def deserialize(self, blob: bytes) -> bool:
        self.names += blob.decode().splitlines()
        return True


class FakeRuntimeConfig:
    """Settings of a context, as TensorRT-RTX has them; `kernels` is what its context will use."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.kernels: FakeRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._engine.strategies.append(strategy)

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.kernels = cache
        return True


class FakeEngine:
    """A plan's engine that is a torch module.

    Attributes:
        compiled: The kernels that were compiled when it ran.
        settings: What makes a context's settings.
    """

    device_memory_size_v2 = 4096

    def __init__(self, spec: GraphSpec, profiles: Sequence[Profile], module: nn.Module) -> None:
        self.spec, self.profiles, self.module = spec, profiles, module
        self.profiles_set: list[int] = []
        self.strategies: list[str] = []
        self.compiled: list[str] = []
        self.settings: Callable[[FakeEngine], Any] = FakeRuntimeConfig
        self.refusal = ""
        self.no_context = False
        self.log: Callable[[str], None] = lambda message: None

    def create_runtime_config(self) -> Any:
        return self.settings(self)

    def create_execution_context(self, settings: Any) -> FakeContext | None:
        if self.no_context:
            self.log("Requested amount of GPU memory could not be allocated: out of memory")
            return None
        self.strategies.append(settings.dynamic_shapes_kernel_specialization_strategy)
        return FakeContext(self, settings)


def _at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor that lies at an address."""
    count = torch.Size(shape).numel()
    size = count * torch.empty(0, dtype=dtype).element_size()
    memory = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(memory, dtype=dtype, count=count).reshape(shape)
