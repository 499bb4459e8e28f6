"""Real streams: PortAudio records what PulseAudio plays, OpenCV shows what ffmpeg draws."""

from __future__ import annotations

import time

import numpy as np
import pytest

from stream.camera import Camera, Patience
from stream.config import CameraConfig
from stream.items import SAMPLE_RATE_HZ, Missing, VideoFrame
from tests.live import MjpegServer, VirtualMicrophone, eventually

MS = 1_000_000
TOLERANCE_NS = 500 * MS
QUICK_BACK_OFF = Patience(back_off_s=(0.05,))


@pytest.mark.parametrize("options", [(), ("only-48k-stereo",)])
def test_a_tone_that_is_played_is_heard(virtual_microphone: VirtualMicrophone, options: tuple[str, ...]) -> None:
    at = np.arange(48_000 * 45) / 48_000
    tone = (np.sin(2 * np.pi * 1_000 * at) * 12_000).astype(np.int16)
    heard = virtual_microphone.record_while_playing(tone, 48_000, *options)
    second = heard[-SAMPLE_RATE_HZ:] * np.hanning(SAMPLE_RATE_HZ)
    power = np.abs(np.fft.rfft(second)) ** 2  # one bin per Hz
    assert abs(int(power.argmax()) - 1_000) <= 2
    assert power[990:1_011].sum() > 0.9 * power.sum()


def pictures_now(camera: Camera) -> list[VideoFrame] | Missing:
    return camera.ring.nearest([time.monotonic_ns()], TOLERANCE_NS)


def shows(camera: Camera, colour: tuple[int, int, int]) -> bool:
    found = pictures_now(camera)
    return not isinstance(found, Missing) and bool(np.abs(found[0].image.mean((0, 1)) - colour).max() < 25)


def test_a_camera_by_url_shows_what_is_drawn_and_nothing_stale(mjpeg_server: MjpegServer) -> None:
    mjpeg_server.start("red")
    with Camera(CameraConfig(source=mjpeg_server.url, ring_fps=10), patience=QUICK_BACK_OFF) as camera:
        eventually(lambda: shows(camera, (255, 0, 0)), "the picture is red")
        eventually(lambda: camera.fps > 5, "the rate is measured")
        mjpeg_server.stop()
        eventually(lambda: isinstance(pictures_now(camera), Missing), "the last picture is no longer served")
        eventually(lambda: not camera.alive and camera.trouble is not None, "the loss is known")
        assert camera.fps == 0.0
        mjpeg_server.start("blue")
        eventually(lambda: shows(camera, (0, 0, 255)), "the picture is blue after the camera is back")
        eventually(lambda: camera.reopens == 1 and camera.trouble is None, "the return is known")
