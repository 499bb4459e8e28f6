"""Process 1: sound and pictures in, transcribed utterances out.

source -> ears (vad, segmenter, align) -> (asr thread) transcribe -> link, which journals and sends.
The main thread listens; the asr thread transcribes; the link thread owns socket and outbox.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stream import bus, wire
from stream.asr import Transcriber
from stream.asr_thread import AsrThread, Transcribed
from stream.config import Config
from stream.control import Control, meanwhile
from stream.devices import Devices, Source
from stream.ears import Ears, Heard, Onward
from stream.items import Draft, Interim, Missing, Session, Utterance
from stream.link import CaptureLink
from stream.machine import clock_id, new_session_id
from stream.segmenter import Started
from stream.speakers import Attribution, Conversation, speakers_for
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
