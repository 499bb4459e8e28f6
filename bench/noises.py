"""Sounds that are no speech: noises, chords, clicks. Made by numpy, 16 kHz mono, float64 [S] of no certain level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stream.items import SAMPLE_RATE_HZ, Pcm

Wave = NDArray[np.float64]


def white(random: np.random.Generator, count: int) -> Wave:
    """The same power at all frequencies."""
    return random.normal(size=count)


def pink(random: np.random.Generator, count: int) -> Wave:
    """Power that falls with the frequency, from 20 Hz on."""
    return _shaped(random, count, 0.5)


def brown(random: np.random.Generator, count: int) -> Wave:
    """Power that falls with the square of the frequency, from 20 Hz on: a fan, a car."""
    return _shaped(random, count, 1)


def music(random: np.random.Generator, count: int) -> Wave:
    """Plucked major chords of a scale, four a second."""
    wave = np.zeros(count)
    for first in range(0, count, SAMPLE_RATE_HZ // 4):
        root = 220 * 2 ** (random.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
        time = np.arange(min(SAMPLE_RATE_HZ // 2, count - first)) / SAMPLE_RATE_HZ
        for hz in (root * 2 ** (interval / 12) for interval in (0, 4, 7)):
            tones = [np.sin(2 * np.pi * hz * k * time) / k**1.5 for k in range(1, 6)]
            wave[first : first + len(time)] += np.sum(tones, axis=0) * np.exp(-5 * time)
    return wave


def keyboard(random: np.random.Generator, count: int) -> Wave:
    """Keys pressed four to twelve times a second."""
    wave = np.zeros(count)
    first = 0
    while first < count - 600:
        wave[first : first + 600] += random.normal(size=600) * np.exp(-np.arange(600) / 80) * random.uniform(0.5, 1)
        first += int(random.uniform(0.08, 0.25) * SAMPLE_RATE_HZ)
    return wave


NOISES: dict[str, Callable[[np.random.Generator, int], Wave]] = {
    "white": white,
    "pink": pink,
    "brown": brown,
    "music": music,
    "keyboard": keyboard,
}


def at_rms(wave: Wave, rms: float) -> Wave:
    """The wave at that level, in units of int16."""
    level = float(np.sqrt(np.mean(np.square(wave))))
    return wave * (rms / level)


def to_pcm(wave: Wave) -> Pcm:
    """int16 [S], clipped."""
    return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)


def _shaped(random: np.random.Generator, count: int, exponent: float) -> Wave:
    spectrum = np.fft.rfft(random.normal(size=count))
    hz = np.fft.rfftfreq(count, 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(spectrum / np.maximum(hz, 20) ** exponent, count)
