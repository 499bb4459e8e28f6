"""What a session listens to and looks at, and what becomes of it."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Literal, Protocol, Self

import msgspec

from stream.bus import Device, DeviceKind
from stream.camera import Camera, Patience
from stream.config import Config
from stream.faces import FaceCrop, crop_for
from stream.frames import FrameRing
from stream.items import AudioBlock, Change, Chosen, Missing, Session, Stalled
from stream.mic import MicPatience, Microphone
from stream.replay import FileReplay


class Source(Protocol):
    """A microphone or a file."""

    overflows: int

    def blocks(self) -> Iterator[AudioBlock | Stalled]: ...
    def stop(self) -> None: ...


class Devices:
    """Opens the session's devices or its file: a context manager.

    Args:
        config: The sections mic, camera and speakers.
        session: What to open.
        remember: Told what a capture process in the place of this one has to know: which `microphone` an index meant.

    Attributes:
        source: What is listened to.
        frames: The pictures, or why there are none.

    Raises:
        SourceError: On entering: a device or file cannot be opened; a device of a resumed session is waited for.
        MissingDependency: On entering: a library it needs is not installed.
    """

    source: Source
    frames: FrameRing | Missing

    def __init__(
        self, config: Config, session: Session, remember: Callable[[dict[str, str]], None] = lambda facts: None
    ) -> None:
        self._config = config
        self._session = session
        self._remember = remember
        self._stack = ExitStack()
        self._changes: queue.SimpleQueue[Device] = queue.SimpleQueue()
        self._microphone: Microphone | None = None
        self._camera: Camera | None = None
        self._faces: FaceCrop | None = None

    @property
    def in_real_time(self) -> bool:
        """False for a file that is read as fast as it goes, and waits while nobody takes its sound."""
        return not self._session.fast

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._session.file is not None:
                pictures = self._ring() if self._session.pictures else _off()
                splits = self._config.speakers.mode == "channel"
                replay = stack.enter_context(
                    FileReplay(self._session.file, self._session.fast, pictures, splits=splits)
                )
                self.source, self.frames = replay, replay.pictures
            else:
                self.frames = self._open_camera(stack)
                self.source = self._open_microphone(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def all_are(self, state: Literal["opened", "ended"]) -> list[Device]:
        """An event for each device; one that is lost from the start is not `opened`."""
        if self._session.file is not None:
            # A name that is no UTF-8 can be opened, but not told.
            name = os.fsencode(self._session.file.name).decode(errors="replace")
            return [Device("file", name, state, None)]
        kinds: list[DeviceKind] = ["microphone"] if self._camera is None else ["microphone", "camera"]
        there = [kind for kind in kinds if state == "ended" or not self._is_lost(kind)]
        return [Device(kind, self._name(kind), state, None) for kind in there]

    def changes(self) -> Iterator[Device]:
        """The devices that were lost or found since the last call."""
        while not self._changes.empty():
            yield self._changes.get()

    def counters(self) -> dict[str, int]:
        """Numbers for the heartbeat: losses, rate and age of what the devices bring."""
        counters = {"audio_overflows": self.source.overflows}
        if self._microphone is not None:
            counters |= {"microphone_alive": self._microphone.alive, "microphone_reopens": self._microphone.reopens}
        if self._camera is not None:
            counters |= {"camera_alive": self._camera.alive, "camera_reopens": self._camera.reopens}
            counters |= {"camera_fps": round(self._camera.fps), "camera_drops": self._camera.ring.drops}
            counters["camera_undecodable"] = self._camera.undecodable
            if self._camera.age_ms is not None:
                counters["camera_age_ms"] = self._camera.age_ms
        if self._faces is not None:
            counters["pictures_without_face"] = self._faces.without_face
        return {name: int(count) for name, count in counters.items()}

    def _ring(self) -> FrameRing:
        self._faces = crop_for(self._config.camera)
        return FrameRing(self._config.camera.ring_fps, self._config.segmenter.kept_ms, self._faces)

    def _open_camera(self, stack: ExitStack) -> FrameRing | Missing:
        if not self._session.pictures:
            return _off()
        if self._config.camera.source is None:
            return Missing("no camera was asked for (--camera)")
        patience = Patience(from_start=self._session.resumed)
        self._camera = Camera(self._config.camera, None, patience, self._on_camera, self._ring())
        return stack.enter_context(self._camera).ring

    def _open_microphone(self, stack: ExitStack) -> Microphone:
        patience, before = MicPatience(from_start=self._session.resumed), self._session.microphone
        self._microphone = Microphone(self._config.mic, self._on_microphone, patience=patience, chosen=before)
        stack.enter_context(self._microphone)
        self._keep(self._microphone.chosen)
        return self._microphone

    def _keep(self, chosen: Chosen | None) -> None:
        if chosen is not None:
            self._remember({"microphone": msgspec.json.encode(chosen).decode()})

    def _on_microphone(self, change: Change) -> None:
        assert self._microphone is not None
        if change == "found":
            self._keep(self._microphone.chosen)
        self._changes.put(Device("microphone", self._microphone.name, change, self._microphone.lost_reason))

    def _on_camera(self, change: Change) -> None:
        assert self._camera is not None
        self._changes.put(Device("camera", self._name("camera"), change, self._camera.lost_reason))

    def _is_lost(self, kind: DeviceKind) -> bool:
        if kind == "camera":
            return self._camera is not None and self._camera.lost_reason is not None
        return self._microphone is not None and not self._microphone.alive

    def _name(self, kind: DeviceKind) -> str:
        if kind == "camera" or self._microphone is None:
            return str(self._config.camera.source)
        return self._microphone.name


def _off() -> Missing:
    return Missing("pictures are switched off (--no-camera)")
