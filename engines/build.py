"""ONNX graph -> TensorRT plan, with `tensorrt` or `tensorrt_rtx`, whichever is installed.

Precision comes from the graph: TensorRT 11 and TensorRT-RTX know no other way (strong typing). TensorRT-RTX builds
without a GPU, for every GPU from Ampere on; `tensorrt` builds on and for the GPU at hand.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from engines.export import export_graph, graph_key
from engines.spec import BuildSettings, GraphSpec, Profile, TensorSpec, graph_spec
from engines.store import Store
from telme.bundle import Bundle
from telme.config import Part
from telme.errors import EngineError, MissingDependency

# In the order of preference: the first knows every GPU.
MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
RTX = MODULES["tensorrt_rtx"]
NO_GPU = "no GPU"
PLAN_FILE = "engine.plan"
_TURING = (7, 5)
# Part of every plan's key: raise it when a change here changes plans.
_BUILD_REVISION = "2"

# The share of the work that is done, 0 to 1.
Progress = Callable[[float], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Toolkit:
    """An installed TensorRT.

    Attributes:
        name: `tensorrt` or `tensorrt-rtx`.
        version: Its version; a plan runs under no other.
        api: The module.
    """

    name: str
    version: str
    api: Any


def installed() -> list[str]:
    """The names of the TensorRTs that are installed, whether they can be loaded or not."""
    return [name for module, name in MODULES.items() if importlib.util.find_spec(module) is not None]


def toolkit() -> Toolkit:
    """The TensorRT that is installed.

    Raises:
        MissingDependency: There is none, or its libraries cannot be loaded.
    """
    remedy = "pip install '.[tensorrt-rtx]', or '.[tensorrt]' with NVIDIA's index; or --backend onnx"
    names = installed()
    for module, name in MODULES.items():
        if name not in names:
            continue
        try:
            api = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            raise MissingDependency(f"{name} cannot be loaded: {error}", "its libraries", remedy) from error
        return Toolkit(name, str(api.__version__), api)
    raise MissingDependency("neither tensorrt nor tensorrt-rtx is installed", "one of them", remedy)


def gpu_name() -> str:
    """Name and compute capability of the first CUDA device, or that there is none; part of a plan's key."""
    if not torch.cuda.is_available():
        return NO_GPU
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} {major}.{minor}"


def cached_plan(
    store: Store,
    tensorrt: Toolkit,
    bundle: Bundle,
    part: Part,
    settings: BuildSettings,
    progress: Progress = lambda share: None,
) -> Path:
    """The plan of one part for the GPU at hand, from the cache or built now.

    Args:
        store: The cache.
        tensorrt: What builds it.
        bundle: Its networks.
        part: Which.
        settings: Precision and profiles.
        progress: Called with the share of the compilation that is done, if there is one.

    Raises:
        EngineError: It cannot be exported, built or cached.
        MissingDependency: What exports it is not installed.
    """

    def build(folder: Path) -> None:
        with TemporaryDirectory(dir=folder) as graphs:
            graph = export_graph(bundle, part, settings.precision, Path(graphs))
            build_plan(tensorrt, graph_spec(bundle.config, part), settings, graph, folder / PLAN_FILE, progress)

    return store.get_or_build(_plan_key(tensorrt, bundle, part, settings, gpu_name()), build) / PLAN_FILE


def carried_plan(store: Store, tensorrt: Toolkit, bundle: Bundle, part: Part, settings: BuildSettings) -> Path | None:
    """The plan that TensorRT-RTX compiled where there was no GPU, for use on the GPU at hand.

    Args:
        store: The cache.
        tensorrt: What would run it.
        bundle: Its networks.
        part: Which.
        settings: Precision and profiles.

    Returns:
        None where there is none that is whole, no GPU, or a plan made on this GPU, which goes before.
    """
    gpu = gpu_name()
    if tensorrt.name != RTX or gpu == NO_GPU or store.has(_plan_key(tensorrt, bundle, part, settings, gpu)):
        return None
    folder = store.find(_plan_key(tensorrt, bundle, part, settings, NO_GPU))
    return None if folder is None else folder / PLAN_FILE


