"""Process 1: sound and pictures in, transcribed utterances out.

source -> vad -> segmenter -> align -> (asr thread) transcribe -> link, which journals and sends.
The main thread listens; the asr thread transcribes; the link thread owns socket and outbox.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from stream import bus, wire
from stream.align import PcmRing, cut_frames
from stream.asr import Transcriber, Transcription, ends_sentence
from stream.asr_thread import AsrThread, Transcribed
from stream.clock import SampleClock, ms_to_samples
from stream.config import Config
from stream.control import Control, meanwhile
from stream.devices import Devices, Source
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Draft, Interim, Missing, Session, Span, Stalled, Utterance
from stream.link import CaptureLink
from stream.machine import clock_id, new_session_id, slept_ns, wall_ahead_ns
from stream.segmenter import Hint, Paused, Resumed, Segmenter, Signal, Started
from stream.speakers import Attribution, Conversation, speakers_for
from stream.vad import SpeechDetector
from telme.errors import LinkError

_log = logging.getLogger(__name__)

HEARTBEAT_NS = 1_000_000_000
# At the end each utterance has so long to be transcribed, and to be answered; a stop by Ctrl-C has its own deadline,
# and a capture whose supervisor died, and the worker with it, waits for no answer.
ANSWER_PATIENCE_S = 60.0
TELL_AFTER_S = 3.0  # what it waits for
ASR_PATIENCE_S = 30.0
# Of utterances without an answer, which lie in the outbox, with their pictures 1.4 MB each: a file waits at the first;
# a live source, which cannot, sends no pictures from the second on and loses what comes beyond the third.
MOST_UNANSWERED = 64
MOST_WITH_PICTURES = 128
MOST_KEPT = 512
_LATE_MS = 10_000  # the worker's answer: then the user is told
_ROOM_POLL_S = 0.05
_INTERIM_SAMPLES = SAMPLE_RATE_HZ  # between two interims of an utterance
_NOT_OVER = Missing("the utterance is not over")
_BEHIND = Missing("the worker is so far behind that pictures are left out")


def run(config: Config, session: Session, folder: Path, control: Control) -> None:
    """The capture process.

    Args:
        config: All sections.
        session: What to capture.
        folder: Where the outbox lies.
        control: The supervisor's line.
    """
    with meanwhile(control.preparing):  # the model may be downloaded
        transcriber = Transcriber(config.asr)
    conversation = Conversation(speakers_for(config.speakers), config.speakers.dialogue_gap_s)
    control.ready({"asr": transcriber.model_name})
    if not control.wait_go():
        return
    with ExitStack() as stack:
        devices = stack.enter_context(Devices(config, session, control.remember))
        hello = wire.Hello(wire.PROTOCOL, new_session_id(), time.time_ns())
        assert config.link.utterances is not None
        link = stack.enter_context(
            CaptureLink(config.link.utterances, hello, folder / "outbox.sqlite", config.link.max_message_bytes)
        )
        reporter = Reporter(link, hello.session)
        hurries = threading.Event()
        if session.file is None:
            hurries.set()
        sender = Sender(link, reporter, hello, conversation, hurries)
        asr = stack.enter_context(AsrThread(transcriber, config.asr, sender, waits=session.file is not None))
        words = (control, devices.source, conversation, hurries)
        threading.Thread(target=_obey, args=words, name="control", daemon=True).start()
        for device in devices.all_are("opened"):
            reporter(device)
        listen(Ears(config, devices.source, devices.frames), reporter, asr, devices)
        hurries.set()  # what is left is as much as the recognizer's queue holds
        asr.drain(ASR_PATIENCE_S)
        for device in devices.all_are("ended"):
            reporter(device)
        patience_s = 0.0 if control.orphaned else ANSWER_PATIENCE_S
        if waiting := link.wait_answered(min(patience_s, TELL_AFTER_S)):
            _log.warning("%d utterances wait for the worker's answer; Ctrl-C twice ends without it", waiting)
        if unanswered := link.wait_answered(patience_s):
            raise LinkError(
                f"{unanswered} utterances without an answer, none for {patience_s:.0f} s",
                "a worker that answers",
                "see its log, or take a smaller --bundle; with --journal FOLDER they are sent again next time",
            )


def _obey(control: Control, source: Source, conversation: Conversation, hurries: threading.Event) -> None:
    control.wait_stop(lambda: conversation.begin_dialogue(time.monotonic_ns()))
    hurries.set()
    source.stop()


class Outlet(Protocol):
    """stream.link.CaptureLink, as this page needs it."""

    @property
    def unanswered(self) -> int: ...
    def answer_lag_ms(self, now_ns: int) -> int: ...
    def send(self, message: wire.Message, media: Sequence[wire.Media] = ()) -> None: ...


@dataclass(frozen=True)
class Reporter:
    """Sends the capture side's events to the bus, by way of the worker."""

    link: Outlet
    session: str

    def __call__(self, data: bus.EventData) -> None:
        """Report one event, now."""
        self.link.send(wire.make_report(self.session, data, time.time_ns()))


