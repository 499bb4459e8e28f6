"""Shrinking, the ring, and the camera's threads against a fake driver."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Semaphore
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.camera import Camera, Patience
from stream.config import CameraConfig
from stream.frames import FrameRing, shrink
from stream.items import Change, Image, Missing, VideoFrame
from stream.opencv import Capture
from telme.errors import MissingDependency, SourceError, TelmeStreamError
from tests.live import eventually

MS = 1_000_000
DEADLINE_S = 20.0
BLACK = np.zeros((224, 224, 3), np.uint8)
RED_BGR = np.full((240, 320, 3), (0, 0, 255), np.uint8)
BLUE_BGR = np.full((240, 320, 3), (255, 0, 0), np.uint8)
CAMERA_7 = CameraConfig(source=7, ring_fps=60, stale_ms=60_000)


def patience(stall_s: float = DEADLINE_S, first_picture_s: float = DEADLINE_S) -> Patience:
    return Patience(first_picture_s, stall_s, back_off_s=(0.001,), join_s=DEADLINE_S)


# --- shrink


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


# --- FrameRing


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


# --- Camera


class Given(NamedTuple):
    image: Image
    position_ms: float


class FakeCapture:
    """A driver whose grab blocks until the test gives it a picture or takes it away."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Given | None] = SimpleQueue()
        self._now = Given(BLACK, 0)
        self.asked = Semaphore(0)  # one count for each grab; a second grab means that the first picture is done
        self.released = Event()

    def give(self, image: Image = RED_BGR, position_ms: float = 0.0) -> None:
        self._given.put(Given(image, position_ms))

    def lose(self) -> None:
        self._given.put(None)

    def take(self, pictures: int) -> None:
        """Wait until so many pictures have been dealt with."""
        for _ in range(pictures + 1):
            assert self.asked.acquire(timeout=DEADLINE_S)

    def grab(self) -> bool:
        self.asked.release()
        given = self._given.get(timeout=DEADLINE_S)
        self._now = given or self._now
        return given is not None

    def position_ms(self) -> float:
        return self._now.position_ms

    def retrieve(self) -> Image:
        return self._now.image

    def release(self) -> None:
        self.released.set()


class FrozenCapture(FakeCapture):
    """A lost device that hands out its last picture for ever."""

    def grab(self) -> bool:
        return True

    def position_ms(self) -> float:
        return 40.0


REFUSED = SourceError("camera 7 does not open", "a camera", "plug it in")


def gives(device: FakeCapture, image: Image) -> bool:
    """Give one more picture: the ring keeps only one each 1/60 s."""
    device.give(image)
    return True


def opener(*results: FakeCapture | TelmeStreamError) -> Callable[[int | str], Capture]:
    """Opens the given devices, or fails as given, one after the other; then refuses."""
    left = iter(results)

    def open_next(source: int | str) -> Capture:
        result = next(left, REFUSED)
        if isinstance(result, TelmeStreamError):
            raise result
        return result

    return open_next


def colours(camera: Camera) -> set[tuple[int, ...]]:
    found = camera.ring.nearest([time.monotonic_ns() - back * 50 * MS for back in range(100)], 3600 * 1000 * MS)
    return set() if isinstance(found, Missing) else {tuple(int(v) for v in frame.image[0, 0]) for frame in found}


def test_pictures_are_rgb_and_stamped_at_the_grab() -> None:
    device = FakeCapture()
    device.give()
    before_ns = time.monotonic_ns()
    with Camera(CAMERA_7, opener(device), patience()) as camera:
        found = camera.ring.nearest([before_ns], 3600 * 1000 * MS)
        assert isinstance(found, list)
        assert before_ns <= found[0].captured_ns <= time.monotonic_ns()
        assert found[0].image.shape == (224, 224, 3)
        assert colours(camera) == {(255, 0, 0)}
        assert camera.alive
        camera.stop()
        device.lose()
    assert device.released.is_set()


def test_the_driver_is_drained_however_few_pictures_are_kept() -> None:
    device = FakeCapture()
    config = CameraConfig(source=7, ring_fps=1, stale_ms=60_000)
    for _ in range(20):
        device.give()
    with Camera(config, opener(device), patience()) as camera:
        device.take(20)
        assert len(camera.ring) == 1
        device.lose()


def test_rate_and_age_are_measured() -> None:
    device = FakeCapture()
    for _ in range(5):
        device.give()
    camera = Camera(CAMERA_7, opener(device), patience())
    assert (camera.age_ms, camera.alive, camera.fps) == (None, False, 0.0)
    with camera:
        device.take(5)
        assert camera.age_ms is not None
        assert camera.fps > 0
        camera.stop()
        device.lose()


def test_a_camera_without_new_pictures_is_not_alive() -> None:
    device = FakeCapture()
    device.give()
    with Camera(CameraConfig(source=7, stale_ms=1), opener(device), patience()) as camera:
        eventually(lambda: not camera.alive, "it is stale")
        assert camera.fps == 0.0
        camera.stop()
        device.lose()


def test_a_lost_camera_is_opened_again_until_it_is_back() -> None:
    first, second = FakeCapture(), FakeCapture()
    first.give()
    second.give(BLUE_BGR)
    with Camera(CAMERA_7, opener(first, REFUSED, REFUSED, second), patience()) as camera:
        first.lose()
        eventually(lambda: camera.reopens == 1, "it is opened again")
        assert first.released.is_set()
        eventually(lambda: gives(second, BLUE_BGR) and (0, 0, 255) in colours(camera), "the picture is blue")
        camera.stop()
        second.lose()


