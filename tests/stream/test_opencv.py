"""Opening cameras: which back end, what is asked for, what is refused. A fake cv2 plays the driver."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from stream.config import CameraConfig
from stream.opencv import CameraInfo, Capture, OpenCvCapture, list_cameras, open_capture
from telme.errors import MissingDependency, SourceError


@dataclass
class FakeVideoCapture:
    """As cv2.VideoCapture: takes the sizes it has, 640x480 and 1280x720, and at most 30 pictures per second."""

    source: int | str
    backend: str
    settings: list[Any]
    properties: dict[str, float] = field(
        default_factory=lambda: {"FRAME_WIDTH": 640.0, "FRAME_HEIGHT": 480.0, "FPS": 30.0}
    )

    def isOpened(self) -> bool:
        return True

    def set(self, name: str, value: int) -> bool:
        most = {"FRAME_WIDTH": 1280, "FRAME_HEIGHT": 720, "FPS": 30}
        self.properties[name] = min(value, most[name])
        return True

    def get(self, name: str) -> float:
        return self.properties[name]

    def release(self) -> None:
        return


class FakeCv2:
    """As the module cv2."""

    __version__ = "5.0.0"
    error = RuntimeError

    def __init__(self, *backends: str) -> None:
        self.videoio_registry = SimpleNamespace(hasBackend=lambda number: BACKENDS[number] in backends)
        self.opened: list[FakeVideoCapture] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("CAP_PROP_"):
            return name.removeprefix("CAP_PROP_")
        return BACKENDS.index(name.removeprefix("CAP_"))

    def VideoCapture(self, source: int | str, backend: int, settings: list[Any]) -> FakeVideoCapture:
        self.opened.append(FakeVideoCapture(source, BACKENDS[backend], settings))
        return self.opened[-1]


BACKENDS = ["ANY", "V4L2", "FFMPEG", "GSTREAMER"]
REFUSED = SourceError("camera 7 does not open", "a camera", "plug it in")


def opened(source: int | str, **options: Any) -> FakeVideoCapture:
    cv2 = FakeCv2("V4L2", "FFMPEG")
    OpenCvCapture(cast(ModuleType, cv2), source, CameraConfig(**options))
    return cv2.opened[0]


@pytest.mark.parametrize(
    ("source", "backend", "used"),
    [
        (0, "auto", "V4L2" if sys.platform == "linux" else "ANY"),
        ("/dev/video2", "auto", "V4L2" if sys.platform == "linux" else "ANY"),
        ("rtsp://camera/1", "auto", "FFMPEG"),
        (0, "ffmpeg", "FFMPEG"),
        ("http://camera/1", "v4l2", "V4L2"),
    ],
)
def test_the_back_end_is_the_one_that_was_asked_for_or_fits(source: int | str, backend: str, used: str) -> None:
    capture = opened(source, backend=backend)
    assert capture.backend == used
    assert ("OPEN_TIMEOUT_MSEC" in capture.settings) == (used == "FFMPEG")


def test_a_back_end_that_this_opencv_lacks_is_named() -> None:
    with pytest.raises(MissingDependency, match=r"this OpenCV 5\.0\.0 has no gstreamer.*camera\.backend"):
        opened("v4l2src ! appsink", backend="gstreamer")


def test_size_and_rate_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert opened(0).properties == {"FRAME_WIDTH": 640, "FRAME_HEIGHT": 480, "FPS": 30}
    assert opened(0, size="1280x720", fps=15).properties == {"FRAME_WIDTH": 1280, "FRAME_HEIGHT": 720, "FPS": 15}
    assert caplog.text == ""


def test_what_the_camera_gives_instead_is_told(caplog: pytest.LogCaptureFixture) -> None:
    opened(0, size="1920x1080", fps=60)
    assert "camera 0 gives 1280x720 at 30 pictures/s where 1920x1080 at 60 pictures/s was asked for" in caplog.text
    caplog.clear()
    opened(0, fps=60)
    assert "gives 30 pictures/s where 60 pictures/s" in caplog.text


def test_a_file_is_not_a_camera(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.touch()
    with pytest.raises(SourceError, match="--input"):
        open_capture(str(path))


def test_a_device_path_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(SourceError, match="telme-stream devices"):
        open_capture("/dev/no-camera-here")


@pytest.mark.parametrize("source", [97, "97", "http://127.0.0.1:9/nothing"])
def test_a_camera_that_is_not_there_is_an_error(source: int | str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(SourceError, match="does not open"):
        open_capture(source)
    assert capfd.readouterr() == ("", "")


def test_without_opencv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependency, match=r"apt-get install libgl1 libglib2\.0-0"):
        open_capture(0)


def test_opencv_is_not_loaded_before_a_camera_is_opened() -> None:
    code = "import sys, stream.camera, stream.opencv; raise SystemExit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_pipeline_is_no_device_path() -> None:
    pytest.importorskip("cv2")
    with pytest.raises((MissingDependency, SourceError), match=r"has no gstreamer|does not open"):
        open_capture("videotestsrc ! fakesink", CameraConfig(backend="gstreamer"))


class FakeCapture:
    """A camera that opens."""

    def __init__(self) -> None:
        self.is_released = False

    def release(self) -> None:
        self.is_released = True


def test_list_cameras_names_those_that_open() -> None:
    first, third = FakeCapture(), FakeCapture()
    left = iter([first, REFUSED, third])

    def open_next(source: int | str) -> Capture:
        found = next(left)
        if isinstance(found, SourceError):
            raise found
        return cast(Capture, found)

    found = list_cameras(open_next, [90, 91, 92])
    assert found == [CameraInfo(90, "camera 90"), CameraInfo(92, "camera 92")]
    assert first.is_released
    assert third.is_released
