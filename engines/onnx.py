"""The graphs under ONNX Runtime on the CPU, in float32 or with int8 weights.

int8 is dynamic quantisation: weights are rounded once, per output channel, and activations at each call with a scale
for the whole tensor, and what that leaves with a scale of its own. Those depend on all rows of a batch, so int8 answers
one utterance at a time. Weights have a sign where the processor's product of such bytes is exact, and none elsewhere.

Shapes: B utterances, T tokens, S samples, F video frames, D = 768 feature, C classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from engines.export import export_graph, graph_key
from engines.networks import GraphNetworks, Run
from engines.spec import MOST_BATCH, BuildSettings, Precision, RunSettings
from engines.store import Store
from telme.bundle import Bundle
from telme.config import Part
from telme.errors import EngineError, MissingDependency, OutOfMemory, PredictorError, UsageError
from telme.processor import adds_int8_exactly

# Its release builds report to their makers unless this is set before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_log = logging.getLogger(__name__)

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
# Part of an int8 graph's key: raise it when a change here changes graphs.
_QUANTISED_REVISION = "4"
SIGN_FIELD = "int8_weights"  # of its key too: whether they have a sign
_PRODUCT = "MatMul"  # what the networks' linear layers become; the heads, one row each, are Gemm and stay
# Its kernel takes longer than those of the sum and the normalisation that it replaces (bench/LOG.md).
_SLOW_FUSIONS = ("SkipLayerNormFusion",)
_NO_ROOM = ("bad_alloc", "Failed to allocate memory", "failed to allocate")


def onnx_networks(bundle: Bundle, precision: Precision, run: RunSettings, store: Store) -> GraphNetworks:
    """A bundle's networks as ONNX Runtime sessions.

    Args:
        bundle: Its torch networks are loaded only for graphs that are not in the store.
        precision: One of PRECISIONS.
        run: How many threads each graph gets.
        store: Where the graphs are kept.

    Raises:
        MissingDependency: onnxruntime, or a package that builds graphs, is not installed.
        UsageError: There is no such precision.
        EngineError: A graph cannot be built, stored or loaded.
        OutOfMemory: There is no room for its weights.
    """
    runs = {
        part: _runner(part, _session(cached_graph(bundle, part, precision, store), run)) for part in bundle.config.parts
    }
    return GraphNetworks(f"onnx-{precision}", MOST_BATCH if precision == "fp32" else 1, bundle.config, runs)


def _runner(part: Part, session: Any) -> Run:
    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        with _errors_named(part):
            answers = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(answer) for answer in answers]

    return run


def check_onnx(precision: Precision) -> None:
    """Check that ONNX Runtime is there and takes a precision.

    Raises:
        MissingDependency: onnxruntime is not installed.
        UsageError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision} on ONNX Runtime", f"one of {', '.join(PRECISIONS)}", "choose another")
    import_onnxruntime()


def cached_graph(bundle: Bundle, part: Part, precision: Precision, store: Store) -> Path:
    """A graph from the store; exported, and quantised where asked for, when it is not there.

    Raises:
        MissingDependency: onnxruntime, or a package that builds graphs, is not installed.
        UsageError: There is no such precision.
        EngineError: The graph cannot be built or stored.
    """
    check_onnx(precision)
    if part == "fusion":  # small, and its answer is the last
        precision = "fp32"
    maker = {"backend": "onnx", "version": import_onnxruntime().__version__}
    maker |= quantiser() if precision == "int8" else {}
    key = {**graph_key(bundle, part), **BuildSettings(precision).key(), **maker}

    def build(folder: Path) -> None:
        _log.info("making the %s graph of %s in %s, kept in %s", part, bundle.model_id, precision, store.root)
        if precision == "fp32":
            export_graph(bundle, part, "fp32", folder)
            return
        with TemporaryDirectory(dir=folder) as whole:
            quantise(export_graph(bundle, part, "fp32", Path(whole)), folder / f"{part}.onnx", adds_int8_exactly())

    return store.get_or_build(key, build) / f"{part}.onnx"


def quantiser() -> dict[str, str]:
    """What of this program and of this processor decides how an int8 graph comes out: fields of its key."""
    return {"quantised": _QUANTISED_REVISION, SIGN_FIELD: "signed" if adds_int8_exactly() else "unsigned"}