@dataclass
class _Channel:
    """One channel, heard up to the sample `until`; `seq` and `next_interim` are of the utterance in progress."""

    number: int
    segmenter: Segmenter
    pcm: PcmRing
    until: int = 0
    seq: int = 0
    next_interim: int = 0


@dataclass(frozen=True)
class Onward:
    """Speech goes on: what was drafted on this channel is not the end."""

    channel: int


Heard: TypeAlias = Started | Draft | Onward | Interim | Utterance


class Ears:
    """Listens to a source: blocks in, finished utterances out, in the order in which their end was decided.

    Args:
        config: Segmenter, recognizer and camera sections are read.
        source: Microphone or file.
        frames: The pictures of the session, or why there are none.
    """

    def __init__(self, config: Config, source: Source, frames: FrameRing | Missing) -> None:
        segmenter = config.segmenter
        keep = ms_to_samples(segmenter.kept_ms)
        self.source = source
        self.adaptive = segmenter.adaptive
        self._frames = frames
        self._segmenter = segmenter
        self._interim = config.asr.interim
        self._keep = keep
        self._channels: dict[int, _Channel] = {}
        self._clock = SampleClock(keep)
        self._tolerance_ns = config.camera.stale_ms * 1_000_000
        self._seq = 0
        self._next_sample = 0

    def hear(self, block: AudioBlock | Stalled) -> Iterator[Heard]:
        """Take a block; yields what it began or ended. A source that stalls or lost sound ends what is open."""
        if isinstance(block, Stalled):
            yield from self.end()
            return
        if block.channel == 0:
            if block.first_sample != self._next_sample:
                # Now: after a long hole the rings would have forgotten what was said before it.
                yield from self.end()
            # A channel that turned out to be a copy gets no more sound.
            yield from self._close([one for one in self._channels.values() if one.until < self._next_sample])
            self._next_sample = block.first_sample + len(block.pcm)
            self._clock.observe(block)
        channel = self._channel(block.channel)
        channel.pcm.append(block.first_sample, block.pcm)
        channel.until = block.first_sample + len(block.pcm)
        for signal in channel.segmenter.push(block.first_sample, block.pcm):
            yield self._heard(signal, channel)
        if self._interim:
            yield from self._so_far(channel)

    def take(self, draft: Draft, said: Transcription) -> None:
        """Learn what a draft says: with the adaptive hangover its words tell whether the utterance is over."""
        if self.adaptive and said.rejected is None and said.certain:
            hint = Hint(draft.span.voiced_end, ends_sentence(said.text))
            self._channels[draft.channel].segmenter.take(hint)

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
        yield from self._close(list(self._channels.values()))

    def _close(self, channels: Sequence[_Channel]) -> Iterator[Utterance]:
        spans = [
            (signal, channel)
            for channel in channels
            for signal in channel.segmenter.flush()
            if isinstance(signal, Span)
        ]
        for span, channel in sorted(spans, key=lambda found: found[0].voiced_end):
            yield self._utterance(span, channel, whole=True)

    def _channel(self, number: int) -> _Channel:
        if number not in self._channels:
            detector = SpeechDetector(self._segmenter.aggressiveness)
            self._channels[number] = _Channel(number, Segmenter(self._segmenter, detector), PcmRing(self._keep))
        return self._channels[number]

    def _heard(self, signal: Signal, channel: _Channel) -> Heard:
        match signal:
            case Started():
                channel.seq, self._seq = self._seq, self._seq + 1
                channel.next_interim = signal.start + _INTERIM_SAMPLES
                return signal
            case Paused(span):
                return Draft(channel.number, span, channel.pcm.cut(span.start, span.end))
            case Resumed():
                return Onward(channel.number)
            case Span():
                return self._utterance(signal, channel, whole=True)

    def _so_far(self, channel: _Channel) -> Iterator[Interim]:
        span = channel.segmenter.so_far()
        if span is not None and span.end >= channel.next_interim:
            channel.next_interim = span.end + _INTERIM_SAMPLES
            yield Interim(self._utterance(span, channel, whole=False))

    def _utterance(self, span: Span, channel: _Channel, whole: bool) -> Utterance:
        frames = self._frames if whole else _NOT_OVER
        return Utterance(
            seq=channel.seq,
            channel=channel.number,
            span=span,
            start_ns=self._clock.session_ns(span.voiced_start),
            end_ns=self._clock.session_ns(span.voiced_end),
            pcm=channel.pcm.cut(span.start, span.end),
            frames=frames if isinstance(frames, Missing) else cut_frames(span, self._clock, frames, self._tolerance_ns),
            heard_ns=self._clock.heard_ns(span.voiced_end),
            decided_ns=time.monotonic_ns(),
            started_wall_ns=self._clock.started_ns + wall_ahead_ns(),
            slept_ns=slept_ns(),
        )


