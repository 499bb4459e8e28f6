"""A live camera: pictures stamped at the grab, for as long as they are wanted.

Every driver call may block for ever, so each opened device has a reader thread of its own that can be abandoned, and
one watching thread that never calls the driver decides when to do that and when to open the device anew.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

import numpy as np

from stream.backoff import STEADY_S, UNSTEADY_S, BackOff
from stream.config import CameraConfig
from stream.frames import FrameRing
from stream.items import Change, VideoFrame
from stream.opencv import Capture
from stream.opencv import open_capture as _open
from telme.errors import SourceError, TelmeStreamError

_LOG = logging.getLogger(__name__)
_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000
_MAX_STUCK_READERS = 2
_METER_GRABS = 31


class _Meter:
    """Pictures per second over the last grabs, the newest grab, and how many could not be decoded."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._grabs_ns: deque[int] = deque(maxlen=_METER_GRABS)
        self.undecodable = 0

    def tick(self, grabbed_ns: int) -> None:
        with self._lock:
            self._grabs_ns.append(grabbed_ns)

    def miss(self) -> None:
        with self._lock:
            self.undecodable += 1

    def newest_ns(self) -> int | None:
        with self._lock:
            return self._grabs_ns[-1] if self._grabs_ns else None

    def fps(self) -> float:
        with self._lock:
            if len(self._grabs_ns) < 2 or self._grabs_ns[-1] == self._grabs_ns[0]:
                return 0.0
            return (len(self._grabs_ns) - 1) * _NS_PER_S / (self._grabs_ns[-1] - self._grabs_ns[0])


class _Reader:
    """One opening of the device and the thread that drains it, thrown away when it fails or blocks."""

    def __init__(self, source: int | str, ring: FrameRing, meter: _Meter) -> None:
        self._source, self._ring, self._meter = source, ring, meter
        self._position_ms = 0.0
        self._first_ns = 0  # of its pictures
        self.error: TelmeStreamError | None = None
        self.complaint: SourceError | None = None  # why the newest picture could not be decoded
        self.newest_ns = time.monotonic_ns()  # of the start until a picture comes
        self.given_s: float | None = None  # from its first picture to the newest; None before there is any
        self.progress = Event()  # the first picture is in the ring, or there will be none
        self.ended = Event()  # nothing more comes: it failed or was abandoned

    @property
    def gave_picture(self) -> bool:
        return self.given_s is not None

    def start(self, open_capture: Callable[[int | str], Capture]) -> None:
        self.thread = Thread(target=self._run, args=(open_capture,), name="camera-reader", daemon=True)
        self.thread.start()

    def abandon(self) -> None:
        self.ended.set()
        self.progress.set()

    def _run(self, open_capture: Callable[[int | str], Capture]) -> None:
        try:
            capture = open_capture(self._source)
            try:
                while not self.ended.is_set() and capture.grab():
                    self._take(capture)
            finally:
                capture.release()
        except TelmeStreamError as error:
            self.error = error
        finally:
            self.abandon()

    def _take(self, capture: Capture) -> None:
        grabbed_ns = time.monotonic_ns()
        position_ms = capture.position_ms()
        if position_ms > 0 and position_ms == self._position_ms:
            self.ended.wait(0.01)  # a lost device that hands out its last picture for ever, without blocking
            return
        self._position_ms = position_ms
        if self.ended.is_set():
            return
        if self._ring.due(grabbed_ns):
            try:
                picture = capture.retrieve()
            except SourceError as error:  # a cable or a radio link loses some; when none comes any more, it is lost
                self._meter.miss()
                self.complaint = error
                self.ended.wait(0.01)
                return
            # Contiguous and RGB: shrink first, so that only 224 x 224 pixels are turned over.
            image = np.ascontiguousarray(self._ring.prepare(picture)[:, :, ::-1])
            self._ring.put(VideoFrame(grabbed_ns, image))
            self.complaint = None
        self._meter.tick(grabbed_ns)
        self.newest_ns = grabbed_ns
        self._first_ns = self._first_ns or grabbed_ns
        self.given_s = (grabbed_ns - self._first_ns) / _NS_PER_S
        self.progress.set()


@dataclass(frozen=True)
class Patience:
    """How long a camera may take, in seconds.

    Attributes:
        first_picture_s: From opening to the first picture.
        stall_s: Between two pictures, before the device counts as lost.
        back_off_s: Waits before each attempt to open one that is away; the last one repeats.
        unsteady_s: The same for one that gives pictures for a moment only.
        steady_s: Pictures for so long are no moment.
        join_s: For the threads to end.
        from_start: Whether a camera that is not there at the start is waited for too, as one that is lost.
    """

    first_picture_s: float = 8.0
    stall_s: float = 3.0
    back_off_s: tuple[float, ...] = (0.25, 0.5, 1.0)
    unsteady_s: tuple[float, ...] = UNSTEADY_S
    steady_s: float = STEADY_S
    join_s: float = 3.0
    from_start: bool = False


