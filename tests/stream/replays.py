"""Replays of files by a clock of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Missing, Pcm, VideoFrame
from stream.replay import FileReplay

MS = 1_000_000
NO_PICTURES = Missing("not wanted")


@dataclass
class FakeClock:
    """Time passes only in `wait`."""

    time_ns: int = 5_000_000_000
    on_wait: Callable[[], None] = lambda: None
    waits: list[float] = field(default_factory=list)

    def now_ns(self) -> int:
        return self.time_ns

    def wait(self, event: Event, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        self.on_wait()
        self.time_ns += math.ceil(timeout_s * 1e9)
        return event.is_set()


def sound_of(source: FileReplay) -> Iterator[AudioBlock]:
    for block in source.blocks():
        assert isinstance(block, AudioBlock)
        yield block


def replay(
    path: Path, pictures: FrameRing | Missing = NO_PICTURES, **options: Any
) -> tuple[FileReplay, list[AudioBlock]]:
    clock = FakeClock()
    with FileReplay(path, True, pictures, clock.now_ns, clock.wait, **options) as source:
        return source, list(sound_of(source))


def join(blocks: list[AudioBlock]) -> Pcm:
    return np.concatenate([block.pcm for block in blocks])


def onset_ms(pcm: Pcm) -> float:
    return float(np.argmax(np.abs(pcm) > 4_000)) * 1000 / SAMPLE_RATE_HZ


def frames_of(ring: FrameRing, times_ns: list[int]) -> list[VideoFrame]:
    found = ring.nearest(times_ns, 1_000_000_000)
    assert isinstance(found, list)
    return found


def is_colour(frame: VideoFrame, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(frame.image.mean((0, 1)) - colour).max() < 20)
