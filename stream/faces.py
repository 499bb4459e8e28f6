"""The largest face of a picture, cut out: a feature mode of the camera (`[camera] crop = "face"`), off by default.

OpenCV's own detector finds it: the Haar cascade for frontal faces (Viola and Jones 2001; Lienhart and Maydt 2002) that
opencv-python 4 carries. OpenCV 5 has moved it out and carries no other detector with its weights.

A picture without a face is served whole, and counted: nothing else may stand for a face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stream.config import CameraConfig
from stream.items import Image
from stream.opencv import import_cv2
from telme.errors import MissingDependency

Box: TypeAlias = tuple[int, int, int, int]  # left, top, width, height in pixels
Finds: TypeAlias = Callable[[NDArray[np.uint8]], Sequence[Box]]

_CASCADE = "haarcascade_frontalface_default.xml"
_SEARCH_SIDE_PX = 320  # pictures are searched at this size
_LEAST_FACE_PX = 32  # of those
_SCALE_STEP = 1.1
_NEIGHBOURS = 5
_MARGIN = 1.4  # side of what is cut out, in faces: forehead and chin lie outside the detector's box


class FaceCrop:
    """Cuts out the largest face: a square around it, as far as the picture goes.

    Args:
        find: Faces in a grey picture, uint8 [height, width].

    Attributes:
        without_face: Pictures that were served whole because no face was found.
    """

    def __init__(self, find: Finds) -> None:
        self._find = find
        self.without_face = 0

    def __call__(self, image: Image) -> Image:
        """The part around the largest face, or the whole picture: uint8 [height, width, 3], RGB or BGR."""
        boxes = self._find(image[:, :, 1])  # green: nearest to luminance, and the middle one of either order
        if not boxes:
            self.without_face += 1
            return image
        return cut_out(image, max(boxes, key=lambda box: box[2] * box[3]))


def cut_out(image: Image, face: Box) -> Image:
    """The square around a face, moved and shrunk where it would leave the picture; a view."""
    height, width = image.shape[:2]
    left, top, face_width, face_height = face
    side = max(1, min(round(_MARGIN * max(face_width, face_height)), height, width))
    x = min(max(left + face_width // 2 - side // 2, 0), width - side)
    y = min(max(top + face_height // 2 - side // 2, 0), height - side)
    return image[y : y + side, x : x + side]


def crop_for(config: CameraConfig) -> FaceCrop | None:
    """What the configuration asks for; None leaves pictures whole.

    Raises:
        MissingDependency: OpenCV is not there, or it has no face detector.
    """
    return FaceCrop(haar_detector()) if config.crop == "face" else None


def haar_detector() -> Finds:
    """OpenCV's cascade for frontal faces.

    Raises:
        MissingDependency: OpenCV is not there, or is a version without it.
    """
    cv2 = import_cv2()
    file = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / _CASCADE
    if not hasattr(cv2, "CascadeClassifier") or not file.is_file():
        raise MissingDependency(
            f"OpenCV {cv2.__version__} has no face detector",
            "opencv-python 4, which carries one",
            "run `pip install 'opencv-python<5'`, or leave camera.crop at its default",
        )
    cascade = cv2.CascadeClassifier(str(file))

    def find(grey: NDArray[np.uint8]) -> list[Box]:
        scale = min(1.0, _SEARCH_SIDE_PX / max(grey.shape))
        size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
        small = cv2.resize(np.ascontiguousarray(grey), size, interpolation=cv2.INTER_AREA)
        least = (_LEAST_FACE_PX, _LEAST_FACE_PX)
        found = cascade.detectMultiScale(small, scaleFactor=_SCALE_STEP, minNeighbors=_NEIGHBOURS, minSize=least)
        return [(round(x / scale), round(y / scale), round(w / scale), round(h / scale)) for x, y, w, h in found]

    return find
