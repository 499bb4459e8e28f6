"""Cameras through OpenCV: which there are, and one of them opened."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from stream.config import CameraConfig
from stream.items import Image
from telme.errors import MissingDependency, SourceError

_LOG = logging.getLogger(__name__)
_OPEN_TIMEOUT_MS = 5_000
_READ_TIMEOUT_MS = 2_000
_DEFAULTS = CameraConfig()


class Capture(Protocol):
    """An opened video device: what the reader needs of cv2.VideoCapture."""

    def grab(self) -> bool:
        """Take the next picture off the driver, blocking; False when the device is lost."""

    def position_ms(self) -> float:
        """The driver's own time of the grabbed picture, 0 where it keeps none."""

    def retrieve(self) -> Image:
        """The grabbed picture, BGR uint8 [height, width, 3]. Raises SourceError."""

    def release(self) -> None:
        """Give the device back."""


class OpenCvCapture:
    """cv2.VideoCapture.

    Args:
        cv2: The module.
        source: Index, device path, URL or GStreamer pipeline.
        config: Back end, and what to ask the camera for.

    Raises:
        MissingDependency: This OpenCV lacks the back end.
        SourceError: It does not open.
    """

    def __init__(self, cv2: ModuleType, source: int | str, config: CameraConfig) -> None:
        self._cv2 = cv2
        is_url = isinstance(source, str) and "://" in source
        backend = _backend(cv2, config.backend, is_url)
        # Only the FFmpeg backend takes time limits here; V4L2's is in the environment (import_cv2).
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS]
        self._capture = cv2.VideoCapture(source, backend, timeouts if backend == cv2.CAP_FFMPEG else [])
        if not self._capture.isOpened():
            raise SourceError(f"camera {source!r} does not open", "a camera or stream", "run `telme-stream devices`")
        self._ask(source, config)

    def _ask(self, source: int | str, config: CameraConfig) -> None:
        """Ask for a size and rate; a camera takes what is nearest, a stream on the network nothing."""
        wanted: dict[str, int] = {}
        if config.size is not None:
            width, height = map(int, config.size.split("x"))
            wanted |= {"FRAME_WIDTH": width, "FRAME_HEIGHT": height}
        if config.fps is not None:
            wanted["FPS"] = config.fps
        for name, value in wanted.items():
            self._capture.set(getattr(self._cv2, f"CAP_PROP_{name}"), value)
        given = {name: round(self._capture.get(getattr(self._cv2, f"CAP_PROP_{name}"))) for name in wanted}
        if given != wanted:
            _LOG.warning("camera %r gives %s where %s was asked for", source, _mode(given), _mode(wanted))

    def grab(self) -> bool:
        """See Capture."""
        return bool(self._capture.grab())

    def position_ms(self) -> float:
        """See Capture."""
        return float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC))

    def retrieve(self) -> Image:
        """See Capture."""
        try:
            is_read, image = self._capture.retrieve()
        except self._cv2.error as error:
            raise SourceError(f"OpenCV: {error}", "a picture", "choose another camera mode") from error
        if not is_read:
            raise SourceError("the camera's picture cannot be decoded", "a picture", "choose another camera mode")
        return np.asarray(image, dtype=np.uint8)

    def release(self) -> None:
        """See Capture."""
        self._capture.release()


def _backend(cv2: ModuleType, name: str, is_url: bool) -> int:
    if name == "auto":
        if is_url:
            return int(cv2.CAP_FFMPEG)
        return int(cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    backend = int(getattr(cv2, f"CAP_{name.upper()}"))
    if not cv2.videoio_registry.hasBackend(backend):
        raise MissingDependency(
            f"this OpenCV {cv2.__version__} has no {name}", f"one built with {name}", 'set camera.backend to "auto"'
        )
    return backend


def _mode(properties: dict[str, int]) -> str:
    size = "x".join(str(value) for name, value in properties.items() if name != "FPS")
    rate = f"{properties['FPS']} pictures/s" if "FPS" in properties else ""
    return " at ".join(part for part in (size, rate) if part)


def open_capture(source: int | str, config: CameraConfig = _DEFAULTS) -> Capture:
    """Open a camera by index, device path or URL (RTSP, MJPEG over HTTP) with OpenCV, or by a GStreamer pipeline.

    Args:
        source: Which one.
        config: Back end, and what to ask the camera for; its own `source` is not read.

    Raises:
        MissingDependency: OpenCV, a library it needs or the back end is not there.
        SourceError: There is no such camera, or it does not open.
    """
    if isinstance(source, str):
        if source.isdecimal():
            source = int(source)
        elif "://" not in source and config.backend != "gstreamer":
            _check_device_path(source)
    return OpenCvCapture(import_cv2(), source, config)


def _check_device_path(source: str) -> None:
    if Path(source).is_file():
        raise SourceError(f"{source} is a file", "a camera", f"replay it with `telme-stream --input {source}`")
    if not Path(source).exists():
        raise SourceError(
            f"no camera {source!r}", "an index, a device path or a URL", "run `telme-stream devices` for the cameras"
        )


def import_cv2() -> ModuleType:
    """OpenCV, silenced.

    Raises:
        MissingDependency: It or a library it needs is not there.
    """
    # OpenCV reads these when it is loaded; failures are reported by this module, once, not by three libraries.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(_READ_TIMEOUT_MS // 1000))  # seconds
    try:
        import cv2
    except ImportError as error:
        raise MissingDependency(
            f"OpenCV: {error}", "opencv-python and its libraries", "run `apt-get install libgl1 libglib2.0-0`"
        ) from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


@dataclass(frozen=True)
class CameraInfo:
    """A camera that opens: its index, the name the system gives it."""

    index: int
    name: str


def list_cameras(
    open_capture: Callable[[int | str], Capture] = open_capture, indexes: Iterable[int] | None = None
) -> list[CameraInfo]:
    """Cameras that can be opened now.

    Args:
        open_capture: How to open one.
        indexes: Which to try; None is every /dev/video* on Linux and the first five elsewhere.

    Raises:
        MissingDependency: There are devices to try, but OpenCV is not installed.
    """
    if indexes is None and sys.platform == "linux":
        numbers = (path.name.removeprefix("video") for path in Path("/dev").glob("video*"))
        indexes = sorted(int(number) for number in numbers if number.isdecimal())
    cameras = []
    for index in range(5) if indexes is None else indexes:
        try:
            open_capture(index).release()
        except SourceError:
            continue
        label = Path(f"/sys/class/video4linux/video{index}/name")
        cameras.append(CameraInfo(index, label.read_text().strip() if label.exists() else f"camera {index}"))
    return cameras
