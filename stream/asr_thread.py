"""One thread that transcribes: what is certain first, then what is on trial, then guesses.

1. Confirmed utterances, in the order in which their end was decided. The queue is bounded: a file waits for room, a
   live source does not, and what finds no room is lost aloud.
2. Drafts: an utterance as it would be if the silence that has begun were its end. A draft waits in a place of its own,
   one a channel; a newer one takes it, and it is withdrawn when speech goes on or when its utterance is confirmed
   first. A confirmed utterance of the same span takes the draft's transcription: the samples are the same, so the words
   are. Otherwise the transcription is dropped.
3. Interims, one at a time and only when nothing else waits or runs; the others are counted as skipped.

A call cannot be stopped, so confirmed work waits for at most the one that runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from stream.asr import Transcription
from stream.config import AsrConfig
from stream.items import Draft, Interim, Pcm, Utterance
from stream.machine import give_back_memory
from telme.errors import TelmeStreamError, TranscriptionError

_log = logging.getLogger(__name__)

_LAG_WARNING_NS = 5_000_000_000


class Transcribes(Protocol):
    """stream.asr.Transcriber, as the thread needs it."""

    def transcribe(self, pcm: Pcm) -> Transcription: ...

    def glance(self, pcm: Pcm) -> Transcription: ...


@dataclass(frozen=True)
class Transcribed:
    """A transcription and when it ran, by the monotonic clock.

    Attributes:
        said: The words, or why they are not believed.
        started_ns: When work on it began; not before the utterance's end was decided.
        hidden_ns: How long it had run before that, as a draft.
    """

    said: Transcription
    started_ns: int
    hidden_ns: int = 0


class Delivers(Protocol):
    """Takes the results, and drafts with words, of which it may do ahead what it can; stream.capture.Sender."""

    def utterance(self, utterance: Utterance, transcribed: Transcribed) -> None: ...

    def lost(self, utterance: Utterance, reason: str) -> None: ...

    def interim(self, interim: Interim, transcribed: Transcribed) -> None: ...

    def drafted(self, draft: Draft) -> None: ...


@dataclass(frozen=True)
class _Tried:
    draft: Draft
    said: Transcription
    started_ns: int
    ended_ns: int


_Work: TypeAlias = Utterance | Draft | Interim


class AsrThread:
    """Transcribes in a thread of its own; see the rules above.

    Args:
        transcriber: Used in the thread only.
        config: Gives the queue's length.
        deliver: Takes each result, in the thread; what finds no room, in the thread of `submit`.
        waits: True for a file, whose lag is no reason to warn.

    Attributes:
        counters: Drafts transcribed, those whose words were used, and interims skipped.
    """

    def __init__(self, transcriber: Transcribes, config: AsrConfig, deliver: Delivers, waits: bool) -> None:
        self._transcriber = transcriber
        self._deliver = deliver
        self._most = config.queue_utterances
        self._waits = waits
        self._changed = threading.Condition()
        self._queue: deque[Utterance] = deque()
        self._drafts: dict[int, Draft] = {}  # by channel
        self._interim: Interim | None = None
        self._running: _Work | None = None
        self._tried: dict[int, _Tried] = {}  # by channel
        self._unread: deque[tuple[Draft, Transcription]] = deque()
        self._ending = self._abandoned = False
        self._failure: TelmeStreamError | None = None
        self._done = 0
        self.counters = {"drafts": 0, "drafts_used": 0, "interims_skipped": 0}
        self._thread = threading.Thread(target=self._main, name="asr", daemon=True)

    def __enter__(self) -> AsrThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Confirmed utterances in the queue."""
        return len(self._queue)

    def lag_ms(self, now_ns: int) -> int:
        """How long ago the end of the oldest utterance that is not transcribed was decided; 0 when there is none."""
        with self._changed:
            work = [item for item in (self._running, *self._queue) if isinstance(item, Utterance)]
        return max(now_ns - work[0].decided_ns, 0) // 1_000_000 if work else 0

    def submit(self, utterance: Utterance) -> None:
        """Queue a confirmed utterance.

        Raises:
            TelmeStreamError: What ended the thread.
        """
        with self._changed:
            if self._waits:
                self._changed.wait_for(lambda: self._failure is not None or len(self._queue) < self._most)
            self._check()
            self._drafts.pop(utterance.channel, None)
            if self._interim is not None and self._interim.so_far.seq == utterance.seq:
                self._interim = None  # too late to guess
            room = len(self._queue) < self._most
            if room:
                self._queue.append(utterance)
                self._changed.notify_all()
        if not room:
            reason = f"the recognizer is {self._most} utterances behind; a smaller --asr-model is faster"
            self._deliver.lost(utterance, reason)

    def try_out(self, draft: Draft) -> None:
        """Transcribe an utterance that may be over, once nothing confirmed waits."""
        with self._changed:
            self._drafts[draft.channel] = draft
            self._changed.notify_all()

    def withdraw(self, channel: int) -> None:
        """Speech went on: the channel's draft is not wanted any more."""
        with self._changed:
            self._drafts.pop(channel, None)

    def tried(self) -> list[tuple[Draft, Transcription]]:
        """Drafts transcribed since the last call."""
        found = []
        while self._unread:
            found.append(self._unread.popleft())
        return found

    def settle(self) -> None:
        """Wait until every draft given is transcribed: for a source that does not run in real time.

        Raises:
            TelmeStreamError: What ended the thread.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure is not None or not (self._drafts or isinstance(self._running, Draft))
            )
            self._check()

    def guess(self, interim: Interim, worker_busy: bool) -> None:
        """Transcribe what is said so far, if neither thread nor worker has anything else to do."""
        with self._changed:
            if worker_busy or self._queue or self._drafts or self._interim or self._running:
                self.counters["interims_skipped"] += 1
                return
            self._interim = interim
            self._changed.notify_all()

    def drain(self, patience_s: float) -> None:
        """Wait until all that is confirmed is transcribed.

        Args:
            patience_s: How long one utterance may take.

        Raises:
            TelmeStreamError: What ended the thread, or that it hangs.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        before = -1
        while self._thread.is_alive() and before != self._done:
            before = self._done
            self._thread.join(patience_s)
        self._check()
        with self._changed:
            lost = len(self._queue) + isinstance(self._running, Utterance)
        if lost:
            raise TranscriptionError(
                f"the recognizer was silent for {patience_s:.0f} s and {lost} utterances are lost",
                "a transcript in that time",
                "use a smaller --asr-model",
            )

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        try:
            while (work := self._next()) is not None:
                self._do(work)
        except TelmeStreamError as error:
            self._fail(error)
        # The recognizer's libraries may raise anything, MemoryError not least, and a thread that ends in silence loses
        # all that comes after.
        except Exception as error:  # noqa: BLE001
            _log.debug("the recognizer's thread", exc_info=True)
            self._fail(
                TranscriptionError(
                    f"the recognizer died of {type(error).__name__}: {error}",
                    "a transcript",
                    "run telme-stream doctor; --debug shows where",
                )
            )

    def _fail(self, error: TelmeStreamError) -> None:
        with self._changed:  # whoever waits for room must not wait for ever
            self._failure = error
            self._changed.notify_all()

    def _next(self) -> _Work | None:
        with self._changed:
            self._running = None
            while not (self._abandoned or self._queue or self._ending or self._drafts or self._interim):
                self._changed.notify_all()
                self._changed.wait()
            if self._abandoned or (self._ending and not self._queue):
                return None
            if self._queue:
                self._running = self._queue.popleft()
            elif self._drafts:
                self._running = self._drafts.pop(next(iter(self._drafts)))
            else:
                self._running, self._interim = self._interim, None
            self._changed.notify_all()
            return self._running

    def _do(self, work: _Work) -> None:
        match work:
            case Utterance():
                try:
                    transcribed = self._confirmed(work)
                except TranscriptionError as error:
                    self._deliver.lost(work, str(error))
                else:
                    self._deliver.utterance(work, transcribed)
                self._done += 1
                give_back_memory()
            case Draft():
                self._try(work)
            case Interim():
                started_ns = time.monotonic_ns()
                with suppress(TranscriptionError):  # the utterance itself says so, if it lasts
                    said = self._transcriber.glance(work.so_far.pcm)
                    self._deliver.interim(work, Transcribed(said, started_ns))

    def _try(self, draft: Draft) -> None:
        """Transcribe a draft; where that fails the utterance is asked about anew."""
        started_ns = time.monotonic_ns()
        self._tried.pop(draft.channel, None)
        with suppress(TranscriptionError):
            said = self._transcriber.transcribe(draft.pcm)
            self._tried[draft.channel] = _Tried(draft, said, started_ns, time.monotonic_ns())
            self._unread.append((draft, said))
            self.counters["drafts"] += 1
            if said.rejected is None:
                self._deliver.drafted(draft)

    def _confirmed(self, utterance: Utterance) -> Transcribed:
        taken_ns, decided_ns = time.monotonic_ns(), utterance.decided_ns
        if not self._waits and taken_ns - decided_ns > _LAG_WARNING_NS:
            _log.warning(
                "the recognizer is %d ms behind; a smaller --asr-model is faster", (taken_ns - decided_ns) // 1_000_000
            )
        tried = self._tried.pop(utterance.channel, None)
        if tried is None or tried.draft.span != utterance.span:
            return Transcribed(self._transcriber.transcribe(utterance.pcm), taken_ns)
        self.counters["drafts_used"] += 1
        return Transcribed(
            tried.said,
            max(tried.started_ns, decided_ns) if tried.ended_ns > decided_ns else taken_ns,
            max(min(tried.ended_ns, decided_ns) - tried.started_ns, 0),
        )
