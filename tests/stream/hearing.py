"""Conversations in memory, and what ears make of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from stream import ears
from stream.config import AsrConfig, CameraConfig, Config, SegmenterConfig
from stream.ears import Ears, Heard
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Missing, Pcm
from stream.vad import Evidence

NS_PER_SAMPLE = 62_500
START_NS = 5_000_000_000


def speech(seconds: float) -> Pcm:
    """Loud noise, so that no two pieces of it are alike."""
    count = int(seconds * SAMPLE_RATE_HZ)
    return np.random.default_rng(count).normal(0, 3000, count).clip(-32768, 32767).astype(np.int16)


def silence(seconds: float) -> Pcm:
    return np.zeros(int(seconds * SAMPLE_RATE_HZ), np.int16)


class FakeSource:
    """A conversation in memory."""

    def __init__(self, pcm: Pcm, size: int = 777) -> None:
        self.overflows = 0
        self._pcm = pcm
        self._size = size

    def blocks(self) -> Iterator[AudioBlock]:
        for first in range(0, len(self._pcm), self._size):
            stamp = START_NS + first * NS_PER_SAMPLE
            arrived = stamp + self._size * NS_PER_SAMPLE
            yield AudioBlock(first, self._pcm[first : first + self._size], stamp, arrived)

    def stop(self) -> None:
        raise AssertionError("nobody stops this source")


def heard(
    source: FakeSource, frames: FrameRing | Missing, segmenter: SegmenterConfig, interim: bool = False
) -> list[Heard]:
    made = Ears(Config(segmenter=segmenter, camera=CameraConfig(), asr=AsrConfig(interim=interim)), source, frames)
    found = [item for block in source.blocks() for item in made.hear(block)]
    return [*found, *made.end()]


@pytest.fixture
def level_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the real speech decision: what is loud is speech."""
    monkeypatch.setattr(
        ears,
        "SpeechDetector",
        lambda aggressiveness: lambda frame: Evidence.STRONG if np.abs(frame).max() > 500 else Evidence.NONE,
    )


@pytest.fixture
def conversation() -> Pcm:
    return np.concatenate((silence(1), speech(1.5), silence(1), speech(1.2), silence(0.2)))
