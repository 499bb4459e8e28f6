"""Span + rings -> the sound and the pictures of one utterance. Pure cuts; the rings are filled by the sources."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from stream.clock import SampleClock, samples_to_ns
from stream.frames import FrameRing
from stream.items import FRAMES_PER_UTTERANCE, Missing, Pcm, Span
from telme.errors import SourceError

# TelME chooses frames by their number in clips of 23.976 frames a second (MELD). A live camera has another rate, so
# the same moments are taken by time: the clip's frame numbers at this rate, turned into nanoseconds.
_CLIP_FRAMES_PER_MS = 23.976 / 1000


class PcmRing:
    """The last samples of the session.

    Args:
        keep_samples: How many to keep at least.
    """

    def __init__(self, keep_samples: int) -> None:
        self._keep = keep_samples
        self._blocks: deque[tuple[int, Pcm]] = deque()

    def append(self, first_sample: int, pcm: Pcm) -> None:
        """Add a block that lies behind all earlier ones."""
        self._blocks.append((first_sample, pcm))
        end = first_sample + len(pcm)
        while self._blocks[0][0] + len(self._blocks[0][1]) < end - self._keep:
            self._blocks.popleft()

    def __len__(self) -> int:
        """Blocks kept."""
        return len(self._blocks)

    def cut(self, start: int, end: int) -> Pcm:
        """Samples start..end.

        Raises:
            SourceError: Some of them are no longer there, or never were.
        """
        parts = [
            pcm[max(start - first, 0) : end - first]
            for first, pcm in self._blocks
            if first < end and first + len(pcm) > start
        ]
        cut = np.concatenate(parts) if parts else np.zeros(0, np.int16)
        if len(cut) != end - start:
            raise SourceError(
                f"{len(cut)} of the {end - start} samples of an utterance", "all of them", "report this as a bug"
            )
        return cut


def frame_numbers(frames: int) -> list[int]:
    """Which 8 frames of a clip TelME looks at, 0-based (published code).

    Every (frames // 8)-th counted from 1, the first 8 of those; of 8..15 frames the first 8; of fewer all, the last
    repeated.
    """
    step = frames // FRAMES_PER_UTTERANCE
    if step < 1:
        return [min(index, frames - 1) for index in range(FRAMES_PER_UTTERANCE)]
    return [step * (index + 1) - 1 for index in range(FRAMES_PER_UTTERANCE)]


def cut_frames(span: Span, clock: SampleClock, ring: FrameRing, tolerance_ns: int) -> NDArray[np.uint8] | Missing:
    """The 8 pictures of a span: uint8 RGB [8, 224, 224, 3], or why there are none.

    Args:
        span: Pre-roll included, as the sound.
        clock: Gives the moment of the span's first sample.
        ring: The camera's recent frames.
        tolerance_ns: How far a frame may lie from the moment it stands for.
    """
    duration_ns = samples_to_ns(span.end - span.start)
    frames = max(round(duration_ns / 1e6 * _CLIP_FRAMES_PER_MS), 1)
    start_ns = clock.captured_ns(span.start)
    times = [start_ns + number * duration_ns // frames for number in frame_numbers(frames)]
    found = ring.nearest(times, tolerance_ns)
    if isinstance(found, Missing):
        return found
    return np.stack([frame.image for frame in found])
