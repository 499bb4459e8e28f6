"""The voice encoder: its mel frames, its windows, and that it hears who speaks."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor
from hypothesis import given
from hypothesis import strategies as st

from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.voice import MEL_BANDS, WINDOW_FRAMES, VoiceEncoder, mel_filters, windows
from telme.errors import BundleError
from tests.commands import EXAMPLES
from tests.examples.test_conversation import read_sound, read_transcript


@pytest.fixture(scope="module")
def encoder() -> VoiceEncoder:
    return VoiceEncoder()


def tone(seconds: float, level: float = 3000) -> Pcm:
    time = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (level * (np.sin(2 * np.pi * 150 * time) + 0.5 * np.sin(2 * np.pi * 700 * time))).astype(np.int16)


def test_mel_filters_are_librosas() -> None:
    """faster-whisper carries librosa's filters; both are Slaney's."""
    theirs = FeatureExtractor.get_mel_filters(SAMPLE_RATE_HZ, 400, n_mels=MEL_BANDS)
    assert np.allclose(mel_filters(), theirs, atol=1e-6)


@given(st.integers(1, 40 * SAMPLE_RATE_HZ))
def test_any_length_becomes_whole_windows_and_never_many(samples: int) -> None:
    found = windows(np.ones(samples, np.int16))
    assert found.dtype == np.float32
    assert found.shape[1:] == (WINDOW_FRAMES, MEL_BANDS)
    assert 1 <= len(found) <= 8


def test_a_voice_has_length_one_and_depends_on_the_sound_alone(encoder: VoiceEncoder) -> None:
    voice = encoder(tone(2))
    assert voice.shape == (256,)
    assert np.linalg.norm(voice) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(voice, encoder(tone(2)))


def test_quiet_speech_is_raised_to_the_usual_level(encoder: VoiceEncoder) -> None:
    assert float(encoder(tone(2, 400)) @ encoder(tone(2, 200))) > 0.99


def test_silence_and_one_sample_are_no_error(encoder: VoiceEncoder) -> None:
    for pcm in (np.zeros(SAMPLE_RATE_HZ, np.int16), np.ones(1, np.int16)):
        assert np.isfinite(encoder(pcm)).all()


def test_the_same_person_is_nearer_than_another_one(encoder: VoiceEncoder) -> None:
    sound = read_sound(EXAMPLES / "conversation.mp4")
    voices = [
        (
            line["speaker"],
            encoder(sound[line["start_ms"] * SAMPLE_RATE_HZ // 1000 : line["end_ms"] * SAMPLE_RATE_HZ // 1000]),
        )
        for line in read_transcript(EXAMPLES / "conversation.json")
    ]
    pairs = [(a == b, float(x @ y)) for (a, x), (b, y) in combinations(voices, 2)]
    assert min(nearness for same, nearness in pairs if same) > max(nearness for same, nearness in pairs if not same)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gone\.onnx"):
        VoiceEncoder(tmp_path / "gone.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"bad\.onnx"):
        VoiceEncoder(tmp_path / "bad.onnx")
