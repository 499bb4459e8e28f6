"""Process 1: sound and pictures in, transcribed utterances out.

source -> vad -> segmenter -> align -> (asr thread) transcribe -> link, which journals and sends.
The main thread listens; the asr thread transcribes in order; the link thread owns socket and outbox.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from stream import wire
from stream.align import PcmRing, cut_frames
from stream.asr import Transcriber, Transcription
from stream.camera import Camera
from stream.clock import SampleClock, ms_to_samples, samples_to_ns
from stream.config import AsrConfig, Config
from stream.control import Control
from stream.frames import FrameRing
from stream.items import AudioBlock, Missing, Pcm, Session, Span, Utterance
from stream.link import CaptureLink
from stream.machine import clock_id
from stream.mic import Microphone
from stream.replay import FileReplay
from stream.segmenter import Segmenter, Started
from stream.vad import VoiceDetector
from telme.errors import TelmeStreamError, TranscriptionError

_log = logging.getLogger(__name__)

HEARTBEAT_NS = 1_000_000_000
# The rings keep an utterance of the maximum length, its pre-roll and hangover, and this much more.
_RING_SLACK_MS = 5_000
ANSWER_DEADLINE_S = 30.0
ASR_DRAIN_DEADLINE_S = 20.0
SINGLE_SPEAKER = "speaker1"


class Source(Protocol):
    """A microphone or a file."""

    overflows: int

    def blocks(self) -> Iterator[AudioBlock]: ...
    def stop(self) -> None: ...


def run(config: Config, session: Session, folder: Path, control: Control) -> None:
    """The capture process.

    Args:
        config: All sections.
        session: What to capture.
        folder: Where the outbox lies.
        control: The supervisor's line.
    """
    transcriber = Transcriber(config.asr)
    control.ready({"asr": transcriber.model_name})
    if not control.wait_go():
        return
    with ExitStack() as stack:
        source, frames, camera = open_source(config, session, stack)
        started_wall_ns = time.time_ns()
        hello = wire.Hello(wire.PROTOCOL, session.id, started_wall_ns)
        assert config.link.utterances is not None
        link = stack.enter_context(
            CaptureLink(config.link.utterances, hello, folder / "outbox.sqlite", config.link.max_message_bytes)
        )
        reporter = Reporter(link, session.id)
        asr = stack.enter_context(
            AsrThread(transcriber, config.asr, Sender(link, reporter, hello), waits=session.file is not None)
        )
        threading.Thread(target=_stop_on_word, args=(control, source), name="control", daemon=True).start()
        devices = opened_devices(config, session, camera)
        for kind, name in devices:
            reporter(wire.Device(kind, name, "opened"))
        listen(Ears(config, source, frames), reporter, asr, camera)
        asr.drain(ASR_DRAIN_DEADLINE_S)
        for kind, name in devices:
            reporter(wire.Device(kind, name, "ended"))
        if unanswered := link.wait_answered(ANSWER_DEADLINE_S):
            _log.error("the worker has not answered %d utterances; they stay in %s", unanswered, folder)


def _stop_on_word(control: Control, source: Source) -> None:
    control.wait_stop()
    source.stop()


def open_source(
    config: Config, session: Session, stack: ExitStack
) -> tuple[Source, FrameRing | Missing, Camera | None]:
    """Open what the session listens to and looks at.

    Raises:
        SourceError: A device or file cannot be opened.
        MissingDependency: A library it needs is not installed.
    """
    ring = FrameRing(config.camera.ring_fps)
    off = Missing("pictures are switched off (--no-camera)")
    if session.file is not None:
        replay = stack.enter_context(FileReplay(session.file, session.fast, ring if session.pictures else off))
        return replay, replay.pictures, None
    if not session.pictures:
        return stack.enter_context(Microphone(config.mic)), off, None
    if config.camera.source is None:
        return stack.enter_context(Microphone(config.mic)), Missing("no camera was asked for (--camera)"), None
    camera = stack.enter_context(Camera(config.camera))
    return stack.enter_context(Microphone(config.mic)), camera.ring, camera


def opened_devices(config: Config, session: Session, camera: Camera | None) -> list[tuple[wire.DeviceKind, str]]:
    """Kind and name of what the session listens to and looks at."""
    if session.file is not None:
        return [("file", session.file.name)]
    microphone = "default" if config.mic.device is None else str(config.mic.device)
    eyes: list[tuple[wire.DeviceKind, str]] = [] if camera is None else [("camera", str(config.camera.source))]
    return [("microphone", microphone), *eyes]


@dataclass(frozen=True)
class Reporter:
    """Sends the capture side's events to the bus, by way of the worker."""

    link: CaptureLink
    session: str

    def __call__(self, data: wire.EventData) -> None:
        """Report one event, now."""
        self.link.send(wire.make_report(self.session, data, time.time_ns()))


