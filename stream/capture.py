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
from stream.clock import SampleClock, ms_to_samples
from stream.config import AsrConfig, Config
from stream.control import Control
from stream.devices import Devices, Source
from stream.frames import FrameRing
from stream.items import AudioBlock, Missing, Pcm, Session, Span, Stalled, Utterance
from stream.link import CaptureLink
from stream.machine import clock_id, new_session_id
from stream.segmenter import Segmenter, Started
from stream.speakers import Conversation, speakers_for
from stream.vad import VoiceDetector
from telme.errors import LinkError, TelmeStreamError, TranscriptionError

_log = logging.getLogger(__name__)

HEARTBEAT_NS = 1_000_000_000
# The rings keep an utterance of the maximum length, its pre-roll and hangover, and this much more.
_RING_SLACK_MS = 5_000
# At the end each utterance has so long to be transcribed, and to be answered; a stop by Ctrl-C has its own deadline.
ANSWER_PATIENCE_S = 60.0
ASR_PATIENCE_S = 30.0


def run(config: Config, session: Session, folder: Path, control: Control) -> None:
    """The capture process.

    Args:
        config: All sections.
        session: What to capture.
        folder: Where the outbox lies.
        control: The supervisor's line.
    """
    transcriber = Transcriber(config.asr)
    conversation = Conversation(speakers_for(config.speakers), config.speakers.dialogue_gap_s)
    control.ready({"asr": transcriber.model_name})
    if not control.wait_go():
        return
    with ExitStack() as stack:
        devices = stack.enter_context(Devices(config, session))
        started_wall_ns = time.time_ns()
        hello = wire.Hello(wire.PROTOCOL, new_session_id(), started_wall_ns)
        assert config.link.utterances is not None
        link = stack.enter_context(
            CaptureLink(config.link.utterances, hello, folder / "outbox.sqlite", config.link.max_message_bytes)
        )
        reporter = Reporter(link, hello.session)
        asr = stack.enter_context(
            AsrThread(
                transcriber, config.asr, Sender(link, reporter, hello, conversation), waits=session.file is not None
            )
        )
        words = (control, devices.source, conversation)
        threading.Thread(target=_obey, args=words, name="control", daemon=True).start()
        for device in devices.all_are("opened"):
            reporter(device)
        listen(Ears(config, devices.source, devices.frames), reporter, asr, devices)
        asr.drain(ASR_PATIENCE_S)
        for device in devices.all_are("ended"):
            reporter(device)
        if unanswered := link.wait_answered(ANSWER_PATIENCE_S):
            raise LinkError(
                f"{unanswered} utterances without an answer, none for {ANSWER_PATIENCE_S:.0f} s",
                "a worker that answers",
                "see its log, or take a smaller --bundle; with --journal FOLDER they are sent again next time",
            )


def _obey(control: Control, source: Source, conversation: Conversation) -> None:
    control.wait_stop(lambda: conversation.begin_dialogue(time.monotonic_ns()))
    source.stop()


@dataclass(frozen=True)
class Reporter:
    """Sends the capture side's events to the bus, by way of the worker."""

    link: CaptureLink
    session: str

    def __call__(self, data: wire.EventData) -> None:
        """Report one event, now."""
        self.link.send(wire.make_report(self.session, data, time.time_ns()))


@dataclass(frozen=True)
class _Channel:
    segmenter: Segmenter
    pcm: PcmRing


