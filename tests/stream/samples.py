"""One fixed sample of every message and every event of the wire."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from stream import bus, wire

SESSION = "20261122-134455-1f2e"
WALL_NS = 1_795_355_095_000_000_000
AUDIO = np.arange(-4, 4, dtype=np.int16)
VIDEO = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
NO_VIDEO = wire.Absent("no camera was asked for (--camera)")


def utterance(seq: int = 7, session: str = SESSION, media: Sequence[wire.Media] = (AUDIO, VIDEO)) -> wire.Utterance:
    """An utterance whose header describes `media`."""
    audio, video = media
    return wire.Utterance(
        protocol=wire.PROTOCOL,
        session=session,
        seq=seq,
        speaker="speaker1",
        speaker_certain=True,
        dialogue=0,
        text="Ça va, Joey?",
        text_certain=True,
        start_ns=1_230_000_000,
        end_ns=2_460_000_000,
        started_wall_ns=WALL_NS,
        clock_id="c0ffee",
        heard_ns=50_000_000_000,
        decided_ns=50_500_000_000,
        asr_started_ns=50_510_000_000,
        asr_ended_ns=50_810_000_000,
        asr_hidden_ns=120_000_000,
        audio=wire.describe(audio),
        video=wire.describe(video),
    )


def interim() -> wire.Interim:
    """The same utterance before its end."""
    said = msgspec.structs.asdict(utterance())
    return wire.Interim(**{name: said[name] for name in wire.Interim.__struct_fields__} | {"text": "Ça va,"})


EMOTION = bus.Emotion(
    utterance=f"{SESSION}/7",
    seq=7,
    speaker="speaker1",
    speaker_certain=True,
    dialogue=0,
    text="Ça va, Joey?",
    text_certain=True,
    start_ns=1_230_000_000,
    end_ns=2_460_000_000,
    start="2026-11-22T13:44:56.230000Z",
    end="2026-11-22T13:44:57.460000Z",
    label="joy",
    probabilities={"neutral": 0.25, "joy": 0.75},
    confidence=0.75,
    sentiment="positive",
    modalities={
        "text": bus.Modality(captured=True, used=True, reason=None),
        "video": bus.Modality(captured=False, used=False, reason="no camera was asked for (--camera)"),
    },
    context_turns=3,
    stages_ms=bus.Stages(
        hangover=500.0, asr_wait=10.0, asr=300.0, asr_hidden=120.0, link=1.5, compute=20.25, total=831.75
    ),
    model="compact-1",
    backend="torch-cpu",
    final=True,
)

EVENTS: tuple[bus.EventData, ...] = (
    bus.SpeechStarted(start_ns=1_230_000_000),
    bus.SpeechEnded(seq=7, start_ns=1_230_000_000, end_ns=2_460_000_000, forced=False),
    bus.Rejected(seq=8, reason="no speech (0.93)"),
    bus.Transcript(
        seq=7,
        speaker="speaker2",
        speaker_certain=False,
        dialogue=3,
        text="Ça va, Joey?",
        text_certain=False,
        start_ns=1_230_000_000,
        end_ns=2_460_000_000,
        final=True,
    ),
    EMOTION,
    bus.Device(device="camera", name="/dev/video0", state="lost", reason="no picture for 3 s"),
    bus.Fault(message="a message was refused", seq=None),
    bus.Status(role="worker", state="running", queues={"asr": 0}, counters={"answered": 7}),
)

MESSAGES: tuple[tuple[wire.Message, tuple[wire.Media, ...]], ...] = (
    (wire.Hello(wire.PROTOCOL, SESSION, WALL_NS), ()),
    (utterance(), (AUDIO, VIDEO)),
    (utterance(8, media=(AUDIO, NO_VIDEO)), (AUDIO, NO_VIDEO)),
    (interim(), ()),
    *((wire.make_report(SESSION, event, WALL_NS), ()) for event in EVENTS),
    (wire.Ack(wire.PROTOCOL, SESSION, 7), ()),
)


def event_json(data: bus.EventData, seq: int = 42, session: str = SESSION) -> bytes:
    """The event's JSON, as a worker publishes it."""
    return bus.make_event(session, seq, data, WALL_NS, f"{session}-{seq}")


def changed(header: wire.Message, **fields: object) -> bytes:
    """The header's bytes with fields set to anything; a value of `...` leaves the field out."""
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(header)) | fields
    return msgspec.msgpack.encode({key: value for key, value in raw.items() if value is not ...})
