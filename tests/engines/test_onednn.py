"""Tiny bundles under torch in bfloat16 on the CPU: torch's answers, what was fused, bad input, caches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from engines import onednn, predictor
from engines.onednn import cached_flat, lay_out, onednn_networks
from engines.predictor import Choice, choices, networks_of
from engines.spec import RunSettings
from engines.store import Store
from telme import processor
from telme.bundle import Bundle, open_bundle
from telme.errors import EngineError, PredictorError
from telme.predictor import NetworkPredictor, TorchPredictor
from tests.bundles import make_tiny_bundle
from tests.telme.test_predictor import mixed

needs_bfloat16 = pytest.mark.skipif(
    not processor.knows_bfloat16(), reason="torch has no bfloat16 for a processor without AVX-512"
)


@needs_bfloat16
def test_the_answers_are_those_of_torch_alone_and_together(bundle: Bundle, store: Store) -> None:
    batch = mixed(bundle)
    expected = TorchPredictor(bundle).predict(batch)
    networks = onednn_networks(bundle, store)
    assert networks.backend == "torch-cpu-bf16"
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
    lay_out(module)
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


@needs_bfloat16
def test_bad_input_is_refused_and_the_next_is_answered(bundle: Bundle, store: Store) -> None:
    networks = onednn_networks(bundle, store)
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
    onednn_networks(open_bundle(str(folder)), store)
    again = open_bundle(str(folder))
    onednn_networks(again, store)
    assert "model" not in vars(again)  # torch's networks are not loaded for a graph that is kept
    (graph,) = store.root.rglob("graph.pt2")
    graph.write_bytes(graph.read_bytes()[:-100])
    caplog.set_level("INFO")
    onednn_networks(again, store)
    assert "graph.pt2 is damaged" in caplog.text


def test_a_graph_that_torch_refuses_is_a_clear_error(tmp_path: Path) -> None:
    graph = tmp_path / "graph.pt2"
    graph.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"graph\.pt2 cannot be loaded"):
        onednn._run(graph)


def test_a_processor_without_bfloat16_is_a_clear_error(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "knows_bfloat16", lambda: False)
    monkeypatch.setattr(onednn, "knows_bfloat16", lambda: False)
    assert not processor.multiplies_bfloat16()
    (asked,) = choices("torch", "bf16")
    with pytest.raises(EngineError, match="torch in bf16 on a processor without it; expected AVX-512"):
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
    assert [(one.backend, one.precision) for one in choices("auto", "int8")] == [("onnx", "int8"), ("torch", "int8")]
    assert choices("torch") == [Choice("torch", "fp32", "as asked")]
    assert networks_of(bundle, first, RunSettings(), store).backend == "torch-cpu-bf16"
