"""The audio student's input: rate, normalisation, length and padding."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import Wav2Vec2FeatureExtractor

from telme.errors import FeatureError
from telme.modes import CLEAN, PUBLISHED_IEMOCAP, PUBLISHED_MELD, Mode
from telme.sound import MAX_SAMPLES, input_values, pad_left


def tone(samples: int, rate_hz: int = 16_000) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate_hz) + 0.1).astype(np.float32)


def test_published_rate_gives_more_time_frames() -> None:
    pcm = tone(16_000)
    clean, published = (input_values(pcm, 16_000, mode) for mode in (CLEAN, PUBLISHED_MELD))
    assert (len(clean), len(published)) == (16_000, 22_050)


def test_values_are_those_of_the_published_extractor() -> None:
    pcm = tone(16_000)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=16_000)  # type: ignore[no-untyped-call]
    expected = extractor(pcm, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    np.testing.assert_allclose(input_values(pcm, 16_000, CLEAN), expected, rtol=0, atol=1e-5)


def test_any_rate_is_resampled() -> None:
    np.testing.assert_allclose(
        input_values(tone(44_100, 44_100), 44_100, CLEAN)[800:-800],
        input_values(tone(16_000), 16_000, CLEAN)[800:-800],
        rtol=0,
        atol=1e-2,
    )


@pytest.mark.parametrize("mode", [CLEAN, PUBLISHED_MELD, PUBLISHED_IEMOCAP])
def test_a_long_sound_keeps_its_end_as_normalised_with_its_beginning(mode: Mode) -> None:
    rate_hz = mode.audio_rate_hz
    pcm = np.random.default_rng(1).normal(size=29 * rate_hz).astype(np.float32)
    pcm[: 10 * rate_hz] = 5 * pcm[: 10 * rate_hz] + 2  # another loudness and offset than its end
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=rate_hz)  # type: ignore[no-untyped-call]
    expected = extractor(pcm, sampling_rate=rate_hz, return_tensors="np")["input_values"][0][-MAX_SAMPLES:]
    made = input_values(pcm, rate_hz, mode)
    assert len(made) == MAX_SAMPLES
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


def test_a_clip_past_thirty_seconds_is_absent_or_published_zeros_or_read() -> None:
    pcm = tone(30 * 16_000 + 1)
    with pytest.raises(FeatureError, match="absent"):
        input_values(pcm, 16_000, CLEAN)
    assert np.array_equal(input_values(pcm, 16_000, PUBLISHED_MELD), np.zeros(1412, dtype=np.float32))
    assert len(input_values(pcm, 16_000, PUBLISHED_IEMOCAP)) == MAX_SAMPLES


@pytest.mark.parametrize("samples", [0, 399])
def test_a_sound_too_short_for_one_time_frame_is_an_error(samples: int) -> None:
    with pytest.raises(FeatureError, match="at least 400"):
        input_values(tone(samples), 16_000, CLEAN)
    assert len(input_values(tone(400), 16_000, CLEAN)) == 400


def test_silence_is_zeros_and_not_nan() -> None:
    assert not input_values(np.zeros(800, dtype=np.float32), 16_000, CLEAN).any()


@pytest.mark.parametrize("pcm", [np.zeros((2, 800), dtype=np.float32), np.zeros(800, dtype=np.int16)])
def test_other_sounds_are_refused(pcm: NDArray[np.float32]) -> None:
    with pytest.raises(FeatureError, match="mono float32"):
        input_values(pcm, 16_000, CLEAN)


def test_published_padding_goes_to_the_longest_clip() -> None:
    batch = pad_left([tone(500), tone(800)], PUBLISHED_MELD)
    assert batch.shape == (2, 800)
    assert not batch[0, :300].any()
    np.testing.assert_array_equal(batch[0, 300:], tone(500))
    np.testing.assert_array_equal(batch[1], tone(800))
