"""torch's networks on the lanes of a device in host memory: answers, half precision, batches."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from engines.cuda import CudaNetworks, Inputs, Outputs, TorchProgram, need_gpu, torch_networks
from engines.export import example_inputs
from engines.spec import RunSettings, graph_spec
from telme.bundle import Bundle, load_bundle
from telme.errors import EngineError
from telme.features import NOT_GIVEN, Features
from telme.predictor import NetworkPredictor, TorchNetworks, TorchPredictor
from tests.engines.fake_cuda import FakeDevice


@pytest.mark.parametrize("graphs", [True, False])
def test_torch_on_the_device_answers_as_torch_does(bundle: Bundle, graphs: bool) -> None:
    device = FakeDevice()
    found = torch_networks(bundle, "fp32", RunSettings(cuda_graphs=graphs), device)
    assert found.backend == "torch-cuda-fp32"
    same_answers(bundle, found, 1e-5)
    assert any("captured" in event for event in device.events) is graphs
    streams = {event.rpartition(" ")[2] for event in device.events if event.startswith("caller waits")}
    assert len(streams) == 4, "each network has its own"


def test_weights_that_see_no_later_turn_can_be_captured() -> None:
    compact = load_bundle("compact")
    compact.config.max_prompt_tokens = 64
    found = torch_networks(compact, "fp32", RunSettings(), FakeDevice())
    mask = torch.ones(2, 40, dtype=torch.int64)
    ids = mask * torch.tensor([[1], [2]])
    expected = TorchNetworks(compact.model).text(ids, mask)
    with torch.inference_mode():
        answered = found.text(ids, mask)
    torch.testing.assert_close(answered.logits, expected.logits, atol=1e-5, rtol=0)


def test_torch_in_half_precision_stays_near(bundle: Bundle) -> None:
    same_answers(bundle, torch_networks(bundle, "bf16", RunSettings(), FakeDevice()), 0.15)


def some_features(bundle: Bundle, count: int) -> list[Features]:
    """Of different lengths; some lack sound, some pictures."""
    edge = int((bundle.config.video_config or {})["image_size"])
    noise = torch.Generator().manual_seed(5)
    return [
        Features(
            prompt_ids=tuple(torch.randint(5, 40, (3 + 5 * number,), generator=noise).tolist()),
            context_turns=1,
            sound=NOT_GIVEN if number % 4 == 3 else torch.randn(400 + 320 * (number % 3), generator=noise).numpy(),
            pixels=NOT_GIVEN if number % 3 == 2 else torch.randn(1, 8, 3, edge, edge, generator=noise),
        )
        for number in range(count)
    ]


def test_a_batch_of_sessions_is_answered_as_each_alone_would_be(bundle: Bundle) -> None:
    given = some_features(bundle, 16)
    found = NetworkPredictor(bundle, torch_networks(bundle, "fp32", RunSettings(), FakeDevice())).predict(given)
    expected = [prediction for one in given for prediction in TorchPredictor(bundle).predict([one])]
    for answer, alone in zip(found, expected, strict=True):
        assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert answer.unused == alone.unused


def test_a_batch_without_room_is_answered_in_smaller_ones(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    networks = torch_networks(bundle, "fp32", RunSettings(), FakeDevice())
    run = TorchProgram._run

    def out_of_memory(self: TorchProgram, inputs: Inputs) -> Outputs:
        if len(next(iter(inputs.values()))) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return run(self, inputs)

    monkeypatch.setattr(TorchProgram, "_run", out_of_memory)
    given = some_features(bundle, 11)
    assert len(NetworkPredictor(bundle, networks).predict(given)) == 11
    assert "at most 5" in caplog.text


def same_answers(bundle: Bundle, found: CudaNetworks, tolerance: float) -> None:
    reference = TorchNetworks(bundle.model)

    def given(part: str, rows: int, length: int | None = None) -> Mapping[str, Tensor]:
        return example_inputs(graph_spec(bundle.config, part), rows, length)  # type: ignore[arg-type]

    with torch.inference_mode():
        for rows, length in ((3, 7), (1, 96), (2, 30)) * 2:  # launched and captured
            text = given("text", rows, length).values()
            expected, answer = reference.text(*text), found.text(*text)
            assert torch.allclose(expected.feature, answer.feature, atol=tolerance)
            assert torch.allclose(expected.logits, answer.logits, atol=tolerance)
            sound, pictures = given("audio", rows, 400 + length)["input_values"], given("video", rows)["pixel_values"]
            assert torch.allclose(reference.audio(sound), found.audio(sound), atol=tolerance)
            assert torch.allclose(reference.video(pictures), found.video(pictures), atol=tolerance)
            features = given("fusion", rows)
            assert torch.allclose(reference.fusion(**features), found.fusion(**features), atol=tolerance)


def test_without_a_gpu_it_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"sees no CUDA device.*use --backend onnx"):
        torch_networks(bundle, "fp16", RunSettings())
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(EngineError, match="was built without CUDA"):
        need_gpu()
