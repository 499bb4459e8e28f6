"""Graphs of tiny bundles against torch: every part, sizes other than the example's, half precision, errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from transformers import masking_utils
from transformers.models.timesformer.modeling_timesformer import TimesformerSelfAttention

from engines.export import example_inputs, export_graph, graph_key, part_module, sdpa_timesformer
from engines.spec import Precision, graph_spec
from telme.bundle import Bundle, load_bundle, save_bundle
from telme.config import Part
from telme.errors import EngineError
from telme.models import TextTeacher, VideoStudent
from tests.bundles import make_full_bundle, make_tiny_bundle, tiny_config, tiny_tokenizer
from tests.engines.graphs import run_plain, run_torch

PARTS: tuple[Part, ...] = ("text", "audio", "video", "fusion")
Export = Callable[[Part, Precision], Path]


@pytest.fixture(scope="module")
def export(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Each graph is made once."""
    return cache(lambda part, precision: export_graph(bundle, part, precision, tmp_path_factory.mktemp("graph")))


@pytest.mark.parametrize("part", PARTS)
def test_a_graph_answers_as_torch_does_at_every_size(bundle: Bundle, export: Export, part: Part) -> None:
    path = export(part, "fp32")
    assert path.name == f"{part}.onnx"
    spec = graph_spec(bundle.config, part)
    for batch, length in ((1, None), (3, 400 if part == "audio" else 7), (2, 70_001 if part == "audio" else 96)):
        inputs = example_inputs(spec, batch, length)
        expected, found = run_torch(bundle, part, inputs), run_plain(path, inputs)
        assert list(found) == [tensor.name for tensor in spec.outputs]
        for name, values in expected.items():
            assert np.abs(values - found[name]).max() < 1e-5, (name, batch, length)


def test_turns_that_see_no_later_one_are_exported_as_such(tmp_path: Path) -> None:
    plain, bundle = (load_bundle(str(make_tiny_bundle(tmp_path / name))) for name in ("plain", "turns"))
    with torch.no_grad():
        for name, weights in plain.model.text.named_parameters():
            if "attention.self" in name:
                weights.mul_(20)  # so that it matters who is seen
    bundle.config.turn_starts = list(range(0, bundle.model.text.text_model.config.vocab_size, 5))
    bundle.model.text = TextTeacher(bundle.config).eval()
    bundle.model.text.load_state_dict(plain.model.text.state_dict())
    path = export_graph(bundle, "text", "fp32", tmp_path)
    for batch, length in ((1, 5), (3, 40)):
        inputs = example_inputs(graph_spec(bundle.config, "text"), batch, length)
        expected = run_torch(bundle, "text", inputs)["logits"]
        assert np.abs(run_plain(path, inputs)["logits"] - expected).max() < 1e-5
        assert np.abs(run_torch(plain, "text", inputs)["logits"] - expected).max() > 1e-4


