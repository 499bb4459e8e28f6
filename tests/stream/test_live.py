"""Real streams: PortAudio records what PulseAudio plays, OpenCV shows what ffmpeg draws."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from stream.camera import Camera, Patience
from stream.config import CameraConfig
from stream.items import SAMPLE_RATE_HZ, Change, Missing, Pcm, VideoFrame
from tests.live import ServedCamera, VirtualMicrophone, eventually

MS = 1_000_000
TOLERANCE_NS = 500 * MS
QUICK_BACK_OFF = Patience(back_off_s=(0.05,))


def tone(hz: int) -> Pcm:
    """45 s at 48 kHz."""
    at = np.arange(48_000 * 45) / 48_000
    return (np.sin(2 * np.pi * hz * at) * 12_000).astype(np.int16)


def assert_is_tone(heard: Pcm, hz: int) -> None:
    second = heard[-SAMPLE_RATE_HZ:] * np.hanning(SAMPLE_RATE_HZ)
    power = np.abs(np.fft.rfft(second)) ** 2  # one bin per Hz
    assert abs(int(power.argmax()) - hz) <= 2
    assert power[hz - 10 : hz + 11].sum() > 0.9 * power.sum()


@pytest.mark.parametrize("options", [(), ("only-48k-stereo",)])
def test_a_tone_that_is_played_is_heard(virtual_microphone: VirtualMicrophone, options: tuple[str, ...]) -> None:
    (heard,) = virtual_microphone.record_while_playing(tone(1_000), 48_000, *options)
    assert_is_tone(heard, 1_000)


@pytest.mark.parametrize("options", [("two-channels",), ("two-channels", "only-48k-stereo")])
def test_two_channels_are_heard_apart(virtual_microphone: VirtualMicrophone, options: tuple[str, ...]) -> None:
    sound = np.stack([tone(700), tone(1_900)], axis=1)
    left, right = virtual_microphone.record_while_playing(sound, 48_000, *options)
    assert_is_tone(left, 700)
    assert_is_tone(right, 1_900)


def test_a_mono_microphone_that_is_asked_for_two_channels_is_heard_once(own_microphone: VirtualMicrophone) -> None:
    own_microphone.become_mono()
    (heard,) = own_microphone.record_while_playing(tone(1_000), 48_000, "two-channels")
    assert_is_tone(heard, 1_000)


def pictures_now(camera: Camera) -> list[VideoFrame] | Missing:
    return camera.ring.nearest([time.monotonic_ns()], TOLERANCE_NS)


def shows(camera: Camera, colour: tuple[int, int, int]) -> bool:
    found = pictures_now(camera)
    return not isinstance(found, Missing) and bool(np.abs(found[0].image.mean((0, 1)) - colour).max() < 25)


@pytest.fixture(params=["mjpeg", "rtsp"])
def colours(request: pytest.FixtureRequest) -> tuple[ServedCamera, Callable[[str], str]]:
    """A camera on the network, and what it is to be asked for to show a colour."""
    server: ServedCamera = request.getfixturevalue(f"{request.param}_server")
    drawn = "videotestsrc is-live=true pattern={} ! video/x-raw,width=320,height=240,framerate=25/1"
    return server, drawn.format if request.param == "rtsp" else str


def test_a_camera_by_url_shows_what_is_drawn_and_nothing_stale(
    colours: tuple[ServedCamera, Callable[[str], str]],
) -> None:
    server, of = colours
    server.start(of("red"))
    changes: list[Change] = []
    config = CameraConfig(source=server.url, ring_fps=10)
    with Camera(config, patience=QUICK_BACK_OFF, on_change=changes.append) as camera:
        eventually(lambda: shows(camera, (255, 0, 0)), "the picture is red")
        eventually(lambda: camera.fps > 5, "the rate is measured")
        server.stop()
        eventually(lambda: isinstance(pictures_now(camera), Missing), "the last picture is no longer served")
        eventually(lambda: not camera.alive and changes == ["lost"], "the loss is known")
        assert camera.fps == 0.0
        server.start(of("blue"))
        eventually(lambda: shows(camera, (0, 0, 255)), "the picture is blue after the camera is back")
        eventually(lambda: camera.reopens == 1 and changes == ["lost", "found"], "the return is known")