def quantise(graph: Path, target: Path, signed: bool) -> None:
    """Write a float32 graph with int8 weights, rounded per output channel.

    What rounding takes from an activation is rounded itself and multiplied too, with a scale of its own: 16 bits in two
    products of 8. One scale for all of an activation's numbers costs labels otherwise (bench/LOG.md).

    Args:
        graph: Its weights may lie beside it; a second graph is written there.
        target: The quantised graph.
        signed: Weights are -128 to 127 around 0; otherwise 0 to 255, which AVX2 multiplies in a wider type.

    Raises:
        MissingDependency: onnx is not installed.
        EngineError: It cannot be quantised or written.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise MissingDependency(f"{error}", "onnx and onnxruntime", "pip install '.[worker]'") from error
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preparation that these graphs do not need
    try:
        model = onnx.load(graph, load_external_data=False)
        _add_remainders(model.graph, onnx.helper.make_node)
        halves = graph.with_name(f"halves-{graph.name}")
        halves.write_bytes(model.SerializeToString())
        quantize_dynamic(
            halves,
            target,
            op_types_to_quantize=[_PRODUCT],
            per_channel=True,
            weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            # Each Gemm becomes a MatMul of this name on the way.
            nodes_to_exclude=[f"{node.name}_MatMul" for node in model.graph.node if node.op_type == "Gemm"],
            extra_options={"MatMulConstBOnly": True},
        )
    except (RuntimeError, ValueError, OSError, DecodeError) as error:
        raise EngineError(
            f"{graph.name} cannot be quantised: {error}", "an int8 graph", "use --precision fp32, or free some space"
        ) from error
    finally:
        logging.disable(disabled)


def _add_remainders(graph: Any, node: Callable[..., Any]) -> None:
    """Give each product x W of a graph the term (x - round(x)) W, with the rounding that quantisation will use.

    Args:
        graph: Changed in place.
        node: onnx.helper.make_node.
    """
    weights = {initializer.name for initializer in graph.initializer}
    remainders: dict[str, str] = {}
    made: list[Any] = []
    for product in graph.node:
        if product.op_type != _PRODUCT or product.input[1] not in weights:
            made.append(product)
            continue
        (given, weight), (answer,) = product.input, product.output
        if given not in remainders:
            rest = remainders[given] = f"{given}_rest"
            # Names that the quantiser does not give: its own are the input's with _quantized, _scale and _zero_point.
            rounded = [f"{given}_half", f"{given}_half_step", f"{given}_half_zero"]
            made += [
                node("DynamicQuantizeLinear", [given], rounded, f"{rest}_quantise"),
                node("DequantizeLinear", rounded, [f"{given}_kept"], f"{rest}_dequantise"),
                node("Sub", [given, f"{given}_kept"], [rest], f"{rest}_subtract"),
            ]
        terms = [f"{answer}_first", f"{answer}_second"]
        made += [
            node(_PRODUCT, [given, weight], terms[:1], f"{product.name}_first"),
            node(_PRODUCT, [remainders[given], weight], terms[1:], f"{product.name}_second"),
            node("Add", terms, [answer], f"{product.name}_sum"),
        ]
    del graph.node[:]
    graph.node.extend(made)


def _session(graph: Path, run: RunSettings) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = run.threads
    options.inter_op_num_threads = 1
    # Waiting threads sleep: the recognizer and the capture need the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(_SLOW_FUSIONS)
        )
    except _failures() as error:
        if _lacks_room(error):
            raise OutOfMemory(f"{graph}: {error}", "memory for it", "stop what else uses memory") from error
        raise EngineError(
            f"{graph} cannot be loaded: {error}", "a graph that this ONNX Runtime runs", f"remove {graph.parent}"
        ) from error


def import_onnxruntime() -> Any:
    """The module, with its telemetry off.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            f"onnxruntime cannot be imported: {error}", "ONNX Runtime", "pip install '.[worker]', or --backend torch"
        ) from error
    return onnxruntime


@contextmanager
def _errors_named(part: str) -> Iterator[None]:
    try:
        yield
    except _failures() as error:
        if _lacks_room(error):
            raise OutOfMemory(f"the {part} graph: {error}", "memory for it", "a smaller batch") from error
        raise PredictorError(f"the {part} graph failed: {error}", "an answer", "run telme-stream doctor") from error


def _lacks_room(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_ROOM)


def _failures() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        MemoryError,
        *(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    )
