"""What a session opens, and what it says of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import msgspec
import pytest

from stream import devices
from stream.bus import Device
from stream.config import CameraConfig, Config
from stream.devices import Devices
from stream.frames import FrameRing
from stream.items import AudioBlock, Change, Chosen, Missing, Session, Stalled
from stream.mic import MicPatience
from telme.errors import SourceError
from tests.commands import EXAMPLES

LIVE = Session(file=None, fast=False, pictures=True)
RESUMED = replace(LIVE, resumed=True)
WITH_CAMERA = Config(camera=CameraConfig(source=0))
CHOSEN = Chosen("USB mic", "ALSA", 0, 1)
REMEMBERED = {"microphone": msgspec.json.encode(CHOSEN).decode()}


class FakeMicrophone:
    """stream.mic.Microphone, always there."""

    opened: list[FakeMicrophone]

    def __init__(
        self,
        config: Any,
        on_change: Callable[[Change], None],
        patience: MicPatience,
        chosen: Chosen | None = None,
    ) -> None:
        self.on_change, self.from_start, self.chosen = on_change, patience.from_start, chosen
        self.name, self.overflows, self.alive, self.reopens = "USB mic", 3, True, 1
        self.lost_reason: str | None = None
        self.is_open = False

    def change(self, change: Change, reason: str | None) -> None:
        self.lost_reason = reason
        self.on_change(change)

    def __enter__(self) -> Self:
        self.is_open = True
        self.opened.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def blocks(self) -> Iterator[AudioBlock | Stalled]:
        yield from ()

    def stop(self) -> None:
        return


class FakeCamera(FakeMicrophone):
    """stream.camera.Camera, always there."""

    opened: list[FakeMicrophone]
    fps, age_ms, undecodable = 24.7, 12, 4
    ring = SimpleNamespace(drops=2)

    def __init__(self, config: Any, open_: None, patience: Any, on_change: Callable[[Change], None], ring: Any) -> None:
        super().__init__(config, on_change, patience)


class MicrophoneByIndex(FakeMicrophone):
    """stream.mic.Microphone, found by its index."""

    def __enter__(self) -> Self:
        self.chosen = CHOSEN
        return super().__enter__()


class NoMicrophone(FakeMicrophone):
    """stream.mic.Microphone, not there."""

    def __enter__(self) -> Self:
        raise SourceError("no microphone", "one", "plug it in")


class LostMicrophone(FakeMicrophone):
    """stream.mic.Microphone, away and waited for."""

    def __enter__(self) -> Self:
        self.alive = False
        self.change("lost", "it is away")
        return super().__enter__()


class LostCamera(LostMicrophone, FakeCamera):
    """stream.camera.Camera, away and waited for."""


@pytest.fixture(autouse=True)
def _no_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMicrophone.opened, FakeCamera.opened = [], []
    monkeypatch.setattr(devices, "Microphone", FakeMicrophone)
    monkeypatch.setattr(devices, "Camera", FakeCamera)


def test_a_file_is_one_device() -> None:
    path = EXAMPLES / "conversation.mp4"
    with Devices(Config(), Session(path, fast=True, pictures=True)) as opened:
        assert opened.all_are("opened") == [Device("file", "conversation.mp4", "opened", None)]
        assert isinstance(opened.frames, FrameRing)
        assert opened.counters() == {"audio_overflows": 0}
    with Devices(Config(), Session(path, fast=True, pictures=False)) as opened:
        assert opened.frames == Missing("pictures are switched off (--no-camera)")


def test_a_file_whose_name_is_no_utf8_can_be_told(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"talk\xff.mp4")
    path.symlink_to(EXAMPLES / "conversation.mp4")
    with Devices(Config(), Session(path, fast=True, pictures=False)) as opened:
        (device,) = opened.all_are("opened")
    assert msgspec.json.decode(msgspec.json.encode(device), type=Device) == Device(
        "file", "talk\ufffd.mp4", "opened", None
    )


def test_live_devices_are_told_by_name_and_counted() -> None:
    with Devices(WITH_CAMERA, LIVE) as opened:
        names = [Device("microphone", "USB mic", "opened", None), Device("camera", "0", "opened", None)]
        assert opened.all_are("opened") == names
        assert opened.counters() == {
            "audio_overflows": 3,
            "microphone_alive": 1,
            "microphone_reopens": 1,
            "camera_alive": 1,
            "camera_reopens": 1,
            "camera_fps": 25,
            "camera_drops": 2,
            "camera_undecodable": 4,
            "camera_age_ms": 12,
        }
    assert not FakeMicrophone.opened[0].is_open
    assert not FakeCamera.opened[0].is_open


def test_changes_come_once_and_in_order() -> None:
    with Devices(WITH_CAMERA, LIVE) as opened:
        FakeCamera.opened[0].change("lost", "no picture")
        FakeMicrophone.opened[0].change("lost", "no sound")
        FakeCamera.opened[0].change("found", None)
        assert list(opened.changes()) == [
            Device("camera", "0", "lost", "no picture"),
            Device("microphone", "USB mic", "lost", "no sound"),
            Device("camera", "0", "found", None),
        ]
        assert list(opened.changes()) == []


@pytest.mark.parametrize("session", [LIVE, RESUMED])
def test_only_devices_of_a_resumed_session_are_waited_for_at_the_start(session: Session) -> None:
    with Devices(WITH_CAMERA, session):
        assert FakeMicrophone.opened[0].from_start is session.resumed
        assert FakeCamera.opened[0].from_start is session.resumed


def test_a_microphone_found_by_index_is_remembered_before_anything_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered: list[dict[str, str]] = []
    monkeypatch.setattr(devices, "Microphone", MicrophoneByIndex)
    with Devices(Config(), LIVE, remembered.append):
        assert remembered == [REMEMBERED]


def test_an_index_that_means_nothing_before_a_loss_is_remembered_when_it_does() -> None:
    remembered: list[dict[str, str]] = []
    with Devices(Config(), LIVE, remembered.append):
        FakeMicrophone.opened[0].change("lost", "no sound")
        assert remembered == []
        FakeMicrophone.opened[0].chosen = CHOSEN
        FakeMicrophone.opened[0].change("found", None)
        assert remembered == [REMEMBERED]


def test_a_resumed_session_asks_for_the_microphone_of_the_one_before() -> None:
    with Devices(Config(), replace(RESUMED, microphone=CHOSEN)):
        assert FakeMicrophone.opened[0].chosen == CHOSEN


def test_what_is_lost_from_the_start_is_not_told_as_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "Microphone", LostMicrophone)
    monkeypatch.setattr(devices, "Camera", LostCamera)
    with Devices(WITH_CAMERA, RESUMED) as opened:
        assert opened.all_are("opened") == []
        assert list(opened.changes()) == [
            Device("camera", "0", "lost", "it is away"),
            Device("microphone", "USB mic", "lost", "it is away"),
        ]
        assert [device.device for device in opened.all_are("ended")] == ["microphone", "camera"]


@pytest.mark.parametrize(
    ("config", "session", "reason"),
    [
        (Config(), LIVE, "no camera was asked for (--camera)"),
        (WITH_CAMERA, Session(None, fast=False, pictures=False), "pictures are switched off (--no-camera)"),
    ],
)
def test_without_a_camera_it_says_why(config: Config, session: Session, reason: str) -> None:
    with Devices(config, session) as opened:
        assert opened.frames == Missing(reason)
        assert [device.device for device in opened.all_are("ended")] == ["microphone"]
    assert FakeCamera.opened == []


def test_a_microphone_that_does_not_open_gives_the_camera_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "Microphone", NoMicrophone)
    with pytest.raises(SourceError, match="no microphone"), Devices(WITH_CAMERA, LIVE):
        pass
    assert not FakeCamera.opened[0].is_open


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(SourceError, match="no file"),
        Devices(Config(), Session(tmp_path / "none.wav", fast=True, pictures=True)),
    ):
        pass
