"""The graphs under torch on the CPU in bfloat16, for processors that multiply such numbers themselves, or bytes.

A network is exported to a flat graph, in which products of one input become one, an activation or a sum that follows
becomes part of its product, and weights lie as oneDNN reads them. torch.compile does the same, but needs a C++ compiler
on the machine and minutes. The flat graph is kept in the store; weights are laid out when it is loaded. The audio
student runs as it is: torch.export binds it to sounds of 720 samples or more.

In int8 the graph is the same, and the networks' products are those of engines.int8; what lies between them stays in
bfloat16, and so do the heads, of one row each.

Shapes: B utterances, T tokens, S samples, F video frames, D = 768 feature, C classes.
"""

from __future__ import annotations

import io
import logging
import operator
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, fx, nn

from engines.export import dynamic_shapes, example_inputs, graph_key, part_module, quiet, sdpa_timesformer
from engines.int8 import GELU_FLOOR, Int8Linear, quantise_linears
from engines.networks import GraphNetworks, Run
from engines.spec import MOST_BATCH, BuildSettings, Precision, graph_spec
from engines.store import Store
from telme.bundle import Bundle
from telme.config import Part
from telme.errors import EngineError
from telme.models import AudioStudent
from telme.processor import knows_bfloat16, multiplies_int8

FLAT: tuple[Precision, ...] = ("bf16", "int8")
# The part that runs as it is, without a graph.
AS_IT_IS: Part = "audio"
# Part of every cache key: raise it when a change here changes what is kept. Laying out is not kept.
_REVISION = "1"
_FILE = "graph.pt2"
_aten, _mkldnn = torch.ops.aten, torch.ops.mkldnn
_DROPOUT, _LINEAR, _GELU, _SUM = _aten.dropout.default, _aten.linear.default, _aten.gelu.default, _aten.add.Tensor
_ATTENTION = _aten.scaled_dot_product_attention.default
# What a core's cache holds of them, and less than what glibc gives back to the system between two layers.
_MOST_SCORES = 1 << 18
_CHECKS = (_aten._assert_tensor_metadata.default,)  # sizes and types are checked before a run

_log = logging.getLogger(__name__)


def onednn_networks(bundle: Bundle, precision: Precision, store: Store) -> GraphNetworks:
    """A bundle's networks in bfloat16 or int8; the fusion, which is small and answers last, in float32.

    Args:
        bundle: Its torch networks are loaded only for the audio student and for graphs that are not in the store.
        precision: One of FLAT.
        store: Where the graphs are kept.

    Raises:
        EngineError: The processor lacks the precision, or a graph cannot be exported, stored or loaded.
    """
    need_products(precision)
    runs = {
        part: _as_it_is(bundle, part, precision)
        if part == AS_IT_IS
        else _run(cached_flat(bundle, part, store), precision)
        for part in bundle.config.parts
    }
    return GraphNetworks(f"torch-cpu-{precision}", MOST_BATCH, bundle.config, runs)


def need_products(precision: Precision) -> None:
    """Check that torch has bfloat16, and bytes where they are asked for, on this processor.

    Raises:
        EngineError: It has not.
    """
    if precision == "int8" and not multiplies_int8():
        raise EngineError("torch in int8 on a processor without it", "AVX-512 with VNNI", "run with --backend onnx")
    if not knows_bfloat16():
        raise EngineError(f"torch in {precision} on a processor without it", "AVX-512", "run with --precision fp32")


def cached_flat(bundle: Bundle, part: Part, store: Store) -> Path:
    """A part's exported graph from the store; exported when it is not there.

    Raises:
        EngineError: It cannot be exported or stored.
    """
    precision: Precision = "fp32" if part == "fusion" else "bf16"
    maker = {"backend": "torch-cpu-bf16", "version": str(torch.__version__), "flat": _REVISION}

    def build(folder: Path) -> None:
        _log.info("making the %s graph of %s in %s, kept in %s", part, bundle.model_id, precision, store.root)
        _export(bundle, part, precision, folder / _FILE)

    return store.get_or_build({**graph_key(bundle, part), **BuildSettings(precision).key(), **maker}, build) / _FILE