@dataclass
class Lateness:
    """Tells the user, once each time, that answers do not come in time."""

    told: bool = False

    def look(self, link: Outlet) -> None:
        """Look at the oldest utterance without an answer."""
        late_ms = link.answer_lag_ms(time.monotonic_ns())
        if late_ms >= _LATE_MS and not self.told:
            _log.warning(
                "an utterance has waited %d s for its answer, %d wait; expected one within %d s; see whether the worker"
                " runs; where it does, take a smaller --bundle or another --backend",
                late_ms // 1000,
                link.unanswered,
                _LATE_MS // 1000,
            )
        self.told = late_ms >= _LATE_MS


def listen(ears: Ears, report: Reporter, asr: AsrThread, devices: Devices) -> None:
    """The capture loop: until the source ends or is stopped."""
    beat_ns = 0
    lateness = Lateness()
    for block in ears.source.blocks():
        for change in devices.changes():
            report(change)
        for heard in ears.hear(block):
            _announce(heard, ears, report, asr)
        if ears.adaptive and not devices.in_real_time:
            asr.settle()  # so that where an utterance ends does not depend on how fast the recognizer is
        for draft, said in asr.tried():
            ears.take(draft, said)
        if time.monotonic_ns() >= beat_ns:
            beat_ns = time.monotonic_ns() + HEARTBEAT_NS
            report(_status(ears, asr, devices, report.link))
            if devices.in_real_time:
                lateness.look(report.link)
    for heard in ears.end():
        _announce(heard, ears, report, asr)