def _plan_key(tensorrt: Toolkit, bundle: Bundle, part: Part, settings: BuildSettings, gpu: str) -> dict[str, str]:
    target = {"build": _BUILD_REVISION, "backend": tensorrt.name, "version": tensorrt.version, "gpu": gpu}
    return {**graph_key(bundle, part), **settings.key(), **target}


def build_tiny_plan(tensorrt: Toolkit, plan: Path) -> None:
    """Write the plan of a graph that only copies: whether it loads tells in a moment whether any will.

    Raises:
        EngineError: Not even that can be compiled.
        OSError: The plan cannot be written.
    """
    trt = tensorrt.api
    log = make_logger(trt)
    builder = _builder(tensorrt, log)
    network = builder.create_network(0)
    copied = network.add_identity(network.add_input("x", trt.float32, (1,))).get_output(0)
    copied.name = "y"
    network.mark_output(copied)
    made = builder.build_serialized_network(network, builder_config(tensorrt, builder))
    _write(tensorrt, made, "smallest", log, plan)


def build_plan(
    tensorrt: Toolkit,
    spec: GraphSpec,
    settings: BuildSettings,
    graph: Path,
    plan: Path,
    progress: Progress = lambda share: None,
) -> None:
    """Compile a graph.

    Args:
        tensorrt: What compiles it.
        spec: The graph's interface.
        settings: Its profiles give the sizes to compile for.
        graph: The ONNX file; its weights may lie beside it.
        plan: Where the plan is written.
        progress: Called with the share that is done, from any thread.

    Raises:
        EngineError: It cannot be parsed or compiled; the node that failed is named.
        OSError: The plan cannot be written.
    """
    trt = tensorrt.api
    log = make_logger(trt)
    builder = _builder(tensorrt, log)
    # TensorRT 10 must be asked for strong typing; from 11 on the flag means nothing.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise _parse_error(tensorrt, spec, parser)
    _let_attention_decompose(trt, network)
    config = builder_config(tensorrt, builder)
    if settings.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and 13 bits of the mantissa short of float32
    # TensorRT-RTX only: memory is allocated before a run, never in it, as the capture in a CUDA graph needs.
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for profile in settings.profiles:
        config.add_optimization_profile(_optimization_profile(builder, spec, profile))
    made = _built(trt, builder, network, config, progress)
    _write(tensorrt, made, spec.part, log, plan)
    progress(1.0)


def builder_config(tensorrt: Toolkit, builder: Any) -> Any:
    """A builder's settings, with the GPUs to build for.

    TensorRT-RTX builds for Ampere and what came after unless it is told otherwise (its manual, "CPU-Only AOT and
    TensorRT-RTX Engines"); Turing needs a plan of its own, which is made on such a GPU.
    """
    config = builder.create_builder_config()
    if tensorrt.name == RTX and torch.cuda.is_available() and torch.cuda.get_device_capability() == _TURING:
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt.api.ComputeCapability.SM75, 0)
    return config


def _builder(tensorrt: Toolkit, log: Any) -> Any:
    try:
        return tensorrt.api.Builder(log)
    except TypeError as error:  # what its bindings raise when the library makes none
        raise EngineError(
            f"{tensorrt.name} {tensorrt.version} makes no builder: {log.last()}",
            "a GPU and its driver, without which only tensorrt-rtx builds",
            "run telme-stream doctor",
        ) from error


def _write(tensorrt: Toolkit, made: Any, graph: str, log: Any, plan: Path) -> None:
    if made is None:
        raise EngineError(
            f"{tensorrt.name} {tensorrt.version} cannot build the {graph} graph: {log.last()}",
            "a plan",
            "try another precision, or --backend onnx",
        )
    plan.write_bytes(memoryview(made))


