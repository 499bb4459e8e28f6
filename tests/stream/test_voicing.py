"""The pitch of one voice: what has it, what has not, and what is too short to say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import voicing
from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.voicing import periodicity


def buzz(pitch_hz: float, seconds: float = 0.5) -> Pcm:
    """Ten harmonics, as of a voice that sings."""
    times = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    harmonics = [np.sin(2 * np.pi * n * pitch_hz * times + n * n) / n for n in range(1, 11)]
    wave: Pcm = (3000 * np.sum(harmonics, axis=0)).astype(np.int16)
    return wave


def noise(seconds: float = 0.5) -> Pcm:
    random = np.random.default_rng(4)
    return (3000 * random.standard_normal(int(seconds * SAMPLE_RATE_HZ))).clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize("pitch_hz", [75, 110, 200, 390])
def test_one_pitch_is_seen(pitch_hz: float) -> None:
    assert periodicity(buzz(pitch_hz)) > 0.95


MURMUR = np.mean([buzz(pitch_hz) for pitch_hz in (83, 107, 139, 181, 229, 293)], axis=0).astype(np.int16)


def tone(pitch_hz: float, seconds: float = 0.5) -> Pcm:
    times = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    wave: Pcm = (6000 * np.sin(2 * np.pi * pitch_hz * times)).astype(np.int16)
    return wave


def test_noise_and_several_pitches_have_none() -> None:
    assert periodicity(noise()) < 0.4
    assert periodicity(MURMUR) < 0.7


@pytest.mark.parametrize("hum_hz", [20, 50, 60, 100, 120])
def test_hum_and_rumble_are_no_pitch_and_hide_none(hum_hz: float) -> None:
    assert periodicity(MURMUR + tone(hum_hz)) < 0.7
    assert periodicity(buzz(200) + tone(hum_hz)) > 0.95


@pytest.mark.parametrize("samples", [868, 5000, 50_000])
def test_it_is_the_mean_of_the_highest_correlations(samples: int) -> None:
    """Lag by lag, of a sound that grows louder, so that a frame and what follows differ."""
    random = np.random.default_rng(samples)
    rising = 2000 * random.standard_normal(samples) * np.linspace(0.2, 2, samples)
    pcm = (rising + np.resize(buzz(130), samples)).clip(-32768, 32767).astype(np.int16)
    wave = voicing._without_hum(pcm)
    clearest = energies = 0.0
    for at in range(0, samples - 868 + 1, 160):
        span = wave[at : at + 868] - wave[at : at + 640].mean()
        frame = span[:640]
        alike = [
            frame @ (later := span[lag : lag + 640]) / np.sqrt((frame @ frame) * (later @ later))
            for lag in range(40, 229)
        ]
        clearest, energies = clearest + max(alike) * (frame @ frame), energies + frame @ frame
    assert periodicity(pcm) == pytest.approx(clearest / energies, abs=1e-9)


def test_what_is_loud_counts() -> None:
    quiet = (noise() / 100).astype(np.int16)
    assert periodicity(np.concatenate((quiet, buzz(120), quiet))) > 0.9


@pytest.mark.parametrize("samples", [0, 1, 867])
def test_what_is_too_short_has_none(samples: int) -> None:
    assert periodicity(buzz(120)[:samples]) == 0.0


def test_a_steady_level_is_none() -> None:
    assert periodicity(np.zeros(SAMPLE_RATE_HZ, np.int16)) == 0.0
    assert periodicity(np.full(SAMPLE_RATE_HZ, 900, np.int16)) == 0.0


@given(st.integers(868, 60_000), st.integers(0, 2**31), st.floats(1, 40_000))
def test_it_is_a_share_of_one(samples: int, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    pcm = (scale * random.standard_normal(samples)).clip(-32768, 32767).astype(np.int16)
    assert 0.0 <= periodicity(pcm) <= 1.0