def _export(bundle: Bundle, part: Part, precision: Precision, path: Path) -> None:
    spec = graph_spec(bundle.config, part)
    module = part_module(bundle, part, precision)
    try:
        with quiet(), sdpa_timesformer(), torch.no_grad():
            program = torch.export.export(
                module,
                tuple(example_inputs(spec).values()),
                dynamic_shapes=(dynamic_shapes(spec),),
            )
            # Not to the file: where torch's writer cannot write, as on a full disk, it aborts the process at its end.
            content = io.BytesIO()
            torch.export.save(program, content)
        path.write_bytes(content.getbuffer())
    except (RuntimeError, OSError, ValueError) as error:
        raise EngineError(
            f"the {part} network of {bundle.model_id} in {precision} cannot be exported: {error}",
            "a network that torch.export takes, and room on the disk",
            "run with --backend onnx",
        ) from error


def _as_it_is(bundle: Bundle, part: Part, precision: Precision) -> Run:
    module = part_module(bundle, part, "bf16")
    run = _called(module)
    if precision == "int8":
        student = module.network
        assert isinstance(student, AudioStudent)
        quantise_linears(student.model)
        _try(run, bundle, part)
    return run


def _try(run: Run, bundle: Bundle, part: Part) -> None:
    """Run it once: some backbones (WavLM) take their layers' weights and multiply them themselves."""
    try:
        with torch.inference_mode():
            run(example_inputs(graph_spec(bundle.config, part)))
    except RuntimeError as error:
        raise EngineError(
            f"the {part} network of {bundle.model_id} in int8 does not run: {error}",
            "a backbone that calls its linear layers",
            "run with --precision bf16",
        ) from error


def _run(path: Path, precision: Precision) -> Run:
    try:
        with quiet():
            module = torch.export.load(path).module()
    except (RuntimeError, OSError, ValueError, KeyError, BadZipFile) as error:
        raise EngineError(
            f"{path} cannot be loaded: {error}", "a graph that this torch runs", f"remove {path.parent}"
        ) from error
    assert isinstance(module, fx.GraphModule)
    lay_out(module, precision)
    return _called(module)