class Camera:
    """A live camera: a context manager that fills `ring` with RGB pictures stamped at the grab.

    Args:
        config: Source, what to ask it for, pictures per second kept, age at which it counts as stale.
        open_capture: How to open the device; None is OpenCV, as `config` says.
        patience: Deadlines.
        on_change: Called when it is lost and when it gives pictures again, in a thread of the camera's.
        ring: Where its pictures go; None is a ring of the usual length, of whole pictures.

    Attributes:
        ring: The recent pictures, on time.monotonic_ns.
        lost_reason: Why it is lost, as far as is known by now; None while it is not.
        reopens: How often a lost camera was opened again and gave pictures.

    Raises:
        MissingDependency: On entering: OpenCV or a library it needs is not installed.
        SourceError: On entering: no such camera, or it gives no picture, and it is not waited for from the start.
    """

    def __init__(
        self,
        config: CameraConfig,
        open_capture: Callable[[int | str], Capture] | None = None,
        patience: Patience = Patience(),
        on_change: Callable[[Change], None] = lambda change: None,
        ring: FrameRing | None = None,
    ) -> None:
        if config.source is None:
            raise SourceError("no camera is named", "an index, a device path or a URL", "give --camera")
        self._source = config.source
        self._stale_ms = config.stale_ms
        self._open_capture = open_capture or partial(_open, config=config)
        self._patience = patience
        self._on_change = on_change
        self.lost_reason: str | None = None
        self._meter = _Meter()
        self._back_off = BackOff(patience.back_off_s, patience.unsteady_s, patience.steady_s)
        self._stopping = Event()
        self._stuck: list[Thread] = []
        self._watcher = Thread(target=self._watch, name="camera-watch", daemon=True)
        self.ring = FrameRing(config.ring_fps) if ring is None else ring
        self.reopens = 0
        self._reader = _Reader(self._source, self.ring, self._meter)

    def __enter__(self) -> Self:
        self._reader.start(self._open_capture)
        self._reader.progress.wait(self._patience.first_picture_s)
        if not self._reader.gave_picture:
            self._reader.abandon()
            error = (
                self._reader.error
                or self._reader.complaint
                or SourceError(
                    f"camera {self._source!r} gave no picture in {self._patience.first_picture_s:g} s",
                    "a picture",
                    "see whether another program holds it, or run `telme-stream devices`",
                )
            )
            if not (self._patience.from_start and isinstance(error, SourceError)):
                raise error
            self._reader.error = error
            self._lose(str(error))
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for thread in (self._watcher, self._reader.thread):
            thread.join(self._patience.join_s)
            if thread.is_alive():
                _LOG.warning("thread %s did not end within %g s", thread.name, self._patience.join_s)

    def stop(self) -> None:
        """End both threads. From any thread, any number of times."""
        self._stopping.set()
        self._reader.abandon()

    @property
    def fps(self) -> float:
        """Pictures per second that the device gives; 0 while it is stale."""
        return self._meter.fps() if self.alive else 0.0

    @property
    def age_ms(self) -> int | None:
        """Age of the newest picture; None before the first."""
        newest_ns = self._meter.newest_ns()
        return None if newest_ns is None else (time.monotonic_ns() - newest_ns) // _NS_PER_MS

    @property
    def alive(self) -> bool:
        """Whether it is not lost, and its newest picture is younger than the configured `stale_ms`."""
        age_ms = self.age_ms
        return self.lost_reason is None and age_ms is not None and age_ms <= self._stale_ms

    @property
    def undecodable(self) -> int:
        """Pictures that could not be decoded, of those that the ring asked for."""
        return self._meter.undecodable

    def _watch(self) -> None:
        while True:
            reader = self._reader
            reason = self._wait_for_loss(reader)
            if self._stopping.is_set():
                return
            self._lose(reason)
            self._stuck.append(reader.thread)
            if not self._wait(self._back_off.after(reader.given_s)):
                return
            self._reopen()

    def _lose(self, reason: str) -> None:
        before, self.lost_reason = self.lost_reason, reason
        level = logging.DEBUG if reason == before else logging.WARNING
        _LOG.log(level, "camera %r lost: %s", self._source, reason)
        if before is None:
            self._on_change("lost")

    def _wait_for_loss(self, reader: _Reader) -> str:
        while not reader.ended.is_set():
            limit_s = self._patience.stall_s if reader.gave_picture else self._patience.first_picture_s
            left_ns = reader.newest_ns + int(limit_s * _NS_PER_S) - time.monotonic_ns()
            if left_ns <= 0:
                reader.abandon()
                return f"no picture for {limit_s:g} s" + (f": {reader.complaint}" if reader.complaint else "")
            reader.ended.wait(left_ns / _NS_PER_S)
        stopped = "it stopped giving pictures" if reader.gave_picture else "it gave no picture"
        return str(reader.error or reader.complaint or stopped)

    def _wait(self, wait_s: float) -> bool:
        """Wait; longer while too many abandoned threads still hang in the driver. False when stopping."""
        while not self._stopping.wait(wait_s):
            self._stuck = [thread for thread in self._stuck if thread.is_alive()]
            if len(self._stuck) < _MAX_STUCK_READERS:
                return True
        return False

    def _reopen(self) -> None:
        reader = self._reader = _Reader(self._source, self.ring, self._meter)
        reader.start(self._open_capture)
        if self._stopping.is_set():  # stop() may have seen only the reader before this one
            reader.abandon()
        reader.progress.wait(self._patience.first_picture_s)
        if reader.gave_picture:
            self.reopens += 1
            self.lost_reason = None
            _LOG.warning("camera %r is back", self._source)
            self._on_change("found")
        else:
            reader.abandon()
