"""Cutting sound and pictures out of the rings."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.align import PcmRing, cut_frames, frame_numbers
from stream.clock import SampleClock, samples_to_ns
from stream.frames import FrameRing
from stream.items import AudioBlock, Missing, Span, VideoFrame
from telme.errors import SourceError

START_NS = 7_000_000_000
SPAN = Span(16_000, 32_000, 17_000, 31_000, forced=False)
TOLERANCE_NS = 200_000_000


@given(st.lists(st.integers(0, 700), min_size=1, max_size=30), st.data())
def test_a_cut_is_the_samples_whatever_the_blocks(sizes: list[int], data: st.DataObject) -> None:
    pcm = np.arange(sum(sizes), dtype=np.int64).astype(np.int16)
    edges = np.cumsum([0, *sizes]).tolist()
    ring = PcmRing(len(pcm))
    for begin, end in pairwise(edges):
        ring.append(begin, pcm[begin:end])
    start = data.draw(st.integers(0, len(pcm)))
    end = data.draw(st.integers(start, len(pcm)))
    np.testing.assert_array_equal(ring.cut(start, end), pcm[start:end])


def test_a_ring_keeps_what_it_must_and_no_more_than_a_block_besides() -> None:
    ring = PcmRing(1_000)
    for number in range(100):
        ring.append(number * 480, np.full(480, number, np.int16))
    end = 100 * 480
    assert len(ring.cut(end - 1_000, end)) == 1_000
    with pytest.raises(SourceError, match="480 of the 960 samples"):
        ring.cut(end - 4 * 480, end - 2 * 480)


@pytest.mark.parametrize(("start", "end"), [(400, 1_100), (1_400, 1_500), (480, 1_000)])
def test_samples_that_were_lost_cannot_be_cut(start: int, end: int) -> None:
    ring = PcmRing(10_000)
    ring.append(0, np.zeros(480, np.int16))
    ring.append(1_000, np.zeros(480, np.int16))
    with pytest.raises(SourceError, match="samples of an utterance"):
        ring.cut(start, end)


@pytest.mark.parametrize(
    ("frames", "numbers"),
    [
        (1, [0] * 8),
        (5, [0, 1, 2, 3, 4, 4, 4, 4]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (15, [0, 1, 2, 3, 4, 5, 6, 7]),
        (16, [1, 3, 5, 7, 9, 11, 13, 15]),
        (100, [11, 23, 35, 47, 59, 71, 83, 95]),
    ],
)
def test_frames_are_chosen_as_telme_chooses_them(frames: int, numbers: list[int]) -> None:
    assert frame_numbers(frames) == numbers


@given(st.integers(1, 10_000))
def test_eight_frames_of_the_clip_in_order(frames: int) -> None:
    numbers = frame_numbers(frames)
    assert len(numbers) == 8
    assert sorted(numbers) == numbers
    assert numbers[0] >= 0
    assert numbers[-1] < frames


def clock() -> SampleClock:
    heard = SampleClock(100_000)
    heard.observe(AudioBlock(0, np.zeros(48_000, np.int16), START_NS, START_NS))
    return heard


def ring(*times_ns: int) -> FrameRing:
    frames = FrameRing(fps=60)
    for number, time_ns in enumerate(times_ns):
        frames.put(VideoFrame(START_NS + time_ns, np.broadcast_to(np.uint8(number % 256), (224, 224, 3))))
    return frames


def test_pictures_are_those_of_the_moments() -> None:
    """A span of 1 s from second 1 on is a clip of 24 frames: every third, so 2/24 s, 5/24 s, ... behind its start."""
    every_40_ms = [number * 40_000_000 for number in range(76)]
    pictures = cut_frames(SPAN, clock(), ring(*every_40_ms), TOLERANCE_NS)
    assert isinstance(pictures, np.ndarray)
    assert pictures.shape == (8, 224, 224, 3)
    assert pictures.dtype == np.uint8
    moments = [samples_to_ns(SPAN.start) + number * 1_000_000_000 // 24 for number in range(2, 24, 3)]
    assert pictures[:, 0, 0, 0].tolist() == [round(moment / 40_000_000) for moment in moments]


def test_a_long_span_is_a_clip_at_melds_rate() -> None:
    """15 s at 23.976 a second are 360 frames: every 45th, so 44/360, 89/360, ... of 15 s behind its start."""
    span = Span(0, 15 * 16_000, 0, 15 * 16_000, forced=False)
    every_40_ms = [number * 40_000_000 for number in range(376)]
    pictures = cut_frames(span, clock(), ring(*every_40_ms), TOLERANCE_NS)
    assert isinstance(pictures, np.ndarray)
    moments_ms = [number * 15_000 / 360 for number in range(44, 360, 45)]
    assert pictures[:, 0, 0, 0].tolist() == [round(moment_ms / 40) % 256 for moment_ms in moments_ms]


def test_a_span_shorter_than_a_picture_has_pictures() -> None:
    short = Span(16_000, 16_160, 16_000, 16_160, forced=False)
    pictures = cut_frames(short, clock(), ring(1_000_000_000), TOLERANCE_NS)
    assert isinstance(pictures, np.ndarray)
    assert pictures.shape[0] == 8


def test_a_camera_that_stalled_within_the_span_is_missing() -> None:
    found = cut_frames(SPAN, clock(), ring(*range(0, 1_400_000_000, 40_000_000)), TOLERANCE_NS)
    assert isinstance(found, Missing)
    assert "pictures are missing" in found.reason


def test_a_camera_that_gave_nothing_is_missing() -> None:
    assert cut_frames(SPAN, clock(), FrameRing(), TOLERANCE_NS) == Missing("no picture has arrived yet")