class Ears:
    """Listens to a source: blocks in, finished utterances out.

    Args:
        config: Segmenter and camera sections are read.
        source: Microphone or file.
        frames: The pictures of the session, or why there are none.
    """

    def __init__(self, config: Config, source: Source, frames: FrameRing | Missing) -> None:
        segmenter = config.segmenter
        keep = ms_to_samples(segmenter.max_ms + segmenter.pre_roll_ms + segmenter.hangover_ms + _RING_SLACK_MS)
        self.source = source
        self._frames = frames
        self._segmenter = Segmenter(segmenter, VoiceDetector(segmenter.aggressiveness))
        self._clock = SampleClock(keep)
        self._pcm = PcmRing(keep)
        self._tolerance_ns = config.camera.stale_ms * 1_000_000
        self._seq = 0

    def hear(self, block: AudioBlock) -> Iterator[Started | Utterance]:
        """Take a block; yields what it began or ended."""
        self._clock.observe(block)
        self._pcm.append(block.first_sample, block.pcm)
        for signal in self._segmenter.push(block.first_sample, block.pcm):
            yield signal if isinstance(signal, Started) else self._utterance(signal)

    def end(self) -> Iterator[Utterance]:
        """The source ended: close what is open."""
        for signal in self._segmenter.flush():
            if isinstance(signal, Span):
                yield self._utterance(signal)

    def _utterance(self, span: Span) -> Utterance:
        seq, self._seq = self._seq, self._seq + 1
        frames = self._frames
        return Utterance(
            seq=seq,
            speaker=SINGLE_SPEAKER,
            span=span,
            pcm=self._pcm.cut(span.start, span.end),
            frames=frames if isinstance(frames, Missing) else cut_frames(span, self._clock, frames, self._tolerance_ns),
            heard_ns=self._clock.heard_ns(span.voiced_end),
            decided_ns=time.monotonic_ns(),
        )


def listen(ears: Ears, report: Reporter, asr: AsrThread, camera: Camera | None) -> None:
    """The capture loop: until the source ends or is stopped."""
    beat_ns = 0
    for block in ears.source.blocks():
        for heard in ears.hear(block):
            _announce(heard, report, asr)
        if time.monotonic_ns() >= beat_ns:
            beat_ns = time.monotonic_ns() + HEARTBEAT_NS
            report(_status(ears, asr, camera, report.link))
    for heard in ears.end():
        _announce(heard, report, asr)


def _announce(heard: Started | Utterance, report: Reporter, asr: AsrThread) -> None:
    if isinstance(heard, Started):
        report(wire.SpeechStarted(samples_to_ns(heard.start)))
        return
    span = heard.span
    report(wire.SpeechEnded(heard.seq, samples_to_ns(span.voiced_start), samples_to_ns(span.voiced_end), span.forced))
    asr.submit(heard)


def _status(ears: Ears, asr: AsrThread, camera: Camera | None, link: CaptureLink) -> wire.Status:
    counters = {"audio_overflows": ears.source.overflows}
    if camera is not None:
        counters["camera_fps"] = round(camera.fps)
        if camera.age_ms is not None:
            counters["camera_age_ms"] = camera.age_ms
    return wire.Status("capture", "running", {"asr": asr.waiting, "unanswered": link.unanswered}, counters)


