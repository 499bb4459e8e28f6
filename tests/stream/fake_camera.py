"""A camera's driver in memory, and what the tests of the camera share."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Semaphore
from typing import NamedTuple

import numpy as np

from stream.camera import Camera, Patience
from stream.config import CameraConfig
from stream.items import Image, Missing
from stream.opencv import Capture
from telme.errors import SourceError, TelmeStreamError

MS = 1_000_000
DEADLINE_S = 20.0
BLACK = np.zeros((224, 224, 3), np.uint8)
RED_BGR = np.full((240, 320, 3), (0, 0, 255), np.uint8)
BLUE_BGR = np.full((240, 320, 3), (255, 0, 0), np.uint8)
BROKEN = np.zeros((1, 1, 3), np.uint8)  # the one that cannot be decoded
CAMERA_7 = CameraConfig(source=7, ring_fps=60, stale_ms=60_000)


def patience(stall_s: float = DEADLINE_S, first_picture_s: float = DEADLINE_S) -> Patience:
    return Patience(first_picture_s, stall_s, back_off_s=(0.001,), unsteady_s=(0.001,), join_s=DEADLINE_S)


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
        if self._now.image is BROKEN:
            raise SourceError("a broken picture", "a picture", "choose another camera mode")
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