def _called(module: nn.Module) -> Run:
    def run(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = module(*inputs.values())
        return outputs

    return run


def lay_out(module: fx.GraphModule, precision: Precision) -> None:
    """Fuse products and lay out their weights, in place; products in float32 stay as they are.

    Args:
        module: An exported program's; bfloat16 inside.
        precision: Of its products; those of the heads, which have no axis of tokens, stay in bfloat16.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target == _DROPOUT:  # which does nothing outside of training
            _replace(graph, node, node.args[0])
        elif node.target in _CHECKS:
            graph.erase_node(node)
        elif _is_plain_attention(node):
            with graph.inserting_before(node):
                _replace(graph, node, graph.call_function(attend, node.args, node.kwargs))
    beside: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if _is_product(module, node):
            beside[node.args[0]].append(node)
    for number, products in enumerate(list(beside.values())):
        fuse = _quantise if precision == "int8" and products[0].meta["val"].dim() > 2 else _fuse
        fuse(module, products, f"_product{number}")
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _quantise(module: fx.GraphModule, products: list[fx.Node], name: str) -> None:
    """One product in int8 in the place of those of one input."""
    given = products[0].args[0]
    assert isinstance(given, fx.Node)
    weight, bias = _weights(module, products)
    module.add_submodule(name, Int8Linear(weight, bias, GELU_FLOOR if _is_gelu(given) else None))
    with module.graph.inserting_before(products[0]):
        made = module.graph.call_module(name, (given,))
    _part_among(module, products, made)


def _fuse(module: fx.GraphModule, products: list[fx.Node], name: str) -> None:
    """One product in the place of those of one input, and of what follows it where it is alone."""
    graph, first = module.graph, products[0]
    weight, bias = _weights(module, products)
    laid_out = _mkldnn._reorder_linear_weight(weight.contiguous())  # torch.compile's own
    module.register_buffer(f"{name}_weight", laid_out, persistent=False)
    module.register_buffer(f"{name}_bias", bias, persistent=False)
    follows = next(iter(first.users)) if len(products) == 1 and len(first.users) == 1 else None
    last = follows if follows is not None and (_is_gelu(follows) or _is_sum(follows, first)) else first
    with graph.inserting_before(last):
        given = (first.args[0], graph.get_attr(f"{name}_weight"), graph.get_attr(f"{name}_bias"))
        pointwise = _mkldnn._linear_pointwise
        if last is first:
            made = graph.call_function(pointwise.default, (*given[:3], "none", [], ""))
        elif _is_gelu(last):
            made = graph.call_function(pointwise.default, (*given, "gelu", [], last.kwargs.get("approximate", "none")))
        else:
            (other,) = (term for term in last.args if term is not first)
            made = graph.call_function(pointwise.binary, (given[0], other, *given[1:], "add"))
    if last is not first:
        _replace(graph, last, made)
        graph.erase_node(first)
        return
    _part_among(module, products, made)


def _part_among(module: fx.GraphModule, products: list[fx.Node], made: fx.Node) -> None:
    """Give each of several products its share of the one that was made of them."""
    if len(products) == 1:
        _replace(module.graph, products[0], made)
        return
    sizes = [len(_value(module, node.args[1])) for node in products]
    with module.graph.inserting_after(made):
        split = module.graph.call_function(_aten.split_with_sizes.default, (made, sizes, -1))
    for place, node in reversed(list(enumerate(products))):
        with module.graph.inserting_after(split):
            part = module.graph.call_function(operator.getitem, (split, place))
        _replace(module.graph, node, part)


def _weights(module: fx.GraphModule, products: list[fx.Node]) -> tuple[Tensor, Tensor]:
    """Weights [N, K] and biases [N] of several products as those of one."""
    weight, bias = ([_value(module, node.args[place]) for node in products] for place in (1, 2))
    return torch.cat(weight), torch.cat(bias)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *_: Any, scale: float | None = None
) -> Tensor:
    """Attention by two products and a softmax; torch's own takes 1.4 to 2.4 times as long (bench/LOG.md).

    Args:
        query: [B, N, T, H], N heads.
        key: [B, N, S, H].
        value: [B, N, S, H].
        mask: [B, 1, 1 or T, S], True for what is seen, or what is added to the scores; None: all is seen.
        scale: Of the scores; None: 1 / sqrt(H).

    Returns:
        [B, N, T, H].
    """
    shape, tokens, seen = query.shape, query.shape[2], key.shape[2]
    query = query * (shape[3] ** -0.5 if scale is None else scale)
    if mask is not None and mask.dtype == torch.bool and bool(mask.all()):  # an utterance alone is not padded
        mask = None
    if mask is None:  # then it makes no difference which head is whose
        query, key, value = (given.reshape(1, -1, *given.shape[2:]) for given in (query, key, value))
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    answer = torch.empty(query.shape, dtype=query.dtype)
    step = max(_MOST_SCORES // (tokens * seen), 1)
    for row in range(len(query)):
        for first in range(0, query.shape[1], step):
            heads = slice(first, first + step)
            scores = torch.bmm(query[row, heads], key[row, heads].transpose(1, 2))
            if mask is not None:
                scores += mask[row]
            torch.bmm(scores.softmax(-1), value[row, heads], out=answer[row, heads])
    return answer.reshape(shape)


def _is_plain_attention(node: fx.Node) -> bool:
    """Whether a node is an attention as `attend` knows it: as many keys as values, one mask for all heads."""
    if node.target != _ATTENTION or not set(node.kwargs) <= {"scale"} or any(node.args[4:]):
        return False
    query, key, value, *mask = (_shape(term) for term in node.args[:4])
    if len(query) != 4 or key != value or key[:2] != query[:2] or key[3] != query[3]:
        return False
    return node.args[3:4] in ((), (None,)) or mask[0][:-2] == (query[0], 1)


def _shape(term: Any) -> tuple[Any, ...]:
    """Of what a node stands for, with names for what varies; () of what is no tensor."""
    return tuple(term.meta["val"].shape) if isinstance(term, fx.Node) else ()


def _is_product(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a product with weights and biases of the network's own, in bfloat16."""
    if node.target != _LINEAR or len(node.args) != 3:
        return False
    given = [term for term in node.args[1:] if isinstance(term, fx.Node) and term.op == "get_attr"]
    return len(given) == 2 and _value(module, given[0]).dtype == torch.bfloat16


def _is_gelu(node: fx.Node) -> bool:
    return bool(node.target == _GELU)


def _is_sum(node: fx.Node, product: fx.Node) -> bool:
    """Whether a node adds something of the same shape to a product, without a factor."""
    if node.target != _SUM or node.kwargs or node.args[0] is node.args[1]:
        return False
    first, second = (_shape(term) for term in node.args)
    return first == second and product in node.args


def _replace(graph: fx.Graph, node: fx.Node, other: Any) -> None:
    if isinstance(other, fx.Node):  # whose shape is asked for later
        other.meta.setdefault("val", node.meta["val"])
    node.replace_all_uses_with(other)
    graph.erase_node(node)


def _value(module: fx.GraphModule, node: Any) -> Tensor:
    """The weights that a node stands for."""
    value: Tensor = operator.attrgetter(str(node.target))(module)
    return value.detach()