def _built(trt: Any, builder: Any, network: Any, config: Any, progress: Progress) -> Any:
    """In a thread: what is raised in a callback is lost, so Ctrl-C must not fall into one; it stops the builder."""
    stop = threading.Event()
    monitor = _monitor(trt, progress, stop)
    config.progress_monitor = monitor
    with ThreadPoolExecutor(1) as builders:
        made = builders.submit(builder.build_serialized_network, network, config)
        try:
            return made.result()
        finally:
            stop.set()  # where there is a result, nothing is left to stop


def shapes(tensor: TensorSpec, profile: Profile) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Least, typical and largest shape of an input in a profile."""

    def sized(pick: Callable[[Any], int]) -> tuple[int, ...]:
        return tuple(pick(profile[size]) if isinstance(size, str) else size for size in tensor.shape)

    return sized(lambda size: size.least), sized(lambda size: size.typical), sized(lambda size: size.most)


def _optimization_profile(builder: Any, spec: GraphSpec, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for tensor in spec.inputs:
        made.set_shape(tensor.name, *shapes(tensor, profile))
    return made


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Where no fused kernel takes an attention node, as in float32, several may; without this leave the build fails."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == getattr(trt.LayerType, "ATTENTION_INPUT", None):
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' way to the layer's own attributes
            layer.attention.decomposable = True


def _parse_error(tensorrt: Toolkit, spec: GraphSpec, parser: Any) -> EngineError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = "; ".join(
        f"node {error.node()} {error.node_name()} ({error.node_operator()}): {error.desc()}"
        if error.node() >= 0
        else str(error.desc())
        for error in errors
    )
    return EngineError(
        f"{tensorrt.name} {tensorrt.version} cannot read the {spec.part} graph: {said or 'it does not say why'}",
        "a graph of operators that it knows",
        "use --backend onnx or torch",
    )


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps errors and hands everything to Python's log."""
    levels = {trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR}

    class Log(trt.ILogger):  # type: ignore[misc]  # a class of the module that was found
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in levels:
                self.errors.append(message)
            _log.log(logging.INFO if severity in levels else logging.DEBUG, "%s", message)

        def last(self) -> str:
            """The first errors said, of which the later ones are mostly consequences."""
            return first_errors(self.errors)

    return Log()


def first_errors(said: Iterable[str]) -> str:
    """What TensorRT said went wrong, without repetitions and the places in its sources."""
    kept = dict.fromkeys(" ".join(line.split()) for line in said)
    return "; ".join(list(kept)[:2]) or "it does not say why"


def _monitor(trt: Any, progress: Progress, stop: threading.Event) -> Any:
    """A TensorRT progress monitor that sums its phases up, and ends the build when it is told to."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of the module that was found
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases = Phases(progress)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            self.phases.step(name, step)
            return not stop.is_set()

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)

    return Monitor()


class Phases:
    """Nested phases of known numbers of steps -> the share of the outermost phase that is done.

    Args:
        progress: Called whenever the share grows.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._running: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps, steps done
        self._told = 0.0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins within another, or the outermost."""
        with self._lock:
            self._running[name] = (parent, steps, 0)

    def step(self, name: str, step: int) -> None:
        """Step `step`, counted from 0, of a phase is done."""
        with self._lock:
            if name not in self._running:
                return
            parent, steps, _ = self._running[name]
            self._running[name] = (parent, steps, step + 1)
            share = self._share(name)
            if share > self._told:
                self._told = share
                self._progress(share)

    def finish(self, name: str) -> None:
        """A phase is done, and its last step with it."""
        with self._lock:
            self._running.pop(name, None)

    def _share(self, name: str) -> float:
        """Of the outermost phase, going up from a phase through those that it is part of."""
        share, seen = 0.0, set[str]()
        current: str | None = name
        while current is not None and current in self._running and current not in seen:
            seen.add(current)
            parent, steps, done = self._running[current]
            share = min((done + share) / max(steps, 1), 1.0)
            current = parent
        return share
