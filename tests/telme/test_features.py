"""From turns, sound and pictures to tensors, or to a reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from telme.bundle import load_bundle
from telme.config import Part
from telme.dialogue import Turn
from telme.errors import BundleError, FeatureError
from telme.features import NOT_GIVEN, FeatureMaker, Features, Missing
from telme.modes import CLEAN, PUBLISHED_IEMOCAP, PUBLISHED_MELD
from telme.pixels import pixel_values
from telme.sound import ZERO_CLIP_SAMPLES, input_values
from tests.bundles import make_full_bundle, tiny_config, tiny_tokenizer

CHANCE = np.random.default_rng(5)
SOUND = CHANCE.integers(-20_000, 20_000, 16_000).astype(np.int16)
FRAMES = CHANCE.integers(0, 256, (8, 48, 64, 3)).astype(np.uint8)
EDGE = 32


def maker_of(folder: Path, without: tuple[Part, ...] = (), mode: str = "clean") -> FeatureMaker:
    bundle = load_bundle(str(make_full_bundle(folder / "bundle", without, mode)))
    return FeatureMaker(bundle.tokenizer, bundle.config)


def made(
    maker: FeatureMaker,
    audio: NDArray[Any] | Missing,
    video: NDArray[Any] | Missing = NOT_GIVEN,
    rate_hz: int = 16_000,
) -> Features:
    return maker.make(maker.window([Turn("a", "hello there")]), audio, video, rate_hz)


def sound_of(features: Features) -> NDArray[np.float32]:
    assert not isinstance(features.sound, Missing), features.sound
    return features.sound


def pixels_of(features: Features) -> torch.Tensor:
    assert isinstance(features.pixels, torch.Tensor), features.pixels
    return features.pixels


@pytest.mark.parametrize("mode", [CLEAN, PUBLISHED_MELD], ids=lambda mode: mode.name)
def test_sound_and_pictures_are_made_in_the_bundles_mode(tmp_path: Path, mode: Any) -> None:
    features = made(maker_of(tmp_path, mode=mode.name), SOUND, FRAMES)
    pcm = SOUND.astype(np.float32) / np.float32(32_768)
    np.testing.assert_array_equal(sound_of(features), input_values(pcm, 16_000, mode))
    assert len(sound_of(features)) == mode.audio_rate_hz
    assert torch.equal(pixels_of(features), pixel_values(FRAMES, mode, EDGE))
    assert features.missing == {}


def test_float_samples_of_another_rate_are_resampled(tmp_path: Path) -> None:
    pcm = CHANCE.normal(0, 0.1, 44_100).astype(np.float32)
    features = made(maker_of(tmp_path), pcm, rate_hz=44_100)
    np.testing.assert_array_equal(sound_of(features), input_values(pcm, 44_100, CLEAN))
    assert features.missing == {"video": "not given"}


def test_how_long_a_clip_is_goes_by_its_rate(tmp_path: Path) -> None:
    pcm = CHANCE.normal(0, 0.1, 20 * 44_100).astype(np.float32)
    assert made(maker_of(tmp_path), pcm, FRAMES, rate_hz=44_100).missing == {}


@pytest.mark.parametrize(
    ("audio", "video", "says"),
    [
        (Missing("the microphone is off"), Missing("the camera is off"), ("microphone is off", "camera is off")),
        (SOUND[:399], FRAMES[:7], ("399 samples at 16000 Hz", r"frames uint8 \(7, 48, 64, 3\)")),
        (np.zeros(30 * 16_000 + 1, np.int16), FRAMES, ("a clip of 30.0 s", "the clip is too long")),
        (SOUND.astype(np.float64), FRAMES.astype(np.float32), ("sound of float64", "frames float32")),
        (SOUND[:399], FRAMES[..., :1], ("399 samples", r"\(8, 48, 64, 1\)")),
        (SOUND.reshape(2, -1), FRAMES[:, :0], (r"\(2, 8000\)", r"\(8, 0, 64, 3\)")),
    ],
)
def test_what_cannot_become_tensors_is_missing_with_a_reason(
    tmp_path: Path, audio: NDArray[Any] | Missing, video: NDArray[Any] | Missing, says: tuple[str, str]
) -> None:
    features = made(maker_of(tmp_path), audio, video)
    assert isinstance(features.sound, Missing)
    assert isinstance(features.pixels, Missing)
    for reason, said in zip((features.sound.reason, features.pixels.reason), says, strict=True):
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(reason)


@pytest.mark.parametrize(
    ("without", "reasons"),
    [
        (("audio",), {"audio": "the bundle has no audio student"}),
        (("video",), {"video": "the bundle has no video student"}),
        (("fusion",), {s: f"the bundle has no fusion that would read the {s} student" for s in ("audio", "video")}),
    ],
)
def test_what_the_bundle_does_not_read_is_not_made(
    tmp_path: Path, without: tuple[Part, ...], reasons: dict[str, str]
) -> None:
    assert made(maker_of(tmp_path, without), SOUND, FRAMES).missing == reasons


def test_capture_says_first_why_a_modality_is_missing(tmp_path: Path) -> None:
    features = made(maker_of(tmp_path, ("audio", "video", "fusion")), Missing("the microphone is off"), FRAMES)
    assert features.missing == {"audio": "the microphone is off", "video": "the bundle has no video student"}


def test_published_mode_feeds_zeros_for_a_clip_of_more_than_30_s(tmp_path: Path) -> None:
    features = made(maker_of(tmp_path, mode="published-meld"), np.ones(30 * 16_000 + 1, np.int16), FRAMES)
    assert sound_of(features).shape == (ZERO_CLIP_SAMPLES,)
    assert pixels_of(features).shape == (1, 8, 3, EDGE, EDGE)
    assert not sound_of(features).any()
    assert not pixels_of(features).any()


def test_published_iemocap_reads_a_clip_of_more_than_30_s(tmp_path: Path) -> None:
    maker = maker_of(tmp_path, mode="published-meld")
    maker.mode = PUBLISHED_IEMOCAP  # of a bundle whose data set that is
    features = made(maker, np.ones(30 * 16_000 + 1, np.int16), FRAMES)
    assert sound_of(features).any()
    assert pixels_of(features).any()


def test_published_mode_makes_no_pictures_of_a_long_clip_that_has_none(tmp_path: Path) -> None:
    maker = maker_of(tmp_path, mode="published-meld")
    features = made(maker, np.ones(30 * 16_000 + 1, np.int16), Missing("the camera is off"))
    assert features.missing == {"video": "the camera is off"}


def test_media_are_kept_under_what_they_depend_on(tmp_path: Path) -> None:
    assert maker_of(tmp_path, ("video",)).media_settings == {
        "audio_rate_hz": CLEAN.audio_rate_hz,
        "long_clip": CLEAN.long_clip,
        "frame_rule": CLEAN.frame_rule,
        "edge": 224,
        "read": ["audio"],
    }
    assert maker_of(tmp_path).media_settings["edge"] == EDGE


def test_a_window_holds_the_turns_that_the_bundle_reads() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    config.max_turns = 2
    window = FeatureMaker(tokenizer, config).window([Turn("a", word) for word in ("hello", "there", "you")])
    assert [turn.text for turn in window.turns] == ["there", "you"]


def test_published_mode_strips_blanks_and_writes_apostrophes_as_it_has_read_them(tmp_path: Path) -> None:
    maker = maker_of(tmp_path, mode="published-meld")
    assert maker.heard(Turn("a", "it's")).text == "it\x92s"
    assert maker.window([Turn("a", "it's")]).turns == (Turn("a", "it\x92s"),)
    window = maker.window([Turn("a", "hello"), Turn("b", "yes")])
    prompt = "<s1>hello<s2>yes [SEP] Now<s2>feels"
    expected = tiny_tokenizer()(prompt, add_special_tokens=False)["input_ids"]
    assert list(maker.make(window).prompt_ids[:-1]) == expected


def test_an_unknown_mode_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    config.mode = "loud"
    with pytest.raises(BundleError, match="mode 'loud'"):
        FeatureMaker(tokenizer, config)


@pytest.mark.parametrize("token", ["mask_token", "sep_token", "pad_token"])
def test_a_tokenizer_without_a_token_of_its_own_is_refused(token: str) -> None:
    tokenizer = tiny_tokenizer()
    setattr(tokenizer, token, None)
    with pytest.raises(FeatureError, match="a tokenizer without mask, separator or pad token"):
        FeatureMaker(tokenizer, tiny_config(len(tokenizer)))


def test_a_tokenizer_that_knows_no_speakers_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(models.WordLevel({"<s1>": 0, "[SEP]": 1}, unk_token="[SEP]")),
        **dict.fromkeys(("mask_token", "sep_token", "pad_token"), "[SEP]"),
    )
    with pytest.raises(FeatureError, match=r"a tokenizer without <s2>, .*, <s9>; .* saved with the bundle"):
        FeatureMaker(tokenizer, tiny_config(2))
