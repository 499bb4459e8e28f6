"""TensorRT plans on CUDA; beside `engines.kernels` the only file that touches TensorRT at run time.

A plan runs where TensorRT says that it does: its own check of the plan's header is asked first and never overruled.
Each captured shape has an execution context of its own, because a context's state belongs to what was captured; the
contexts of a plan share their scratch memory, which is safe because a network has one stream.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from engines.build import Toolkit, build_tiny_plan, cached_plan, carried_plan, gpu_name, make_logger, toolkit
from engines.cuda import CudaDevice, CudaNetworks, Device, Inputs, Outputs, Program, Work
from engines.kernels import Kernels
from engines.shapes import Sizes, extent
from engines.spec import BuildSettings, GraphSpec, Precision, Profile, RunSettings, default_profiles, graph_spec
from engines.store import Store
from telme.bundle import Bundle
from telme.config import Part
from telme.errors import EngineError, OutOfMemory, PredictorError, UsageError
from telme.memory import memory_needed

_log = logging.getLogger(__name__)

# What TensorRT-RTX finds in a plan's header -> what to do about it; where it finds several things, the first counts.
_REMEDIES = {
    "CUDA_ERROR": "install the GPU's driver, or use --backend onnx",
    "UNSUPPORTED_CC": "use --backend torch on this GPU, or install tensorrt instead of tensorrt-rtx",
    "OLD_CUDA_DRIVER": "update the GPU's driver",
    "OLD_CUDA_RUNTIME": "update tensorrt-rtx and torch",
    "INSUFFICIENT_GPU_MEMORY": "free GPU memory, or take a smaller --bundle",
    "VERSION_MISMATCH": "run telme-stream engines build",
    "MALFORMED_ENGINE": "run telme-stream engines build",
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
_NO_ROOM = ("out of memory", "outofmemory", "memory allocation")


class Plan:
    """A loaded plan.

    Args:
        tensorrt: What loads it: the version that built it.
        file: The plan.

    Attributes:
        file: The plan.
        kernels: What is compiled when it runs.

    Raises:
        EngineError: It cannot run here, and why.
    """

    def __init__(self, tensorrt: Toolkit, file: Path) -> None:
        self.tensorrt = tensorrt
        self.file = file
        self.log = make_logger(tensorrt.api)
        self._settings: list[Any] = []  # of the contexts, which use them for as long as they live
        self.kernels = Kernels(tensorrt, file, self.log)
        self._runtime = tensorrt.api.Runtime(self.log)
        try:
            content = file.read_bytes()  # whole: what happens to the cache later does not matter
        except OSError as error:
            raise EngineError(f"{file} cannot be read: {error}", "the plan that was cached", "run it again") from error
        self._check_header(file, content)
        self.engine = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise EngineError(
                f"{tensorrt.name} {tensorrt.version} cannot load {file}: {self.log.last()}",
                "a plan that it built, and a GPU with its driver",
                "run telme-stream doctor, then telme-stream engines build",
            )

    def _check_header(self, file: Path, content: bytes) -> None:
        trt = self.tensorrt.api
        if not hasattr(trt, "EngineValidity"):  # tensorrt itself checks when it loads
            return
        validity, found = self._runtime.get_engine_validity(content[: self._runtime.engine_header_size])
        faults = faults_named(int(found), trt.EngineInvalidityDiagnostics.__members__)
        if validity == trt.EngineValidity.INVALID:
            raise EngineError(
                f"{self.tensorrt.name} {self.tensorrt.version} says that {file} cannot run here:"
                f" {', '.join([*faults, self.log.last()])}",
                "a plan for this GPU, driver and version",
                next((remedy for name, remedy in _REMEDIES.items() if name in faults), _REMEDIES["CUDA_ERROR"]),
            )
        if validity == trt.EngineValidity.SUBOPTIMAL:
            _log.warning("%s runs here, but not at its best, says %s", file, self.tensorrt.name)

    def context(self, captured: bool) -> Any:
        """A new execution context without scratch memory.

        Args:
            captured: Kernels are chosen at once and for good; otherwise TensorRT-RTX may compile better ones meanwhile.

        Raises:
            OutOfMemory: The device has no room for it.
        """
        trt = self.tensorrt.api
        settings = self.engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            settings.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if captured else strategies.LAZY
        self.kernels.attach(settings)
        self._settings.append(settings)
        made = self.engine.create_execution_context(settings)
        if made is None:
            raise OutOfMemory(
                f"no execution context: {self.log.last()}", "free GPU memory", "stop what else uses the GPU"
            )
        return made


def faults_named(found: int, flags: Mapping[str, Any]) -> list[str]:
    """The names of the flags that are set."""
    return [name for name, flag in flags.items() if found & int(flag)]


def choose_profile(profiles: Sequence[Profile], sizes: Sizes) -> int:
    """Index of the narrowest profile that takes these sizes.

    Raises:
        PredictorError: None does.
    """
    fitting = {
        index: math.prod(size.most for size in profile.values())
        for index, profile in enumerate(profiles)
        if all(profile[name].least <= size <= profile[name].most for name, size in sizes.items())
    }
    if not fitting:
        known = "; ".join(
            ", ".join(f"{name} {size.least}..{size.most}" for name, size in profile.items()) for profile in profiles
        )
        seen = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise PredictorError(f"an input of {seen}", f"sizes of one of the plan's profiles: {known}", "report this")
    return min(fitting, key=fitting.__getitem__)


class PlanProgram:
    """A plan as a lane runs it.

    Args:
        plan: The plan.
        spec: Its interface.
        profiles: Those that it was built with, in that order.
        device: Where it was loaded.

    Raises:
        OutOfMemory: The device has no room for its scratch memory.
    """

    def __init__(self, plan: Plan, spec: GraphSpec, profiles: Sequence[Profile], device: Device) -> None:
        self._plan = plan
        self._spec = spec
        self._profiles = profiles
        self._device = device
        size = max(plan.engine.device_memory_size_v2, 1)
        with memory_needed(f"{size} bytes of the {spec.part} plan", device.place):
            self._scratch = torch.empty(size, dtype=torch.uint8, device=device.place)

    def work(self, sizes: Sizes | None) -> Work:
        """See Program."""
        context = self._plan.context(captured=sizes is not None)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        # In this order: the context is let go of before the plan, whose kernels it uses.
        return partial(PlanProgram._launch, self, context)

    def keep(self) -> None:
        """See Program."""
        self._plan.kernels.keep()

    def _launch(self, context: Any, inputs: Inputs) -> Outputs:
        sizes = self._spec.sizes(inputs)
        stream = self._device.current()
        profile = choose_profile(self._profiles, sizes)
        if context.active_optimization_profile != profile:
            self._done(context.set_optimization_profile_async(profile, stream), f"profile {profile}")
        outputs = [
            torch.empty(extent(tensor, sizes), dtype=torch.float32, device=self._device.place)
            for tensor in self._spec.outputs
        ]
        for tensor in self._spec.inputs:
            shape = extent(tensor, sizes)
            self._done(context.set_input_shape(tensor.name, shape), f"{tensor.name} {list(shape)}")
        for name, memory in bindings(self._spec, inputs, outputs):
            self._done(context.set_tensor_address(name, memory.data_ptr()), f"the address of {name}")
        self._done(context.execute_async_v3(stream), f"{dict(sizes)}")
        return outputs

    def _done(self, worked: bool, what: str) -> None:
        if worked:
            return
        said = self._plan.log.last()
        seen = f"the {self._spec.part} plan refused {what}: {said}"
        if any(words in said.lower() for words in _NO_ROOM):
            raise OutOfMemory(seen, "free GPU memory", "stop what else uses the GPU")
        raise PredictorError(seen, "an answer", "run telme-stream engines verify and report this")


def bindings(spec: GraphSpec, inputs: Inputs, outputs: Iterable[Tensor]) -> list[tuple[str, Tensor]]:
    """Every tensor of a graph with its memory.

    Raises:
        PredictorError: An input's memory has gaps, which TensorRT would read as data.
    """
    given = [(tensor.name, inputs[tensor.name]) for tensor in spec.inputs]
    gaps = [name for name, tensor in given if not tensor.is_contiguous()]
    if gaps:
        raise PredictorError(f"{', '.join(gaps)} with gaps in memory", "contiguous tensors", "report this")
    return [*given, *((tensor.name, output) for tensor, output in zip(spec.outputs, outputs, strict=True))]


def check_precision(precision: Precision) -> None:
    """Check that there are plans in a precision.

    Raises:
        UsageError: There are none.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision} on TensorRT", f"one of {', '.join(PRECISIONS)}", "choose another")


