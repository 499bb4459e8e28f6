"""Real devices that fail and come back: what is said, what is numbered, and that nothing is invented in between."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from stream.bus import Device, Emotion, Event, EventData, SpeechEnded, SpeechStarted, Status
from stream.camera import Camera
from stream.config import CameraConfig, MicConfig
from stream.items import AudioBlock, Change, Missing, Stalled
from stream.mic import MicPatience, Microphone
from tests.commands import ANY_PORT, running
from tests.faults import FaultyCamera, Mode
from tests.live import DEADLINE_S, FOREIGN, VirtualMicrophone, end_process, eventually
from tests.test_live_end_to_end import spoken_example

MS = 1_000_000
RED, BLUE = (255, 0, 0), (0, 0, 255)
HOUR_NS = 3600 * 1000 * MS


# --- microphone


class Listener:
    """Hears a microphone in a thread of its own."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.items: list[AudioBlock | Stalled] = []

    @property
    def blocks(self) -> list[AudioBlock]:
        return [item for item in list(self.items) if isinstance(item, AudioBlock)]

    def hear(self, mic: Microphone) -> None:
        """Hear all of it, to its end."""
        for item in mic.blocks():
            self.items.append(item)

    def hears(self, more: int = 10) -> Callable[[], bool]:
        """Whether so many more blocks have come since this was asked."""
        wanted = len(self.blocks) + more
        return lambda: len(self.blocks) >= wanted


@contextmanager
def listening(stall_s: float = MicPatience.stall_s) -> Iterator[Listener]:
    listener = Listener()
    with Microphone(MicConfig(), listener.changes.append, patience=MicPatience(stall_s=stall_s)) as mic:
        thread = Thread(target=listener.hear, args=(mic,), daemon=True)
        thread.start()
        try:
            eventually(listener.hears(), "the microphone gives sound")
            yield listener
        finally:
            mic.stop()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


@pytest.fixture
def microphone(own_microphone: VirtualMicrophone, monkeypatch: pytest.MonkeyPatch) -> VirtualMicrophone:
    """The sound server that a microphone opened in this process finds."""
    for name in list(own_microphone.environment):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name, raising=False)
    for name, value in own_microphone.own.items():
        monkeypatch.setenv(name, value)
    return own_microphone


FAULTS: dict[str, tuple[Callable[[VirtualMicrophone], None], Callable[[VirtualMicrophone], None]]] = {
    "the server is killed": (VirtualMicrophone.stop, VirtualMicrophone.start),
    "the source is pulled": (VirtualMicrophone.unplug, VirtualMicrophone.plug_in),
    "the source is halted": (lambda mic: mic.halt(True), lambda mic: mic.halt(False)),
}


def fail_and_return(microphone: VirtualMicrophone, fault: str, listener: Listener) -> float:
    """One fault from its beginning to its end; returns the seconds from when it was mended to `found`."""
    harm, mend = FAULTS[fault]
    harm(microphone)
    eventually(lambda: listener.changes[-1:] == ["lost"], "the loss is told")
    eventually(lambda: isinstance(listener.items[-1], Stalled), "the stall is told")
    heard, changed = len(listener.blocks), len(listener.changes)
    mend(microphone)
    mended_s = time.monotonic()
    assert len(listener.blocks) == heard or "found" in listener.changes[changed:]
    eventually(lambda: "found" in listener.changes[changed:], "the return is told")
    found_s = time.monotonic()
    eventually(listener.hears(), "there is sound again")
    return found_s - mended_s


@pytest.mark.parametrize("fault", FAULTS)
def test_a_microphone_that_goes_away_comes_back(
    microphone: VirtualMicrophone, fault: str, record_property: Callable[[str, object], None]
) -> None:
    with listening() as listener:
        for _ in range(2):
            record_property("back_after_s", round(fail_and_return(microphone, fault, listener), 2))
        items, blocks, changes = listener.items, listener.blocks, listener.changes
    # A sound server that stands still on a busy machine may be lost and found once more.
    assert len(changes) >= 4
    assert set(changes[::2]) == {"lost"}
    assert set(changes[1::2]) == {"found"}
    for before, after in pairwise(blocks):
        assert after.first_sample >= before.first_sample + len(before.pcm)
    # Nothing is invented, and session time is true across the gaps: each is in the numbers as long as in the stamps.
    gaps = [(before, after) for before, after in pairwise(items) if isinstance(before, Stalled)]
    assert len([after for _, after in gaps if isinstance(after, AudioBlock)]) >= 2
    elapsed_ns = blocks[-1].captured_ns - blocks[0].captured_ns
    assert abs((blocks[-1].first_sample - blocks[0].first_sample) * 62_500 - elapsed_ns) < 1_000 * MS
    assert sum(len(block.pcm) for block in blocks) * 62_500 < elapsed_ns - 500 * MS


def test_silence_is_sound_and_no_loss(microphone: VirtualMicrophone) -> None:
    with listening(stall_s=DEADLINE_S) as listener:
        eventually(listener.hears(60), "silence goes on")
        assert listener.changes == []
        assert np.abs(np.concatenate([block.pcm for block in listener.blocks])).max() <= 1