def test_the_reason_of_a_loss_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    first, second = FakeCapture(), FakeCapture()
    first.give()
    caplog.set_level(logging.DEBUG, "stream.camera")

    def told(reason: str) -> bool:
        return f"camera 7 lost: {reason}" in caplog.text

    with Camera(CAMERA_7, opener(first, REFUSED, second), patience()) as camera:
        eventually(lambda: gives(first, np.zeros((4, 4), np.uint8)) and told("a picture"), "the loss is told")
        eventually(lambda: told("camera 7 does not open"), "why it stays away is told")
        camera.stop()
        second.lose()


def test_a_driver_that_blocks_is_abandoned_and_its_late_picture_is_not_served() -> None:
    first, second = FakeCapture(), FakeCapture()
    first.give()
    second.give()
    with Camera(CAMERA_7, opener(first, second), patience(stall_s=0.2)) as camera:
        second.take(1)  # the watching thread gave up the first device, which still blocks
        first.give(BLUE_BGR)
        assert first.released.wait(DEADLINE_S)
        assert colours(camera) == {(255, 0, 0)}
        camera.stop()
        second.lose()


def test_a_driver_that_repeats_its_last_picture_counts_as_lost() -> None:
    second = FakeCapture()
    second.give(BLUE_BGR)
    with Camera(CAMERA_7, opener(FrozenCapture(), second), patience(stall_s=0.2)) as camera:
        second.take(1)
        assert len(camera.ring) == 2  # one of each
        camera.stop()
        second.lose()


def test_no_more_than_two_threads_hang_in_a_driver() -> None:
    stuck = [FakeCapture() for _ in range(3)]
    stuck[0].give()
    changes: list[Change] = []
    with Camera(CAMERA_7, opener(*stuck), patience(stall_s=0.05), changes.append) as camera:
        stuck[1].give()
        stuck[1].take(1)
        eventually(lambda: changes == ["lost", "found", "lost"], "both have stalled")
        assert not stuck[2].asked.acquire(blocking=False)
        stuck[0].lose()  # the driver comes back: there is room for another attempt
        assert stuck[2].asked.acquire(timeout=DEADLINE_S)
        camera.stop()
        stuck[1].lose()
        stuck[2].lose()


@pytest.mark.parametrize("error", [REFUSED, MissingDependency("no cv2", "cv2", "install it")])
def test_a_camera_that_does_not_open_is_an_error_at_once(error: TelmeStreamError) -> None:
    with pytest.raises(type(error)) as caught, Camera(CAMERA_7, opener(error), patience()):
        pass
    assert caught.value is error


def test_a_camera_that_gives_no_picture_is_an_error() -> None:
    device = FakeCapture()
    with (
        pytest.raises(SourceError, match=r"gave no picture in 0\.01 s"),
        Camera(CAMERA_7, opener(device), patience(first_picture_s=0.01)),
    ):
        pass
    device.lose()
    assert device.released.wait(DEADLINE_S)


def test_stop_may_be_called_again() -> None:
    device = FakeCapture()
    device.give()
    changes: list[Change] = []
    with Camera(CAMERA_7, opener(device), patience(), changes.append) as camera:
        camera.stop()
        camera.stop()
        device.lose()
    camera.stop()
    assert device.released.is_set()
    assert changes == []
    assert camera.reopens == 0


def test_a_camera_stopped_before_its_start_is_an_error_and_gives_its_device_back() -> None:
    device = FakeCapture()
    device.give()
    camera = Camera(CAMERA_7, opener(device), patience())
    camera.stop()
    with pytest.raises(SourceError), camera:
        pass
    assert device.released.wait(DEADLINE_S)
    assert len(camera.ring) == 0


def test_no_source_is_an_error() -> None:
    with pytest.raises(SourceError, match="--camera"):
        Camera(CameraConfig())


def test_loss_and_return_are_told_once_each() -> None:
    first, second, third = FakeCapture(), FakeCapture(), FakeCapture()
    first.give()
    changes: list[Change] = []
    with Camera(CAMERA_7, opener(first, REFUSED, REFUSED, second, third), patience(), changes.append) as camera:
        assert changes == []
        first.lose()
        eventually(lambda: changes == ["lost"], "the loss is told")
        assert not camera.alive
        second.give()
        eventually(lambda: changes == ["lost", "found"], "the return is told")
        assert camera.alive
        second.lose()
        eventually(lambda: changes == ["lost", "found", "lost"], "the second loss is told")
        camera.stop()
        third.lose()


def test_a_camera_that_opens_and_gives_nothing_is_not_found(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "stream.camera")
    first, mute = FakeCapture(), FakeCapture()
    first.give()
    changes: list[Change] = []
    limits = patience()

    def on_change(change: Change) -> None:
        changes.append(change)
        object.__setattr__(limits, "first_picture_s", 0.05)  # only now: the first camera has all the time it needs

    with Camera(CAMERA_7, opener(first, mute), limits, on_change) as camera:
        first.lose()
        eventually(lambda: "camera 7 lost: camera 7 does not open" in caplog.text, "the mute one was given up")
        assert changes == ["lost"]
        assert camera.reopens == 0
        assert not camera.alive
        camera.stop()
        mute.lose()
