"""Pieces of a device's rate and channels -> stamped and numbered samples of 16 kHz. No clock, no thread."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from stream.clock import samples_to_ns
from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.portaudio import Piece

_NS_PER_S = 1_000_000_000
# A device that says nothing of a loss, but whose stamps jump this far, was halted: what it numbers on is a lie.
_HALT_NS = 500_000_000


class SampleLine:
    """Numbers samples honestly across losses.

    What was lost is skipped in the numbering; nothing is put in its place, and the samples on both sides of a
    gap are not filtered into each other.

    Args:
        rate_hz: The device's rate.
        channels: The device's channels.
        first_sample: Number of the first sample.
        splits: Keep the channels apart; otherwise there is one, their mean.

    Attributes:
        losses: Times that sound was lost on its way here.
    """

    def __init__(self, rate_hz: int, channels: int, first_sample: int = 0, splits: bool = False) -> None:
        self._rate_hz = rate_hz
        self._channels = channels
        self._first_sample = first_sample
        self._splits = splits
        self._lost_frames = 0  # before they were numbered, estimated
        self._next_frame = 0
        self._next_captured_ns = 0
        self.losses = 0
        self._start_run(0)

    def feed(self, piece: Piece) -> list[tuple[int, int, Pcm]]:
        """Take one piece; return (first sample, captured_ns, [channels, S]) for what is ready: none, one or two."""
        frames = self._frames(piece.data)
        first_frame = self._number(piece)
        ready = []
        if first_frame != self._next_frame:
            ready.append(self._numbered(self._resample(frames[:0], is_last=True)))
            self._start_run(first_frame)
        # The stamp of the run's first frame, seen from this piece: drift of the device's clock is followed.
        self._run_captured_ns = piece.captured_ns - (first_frame - self._run_frame) * _NS_PER_S // self._rate_hz
        ready.append(self._numbered(self._resample(frames, is_last=False)))
        self._next_frame = first_frame + len(frames)
        self._next_captured_ns = piece.captured_ns + len(frames) * _NS_PER_S // self._rate_hz
        return [item for item in ready if item[2].size]

    def _number(self, piece: Piece) -> int:
        """The piece's first frame, counted with those that were lost before they had a number."""
        numbered = piece.first_frame + self._lost_frames
        missing_ns = (numbered - self._next_frame) * _NS_PER_S // self._rate_hz
        halted_ns = piece.captured_ns - self._next_captured_ns - missing_ns
        if self._next_captured_ns and (piece.has_glitch or halted_ns > _HALT_NS):
            self._lost_frames += max(0, halted_ns * self._rate_hz // _NS_PER_S)
        first_frame = piece.first_frame + self._lost_frames
        self.losses += piece.has_glitch or first_frame != self._next_frame
        return first_frame

    def _start_run(self, frame: int) -> None:
        self._run_frame = frame
        self._run_sample = self._first_sample + frame * SAMPLE_RATE_HZ // self._rate_hz
        self._run_length = 0
        self._run_captured_ns = 0
        self._resampler = (
            None
            if self._rate_hz == SAMPLE_RATE_HZ
            else soxr.ResampleStream(
                self._rate_hz, SAMPLE_RATE_HZ, self._channels if self._splits else 1, dtype="float32"
            )
        )

    def _frames(self, data: bytes) -> NDArray[np.float32]:
        """[S, channels], one channel where they are mixed."""
        frames = np.frombuffer(data, np.int16).reshape(-1, self._channels).astype(np.float32)
        return frames if self._splits else frames.mean(axis=1, keepdims=True)

    def _resample(self, frames: NDArray[np.float32], is_last: bool) -> Pcm:
        if self._resampler is not None:
            frames = self._resampler.resample_chunk(frames, last=is_last)
        return np.ascontiguousarray(np.rint(frames).clip(-32768, 32767).astype(np.int16).T)

    def _numbered(self, pcm: Pcm) -> tuple[int, int, Pcm]:
        first = self._run_sample + self._run_length
        captured_ns = self._run_captured_ns + samples_to_ns(self._run_length)
        self._run_length += pcm.shape[1]
        return first, captured_ns, pcm