# --- camera


def colours(camera: Camera) -> set[tuple[int, ...]]:
    """What the pictures in the ring show, black for what is neither red nor blue."""
    now_ns = time.monotonic_ns()
    found = camera.ring.nearest([now_ns - back * 20 * MS for back in range(1_500)], HOUR_NS)
    if isinstance(found, Missing):
        return set()
    shown: set[tuple[int, ...]] = set()
    for frame in {id(frame): frame for frame in found}.values():
        mean = frame.image.mean((0, 1))
        shown.add(next((colour for colour in (RED, BLUE) if np.abs(mean - colour).max() < 25), (0, 0, 0)))
    return shown


@pytest.mark.parametrize("mode", ["broken pictures", "noise", "nothing"])
def test_a_camera_that_serves_no_pictures_is_lost_until_it_does(
    faulty_camera: FaultyCamera, mode: Mode, record_property: Callable[[str, object], None]
) -> None:
    changes: list[Change] = []
    with Camera(CameraConfig(source=faulty_camera.url), on_change=changes.append) as camera:
        eventually(lambda: colours(camera) == {RED}, "the picture is red")
        faulty_camera.mode = mode
        eventually(lambda: changes == ["lost"], "the loss is told")
        clients = faulty_camera.served
        eventually(lambda: faulty_camera.served > clients, "it is opened again")
        assert colours(camera) == {RED}  # nothing is invented
        assert not camera.alive
        faulty_camera.colour, faulty_camera.mode = BLUE, "pictures"
        mended_s = time.monotonic()
        eventually(lambda: changes == ["lost", "found"], "the return is told")
        record_property("back_after_s", round(time.monotonic() - mended_s, 2))
        eventually(lambda: colours(camera) == {RED, BLUE}, "the picture is blue")
        assert camera.alive


# --- the command


class Told:
    """The events of a running command, and what was said of its devices."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self.devices: set[tuple[str, str]] = set()
        self.all: list[EventData] = []

    def until(self, holds: Callable[[EventData], bool]) -> list[EventData]:
        """Read on until an event for which it holds; return what came, this event last."""
        begin = len(self.all)
        for event in self._events:
            data = event.payload()
            self.all.append(data)
            if isinstance(data, Device):
                self.devices.add((data.device, data.state))
            if holds(data):
                return self.all[begin:]
        raise AssertionError(f"the command ended; its last events: {self.all[-5:]}")

    def until_both_are(self, state: str) -> list[EventData]:
        """Read on until microphone and camera are in that state."""
        both = {("microphone", state), ("camera", state)}
        return [] if both <= self.devices else self.until(lambda data: both <= self.devices)


def counted(data: EventData, **least: int) -> bool:
    return isinstance(data, Status) and all(data.counters.get(name, 0) >= count for name, count in least.items())


def test_the_command_survives_the_loss_of_microphone_and_camera(
    own_microphone: VirtualMicrophone, faulty_camera: FaultyCamera, tmp_path: Path
) -> None:
    sound = spoken_example(tmp_path / "spoken.wav")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = ("--camera", faulty_camera.url, "--events", "jsonl", *ANY_PORT)
    with ExitStack() as stack:
        run = stack.enter_context(running(folder, *arguments, surroundings=own_microphone.environment))
        told = Told(run.events())
        told.until_both_are("opened")
        stack.enter_context(playing(own_microphone, sound))
        told.until(lambda data: isinstance(data, SpeechStarted))
        own_microphone.stop()
        faulty_camera.mode = "nothing"
        told.until_both_are("lost")
        if not any(isinstance(data, SpeechEnded) for data in told.all):
            told.until(lambda data: isinstance(data, SpeechEnded))  # what was open is closed while nothing comes
        own_microphone.start()
        faulty_camera.mode = "pictures"
        between = told.until_both_are("found")
        assert not any(isinstance(data, SpeechStarted) for data in between)
        cut = max(data.seq for data in told.all if isinstance(data, SpeechEnded))
        stack.enter_context(playing(own_microphone, sound))
        told.until(lambda data: isinstance(data, Emotion) and data.seq > cut)
        told.until(lambda data: counted(data, microphone_reopens=1, camera_reopens=1, microphone_alive=1))
        run.interrupt()
        for _ in run.events():
            pass
        assert run.end() == 130
        assert run.left_running() == []
    last = [data for data in told.all if isinstance(data, Emotion)][-1]
    assert last.modalities["video"].captured, last.modalities["video"].reason
    ends = [(data.start_ns, data.end_ns) for data in told.all if isinstance(data, SpeechEnded)]
    assert ends == sorted(ends)


@contextmanager
def playing(microphone: VirtualMicrophone, sound: Path) -> Iterator[None]:
    """Play a file to the microphone, until the end of the block."""
    player = subprocess.Popen(["paplay", "--device=virt", str(sound)], env=microphone.environment)
    try:
        yield
    finally:
        end_process(player)
