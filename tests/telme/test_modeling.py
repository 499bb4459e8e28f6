"""TelmeModel: the conventions of transformers, and one file for each part."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from telme.config import PUBLISHED_FUSION, Part, TelmeConfig
from telme.errors import BundleError
from telme.fusion import AttentionShiftFusion
from telme.modeling import PART_FILES, TelmeModel, read_config
from telme.models import AudioStudent, TextTeacher, VideoStudent
from tests.bundles import make_full_bundle, make_tiny_bundle
from tests.telme import tiny

STUDENTS: tuple[Part, ...] = ("audio", "video")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_full_bundle(tmp_path_factory.mktemp("bundles") / "full")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_auto_classes_load_a_bundle(folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(folder), TelmeConfig)
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, TelmeModel)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_was_saved_is_loaded_part_for_part(folder: Path, tmp_path: Path) -> None:
    model = TelmeModel.from_pretrained(str(folder))
    model.save_pretrained(tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted(["config.json", *PART_FILES.values()])
    again = TelmeModel.from_pretrained(tmp_path / "copy")
    assert again.config.to_dict() == model.config.to_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_part_has_its_own_names_and_loads_alone(folder: Path) -> None:
    network = AttentionShiftFusion(tiny.config())
    network.load_state_dict(load_file(folder / PART_FILES["fusion"]))
    assert {value.dtype for value in load_file(folder / PART_FILES["text"]).values()} == {torch.float16}


def test_weights_load_in_the_type_that_is_asked_for(folder: Path) -> None:
    model = TelmeModel.from_pretrained(folder, dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_buffers_are_those_of_a_network_built_by_hand(folder: Path) -> None:
    loaded, built = TelmeModel.from_pretrained(folder), TelmeModel(AutoConfig.from_pretrained(folder))
    expected = dict(built.named_buffers())
    assert expected
    for name, value in loaded.named_buffers():
        assert torch.equal(value, expected[name]), name


def test_the_answer_is_the_fusion_of_the_three_features(folder: Path) -> None:
    model = TelmeModel.from_pretrained(folder)
    ids, mask = torch.arange(6, 18).reshape(2, 6), torch.ones(2, 6, dtype=torch.int64)
    sound, pictures = tiny.noise(2, 1600), tiny.noise(2, 8, 3, 32, 32)
    present = torch.tensor([[True, True], [False, True]])
    assert model.audio is not None
    assert model.video is not None
    assert model.fusion is not None
    with torch.inference_mode():
        whole = model(ids, mask, sound, pictures, present)
        expected = model.fusion(
            model.text(ids, mask).feature, model.audio(sound).feature, model.video(pictures).feature, present
        )
        text_only = model(ids, mask)
    assert torch.equal(whole.logits, expected.logits)
    assert whole.used.tolist() == [[True, True, True], [True, False, True]]
    assert text_only.used.tolist() == [[True, False, False]] * 2


def test_without_a_fusion_the_teacher_answers(tmp_path: Path) -> None:
    model = TelmeModel.from_pretrained(make_tiny_bundle(tmp_path / "tiny"))
    assert (model.audio, model.video, model.fusion) == (None, None, None)
    ids, mask = torch.arange(6, 12)[None], torch.ones(1, 6, dtype=torch.int64)
    with torch.inference_mode():
        assert torch.equal(model(ids, mask).logits, model.text(ids, mask).logits)


@pytest.mark.parametrize("part", PART_FILES)
def test_a_part_that_the_configuration_names_must_be_there(tmp_path: Path, part: Part) -> None:
    folder = make_full_bundle(tmp_path / "full")
    (folder / PART_FILES[part]).unlink()
    with pytest.raises(BundleError, match=PART_FILES[part]):
        TelmeModel.from_pretrained(folder)


def test_a_part_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = make_full_bundle(tmp_path / "full")
    edit(folder, dataset="iemocap")
    with pytest.raises(BundleError, match="size mismatch"):
        TelmeModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "published-emory"}, "mode 'published-emory'"),
        ({"mode": "published-iemocap"}, "with dataset 'meld'"),
        ({"dataset": "emory"}, "dataset 'emory'"),
        ({"audio_config": {"hidden_size": 768}}, "audio_config or its model_type"),
        # The least likely class would be the answer.
        ({"calibration_temperature": -1.0}, "calibration_temperature -1.0; expected a number above 0"),
        ({"calibration_temperature": None}, "calibration_temperature None; expected a number above 0"),
        ({"max_turns": 0}, "max_turns 0; expected a whole number from 1 on"),
        ({"max_prompt_tokens": 1}, "max_prompt_tokens 1; expected a whole number from 2 on"),
        ({"audio_config": 0}, "audio_config 0; expected an object with its settings, or null; mend it"),
        ({"audio_config": ["hidden_size"]}, r"audio_config \['hidden_size'\]; expected an object"),
        ({"audio_config": math.nan}, "audio_config nan; expected an object"),
        ({"video_config": {**tiny.VIDEO, "hidden_size": "wide"}}, "video_config that is none: .*hidden_size"),
        ({"text_config": {**tiny.TEXT_FAMILIES["bert"], "num_attention_heads": 7}}, "an encoder of type bert: "),
        ({"audio_config": {"model_type": ["bert"]}}, "audio_config that is none: "),
        ({"audio_config": {"model_type": "clip"}}, "audio_config that is none: .*hidden_size"),
        ({"text_config": {"model_type": "bert", "vocab_size": []}}, "text_config that is none: .*vocab_size"),
        ({"fusion": {"beta_shift": "0.1", "heads": 3, "dropout": 0.2}}, "expected beta_shift and dropout from 0 to 1"),
        ({"fusion": {"beta_shift": 0.1, "heads": 5, "dropout": 0.2}}, "heads that divide 1536"),
        ({"turn_starts": [True]}, r"turn_starts \[True\]; expected the ids of tokens, or null"),
        ({"audio_left_pad_ms": True}, "audio_left_pad_ms True; expected 0 to 30000"),
        ({"dtype": "float33"}, "float33"),
    ],
)
def test_a_configuration_that_does_not_hold_says_why(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    folder = make_full_bundle(tmp_path / "full")
    edit(folder, **changes)
    with pytest.raises(BundleError, match=says):
        TelmeModel.from_pretrained(folder)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, and no weights."""
    folder = tmp_path_factory.mktemp("described")
    tiny.config(fusion=asdict(PUBLISHED_FUSION["meld"])).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of networks of no size
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_whatever_stands_in_a_field_is_used_or_is_an_error_of_ours(described: Path, data: st.DataObject) -> None:
    text = (described / "config.json").read_text(encoding="utf-8")
    own = sorted(TelmeConfig.__annotations__)
    changes = data.draw(st.dictionaries(st.sampled_from([*own, "id2label", "num_labels", "dtype"]), _JSON, max_size=2))
    try:
        edit(described, **changes)
        with suppress(BundleError):
            TelmeModel(read_config(described))
    finally:
        (described / "config.json").write_text(text, encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_stands_in_a_backbones_field_is_used_or_is_an_error_of_ours(data: st.DataObject) -> None:
    """Numbers are left as they are: a large one is taken, and memory with it."""
    networks = {"text_config": TextTeacher, "audio_config": AudioStudent, "video_config": VideoStudent}
    part = data.draw(st.sampled_from(sorted(networks)))
    odd = st.one_of(st.none(), st.just(0), st.just(-1), st.just(math.nan), st.text(), st.lists(st.text(), max_size=2))
    whole = getattr(tiny.config(), part)
    name = data.draw(st.sampled_from([*whole, "hidden_act", "layer_norm_eps"]))
    changed: dict[str, Any] = {part: {**whole, name: data.draw(odd)}}
    with suppress(BundleError):
        networks[part](tiny.config(**changed))


def test_parts_follow_from_the_configuration() -> None:
    text = TelmeConfig(text_config=tiny.TEXT_FAMILIES["bert"])
    assert text.parts == ("text",)
    assert text.why_unread("audio") == "the bundle has no audio student"
    students = tiny.config()
    assert students.parts == ("text", "audio", "video")
    assert students.why_unread("video") == "the bundle has no fusion that would read the video student"
    fusion = replace(PUBLISHED_FUSION["meld"], beta_shift=0.5)
    deaf = tiny.config(audio_config=None, fusion=asdict(fusion))
    assert deaf.parts == ("text", "video", "fusion")
    assert deaf.fusion_settings == fusion
    assert (deaf.why_unread("audio"), deaf.why_unread("video")) == ("the bundle has no audio student", None)


@pytest.mark.parametrize("student", STUDENTS)
def test_a_bundle_without_a_student_loads(tmp_path: Path, student: Part) -> None:
    model = TelmeModel.from_pretrained(make_full_bundle(tmp_path / "part", without=[student]))
    assert model.network(student) is None
    assert model.fusion is not None