class Ears:
    """Listens to a source: blocks in, finished utterances out, in the order in which their end was decided.

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
        self._segmenter = segmenter
        self._keep = keep
        self._channels: dict[int, _Channel] = {}
        self._clock = SampleClock(keep)
        self._tolerance_ns = config.camera.stale_ms * 1_000_000
        self._seq = 0

    def hear(self, block: AudioBlock | Stalled) -> Iterator[Started | Utterance]:
        """Take a block; yields what it began or ended. A source that stalls ends what is open."""
        if isinstance(block, Stalled):
            yield from self.end()
            return
        if block.channel == 0:
            self._clock.observe(block)
        channel = self._channel(block.channel)
        channel.pcm.append(block.first_sample, block.pcm)
        for signal in channel.segmenter.push(block.first_sample, block.pcm):
            yield signal if isinstance(signal, Started) else self._utterance(signal, block.channel)

    def session_ns(self, sample: int) -> int:
        """Session time of a recent sample, by the system's clock."""
        return self._clock.session_ns(sample)

    def counters(self) -> dict[str, int]:
        """Drift of the sound card's clock against the system's in parts per million, once it is known."""
        fast_ppm = self._clock.fast_ppm
        if fast_ppm is None:
            return {}
        return {"audio_clock_fast_ppm": max(fast_ppm, 0), "audio_clock_slow_ppm": max(-fast_ppm, 0)}

    def end(self) -> Iterator[Utterance]:
        """The source ended or stalled: close what is open."""
        spans = [
            (signal, number)
            for number, channel in self._channels.items()
            for signal in channel.segmenter.flush()
            if isinstance(signal, Span)
        ]
        for span, number in sorted(spans, key=lambda found: found[0].voiced_end):
            yield self._utterance(span, number)

    def _channel(self, number: int) -> _Channel:
        if number not in self._channels:
            detector = VoiceDetector(self._segmenter.aggressiveness)
            self._channels[number] = _Channel(Segmenter(self._segmenter, detector), PcmRing(self._keep))
        return self._channels[number]

    def _utterance(self, span: Span, channel: int) -> Utterance:
        seq, self._seq = self._seq, self._seq + 1
        frames = self._frames
        return Utterance(
            seq=seq,
            channel=channel,
            span=span,
            start_ns=self._clock.session_ns(span.voiced_start),
            end_ns=self._clock.session_ns(span.voiced_end),
            pcm=self._channels[channel].pcm.cut(span.start, span.end),
            frames=frames if isinstance(frames, Missing) else cut_frames(span, self._clock, frames, self._tolerance_ns),
            heard_ns=self._clock.heard_ns(span.voiced_end),
            decided_ns=time.monotonic_ns(),
        )


def listen(ears: Ears, report: Reporter, asr: AsrThread, devices: Devices) -> None:
    """The capture loop: until the source ends or is stopped."""
    beat_ns = 0
    for block in ears.source.blocks():
        for change in devices.changes():
            report(change)
        for heard in ears.hear(block):
            _announce(heard, ears, report, asr)
        if time.monotonic_ns() >= beat_ns:
            beat_ns = time.monotonic_ns() + HEARTBEAT_NS
            report(_status(ears, asr, devices, report.link))
    for heard in ears.end():
        _announce(heard, ears, report, asr)


def _announce(heard: Started | Utterance, ears: Ears, report: Reporter, asr: AsrThread) -> None:
    if isinstance(heard, Started):
        report(wire.SpeechStarted(ears.session_ns(heard.start)))
        return
    report(wire.SpeechEnded(heard.seq, heard.start_ns, heard.end_ns, heard.span.forced))
    asr.submit(heard)


def _status(ears: Ears, asr: AsrThread, devices: Devices, link: CaptureLink) -> wire.Status:
    counters = devices.counters() | ears.counters()
    return wire.Status("capture", "running", {"asr": asr.waiting, "unanswered": link.unanswered}, counters)


@dataclass(frozen=True)
class Sender:
    """Turns transcribed utterances into messages."""

    link: CaptureLink
    report: Reporter
    hello: wire.Hello
    conversation: Conversation

    def __call__(self, utterance: Utterance, said: Transcription, started_ns: int) -> None:
        """Send an utterance, or report that it was rejected."""
        if said.rejected is not None:
            self.report(wire.Rejected(utterance.seq, said.rejected))
            return
        whose = self.conversation.attribute(utterance)
        frames = utterance.frames
        video = wire.Absent(frames.reason) if isinstance(frames, Missing) else frames
        message = wire.Utterance(
            protocol=wire.PROTOCOL,
            session=self.hello.session,
            seq=utterance.seq,
            speaker=whose.speaker.id,
            speaker_certain=whose.speaker.certain,
            dialogue=whose.dialogue,
            text=said.text,
            start_ns=utterance.start_ns,
            end_ns=utterance.end_ns,
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
        self._done = 0
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

    def drain(self, patience_s: float) -> None:
        """Wait until all is transcribed.

        Args:
            patience_s: How long one utterance may take.

        Raises:
            TelmeStreamError: What ended the thread, or that it hangs.
        """
        with suppress(queue.Full):
            self._queue.put(None, timeout=patience_s)
        before = -1
        while self._thread.is_alive() and before != self._done:
            before = self._done
            self._thread.join(patience_s)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            raise TranscriptionError(
                f"the recognizer was silent for {patience_s:.0f} s and {self.waiting} utterances are lost",
                "a transcript in that time",
                "use a smaller --asr-model",
            )

    def _main(self) -> None:
        try:
            while not self._abandoned.is_set() and (utterance := self._queue.get()) is not None:
                started_ns = time.monotonic_ns()
                self._send(utterance, self._transcribe(utterance), started_ns)
                self._done += 1
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
