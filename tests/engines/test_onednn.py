"""Tiny bundles under torch in bfloat16 and int8 on the CPU: torch's answers, what was fused, bad input, caches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import onednn, predictor
from engines.int8 import Int8Linear
from engines.onednn import cached_flat, lay_out, onednn_networks
from engines.predictor import Choice, choices, networks_of
from engines.spec import Precision, RunSettings
from engines.store import Store
from telme import processor
from telme.bundle import Bundle, open_bundle
from telme.config import Part
from telme.errors import EngineError, PredictorError
from telme.predictor import NetworkPredictor, TorchPredictor
from tests.bundles import make_full_bundle, make_tiny_bundle
from tests.engines.stores import in_a_file_system
from tests.telme import tiny
from tests.telme.test_predictor import mixed

NO_INT8 = "torch multiplies no bytes exactly on a processor without AVX-512 and VNNI"
needs_int8 = pytest.mark.skipif(not processor.multiplies_int8(), reason=NO_INT8)
needs_bfloat16 = pytest.mark.skipif(
    not processor.knows_bfloat16(), reason="torch has no bfloat16 for a processor without AVX-512"
)


@needs_bfloat16
@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_the_answers_are_those_of_torch_alone_and_together(bundle: Bundle, store: Store, precision: Precision) -> None:
    batch = mixed(bundle)
    expected = TorchPredictor(bundle).predict(batch)
    networks = onednn_networks(bundle, precision, store)
    assert networks.backend == f"torch-cpu-{precision}"
    made = NetworkPredictor(bundle, networks)
    together = made.predict(batch)
    for one, other, item in zip(together, expected, batch, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.01)
        assert one.unused == other.unused
        (alone,) = made.predict([item])
        assert alone.probabilities == pytest.approx(one.probabilities, abs=0.01)
    assert (together == expected) is False  # another arithmetic


@needs_bfloat16
def test_products_are_fused(bundle: Bundle, store: Store) -> None:
    module = torch.export.load(cached_flat(bundle, "text", store)).module()
    assert isinstance(module, torch.fx.GraphModule)
    before = Counter(str(node.target) for node in module.graph.nodes)
    lay_out(module, "bf16")
    after = Counter(str(node.target) for node in module.graph.nodes)
    # Two layers of query, key, value, output and the two products of the feed-forward, and two heads.
    assert before["aten.linear.default"] == 2 * 6 + 2
    assert "aten.linear.default" not in after
    # Queries, keys and values are one, but where one token asks; both sums are within their products, and so is the
    # activation.
    assert after["mkldnn._linear_pointwise.default"] == 2 + 3 + 2
    assert after["mkldnn._linear_pointwise.binary"] == 2 * 2
    assert "aten.gelu.default" not in after
    assert "aten.dropout.default" not in after


@needs_int8
@pytest.mark.parametrize(("part", "rounded", "kept", "lifted"), [("text", 4 + 5, 2, 2), ("video", 7, 1, 1)])
def test_products_of_many_rows_are_in_int8_and_heads_are_not(
    bundle: Bundle, store: Store, part: Part, rounded: int, kept: int, lifted: int
) -> None:
    module = torch.export.load(cached_flat(bundle, part, store)).module()
    assert isinstance(module, torch.fx.GraphModule)
    lay_out(module, "int8")
    after = Counter(str(node.target) for node in module.graph.nodes)
    layers = [layer for layer in module.modules() if isinstance(layer, Int8Linear)]
    assert len(layers) == rounded
    assert after["mkldnn._linear_pointwise.default"] == kept
    assert "aten.linear.default" not in after
    # The second product of each feed-forward reads what a GELU gives.
    assert sum(layer.floor is not None for layer in layers) == lifted


@needs_int8
def test_int8_reads_the_graph_that_bfloat16_reads(bundle: Bundle, store: Store) -> None:
    onednn_networks(bundle, "bf16", store)
    before = sorted(store.root.rglob("graph.pt2"))
    onednn_networks(bundle, "int8", store)
    assert sorted(store.root.rglob("graph.pt2")) == before


@pytest.mark.parametrize("asking", [1, 5])
@pytest.mark.parametrize("masked", ["", "nothing", "some", "added"])
@pytest.mark.parametrize("most_scores", [1, 60, 1 << 18])
def test_attention_is_torchs(masked: str, asking: int, most_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in several goes: one head, and some heads, at a time."""
    monkeypatch.setattr(onednn, "_MOST_SCORES", most_scores)
    noise = torch.Generator().manual_seed(8)
    query = torch.randn(3, asking, 4, 8, generator=noise).transpose(1, 2)  # strides as in the graphs
    key, value = (torch.randn(3, 5, 4, 8, generator=noise).transpose(1, 2) for _ in range(2))
    mask: torch.Tensor | None = torch.ones(3, 1, 1, 5, dtype=torch.bool).expand(3, 1, asking, 5).clone()
    assert mask is not None
    if masked in ("some", "added"):
        mask[1, ..., :2] = False
    if masked == "added":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    mask = mask if masked else None
    for scale in (None, 0.7):
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
        assert onednn.attend(query, key, value, mask, scale=scale).numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "mask_shape", "taken"),
    [
        ({}, (2, 1, 6, 6), True),
        ({}, (2, 1, 1, 6), True),
        ({"scale": 0.3}, (2, 1, 6, 6), True),
        ({"is_causal": True}, None, False),
        ({"dropout_p": 0.1}, None, False),
        ({}, (2, 4, 6, 6), False),
        ({}, (1, 1, 6, 6), False),
        ({}, (6, 6), False),
        ({"enable_gqa": True}, None, False),
    ],
)
def test_only_attention_with_one_mask_for_all_heads_is_replaced(
    given: dict[str, Any], mask_shape: tuple[int, ...] | None, taken: bool
) -> None:
    class Attention(torch.nn.Module):
        def forward(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(states, states, states, mask, **given)

    inputs = [torch.randn(2, 4, 6, 8)]
    if mask_shape is not None:
        inputs.append(torch.ones(mask_shape, dtype=torch.bool))
    module = torch.export.export(Attention(), tuple(inputs)).module()
    assert isinstance(module, torch.fx.GraphModule)
    lay_out(module, "bf16")
    targets = {node.target for node in module.graph.nodes}
    assert (onednn.attend in targets) == taken
    assert (torch.ops.aten.scaled_dot_product_attention.default in targets) != taken
    assert module(*inputs).shape == (2, 4, 6, 8)


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((2, 6, 8), (2, 6, 8), (2, 6, 8)),
        ((2, 4, 6, 8), (2, 4, 6, 8), (2, 4, 6, 5)),
        ((2, 4, 6, 8), (1, 4, 6, 8), (1, 4, 6, 8)),
    ],
)
def test_attention_of_other_shapes_stays_torchs(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]
) -> None:
    class Attention(torch.nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    given = tuple(torch.randn(shape, generator=torch.Generator().manual_seed(9)) for shape in (query, key, value))
    module = torch.export.export(Attention(), given).module()
    assert isinstance(module, torch.fx.GraphModule)
    lay_out(module, "bf16")
    assert torch.equal(module(*given), Attention()(*given))


@needs_bfloat16
@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_two_sums_in_a_row_and_an_attention_of_an_attention(precision: Precision) -> None:
    """What stands for a node that was replaced has its shape."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            attend = torch.nn.functional.scaled_dot_product_attention
            states = self.second(states) + (self.first(states) + states)
            return attend(attend(states, states, states, mask), states, states, mask)

    network = Network().bfloat16().eval()
    given = (torch.randn(2, 1, 6, 8, dtype=torch.bfloat16), torch.ones(2, 1, 6, 6, dtype=torch.bool))
    module = torch.export.export(network, given).module()
    assert isinstance(module, torch.fx.GraphModule)
    lay_out(module, precision)
    with torch.no_grad():
        found, expected = module(*given), network(*given)
    assert found.float().numpy() == pytest.approx(expected.float().numpy(), abs=0.1)


@needs_int8
def test_a_backbone_that_multiplies_its_layers_weights_itself_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny.AUDIO, "model_type", "wavlm")
    bundle = open_bundle(str(make_full_bundle(tmp_path / "bundle")))
    with pytest.raises(EngineError, match=r"audio network of .* in int8 does not run: .*; run with --precision bf16"):
        onednn_networks(bundle, "int8", Store(tmp_path / "cache"))


@needs_bfloat16
def test_bad_input_is_refused_and_the_next_is_answered(bundle: Bundle, store: Store) -> None:
    networks = onednn_networks(bundle, "bf16", store)
    good = torch.tensor([[5, 6, 7]])
    for ids, mask in ((good.int(), good), (good, good[:, :2]), (good[0], good)):
        with pytest.raises(PredictorError, match="text graph"):
            networks.text(ids, torch.ones_like(mask))
    with torch.inference_mode():
        assert networks.text(good, torch.ones_like(good)).feature.shape == (1, 768)


@needs_bfloat16
def test_a_damaged_graph_is_named_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    store = Store(tmp_path / "cache")
    onednn_networks(open_bundle(str(folder)), "bf16", store)
    again = open_bundle(str(folder))
    onednn_networks(again, "bf16", store)
    assert "model" not in vars(again)  # torch's networks are not loaded for a graph that is kept
    (graph,) = store.root.rglob("graph.pt2")
    graph.write_bytes(graph.read_bytes()[:-100])
    caplog.set_level("INFO")
    onednn_networks(again, "bf16", store)
    assert "graph.pt2 is damaged" in caplog.text


FULL_DISK = """
mount -t tmpfs -o size=20k tmpfs "$1" || exit 77
"$2" - "$1" <<'END'
import sys
from pathlib import Path
from engines.onednn import cached_flat
from engines.store import Store
from telme.bundle import open_bundle
from telme.errors import EngineError
from tests.bundles import make_tiny_bundle

bundle = open_bundle(str(make_tiny_bundle(Path(sys.argv[1]).with_name("tiny"))))
try:
    cached_flat(bundle, "text", Store(Path(sys.argv[1])))
except EngineError as error:
    print(error)
print([path.name for path in Path(sys.argv[1]).iterdir() if path.suffix != ".lock"])
END
"""


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """torch's own writer aborts the process where its file cannot be written."""
    (tmp_path / "full").mkdir()
    error, entries = in_a_file_system(FULL_DISK, tmp_path / "full")
    assert "the text network of " in error
    assert "cannot be exported: [Errno 28] No space left on device" in error
    assert entries == "[]"


def test_a_graph_that_torch_refuses_is_a_clear_error(tmp_path: Path) -> None:
    graph = tmp_path / "graph.pt2"
    graph.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"graph\.pt2 cannot be loaded"):
        onednn._run(graph, "bf16")


