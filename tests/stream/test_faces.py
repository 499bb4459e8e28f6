"""The largest face: what is cut out, what happens without one, and OpenCV's detector on a drawn and on real faces."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.config import CameraConfig, Config
from stream.devices import Devices
from stream.faces import Box, FaceCrop, crop_for, cut_out, haar_detector
from stream.frames import FrameRing
from stream.items import Image, Session
from telme.errors import MissingDependency
from tests.commands import EXAMPLES
from tests.films import drawn_face

MEDIA = Path(os.environ.get("TELME_MEDIA", Path(__file__).parents[3] / "shared" / "media"))
WITH_CROP = CameraConfig(crop="face")


def numbered(height: int, width: int) -> Image:
    """A picture whose red and green say where each pixel lies."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows % 256, columns % 256, rows * 0], axis=2).astype(np.uint8)


boxes = st.tuples(*(st.integers(0, 400) for _ in range(2)), *(st.integers(1, 300) for _ in range(2)))


@given(st.integers(1, 250), st.integers(1, 250), boxes)
def test_what_is_cut_out_is_a_square_inside_the_picture(height: int, width: int, box: Box) -> None:
    face = cut_out(numbered(height, width), box)
    assert face.shape[0] == face.shape[1] == min(max(1, round(1.4 * max(box[2:]))), height, width)
    assert face.shape[2] == 3


def test_a_face_away_from_the_edges_lies_in_the_middle() -> None:
    face = cut_out(numbered(240, 240), (100, 60, 50, 50))
    assert face[0, 0].tolist() == [60 + 25 - 35, 100 + 25 - 35, 0]
    assert face.shape == (70, 70, 3)


def test_the_largest_face_is_taken() -> None:
    crop = FaceCrop(lambda grey: [(0, 0, 20, 20), (100, 100, 60, 60), (200, 0, 30, 30)])
    assert crop(numbered(240, 240)).shape == (84, 84, 3)
    assert crop.without_face == 0


def test_a_picture_without_a_face_is_whole_and_counted() -> None:
    crop, picture = FaceCrop(lambda grey: []), numbered(120, 160)
    assert crop(picture) is picture
    assert crop(picture) is picture
    assert crop.without_face == 2


def test_it_is_off_by_default() -> None:
    assert crop_for(CameraConfig()) is None


def test_an_opencv_without_a_detector_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    monkeypatch.delattr(cv2, "CascadeClassifier", raising=False)
    with pytest.raises(MissingDependency, match="opencv-python<5"):
        haar_detector()


@pytest.fixture
def detector() -> FaceCrop:
    """OpenCV's, where there is one."""
    pytest.importorskip("cv2")
    try:
        return FaceCrop(haar_detector())
    except MissingDependency as error:
        pytest.skip(str(error))


def test_a_drawn_face_is_found(detector: FaceCrop) -> None:
    face = detector(drawn_face(160, (300, 150)))
    assert detector.without_face == 0
    assert face.shape[0] < 300
    assert abs(int(face[face.shape[0] // 2, face.shape[1] // 2, 0]) - 215) < 40  # its middle is skin


def test_a_plain_picture_has_none(detector: FaceCrop) -> None:
    assert detector(np.full((240, 320, 3), 128, np.uint8)).shape == (240, 320, 3)
    assert detector.without_face == 1


@pytest.mark.parametrize(
    ("name", "share"), [("single_face.mp4", 0.95), ("talking_face.mp4", 0.95), ("no_face.mp4", 0.0)]
)
def test_recorded_faces_are_found_and_nothing_else_is(detector: FaceCrop, name: str, share: float) -> None:
    if not (MEDIA / name).is_file():
        pytest.skip(f"no {MEDIA / name}; set TELME_MEDIA to a folder with {name}")
    with Devices(Config(camera=WITH_CROP), Session(MEDIA / name, fast=True, pictures=True)) as opened:
        assert isinstance(opened.frames, FrameRing)
        for _ in opened.source.blocks():
            pass
        pictures, without = len(opened.frames), opened.counters()["pictures_without_face"]
    found = 1 - without / pictures
    assert found >= share if share else found <= 0.05


def test_a_recording_is_cropped_too_and_says_how_often_it_was_not(detector: FaceCrop) -> None:
    with Devices(Config(camera=WITH_CROP), Session(EXAMPLES / "conversation.mp4", True, pictures=True)) as opened:
        for _ in opened.source.blocks():
            pass
        assert isinstance(opened.frames, FrameRing)
        assert opened.counters()["pictures_without_face"] > 0  # its heads are boxes
