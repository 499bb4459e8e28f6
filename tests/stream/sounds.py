"""Sounds for the recognizer's tests: the example's utterances, and what is no speech. All mono int16 at 16 kHz."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faster_whisper import decode_audio
from numpy.typing import NDArray

from stream.items import SAMPLE_RATE_HZ, Pcm

EXAMPLES = Path(__file__).parents[2] / "examples"
_PRE_ROLL_MS = 300
_TAIL_MS = 200

Wave = NDArray[np.float64]


@dataclass(frozen=True)
class Clip:
    """An utterance as the segmenter would cut it, and what is said in it."""

    text: str
    pcm: Pcm


def example_clips() -> list[Clip]:
    """The ten utterances of the example conversation."""
    sound = decode_audio(str(EXAMPLES / "conversation.mp4"), sampling_rate=SAMPLE_RATE_HZ)
    pcm = np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16)
    lines = json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8"))
    return [
        Clip(line["text"], pcm[_at(line["start_ms"] - _PRE_ROLL_MS) : _at(line["end_ms"] + _TAIL_MS)]) for line in lines
    ]


def no_speech(seconds: float) -> Iterator[tuple[str, Pcm]]:
    """Name and sound of silence, noises, chords and clicks, from faint to loud."""
    count = int(seconds * SAMPLE_RATE_HZ)
    random = np.random.default_rng(7)
    yield "silence", np.zeros(count, np.int16)
    for rms in (30, 300, 2000, 6000):
        for name, wave in (
            ("white noise", random.normal(size=count)),
            ("brown noise", _brown(random, count)),
            ("hum", _hum(count)),
            ("music", _music(random, count)),
            ("keyboard", _clicks(random, count)),
        ):
            yield f"{name}, RMS {rms}", _at_rms(wave, rms)


def _at(milliseconds: int) -> int:
    return max(0, milliseconds) * SAMPLE_RATE_HZ // 1000


def _at_rms(wave: Wave, rms: float) -> Pcm:
    level = float(np.sqrt(np.mean(wave**2)))
    pcm: Pcm = np.clip(wave * rms / level, -32768, 32767).astype(np.int16)
    return pcm


def _brown(random: np.random.Generator, count: int) -> Wave:
    """White noise whose power falls with the square of the frequency, from 20 Hz on."""
    spectrum = np.fft.rfft(random.normal(size=count))
    hz = np.fft.rfftfreq(count, 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(spectrum / np.maximum(hz, 20), count)


def _hum(count: int) -> Wave:
    """Mains: 50 Hz and its overtones."""
    time = np.arange(count) / SAMPLE_RATE_HZ
    wave: Wave = np.sum([np.sin(2 * np.pi * 50 * k * time) / k for k in range(1, 8)], axis=0)
    return wave


def _music(random: np.random.Generator, count: int) -> Wave:
    """Plucked major chords of a scale, four a second."""
    wave = np.zeros(count)
    for first in range(0, count, SAMPLE_RATE_HZ // 4):
        root = 220 * 2 ** (random.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
        time = np.arange(min(SAMPLE_RATE_HZ // 2, count - first)) / SAMPLE_RATE_HZ
        for hz in (root * 2 ** (interval / 12) for interval in (0, 4, 7)):
            tones = [np.sin(2 * np.pi * hz * k * time) / k**1.5 for k in range(1, 6)]
            wave[first : first + len(time)] += np.sum(tones, axis=0) * np.exp(-5 * time)
    return wave


def _clicks(random: np.random.Generator, count: int) -> Wave:
    """Keys pressed four to twelve times a second."""
    wave = np.zeros(count)
    first = 0
    while first < count - 600:
        wave[first : first + 600] += random.normal(size=600) * np.exp(-np.arange(600) / 80) * random.uniform(0.5, 1)
        first += int(random.uniform(0.08, 0.25) * SAMPLE_RATE_HZ)
    return wave