def check_runs_here(tensorrt: Toolkit) -> None:
    """Build and load the smallest plan there is, before minutes are spent on those that are needed.

    Raises:
        EngineError: TensorRT does not run here, and why.
    """
    try:
        with TemporaryDirectory() as folder:
            plan = Path(folder) / "tiny.plan"
            build_tiny_plan(tensorrt, plan)
            Plan(tensorrt, plan)
    except OSError as error:
        raise EngineError(
            f"{tensorrt.name} cannot be tried out: {error}",
            "a temporary folder with room",
            "free some space, or let TMPDIR name a folder elsewhere",
        ) from error


def load_carried(store: Store, tensorrt: Toolkit, bundle: Bundle, part: Part, settings: BuildSettings) -> Plan | None:
    """The plan that was compiled without a GPU, loaded; None where there is none, or it does not run on this one."""
    file = carried_plan(store, tensorrt, bundle, part, settings)
    if file is None:
        return None
    try:
        return Plan(tensorrt, file)
    except EngineError as error:
        _log.warning("%s; the %s plan is compiled for %s", error.seen, part, gpu_name())
        return None


def tensorrt_networks(
    bundle: Bundle,
    precision: Precision,
    run: RunSettings,
    store: Store,
    device: Device | None = None,
) -> CudaNetworks:
    """The networks as TensorRT plans, built now if the cache has none.

    Raises:
        UsageError: There is no such precision.
        EngineError: There is no GPU, or a plan cannot be built, cached or loaded.
        MissingDependency: TensorRT is not installed.
        OutOfMemory: The device has no room for them.
    """
    check_precision(precision)
    where = CudaDevice() if device is None else device
    tensorrt = toolkit()
    check_runs_here(tensorrt)
    programs: dict[Part, Program] = {}
    for part in bundle.config.parts:
        spec = graph_spec(bundle.config, part)
        settings = BuildSettings(precision, default_profiles(spec))
        plan = load_carried(store, tensorrt, bundle, part, settings)
        if plan is None:
            plan = Plan(tensorrt, cached_plan(store, tensorrt, bundle, part, settings))
        programs[part] = PlanProgram(plan, spec, settings.profiles, where)
    return CudaNetworks(bundle, programs, where, f"{tensorrt.name}-{precision}", run.cuda_graphs)
