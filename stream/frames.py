"""Pictures in memory: the size every model sees, and the ring of recent ones that the alignment asks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
from PIL import Image as PillowImage

from stream.items import FRAME_SIDE_PX, Image, Missing, VideoFrame
from telme.errors import SourceError

_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000


def shrink(image: Image) -> Image:
    """Shortest edge to 224 (Pillow bilinear), then the central 224 x 224, as VideoMAE's image processor does.

    Args:
        image: uint8 [height, width, 3]; the order of the channels is kept.

    Raises:
        SourceError: The picture has another shape or type.
    """
    check_picture(image)
    height, width = image.shape[:2]
    short = min(height, width)
    size = (FRAME_SIDE_PX * width // short, FRAME_SIDE_PX * height // short)
    resized = PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BILINEAR)
    left, top = (size[0] - FRAME_SIDE_PX) // 2, (size[1] - FRAME_SIDE_PX) // 2
    return np.asarray(resized.crop((left, top, left + FRAME_SIDE_PX, top + FRAME_SIDE_PX)))


def check_picture(image: Image) -> None:
    """Refuse what is not a colour picture.

    Raises:
        SourceError: The picture has another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise SourceError(
            f"a picture {image.dtype} {list(image.shape)}", "uint8 [height, width, 3]", "choose another camera mode"
        )


class FrameRing:
    """Recent pictures by time. Thread-safe; memory is bounded by age and by number (150 kB a picture).

    Args:
        fps: Most pictures kept per second; `due` says which.
        keep_ms: A picture older than this against the newest one is forgotten.
        crop: What is cut out of a picture before it is shrunk; None is the whole picture.

    Attributes:
        drops: Pictures pushed out by number while young enough to be asked for. Growing old is no drop.
    """

    def __init__(self, fps: int = 10, keep_ms: int = 25_000, crop: Callable[[Image], Image] | None = None) -> None:
        self._crop = crop
        self._fps = fps
        self._keep_ns = keep_ms * _NS_PER_MS
        self._max_frames = fps * keep_ms // 1000 + 1
        self._lock = Lock()
        self._times: list[int] = []
        self._frames: list[VideoFrame] = []
        self._origin_ns: int | None = None
        self.drops = 0

    def prepare(self, image: Image) -> Image:
        """A device's picture as this ring keeps them: cut out and shrunk, uint8 [224, 224, 3], channels as they were.

        Raises:
            SourceError: It is no colour picture.
        """
        check_picture(image)
        return shrink(image if self._crop is None else self._crop(image))

    def due(self, captured_ns: int) -> bool:
        """Whether a picture of this time belongs in the ring: the first in each 1/fps s, counted from the first put.

        A fixed grid, not a least distance: jitter of the camera does not lower the rate.
        """
        with self._lock:
            if self._origin_ns is None:
                return True
            return self._slot(captured_ns, self._origin_ns) > self._slot(self._times[-1], self._origin_ns)

    def put(self, frame: VideoFrame) -> None:
        """Add a picture; what became too old or too many leaves, oldest first."""
        with self._lock:
            if self._origin_ns is None:
                self._origin_ns = frame.captured_ns
            place = bisect_right(self._times, frame.captured_ns)
            self._times.insert(place, frame.captured_ns)
            self._frames.insert(place, frame)
            aged = bisect_left(self._times, self._times[-1] - self._keep_ns)
            crowded = max(0, len(self._times) - aged - self._max_frames)
            self.drops += crowded
            del self._times[: aged + crowded]
            del self._frames[: aged + crowded]

    def nearest(self, times_ns: Sequence[int], tolerance_ns: int) -> list[VideoFrame] | Missing:
        """For each wanted time the nearest picture, or why that cannot be.

        Args:
            times_ns: Wanted times on the clock of `VideoFrame.captured_ns`.
            tolerance_ns: A picture further away than this is not an answer.

        Returns:
            One frame per wanted time (a frame may answer twice), or Missing when any wanted time has none.
        """
        with self._lock:
            if not self._frames:
                return Missing("no picture has arrived yet")
            found = [self._frames[self._index(wanted)] for wanted in times_ns]
        gaps = [abs(frame.captured_ns - wanted) for frame, wanted in zip(found, times_ns, strict=True)]
        far = [gap for gap in gaps if gap > tolerance_ns]
        if far:
            return Missing(
                f"{len(far)} of {len(gaps)} pictures are missing: the nearest one is up to "
                f"{max(far) // _NS_PER_MS} ms away, allowed are {tolerance_ns // _NS_PER_MS} ms"
            )
        return found

    def __len__(self) -> int:
        with self._lock:
            return len(self._frames)

    def _slot(self, captured_ns: int, origin_ns: int) -> int:
        return (captured_ns - origin_ns) * self._fps // _NS_PER_S

    def _index(self, wanted_ns: int) -> int:
        after = bisect_left(self._times, wanted_ns)
        if after == 0:
            return 0
        if after == len(self._times):
            return after - 1
        return after if self._times[after] - wanted_ns < wanted_ns - self._times[after - 1] else after - 1
