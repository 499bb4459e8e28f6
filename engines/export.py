"""From a bundle's networks to ONNX graphs, feature read-outs inside.

Opset 23, so that attention is one node, which both TensorRT and ONNX Runtime take whole. Weights lie beside the graph
in `<part>.onnx.data`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.timesformer.modeling_timesformer import TimesformerSelfAttention

from engines.spec import GraphSpec, Precision, graph_spec
from engines.unread import without_unread
from telme.bundle import Bundle
from telme.config import Part
from telme.errors import EngineError, MissingDependency
from telme.fusion import AttentionShiftFusion

OPSET = 23
# Part of every cache key: raise it when a change here changes graphs.
EXPORT_REVISION = 4
_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# torch.export takes a size of 1 for a constant, so examples are larger.
_EXAMPLE_BATCH = 2
_EXAMPLE_LENGTHS = {"tokens": 24, "samples": 16_000}


class _Part(nn.Module):
    """A part as its graph is: float32 at the edges, its own type inside, a tuple of tensors out."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Cast, run, cast back."""
        answer = self.network(*(item.to(self._dtype) if item.is_floating_point() else item for item in inputs))
        if isinstance(self.network, AttentionShiftFusion):
            return (answer.logits.float(),)
        return answer.feature.float(), answer.logits.float()


def graph_key(bundle: Bundle, part: Part) -> dict[str, str]:
    """Fields of a cache key: all that decides a part's graph but its precision."""
    settings = bundle.config.to_dict()
    settings.pop("audio_left_pad_ms")  # of the samples, which are any number
    return {
        "weights": bundle.weights,
        "config": hashlib.sha256((json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()).hexdigest(),
        "graph": part,
        "export": exporter(),
    }


def exporter() -> str:
    """What of this machine decides how a graph comes out: part of every cache key."""
    return f"{EXPORT_REVISION} opset {OPSET} torch {torch.__version__} transformers {transformers.__version__}"


def part_module(bundle: Bundle, part: Part, precision: Precision) -> nn.Module:
    """One part as its graph is; the bundle's network stays as it is.

    Raises:
        EngineError: The bundle lacks the part, or there are no such weights.
    """
    network = bundle.model.network(part)
    if network is None or precision not in _DTYPES:
        raise EngineError(
            f"{part} in {precision} of {bundle.model_id}",
            f"one of {', '.join(bundle.config.parts)} in {', '.join(_DTYPES)}",
            "choose another",
        )
    dtype = _DTYPES[precision]
    network = network.row_by_row() if isinstance(network, AttentionShiftFusion) else without_unread(network)
    if dtype != torch.float32:
        network = copy.deepcopy(network).to(dtype)
    return _Part(network, dtype).eval()


def export_graph(bundle: Bundle, part: Part, precision: Precision, folder: Path) -> Path:
    """Write one part's graph and return its path, `<part>.onnx`.

    Args:
        bundle: Its networks stay as they are.
        part: One of the bundle's.
        precision: fp32, fp16 or bf16; int8 is made from fp32 by the backend.
        folder: Where; it exists.

    Raises:
        MissingDependency: onnx or onnxscript is not installed.
        EngineError: The bundle lacks the part, the network cannot be exported, or the folder cannot be written.
    """
    module = part_module(bundle, part, precision)
    path = folder / f"{part}.onnx"
    try:
        _export(module, graph_spec(bundle.config, part), path)
    except ImportError as error:
        raise MissingDependency(
            f"{error.name} cannot be imported: {error}", "onnx and onnxscript", "pip install '.[worker]'"
        ) from error
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, OSError) as error:
        raise EngineError(
            f"the {part} network of {bundle.model_id} in {precision} cannot be exported: {error}",
            "a network that torch.onnx can export, and room on the disk",
            "run with --backend torch",
        ) from error
    return path


def _export(module: nn.Module, spec: GraphSpec, path: Path) -> None:
    with quiet(), sdpa_timesformer(), torch.no_grad():
        torch.onnx.export(
            module,
            tuple(example_inputs(spec).values()),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=(dynamic_shapes(spec),),
            external_data=True,
            verbose=False,
        )


def dynamic_shapes(spec: GraphSpec) -> tuple[dict[int, Any], ...]:
    """For torch.export: of each input, which axes vary; one entry for a part's `*inputs`."""
    # Inputs that share a dimension share its object: else the exporter takes them for two.
    dims = {name: torch.export.Dim(name, max=limit.most) for name, limit in spec.limits.items()}
    dims["batch"] = torch.export.Dim("batch")
    return tuple(
        {axis: dims[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)} for tensor in spec.inputs
    )


def example_inputs(spec: GraphSpec, batch: int = _EXAMPLE_BATCH, length: int | None = None) -> dict[str, Tensor]:
    """Inputs of a graph by name: noise, the same every time; the first row of a prompt is left-padded.

    Args:
        spec: The graph's interface.
        batch: Rows.
        length: Tokens or samples, where the graph takes them.
    """
    noise = torch.Generator().manual_seed(0)
    sizes: dict[int | str, int] = {"batch": batch}
    for name, usual in _EXAMPLE_LENGTHS.items():
        if name in spec.limits:
            sizes[name] = min(length or usual, spec.limits[name].most)
    made: dict[str, Tensor] = {}
    for tensor in spec.inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        match tensor.dtype:
            case "float32":
                made[tensor.name] = torch.randn(shape, generator=noise)
            case "bool":
                made[tensor.name] = torch.ones(shape, dtype=torch.bool)
            case "int64":
                # Ids that every tokenizer has, and a mask of ones.
                made[tensor.name] = torch.ones(shape, dtype=torch.int64)
                if tensor.name == "input_ids":
                    made[tensor.name] = torch.randint(5, 50, shape, generator=noise)
    if "attention_mask" in made and sizes["tokens"] > 2:
        made["attention_mask"][0, : sizes["tokens"] // 3] = 0
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """While it is open, the exporter is silent: it warns of packages that are not needed and of its own
    deprecations."""
    logs = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@contextmanager
def sdpa_timesformer() -> Iterator[None]:
    """While it is open, TimeSformer's attention is torch's own, which exports as one node; transformers has eager only.

    The difference is that of rounding, 3e-6 in the feature.
    """
    eager = TimesformerSelfAttention.forward
    TimesformerSelfAttention.forward = _sdpa  # type: ignore[method-assign]
    try:
        yield
    finally:
        TimesformerSelfAttention.forward = eager  # type: ignore[method-assign]


def _sdpa(self: Any, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
    """[B, T, H] -> [B, T, H]; attention weights, which nothing reads, are not given."""
    batch, tokens, width = hidden_states.shape
    heads = self.qkv(hidden_states).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, T, H / heads]
    attended = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
    return (attended.transpose(1, 2).reshape(batch, tokens, width),)
