"""The least time that a model can take on a device: its operations and bytes over what the device does at its best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from engines.export import part_module
from engines.onnx import import_onnxruntime
from telme.bundle import Bundle
from telme.config import Part
from telme.features import Features, collate_prompts
from telme.processor import adds_int8_exactly
from telme.sound import pad_left

_REPEATS = 20
# Precision -> the type of its products, and bytes of a weight.
_TYPES: Mapping[str, tuple[torch.dtype, int]] = {
    "fp32": (torch.float32, 4),
    "fp16": (torch.float16, 2),
    "bf16": (torch.bfloat16, 2),
    "int8": (torch.int8, 1),
}
_ONNX_TYPES: Mapping[torch.dtype, type[np.int8] | type[np.float32]] = {torch.int8: np.int8, torch.float32: np.float32}


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    """Of the shapes of an attention's inputs."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# torch's counter knows attention on a GPU alone.
_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@dataclass(frozen=True)
class Ceilings:
    """What a device did here, on one large product and one large copy.

    Attributes:
        flops_per_s: Of a matrix product, an addition and a multiplication being two operations.
        bytes_per_s: Read and written by a copy.
    """

    flops_per_s: float
    bytes_per_s: float

    def floor_ms(self, flops: float, size_bytes: float) -> float:
        """Milliseconds below which so many operations on so many bytes cannot be done."""
        return 1000 * max(flops / self.flops_per_s, size_bytes / self.bytes_per_s)

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each, where the device was measured twice: it was busy with something else at times."""
        return Ceilings(max(self.flops_per_s, other.flops_per_s), max(self.bytes_per_s, other.bytes_per_s))

    def figures(self) -> dict[str, float]:
        """For a report."""
        return asdict(self)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Time products and a copy that are large for the device, and take the best of several.

    Args:
        device: The device.
        dtype: Of the products; int8 on the CPU only. In int8 and float32 the better of torch's there and ONNX
            Runtime's: on some processors one does half of what the other does.
    """
    # On a processor smaller products, which lie in its caches, can be the faster ones.
    edges, numbers = ((8192,), 1 << 28) if device.type == "cuda" else ((256, 512, 1024), 1 << 24)
    source = torch.zeros(numbers, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        flops_per_s=max(2 * edge**3 / _product_s(edge, device, dtype) for edge in edges),
        bytes_per_s=2 * 4 * numbers / _best_s(lambda: target.copy_(source), device),
    )


def _product_s(edge: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.rand(edge, edge, device=device).to(dtype) for _ in range(2))
    if device.type == "cuda" or dtype not in _ONNX_TYPES:
        return _best_s(lambda: torch.mm(left, right), device)
    onnx_s = _best_s(_onnx_product(edge, _ONNX_TYPES[dtype]), device)
    if dtype == torch.float32:
        return min(onnx_s, _best_s(lambda: torch.mm(left, right), device))
    # torch's own of int8 has no kernel for processors without VNNI and takes 50 times as long.
    return min(onnx_s, _best_s(lambda: torch._int_mm(left, right), device)) if adds_int8_exactly() else onnx_s


def _onnx_product(edge: int, dtype: type[np.int8] | type[np.float32]) -> Callable[[], object]:
    """ONNX Runtime's."""
    onnxruntime = import_onnxruntime()
    from onnx import TensorProto, helper, numpy_helper

    is_int8 = dtype is np.int8
    left, product = (TensorProto.UINT8, TensorProto.INT32) if is_int8 else (TensorProto.FLOAT, TensorProto.FLOAT)
    numbers = np.random.default_rng(0).integers(-127, 128, (edge, edge)).astype(dtype)
    value, shape = helper.make_tensor_value_info, [edge, edge]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if is_int8 else "MatMul", ["left", "right"], ["product"])],
        "product",
        [value("left", left, shape)],
        [value("product", product, shape)],
        [numpy_helper.from_array(numbers, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {"left": numbers.view(np.uint8) if is_int8 else numbers}
    return lambda: session.run(None, inputs)


def ceilings_of(precisions: Iterable[str]) -> dict[str, Ceilings]:
    """What this machine does at its best in each precision: its GPU, or the processor's threads that torch may use."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {precision: measure_ceilings(device, _TYPES[precision][0]) for precision in precisions}


def floors(
    bundle: Bundle, utterance: Features, ceilings: Mapping[str, Ceilings]
) -> dict[str, dict[str, dict[str, float]]]:
    """For each precision, of each network and in total: operations and bytes of an utterance, and their milliseconds.

    All operations count as products of that precision, though some are not. The total is that of the networks one after
    the other. Of an embedding's table a few rows are read.

    Args:
        bundle: The networks.
        utterance: Has sound and pictures, whether the networks take them or not.
        ceilings: Of each precision.
    """
    work = {part: _work(network, inputs) for part, (network, inputs) in _calls(bundle, utterance).items()}
    return {precision: _floors(work, _TYPES[precision][1], ceiling) for precision, ceiling in ceilings.items()}


def _floors(work: Mapping[Part, tuple[int, int]], weight_bytes: int, ceiling: Ceilings) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for part, (flops, weights) in work.items():
        size_bytes = weight_bytes * weights
        rows[part] = {"flops": flops, "bytes": size_bytes, "ms": round(ceiling.floor_ms(flops, size_bytes), 3)}
    total = {name: round(sum(row[name] for row in rows.values()), 3) for name in ("flops", "bytes", "ms")}
    return {**rows, "total": total}


def _calls(bundle: Bundle, utterance: Features) -> Mapping[Part, tuple[nn.Module, Sequence[Tensor]]]:
    """Each network but the fusion, whose operations are a thousandth of theirs, and its input for one utterance."""
    assert isinstance(utterance.sound, np.ndarray)
    assert isinstance(utterance.pixels, Tensor)
    inputs: dict[Part, Sequence[Tensor]] = {
        "text": collate_prompts([utterance.prompt_ids], 1),
        "audio": [pad_left([utterance.sound], bundle.config.input_mode)],
        "video": [utterance.pixels],
    }
    # As the graphs are: what they leave out nobody needs.
    return {
        part: (part_module(bundle, part, "fp32"), given)
        for part, given in inputs.items()
        if part in bundle.config.parts
    }


def _work(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Operations of a network on inputs, and how many weights they read."""
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    read = sum(weights.numel() for weights in network.parameters() if id(weights) not in tables)
    return count_flops(network, *inputs), read


def count_flops(network: nn.Module, *inputs: Tensor) -> int:
    """Operations of a network on these inputs."""
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter, torch.inference_mode():
        network(*inputs)
    return int(counter.get_total_flops())


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(_REPEATS + 1):  # the first one chooses kernels
        started_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started_s)
    return best