def test_a_processor_without_bfloat16_is_a_clear_error(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "knows_bfloat16", lambda: False)
    monkeypatch.setattr(onednn, "knows_bfloat16", lambda: False)
    assert not processor.multiplies_bfloat16()
    (asked,) = choices("torch", "bf16")
    assert [one.name for one in choices("auto", "bf16")] == [asked.name]  # ONNX Runtime has none
    with pytest.raises(EngineError, match="torch in bf16 on a processor without it; expected AVX-512"):
        networks_of(bundle, asked, RunSettings(), store)


@needs_bfloat16
def test_a_processor_that_adds_bytes_with_loss_is_a_clear_error(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "adds_int8_exactly", lambda: False)
    assert [one.name for one in choices("auto", "int8")] == ["onnx-int8", "torch-int8"]
    (asked,) = choices("torch", "int8")
    with pytest.raises(EngineError, match="torch in int8 on a processor without it; expected AVX-512 with VNNI"):
        networks_of(bundle, asked, RunSettings(), store)


@pytest.mark.parametrize(
    ("can", "multiplies"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx512_f": True, "avx512_bf16": False}, False)],
)
def test_products_in_bfloat16_are_those_of_amx_and_of_avx512(
    can: dict[str, bool], multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "knows_bfloat16", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert processor.multiplies_bfloat16() is multiplies


@needs_bfloat16
def test_auto_takes_it_where_the_processor_has_such_products(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "multiplies_bfloat16", lambda: True)
    first, *others = choices()
    assert (first.backend, first.precision) == ("torch", "bf16")
    assert "products in bfloat16" in first.why
    assert [(one.backend, one.precision) for one in others] == [("onnx", "fp32"), ("torch", "fp32")]
    monkeypatch.setattr(predictor, "multiplies_int8", lambda: True)
    bytewise = choices("auto", "int8")
    assert [one.name for one in bytewise] == ["torch-int8", "onnx-int8"]
    assert "products of bytes" in bytewise[0].why
    assert [one.name for one in choices("auto", "bf16")] == ["torch-bf16"]
    assert choices("torch") == [Choice("torch", "fp32", "as asked")]
    assert networks_of(bundle, first, RunSettings(), store).backend == "torch-cpu-bf16"
