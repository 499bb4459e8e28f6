"""The live capture loop on a conversation: the same devices, ears, recognizer, gates and speakers as `telme-stream`.

Only the link to the worker is missing: what would be sent to it is kept. With `fast` the loop runs on the sample clock,
as fast as it goes; otherwise in real time, and then delays are true ones.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.conversations import write_wav
from bench.scoring import Heard
from stream import bus, wire
from stream.asr import Transcriber
from stream.asr_thread import AsrThread
from stream.capture import Reporter, Sender, listen
from stream.config import Config
from stream.devices import Devices
from stream.ears import Ears
from stream.items import SAMPLE_RATE_HZ, Pcm, Session
from stream.speakers import Conversation, speakers_for

_SESSION = "bench"
_PATIENCE_S = 60.0
_NS_PER_SAMPLE = 1_000_000_000 // SAMPLE_RATE_HZ
_HEAD_SAMPLES = 64  # compared first when a cut is looked for in the sound


@dataclass
class Kept:
    """A link that keeps what it is given."""

    unanswered: int = 0
    utterances: list[tuple[wire.Utterance, Pcm]] = field(default_factory=list)
    ended: dict[int, bus.SpeechEnded] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)

    def answer_lag_ms(self, now_ns: int) -> int:
        """Nothing waits for an answer."""
        return 0

    def send(self, message: wire.Message, media: Sequence[wire.Media] = ()) -> None:
        """Keep an utterance, and what is said of those that are none."""
        if isinstance(message, wire.Utterance):
            self.utterances.append((message, np.asarray(media[0], np.int16)))
        elif isinstance(message, wire.Report):
            data = wire.report_data(message)
            if isinstance(data, bus.SpeechEnded):
                self.ended[data.seq] = data
            elif isinstance(data, bus.Rejected):
                self.rejected[data.seq] = data.reason
            elif isinstance(data, bus.Fault) and data.seq is not None:
                self.rejected[data.seq] = data.message


@dataclass(frozen=True)
class Listened:
    """What came of a conversation.

    Attributes:
        heard: The utterances, rejected ones included, in order.
        loop_cpu_s: What the capture loop's thread used of a processor; transcription runs in another thread.
        asr_ms: Time of each transcription, that within the hangover included.
    """

    heard: list[Heard]
    loop_cpu_s: float
    asr_ms: list[float]


def listen_to(pcm: Pcm, config: Config, transcriber: Transcriber, fast: bool) -> Listened:
    """Hear a conversation from its first to its last sample: int16 [S] at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "conversation.wav")
        write_wav(sound, pcm)
        kept = Kept()
        loop_cpu_s = _run(config, Session(sound, fast, pictures=False), transcriber, kept)
    utterances = {message.seq: (message, cut) for message, cut in kept.utterances}
    heard = [
        _believed(*utterances[seq], pcm, fast) if seq in utterances else _rejected(ended, kept.rejected[seq])
        for seq, ended in sorted(kept.ended.items())
    ]
    asr_ms = [
        (message.asr_ended_ns - message.asr_started_ns + message.asr_hidden_ns) / 1e6 for message, _ in kept.utterances
    ]
    return Listened(heard, loop_cpu_s, asr_ms)


def _run(config: Config, session: Session, transcriber: Transcriber, kept: Kept) -> float:
    """The middle of stream.capture.run; returns the loop's processor seconds."""
    reporter = Reporter(kept, _SESSION)
    conversation = Conversation(speakers_for(config.speakers), config.speakers.dialogue_gap_s)
    hello = wire.Hello(wire.PROTOCOL, _SESSION, time.time_ns())
    sender = Sender(kept, reporter, hello, conversation, threading.Event())
    with Devices(config, session) as devices, AsrThread(transcriber, config.asr, sender, waits=True) as asr:
        before_s = time.thread_time()
        listen(Ears(config, devices.source, devices.frames), reporter, asr, devices)
        used_s = time.thread_time() - before_s
        asr.drain(_PATIENCE_S)
    return used_s


def _believed(message: wire.Utterance, cut: Pcm, pcm: Pcm, fast: bool) -> Heard:
    start, end = message.start_ns // _NS_PER_SAMPLE, message.end_ns // _NS_PER_SAMPLE
    ready = end + (message.asr_ended_ns - message.heard_ns) // _NS_PER_SAMPLE
    cut_start = find(cut, pcm, start)
    said = message.text, message.speaker
    return Heard(start, end, cut_start, *said, certain=message.text_certain, ready=None if fast else ready)


def _rejected(ended: bus.SpeechEnded, reason: str) -> Heard:
    start, end = ended.start_ns // _NS_PER_SAMPLE, ended.end_ns // _NS_PER_SAMPLE
    return Heard(start, end, start, "", "", rejected=reason)


def find(cut: Pcm, pcm: Pcm, before: int) -> int:
    """Where a cut begins in the sound: the last such place at or before a sample.

    Raises:
        ValueError: It is not there.
    """
    for at in range(min(before, len(pcm) - len(cut)), -1, -1):
        if np.array_equal(pcm[at : at + _HEAD_SAMPLES], cut[:_HEAD_SAMPLES]) and np.array_equal(
            pcm[at : at + len(cut)], cut
        ):
            return at
    raise ValueError(f"a cut of {len(cut)} samples before sample {before} is not in the sound")