@pytest.mark.parametrize("precision", get_args(Precision)[:3])
@pytest.mark.parametrize(("part", "turn_starts"), [*((part, None) for part in PARTS), ("text", [5, 11, 17])])
def test_a_network_makes_nothing_elsewhere_than_where_its_inputs_lie(
    tmp_path: Path, part: Part, turn_starts: list[int] | None, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: tensors without memory stand for its own. Nor does it ask for the value of any."""
    bundle = load_bundle(str(make_full_bundle(tmp_path, mode="published-meld")))
    bundle.config.turn_starts = turn_starts
    bundle.model.text = TextTeacher(bundle.config).eval()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)  # it asks whether torch has a GPU, too
    inputs = example_inputs(graph_spec(bundle.config, part)).values()
    network = part_module(bundle, part, precision).to("meta")
    with torch.inference_mode(), sdpa_timesformer():
        outputs = network(*(values.to("meta") for values in inputs))
    assert [(output.device.type, output.dtype) for output in outputs] == [("meta", torch.float32)] * len(outputs)
    assert outputs


@pytest.mark.parametrize(("kind", "read"), [("bert", 1), ("roberta", 1), ("mpnet", 9)])
@pytest.mark.parametrize("turn_starts", [None, [5, 11, 17]])
def test_the_last_layer_runs_for_the_one_token_that_is_read(
    tmp_path: Path, kind: str, read: int, turn_starts: list[int] | None
) -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    assert config.text_config is not None
    config.text_config["model_type"] = kind
    config.turn_starts = turn_starts
    save_bundle(tmp_path, config, TextTeacher(config), tokenizer, "# A toy for tests: random weights.\n")
    bundle = load_bundle(str(tmp_path))
    teacher = bundle.model.text
    with torch.no_grad():
        for name, weights in teacher.named_parameters():
            if ".self." in name:
                weights.mul_(20)  # so that it matters who is seen
    module = part_module(bundle, "text", "fp32")
    network = module.network
    assert isinstance(network, TextTeacher)
    assert set(network.parameters()) == set(teacher.parameters())
    inputs = example_inputs(graph_spec(bundle.config, "text"), 2, 9)
    states: list[torch.Tensor] = []
    network.text_model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    with torch.inference_mode():
        found, expected = module(*inputs.values()), teacher(*inputs.values())
    assert states[0].shape == (2, read, 32)
    torch.testing.assert_close(found[0], expected.feature)
    torch.testing.assert_close(found[1], expected.logits)


@pytest.mark.parametrize(("attention", "read"), [("divided_space_time", 1), ("joint_space_time", 1 + 4 * 8)])
def test_pictures_are_watched_in_the_last_layer_for_the_class_token_alone(
    tmp_path: Path, attention: str, read: int
) -> None:
    bundle = load_bundle(str(make_full_bundle(tmp_path, mode="published-meld")))
    assert bundle.config.video_config is not None
    bundle.config.video_config |= {"attention_type": attention, "qkv_bias": True}
    student = bundle.model.video = VideoStudent(bundle.config).eval()
    with torch.no_grad():
        for name, weights in student.named_parameters():
            weights.mul_(20 if "attention" in name else 1)  # so that it matters who is seen
            weights.add_(torch.randn(weights.shape) / 10)
    module = part_module(bundle, "video", "fp32")
    states: list[torch.Tensor] = []
    network = module.network
    assert isinstance(network, VideoStudent)
    network.model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    inputs = example_inputs(graph_spec(bundle.config, "video"))
    with torch.inference_mode():
        found, expected = module(*inputs.values()), student(*inputs.values())
    assert states[0].shape[:2] == (2, read)
    torch.testing.assert_close(found[0], expected.feature)
    torch.testing.assert_close(found[1], expected.logits)


def test_an_absent_student_is_ignored_whatever_stands_in_its_row(bundle: Bundle, export: Export) -> None:
    path = export("fusion", "fp32")
    inputs = example_inputs(graph_spec(bundle.config, "fusion"), batch=4)
    inputs["present"] = torch.tensor([[True, True], [False, True], [True, False], [False, False]])
    expected = run_torch(bundle, "fusion", inputs)["logits"]
    inputs["audio"][1], inputs["video"][2], inputs["audio"][3] = torch.nan, torch.nan, 7.0
    assert np.abs(run_plain(path, inputs)["logits"] - expected).max() < 1e-5


@pytest.mark.parametrize(("part", "precision"), [("text", "fp16"), ("fusion", "bf16")])
def test_a_graph_of_half_precision_has_float32_edges(
    bundle: Bundle, export: Export, part: Part, precision: Precision
) -> None:
    model = onnx.load(export(part, precision))
    edges = [*model.graph.input, *model.graph.output]
    types = {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in edges}
    spec = graph_spec(bundle.config, part)
    assert types == {tensor.name: np.dtype(tensor.dtype) for tensor in (*spec.inputs, *spec.outputs)}
    weights = [item for item in model.graph.initializer if np.prod(item.dims) > 1000]
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    assert {item.data_type for item in weights} == {half}
    assert {value.dtype for value in bundle.model.state_dict().values()} == {torch.float32}


def test_float16_text_stays_near_float32(bundle: Bundle, export: Export) -> None:
    inputs = example_inputs(graph_spec(bundle.config, "text"))
    expected = run_torch(bundle, "text", inputs)["logits"]
    assert 0 < np.abs(run_plain(export("text", "fp16"), inputs)["logits"] - expected).max() < 1e-2


# TimeSformer has one over time and one over space.
@pytest.mark.parametrize(("part", "count"), [("text", 2), ("audio", 1), ("video", 2)])
def test_attention_is_one_node_a_layer(export: Export, part: Part, count: int) -> None:
    graph = onnx.load(export(part, "fp32"), load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("Attention") == count


def test_timesformers_own_attention_is_back_afterwards() -> None:
    before = TimesformerSelfAttention.forward
    with sdpa_timesformer():
        assert TimesformerSelfAttention.forward is not before
    assert TimesformerSelfAttention.forward is before


def test_what_cannot_be_exported_says_what_can(tmp_path: Path) -> None:
    bundle = load_bundle(str(make_tiny_bundle(tmp_path / "bundle")))
    with pytest.raises(EngineError, match="audio in fp32 of bundle-"):
        export_graph(bundle, "audio", "fp32", tmp_path)
    with pytest.raises(EngineError, match="int8"):
        export_graph(bundle, "text", "int8", tmp_path)
    with pytest.raises(EngineError, match="cannot be exported"):
        export_graph(bundle, "text", "fp32", tmp_path / "nowhere")


def test_a_left_pad_makes_no_other_graph(tmp_path: Path) -> None:
    bundle = load_bundle(str(make_tiny_bundle(tmp_path / "tiny")))
    before = graph_key(bundle, "text")
    bundle.config.audio_left_pad_ms = 500
    assert graph_key(bundle, "text") == before
    bundle.config.max_turns += 1
    assert graph_key(bundle, "text") != before
