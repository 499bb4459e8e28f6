"""Shrinking pictures, and the ring that keeps the last of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.frames import FrameRing, shrink
from stream.items import Missing, VideoFrame
from telme.errors import SourceError

MS = 1_000_000
BLACK = np.zeros((224, 224, 3), np.uint8)


@settings(max_examples=40)
@given(height=st.integers(30, 700), width=st.integers(30, 700), seed=st.integers(0, 9))
def test_shrink_gives_what_videomaes_image_processor_gives(height: int, width: int, seed: int) -> None:
    module = pytest.importorskip("transformers.models.videomae.image_processing_pil_videomae")
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    processor = module.VideoMAEImageProcessorPil(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, do_rescale=False, do_normalize=False
    )
    expected = np.asarray(processor([image], return_tensors="np")["pixel_values"]).reshape(3, 224, 224)
    np.testing.assert_array_equal(shrink(image), expected.transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(240, 320), (240, 320, 4), (0, 320, 3)])
def test_shrink_refuses_what_is_not_a_colour_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(SourceError, match="a picture uint8"):
        shrink(np.zeros(shape, np.uint8))


def ring_of(times_ms: list[int], fps: int = 10, keep_ms: int = 25_000) -> FrameRing:
    ring = FrameRing(fps, keep_ms)
    for at_ms in times_ms:
        ring.put(VideoFrame(at_ms * MS, BLACK))
    return ring


@given(
    st.lists(st.integers(0, 5_000), min_size=1, max_size=40, unique=True),
    st.lists(st.integers(-500, 6_000), max_size=8),
    st.integers(0, 3_000),
)
def test_nearest_is_the_nearest_or_missing(kept_ms: list[int], wanted_ms: list[int], tolerance_ms: int) -> None:
    found = ring_of(kept_ms).nearest([at_ms * MS for at_ms in wanted_ms], tolerance_ms * MS)
    gaps = [min(abs(at - wanted) for at in kept_ms) for wanted in wanted_ms]
    if any(gap > tolerance_ms for gap in gaps):
        assert isinstance(found, Missing)
        assert f"{sum(gap > tolerance_ms for gap in gaps)} of {len(gaps)} pictures are missing" in found.reason
        assert f"up to {max(gaps)} ms away" in found.reason
    else:
        assert isinstance(found, list)
        assert [abs(frame.captured_ns // MS - wanted) for frame, wanted in zip(found, wanted_ms, strict=True)] == gaps


def test_an_empty_ring_says_so() -> None:
    assert FrameRing().nearest([0], MS) == Missing("no picture has arrived yet")


def test_old_pictures_leave_and_are_no_drops() -> None:
    ring = ring_of(list(range(0, 60_000, 100)), fps=10, keep_ms=25_000)
    assert (len(ring), ring.drops) == (251, 0)
    assert isinstance(ring.nearest([34_900 * MS], 50 * MS), list)
    assert isinstance(ring.nearest([34_800 * MS], 50 * MS), Missing)


def test_too_many_pictures_push_the_oldest_out_and_are_counted() -> None:
    ring = ring_of(list(range(30)), fps=10, keep_ms=1_000)
    assert (len(ring), ring.drops) == (11, 19)
    assert isinstance(ring.nearest([19 * MS], 0), list)
    assert isinstance(ring.nearest([18 * MS], 0), Missing)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=100), st.integers(1, 30), st.integers(-(10**15), 10**15))
def test_at_most_fps_pictures_are_due_in_each_second(steps_ms: list[int], fps: int, start_ns: int) -> None:
    ring = FrameRing(fps)
    kept: list[int] = []
    at_ns = start_ns
    for step_ms in steps_ms:
        if ring.due(at_ns):
            ring.put(VideoFrame(at_ns, BLACK))
            kept.append(at_ns)
        at_ns += step_ms * MS
    for first in kept:
        second = first + 1_000 * MS
        assert sum(first <= other < second for other in kept) <= fps + 1  # the grid need not start at `first`
    assert ring.drops == 0


def test_jitter_does_not_lower_the_rate() -> None:
    ring = FrameRing(10)
    kept = 0
    for number in range(300):  # 30 pictures per second, each up to 8 ms off
        at_ns = number * 1_000 * MS // 30 + (number * 7919 % 17 - 8) * MS
        if ring.due(at_ns):
            ring.put(VideoFrame(at_ns, BLACK))
            kept += 1
    assert kept == pytest.approx(100, abs=1)
