"""Sounds for the recognizer's tests: the example's utterances, and what is no speech. All mono int16 at 16 kHz."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faster_whisper import decode_audio

from bench import noises
from stream.items import SAMPLE_RATE_HZ, Pcm

EXAMPLES = Path(__file__).parents[2] / "examples"
_PRE_ROLL_MS = 300
_TAIL_MS = 200


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
            ("white noise", noises.white(random, count)),
            ("brown noise", noises.brown(random, count)),
            ("hum", _hum(count)),
            ("music", noises.music(random, count)),
            ("keyboard", noises.keyboard(random, count)),
        ):
            yield f"{name}, RMS {rms}", noises.to_pcm(noises.at_rms(wave, rms))


def _hum(count: int) -> noises.Wave:
    """Mains: 50 Hz and its overtones."""
    time = np.arange(count) / SAMPLE_RATE_HZ
    wave: noises.Wave = np.sum([np.sin(2 * np.pi * 50 * k * time) / k for k in range(1, 8)], axis=0)
    return wave


def _at(milliseconds: int) -> int:
    return max(0, milliseconds) * SAMPLE_RATE_HZ // 1000