@dataclass(frozen=True)
class Sender:
    """Turns transcribed utterances into messages."""

    link: CaptureLink
    report: Reporter
    hello: wire.Hello

    def __call__(self, utterance: Utterance, said: Transcription, started_ns: int) -> None:
        """Send an utterance, or report that it was rejected."""
        if said.rejected is not None:
            self.report(wire.Rejected(utterance.seq, said.rejected))
            return
        frames = utterance.frames
        video = wire.Absent(frames.reason) if isinstance(frames, Missing) else frames
        message = wire.Utterance(
            protocol=wire.PROTOCOL,
            session=self.hello.session,
            seq=utterance.seq,
            speaker=utterance.speaker,
            text=said.text,
            start_ns=samples_to_ns(utterance.span.voiced_start),
            end_ns=samples_to_ns(utterance.span.voiced_end),
            started_wall_ns=self.hello.started_wall_ns,
            clock_id=clock_id(),
            heard_ns=utterance.heard_ns,
            decided_ns=utterance.decided_ns,
            asr_started_ns=started_ns,
            asr_ended_ns=time.monotonic_ns(),
            audio=wire.describe(utterance.pcm),
            video=wire.describe(video),
        )
        self.link.send(message, (utterance.pcm, video))


class Transcribes(Protocol):
    """stream.asr.Transcriber, as the thread needs it."""

    def transcribe(self, pcm: Pcm) -> Transcription: ...


Sends: TypeAlias = Callable[[Utterance, Transcription, int], None]


class AsrThread:
    """Transcribes utterances one after another, in order, in a thread of its own.

    The queue is bounded. A file waits for room; a live source does not wait: what finds no room is rejected aloud.

    Args:
        transcriber: Used in the thread only.
        config: Gives the queue's length.
        send: Takes each result.
        waits: True for a file.
    """

    def __init__(self, transcriber: Transcribes, config: AsrConfig, send: Sends, waits: bool) -> None:
        self._transcriber = transcriber
        self._send = send
        self._waits = waits
        self._queue: queue.Queue[Utterance | None] = queue.Queue(config.queue_utterances)
        self._abandoned = threading.Event()
        self._failure: TelmeStreamError | None = None
        self._thread = threading.Thread(target=self._main, name="asr", daemon=True)

    def __enter__(self) -> AsrThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()

    @property
    def waiting(self) -> int:
        """Utterances in the queue."""
        return self._queue.qsize()

    def submit(self, utterance: Utterance) -> None:
        """Queue an utterance.

        Raises:
            TelmeStreamError: What ended the thread.
        """
        if self._failure is not None:
            raise self._failure
        if self._waits:
            self._queue.put(utterance)
            return
        try:
            self._queue.put_nowait(utterance)
        except queue.Full:
            reason = f"the recognizer is {self._queue.maxsize} utterances behind; a smaller --asr-model is faster"
            self._send(utterance, Transcription("", reason), 0)

    def drain(self, deadline_s: float) -> None:
        """Wait until all is transcribed, at most so long.

        Raises:
            TelmeStreamError: What ended the thread.
        """
        with suppress(queue.Full):
            self._queue.put(None, timeout=deadline_s)
        self._thread.join(deadline_s)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            self._abandoned.set()
            _log.error("the recognizer missed its deadline of %.0f s; %d utterances are lost", deadline_s, self.waiting)

    def _main(self) -> None:
        try:
            while not self._abandoned.is_set() and (utterance := self._queue.get()) is not None:
                started_ns = time.monotonic_ns()
                self._send(utterance, self._transcribe(utterance), started_ns)
        except TelmeStreamError as error:
            self._failure = error
            with suppress(queue.Empty):  # whoever waits for room must not wait for ever
                while True:
                    self._queue.get_nowait()

    def _transcribe(self, utterance: Utterance) -> Transcription:
        try:
            return self._transcriber.transcribe(utterance.pcm)
        except TranscriptionError as error:
            return Transcription("", str(error))
