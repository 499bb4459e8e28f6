"""The camera's threads against a fake driver."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import pytest

from stream.camera import Camera
from stream.config import CameraConfig
from stream.items import Change
from stream.opencv import Capture
from telme.errors import MissingDependency, SourceError, TelmeStreamError
from tests.live import eventually
from tests.stream.fake_camera import (
    BLUE_BGR,
    BROKEN,
    CAMERA_7,
    DEADLINE_S,
    MS,
    REFUSED,
    FakeCapture,
    FrozenCapture,
    colours,
    gives,
    opener,
    patience,
)
from tests.stream.waits import Waits


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


@pytest.mark.parametrize(("steady_s", "waits_s"), [(3600.0, [1.0, 2.0, 4.0, 4.0]), (0.0, [0.5] * 4)])
def test_a_camera_that_gives_one_picture_an_opening_is_opened_less_and_less_often(
    steady_s: float, waits_s: list[float]
) -> None:
    devices = [FakeCapture() for _ in range(4)]
    for device in devices:
        device.give()
        device.lose()
    limits = replace(patience(), back_off_s=(0.5,), unsteady_s=(1.0, 2.0, 4.0), steady_s=steady_s)
    camera = Camera(CAMERA_7, opener(*devices), limits)
    camera._stopping = waits = Waits()
    with camera:
        eventually(lambda: len(waits.asked_s) >= 4, "all devices were opened")
        camera.stop()
    assert waits.asked_s[:4] == waits_s


def test_a_picture_that_cannot_be_decoded_is_left_out_and_counted() -> None:
    device = FakeCapture()
    device.give()
    changes: list[Change] = []
    with Camera(CAMERA_7, opener(device), patience(), changes.append) as camera:
        device.take(1)
        eventually(lambda: gives(device, BROKEN) and camera.undecodable > 0, "one is broken")
        eventually(lambda: gives(device, BLUE_BGR) and (0, 0, 255) in colours(camera), "the next one is kept")
        assert changes == []
        assert camera.reopens == 0
        camera.stop()
        device.lose()


def test_a_camera_none_of_whose_pictures_can_be_decoded_is_lost_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    device = FakeCapture()
    device.give()
    told = "camera 7 lost: no picture for 0.2 s: a broken picture"
    with Camera(CAMERA_7, opener(device), patience(stall_s=0.2)) as camera:
        eventually(lambda: gives(device, BROKEN) and told in caplog.text, "it is lost")
        camera.stop()
        device.lose()


def test_a_camera_that_starts_with_nothing_but_broken_pictures_is_an_error_that_says_so() -> None:
    device = FakeCapture()
    device.give(BROKEN)
    with (
        pytest.raises(SourceError, match="a broken picture"),
        Camera(CAMERA_7, opener(device), patience(first_picture_s=0.2)),
    ):
        pass
    device.lose()


def test_the_reason_of_a_loss_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    first, second = FakeCapture(), FakeCapture()
    first.give()
    caplog.set_level(logging.WARNING, "stream.camera")

    def told(reason: str) -> bool:
        return f"camera 7 lost: {reason}" in caplog.text

    with Camera(CAMERA_7, opener(first, REFUSED, second), patience()) as camera:
        eventually(lambda: gives(first, np.zeros((4, 4), np.uint8)) and told("a picture"), "the loss is told")
        eventually(lambda: told("camera 7 does not open"), "why it stays away is told")
        assert str(camera.lost_reason).startswith("camera 7 does not open")
        camera.stop()
        second.lose()


def test_a_reason_that_stays_the_same_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    first, last = FakeCapture(), FakeCapture()
    first.give()
    last.give()
    openings = opener(first, *[REFUSED] * 5, last)
    with Camera(CAMERA_7, openings, patience()) as camera:
        first.lose()
        eventually(lambda: camera.reopens == 1, "it is back")
        assert camera.lost_reason is None
        camera.stop()
        last.lose()
    assert caplog.text.count("camera 7 lost: camera 7 does not open") == 1


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


def test_a_camera_that_is_waited_for_from_the_start_begins_as_lost() -> None:
    device = FakeCapture()
    device.give()
    changes: list[Change] = []
    waiting = replace(patience(), from_start=True)
    with Camera(CAMERA_7, opener(REFUSED, REFUSED, device), waiting, changes.append) as camera:
        assert changes[0] == "lost"
        eventually(lambda: changes == ["lost", "found"], "it is found")
        assert camera.alive
        camera.stop()
        device.lose()


def test_a_mute_camera_that_is_waited_for_from_the_start_begins_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    mute = FakeCapture()
    changes: list[Change] = []
    waiting = replace(patience(first_picture_s=0.01), from_start=True)
    with Camera(CAMERA_7, opener(mute), waiting, changes.append) as camera:
        assert not camera.alive
        assert "camera 7 lost: camera 7 gave no picture in 0.01 s" in caplog.text
        mute.lose()


def test_a_missing_library_is_not_waited_for() -> None:
    waiting = replace(patience(), from_start=True)
    with (
        pytest.raises(MissingDependency),
        Camera(CAMERA_7, opener(MissingDependency("no cv2", "cv2", "install it")), waiting),
    ):
        pass


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


def test_a_camera_that_opens_and_gives_nothing_is_not_found() -> None:
    """Only the mute one has little time for its first picture: the others may be slow on a busy machine."""
    first, mute, third = FakeCapture(), FakeCapture(), FakeCapture()
    first.give()
    third.give()
    changes: list[Change] = []
    limits = patience()
    openings = opener(first, mute, REFUSED, REFUSED, REFUSED, third)

    def open_capture(source: int | str) -> Capture:
        try:
            return openings(source)
        except SourceError:  # those that follow the mute one
            object.__setattr__(limits, "first_picture_s", DEADLINE_S)
            raise

    def on_change(change: Change) -> None:
        changes.append(change)
        object.__setattr__(limits, "first_picture_s", 0.05 if change == "lost" else DEADLINE_S)

    with Camera(CAMERA_7, open_capture, limits, on_change) as camera:
        first.lose()
        third.take(1)
        eventually(lambda: changes == ["lost", "found"], "the third is found, and the mute one was not")
        assert camera.reopens == 1
        camera.stop()
        mute.lose()
        third.lose()
