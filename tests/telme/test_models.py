"""The encoders: padding that changes nothing, features that are read where the paper reads them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from telme.config import FusionSettings, TelmeConfig
from telme.errors import BundleError
from telme.features import collate_prompts
from telme.models import AudioStudent, TextTeacher, VideoStudent, resize_vocabulary
from tests.telme import tiny


@pytest.fixture(params=sorted(tiny.TEXT_FAMILIES))
def teacher(request: pytest.FixtureRequest) -> TextTeacher:
    torch.manual_seed(3)
    return TextTeacher(tiny.config(request.param)).eval()


def test_left_padding_changes_nothing(teacher: TextTeacher) -> None:
    prompts = [list(range(10, 10 + length)) for length in (3, 40, 17, 1)]
    pad_id = teacher.text_model.config.pad_token_id
    with torch.inference_mode():
        together = teacher(*collate_prompts(prompts, pad_id))
        alone = [teacher(*collate_prompts([prompt], pad_id)) for prompt in prompts]
    torch.testing.assert_close(together.feature, torch.cat([one.feature for one in alone]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), rtol=0, atol=1e-5)


def test_positions_are_those_of_the_backbone_itself(teacher: TextTeacher) -> None:
    ids, mask = collate_prompts([list(range(10, 30))], 0)
    with torch.inference_mode():
        hidden = teacher.text_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
        torch.testing.assert_close(teacher(ids, mask).feature, teacher.W(hidden), rtol=0, atol=1e-6)


def test_teacher_has_the_published_names_and_no_pooler(teacher: TextTeacher) -> None:
    assert {name.split(".")[0] for name in teacher.state_dict()} == {"text_model", "W", "classifier"}
    assert not [name for name in teacher.state_dict() if "pooler" in name]


def test_resized_vocabulary_keeps_the_old_rows(teacher: TextTeacher) -> None:
    name = "text_model.embeddings.word_embeddings.weight"
    before = teacher.state_dict()[name].clone()
    resize_vocabulary(teacher, 129, seed=1)
    after = teacher.state_dict()[name]
    assert after.shape[0] == 129
    torch.testing.assert_close(after[:120], before)


@pytest.mark.parametrize(("student", "shape"), [(AudioStudent, (3, 1600)), (VideoStudent, (3, 8, 3, 32, 32))])
def test_students_read_the_first_state(
    student: type[AudioStudent] | type[VideoStudent], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(4)
    network = student(tiny.config()).eval().requires_grad_(False)
    given = tiny.noise(*shape)
    answer = network(given)
    assert answer.logits.shape == (3, 7)
    torch.testing.assert_close(answer.feature, network.model(given).last_hidden_state[:, 0])
    torch.testing.assert_close(answer.logits, network.W(answer.feature))
    torch.testing.assert_close(answer.feature[1:2], network(given[1:2]).feature, rtol=0, atol=1e-5)
    assert {name.split(".")[0] for name in network.state_dict()} == {"model", "W"}


@pytest.mark.parametrize("network", [TextTeacher, AudioStudent, VideoStudent])
def test_a_missing_backbone_is_named(network: type[nn.Module]) -> None:
    with pytest.raises(BundleError, match="_config"):
        network(TelmeConfig())


def test_config_survives_the_disk(tmp_path: Path) -> None:
    written = tiny.config(dataset="iemocap", mode="published-iemocap", fusion=asdict(FusionSettings(0.3, 2, 0.0)))
    written.save_pretrained(tmp_path)
    read = TelmeConfig.from_pretrained(tmp_path)
    assert read.to_dict() == written.to_dict()
    assert (read.audio_config, read.video_config) == (tiny.AUDIO, tiny.VIDEO)
    assert read.fusion_settings == FusionSettings(0.3, 2, 0.0)
    assert read.mode == "published-iemocap"


@pytest.mark.parametrize(("dataset", "settings"), [("meld", (0.1, 3, 0.2)), ("iemocap", (0.2, 4, 0.2))])
def test_fusion_settings_default_to_the_published_ones(dataset: str, settings: tuple[float, int, float]) -> None:
    assert TelmeConfig(dataset=dataset).fusion_settings == FusionSettings(*settings)


@pytest.mark.parametrize("fusion", [{"beta_shift": 0.1}, {"beta_shift": 0.1, "heads": 3, "dropout": 0.2, "hats": 1}])
def test_fusion_settings_that_do_not_hold_are_named(fusion: dict[str, float]) -> None:
    with pytest.raises(BundleError, match="beta_shift, heads and dropout"):
        _ = TelmeConfig(fusion=fusion).fusion_settings


@pytest.mark.parametrize("samples", [400, 1039, 1040, 16_000])
def test_a_sound_shorter_than_what_training_hides_is_heard_whole(samples: int) -> None:
    config = tiny.config()
    assert config.audio_config is not None
    config.audio_config = {**config.audio_config, "mask_time_length": 3, "mask_time_prob": 0.5}
    student = AudioStudent(config).train()
    assert student(torch.randn(2, samples)).feature.isfinite().all()
