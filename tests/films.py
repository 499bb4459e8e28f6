"""Pictures and films for tests: a drawn face, and a film that shows one picture while somebody says one sentence."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter

from stream.items import SAMPLE_RATE_HZ, Image, Pcm
from stream.wire import Media
from tests.stream.sounds import example_clips

FPS = 25
SKIN = (215, 170, 145)
_BACKGROUND = (90, 110, 100)


def drawn_face(side: int, at: tuple[int, int]) -> Image:
    """A head with hair, brows, eyes, nose and mouth, softly shaded, in a picture of 640 x 480."""
    picture = Pillow.new("RGB", (640, 480), _BACKGROUND)
    draw = ImageDraw.Draw(picture)

    def oval(x: float, y: float, width: float, height: float, colour: tuple[int, int, int]) -> None:
        left, top = at[0] + (x - width / 2) * side, at[1] + (y - height / 2) * side
        draw.ellipse((left, top, left + width * side, top + height * side), fill=colour)

    oval(0.5, 0.42, 1.05, 1.25, (50, 35, 30))
    oval(0.5, 0.55, 0.85, 1.15, SKIN)
    for x in (0.32, 0.68):
        oval(x, 0.36, 0.26, 0.05, (70, 45, 35))
        oval(x, 0.45, 0.24, 0.13, (150, 105, 90))
        oval(x, 0.45, 0.16, 0.08, (240, 240, 240))
        oval(x, 0.45, 0.08, 0.08, (25, 20, 20))
    oval(0.5, 0.58, 0.10, 0.26, (230, 190, 165))
    oval(0.5, 0.70, 0.20, 0.06, (160, 110, 95))
    oval(0.5, 0.87, 0.36, 0.10, (140, 60, 60))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(side / 60)), np.uint8)


def no_face() -> Image:
    """The same picture without the head."""
    return np.full((480, 640, 3), _BACKGROUND, np.uint8)


def skin_share(pictures: Media) -> float:
    """Share of the pixels, [..., 3], that have about the colour of the drawn face's skin."""
    assert isinstance(pictures, np.ndarray), pictures
    return float((np.abs(pictures.astype(int) - SKIN).max(-1) < 40).mean())


def film_of(picture: Image, path: Path) -> Path:
    """Write a film: the picture all the while, and the example's first sentence with a second of silence around it."""
    silence = np.zeros(SAMPLE_RATE_HZ, np.int16)
    sound: Pcm = np.concatenate((silence, example_clips()[0].pcm, silence))
    with av.open(str(path), "w") as film:
        video = film.add_stream("mpeg4", rate=FPS)
        video.height, video.width = picture.shape[:2]
        video.pix_fmt = "yuv420p"
        video.bit_rate = 4_000_000
        audio = film.add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ, layout="mono")
        for number in range(len(sound) * FPS // SAMPLE_RATE_HZ):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            film.mux(video.encode(frame))
        film.mux(video.encode())
        heard = av.AudioFrame.from_ndarray(sound[None], "s16", "mono")
        heard.sample_rate = SAMPLE_RATE_HZ
        film.mux(audio.encode(heard))
        film.mux(audio.encode())
    return path