def _announce(heard: Heard, ears: Ears, report: Reporter, asr: AsrThread) -> None:
    match heard:
        case Started():
            report(bus.SpeechStarted(ears.session_ns(heard.start)))
        case Draft():
            asr.try_out(heard)
        case Onward(channel):
            asr.withdraw(channel)
        case Interim():
            asr.guess(heard, worker_busy=report.link.unanswered > 0)
        case Utterance():
            report(bus.SpeechEnded(heard.seq, heard.start_ns, heard.end_ns, heard.span.forced))
            asr.submit(heard)


def _status(ears: Ears, asr: AsrThread, devices: Devices, link: Outlet) -> bus.Status:
    now_ns = time.monotonic_ns()
    lag = {"asr_lag_ms": asr.lag_ms(now_ns), "answer_lag_ms": link.answer_lag_ms(now_ns)}
    counters = devices.counters() | ears.counters() | asr.counters | lag
    return bus.Status("capture", "running", {"asr": asr.waiting, "unanswered": link.unanswered}, counters)


@dataclass(frozen=True)
class Sender:
    """Turns transcribed utterances into messages.

    Attributes:
        link: Takes them.
        report: Takes what is no utterance.
        hello: Of this session.
        conversation: Says whose they are.
        hurries: Set where nothing may wait for the worker, as of a live source.
    """

    link: Outlet
    report: Reporter
    hello: wire.Hello
    conversation: Conversation
    hurries: threading.Event

    def utterance(self, utterance: Utterance, transcribed: Transcribed) -> None:
        """Send an utterance, or report that it was rejected."""
        if transcribed.said.rejected is not None:
            self.report(bus.Rejected(utterance.seq, transcribed.said.rejected))
            return
        spoken = self._spoken(utterance, transcribed, self.conversation.attribute(utterance))
        while self.link.unanswered >= MOST_UNANSWERED and not self.hurries.wait(_ROOM_POLL_S):
            pass
        waiting = self.link.unanswered
        if waiting >= MOST_KEPT:
            self.lost(utterance, f"{waiting} utterances wait for the worker, at most {MOST_KEPT} are kept for it")
            return
        frames = _BEHIND if waiting >= MOST_WITH_PICTURES else utterance.frames
        video = wire.Absent(frames.reason) if isinstance(frames, Missing) else frames
        message = wire.Utterance(**spoken, audio=wire.describe(utterance.pcm), video=wire.describe(video))
        self.link.send(message, (utterance.pcm, video))

    def lost(self, utterance: Utterance, reason: str) -> None:
        """Report an utterance that nothing could be made of."""
        self.report(bus.Fault(reason, utterance.seq))

    def interim(self, interim: Interim, transcribed: Transcribed) -> None:
        """Send a guess; words that are not believed or not certain are none."""
        said = transcribed.said
        if said.rejected is None and said.certain:
            whose = self.conversation.guess(interim.so_far)
            self.link.send(wire.Interim(**self._spoken(interim.so_far, transcribed, whose)))

    def drafted(self, draft: Draft) -> None:
        """Hear whose voice it is before it is certain that the utterance is over."""
        self.conversation.hear_ahead(draft)

    def _spoken(self, utterance: Utterance, transcribed: Transcribed, whose: Attribution) -> dict[str, Any]:
        """The fields of wire.Spoken."""
        return {
            "protocol": wire.PROTOCOL,
            "session": self.hello.session,
            "seq": utterance.seq,
            "speaker": whose.speaker.id,
            "speaker_certain": whose.speaker.certain,
            "dialogue": whose.dialogue,
            "text": transcribed.said.text,
            "text_certain": transcribed.said.certain,
            "start_ns": utterance.start_ns,
            "end_ns": utterance.end_ns,
            "started_wall_ns": utterance.started_wall_ns,
            "clock_id": clock_id(),
            "heard_ns": utterance.heard_ns,
            "decided_ns": utterance.decided_ns,
            "asr_started_ns": transcribed.started_ns,
            "asr_ended_ns": time.monotonic_ns(),
            "asr_hidden_ns": transcribed.hidden_ns,
        }
