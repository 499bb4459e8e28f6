"""THE schema of everything that crosses a process border, and its bytes.

Utterance link (DEALER <-> ROUTER). Frame 0 is a msgpack header: a tagged struct, unknown fields refused. A header of
type `utterance` is followed by one raw frame for each buffer it describes, sound first. No pickle, no base64.

    capture -> worker   hello, utterance, report
    worker -> capture   ack

Event bus (XPUB). Two frames: topic `telme.<type>.<session>`, and one CloudEvents 1.0 object as JSON, whose `data` is
one of the structs of `EVENT_DATA`. `stream/schema/event-1.json` is its JSON Schema; after a change here,
`python -m stream.wire > stream/schema/event-1.json` writes it anew.

Times named `*_ns` without `heard`/`asr`/`sent`/`decided` are session time: nanoseconds from the first sample. The
others are monotonic nanoseconds of the machine `clock_id`; they mean nothing on another one.
"""

from __future__ import annotations

import json as json_text
import math
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from stream.clock import iso_utc
from telme.errors import WireError

PROTOCOL = 1
TOPIC_ROOT = "telme"

# 63 bits: what SQLite and a calendar of nanoseconds hold.
DeviceKind: TypeAlias = Literal["microphone", "camera", "file"]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
SessionId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+\Z")]
Frame: TypeAlias = bytes | bytearray | memoryview


# ---------------------------------------------------------------------------------------------- utterance link


class Buffer(Struct, frozen=True, forbid_unknown_fields=True, tag="buffer"):
    """One raw frame behind the header: numpy dtype name and shape, C order, little endian."""

    dtype: Literal["int16", "uint8"]
    shape: tuple[Count, ...]


class Absent(Struct, frozen=True, forbid_unknown_fields=True, tag="absent"):
    """A modality that the utterance does not have, and why."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """What every header carries. `protocol`: PROTOCOL; `session`: id of the capture's run."""

    protocol: int
    session: SessionId


class Hello(Header, frozen=True, tag="hello"):
    """A capture process (re)connects. `started_wall_ns`: wall clock at the session's first sample, ns since 1970."""

    started_wall_ns: Count


class Utterance(Header, frozen=True, tag="utterance"):
    """One transcribed utterance.

    Attributes:
        seq: Number in its session, from 0, without gaps other than rejected utterances.
        speaker: Id of who spoke, the same person throughout the dialogue.
        speaker_certain: False where the speaker is only the nearest guess.
        dialogue: Number of the dialogue in its session, from 0; the next one begins without context.
        text: What was said.
        start_ns, end_ns: Session time of the speech, pre-roll and tail left out.
        started_wall_ns: As in Hello.
        clock_id: Names the machine whose monotonic clock the following four are of.
        heard_ns: Last voiced sample.
        decided_ns: End of the utterance decided.
        asr_started_ns, asr_ended_ns: Transcription.
        audio: int16 [S], 16 kHz, or absent.
        video: uint8 RGB [8, 224, 224, 3], or absent.
    """

    seq: Count
    speaker: Annotated[str, Meta(min_length=1, max_length=64)]
    speaker_certain: bool
    dialogue: Count
    text: Annotated[str, Meta(min_length=1, max_length=10_000)]
    start_ns: Count
    end_ns: Count
    started_wall_ns: Count
    clock_id: str
    heard_ns: Count
    decided_ns: Count
    asr_started_ns: Count
    asr_ended_ns: Count
    audio: Buffer | Absent
    video: Buffer | Absent


class Report(Header, frozen=True, tag="report"):
    """An event of the capture side, for the worker to publish. `data`: msgpack of the struct that `event` names."""

    event: str
    wall_ns: Count
    data: msgspec.Raw


class Ack(Header, frozen=True, tag="ack"):
    """The worker has stored its answer to an utterance. It need not be sent again."""

    seq: Count


Message: TypeAlias = Hello | Utterance | Report | Ack
Media: TypeAlias = NDArray[np.int16] | NDArray[np.uint8] | Absent

# Kind, dtype and dimensions of an Utterance's buffers.
_SHAPED = (("sound", "int16", 1), ("pictures", "uint8", 4))

_header_decoder = msgspec.msgpack.Decoder(Message)
# What msgspec raises on bytes that are no message; text that is not UTF-8 is a plain ValueError.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _AnyHeader(Struct):
    """What every protocol's header holds."""

    protocol: int


def encode(message: Message, media: Sequence[Media] = ()) -> list[Frame]:
    """Frames of a message; raw buffers are not copied.

    Args:
        message: The header. For an Utterance, its `audio` and `video` must describe `media`.
        media: Sound and pictures of an Utterance, in this order; Absent ones send no frame.
    """
    buffers = [np.ascontiguousarray(item).data.cast("B") for item in media if not isinstance(item, Absent)]
    return [msgspec.msgpack.encode(message), *buffers]


def describe(media: Media) -> Buffer | Absent:
    """The header's word on a buffer."""
    if isinstance(media, Absent):
        return media
    return Buffer("int16" if media.dtype == np.int16 else "uint8", media.shape)


def decode(frames: Sequence[Frame]) -> tuple[Message, tuple[Media, ...]]:
    """Read a message.

    Returns:
        The header, and for an Utterance its sound and pictures, in this order; views of the frames, not copies.

    Raises:
        WireError: The frames are not a message of this protocol; it says what is wrong.
    """
    if not frames:
        raise _bad("a message of no frames")
    _check_protocol(frames[0])
    try:
        header = _header_decoder.decode(frames[0])
    except _UNREADABLE as error:
        raise _bad(f"a header that does not decode: {error}") from error
    wanted = (header.audio, header.video) if isinstance(header, Utterance) else ()
    buffers = list(frames[1:])
    media = tuple(_take(buffer, shaped, buffers) for buffer, shaped in zip(wanted, _SHAPED, strict=False))
    if buffers:
        raise _bad(f"{len(buffers)} frames more than the header describes")
    return header, media


def _check_protocol(frame: Frame) -> None:
    """Another protocol is named as such, not by the first of its fields that is unknown here."""
    try:
        protocol = msgspec.msgpack.decode(frame, type=_AnyHeader).protocol
    except _UNREADABLE:
        return  # the full decoding says what is wrong
    if protocol != PROTOCOL:
        raise _bad(f"protocol {protocol}")


def _take(wanted: Buffer | Absent, shaped: tuple[str, str, int], buffers: list[Frame]) -> Media:
    """The next frame as the header describes it, which must be as `shaped`: kind, dtype, dimensions."""
    if isinstance(wanted, Absent):
        return wanted
    kind, dtype, dimensions = shaped
    if wanted.dtype != dtype or len(wanted.shape) != dimensions or 0 in wanted.shape:
        raise _bad(f"{kind} of {wanted.dtype} {list(wanted.shape)}, not {dtype} in {dimensions} dimensions")
    if not buffers:
        raise _bad(f"no frame for the {kind} of shape {list(wanted.shape)}")
    raw = memoryview(buffers.pop(0))
    size = math.prod(wanted.shape) * np.dtype(dtype).itemsize
    if raw.nbytes != size:
        raise _bad(f"{kind} of {raw.nbytes} bytes for {dtype} {list(wanted.shape)}, which has {size}")
    view: NDArray[Any] = np.frombuffer(raw, dtype=dtype).reshape(wanted.shape)
    return view


def _bad(seen: str) -> WireError:
    # What a peer sent may be long; the error goes into a log line and an event.
    return WireError(
        textwrap.shorten(seen, 300), f"a message of protocol {PROTOCOL}", "run the same version on both sides"
    )


# --------------------------------------------------------------------------------------------------- event bus


class SpeechStarted(Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody began to speak at `start_ns` of the session."""

    start_ns: Count


class SpeechEnded(Struct, frozen=True, forbid_unknown_fields=True):
    """Utterance `seq` ended. `forced`: cut at the maximum length."""

    seq: Count
    start_ns: Count
    end_ns: Count
    forced: bool


class Rejected(Struct, frozen=True, forbid_unknown_fields=True):
    """Utterance `seq` (type `utterance.rejected`) was heard but never enters the dialogue, and why."""

    seq: Count
    reason: str


class Transcript(Struct, frozen=True, forbid_unknown_fields=True):
    """What was said in utterance `seq`; speaker and dialogue as in Emotion."""

    seq: Count
    speaker: str
    speaker_certain: bool
    dialogue: Count
    text: str
    start_ns: Count
    end_ns: Count


class Modality(Struct, frozen=True, forbid_unknown_fields=True):
    """`captured`: it reached the worker. `used`: the model read it. `reason`: why it was not used, else null."""

    captured: bool
    used: bool
    reason: str | None


class Stages(Struct, frozen=True, forbid_unknown_fields=True):
    """Milliseconds, counted from the last voiced sample.

    `hangover`: to the decision that the utterance ended. `asr_wait`, `asr`: until and during transcription and the
    finding of the speaker. `link`: to the worker. `compute`: context, features and model. `total`: all of it. `link`
    and `total` are null when capture and worker run on different machines, whose clocks cannot be compared.
    """

    hangover: float
    asr_wait: float
    asr: float
    link: float | None
    compute: float
    total: float | None


class Emotion(Struct, frozen=True, forbid_unknown_fields=True):
    """The emotion of one utterance.

    Attributes:
        utterance: `<session>/<seq>`.
        speaker: Who spoke; an id means the same person within one `dialogue` of the session only.
        speaker_certain: False where the speaker is only the nearest guess.
        dialogue: From 0; after a long silence or on the user's word the next one begins, without context.
        start, end: Wall clock of `start_ns`, `end_ns`, ISO 8601 UTC; for a replay as if it had been live.
        label: The likeliest class.
        probabilities: Every class; they sum to 1.
        confidence: Probability of `label`.
        sentiment: What the label implies; null where it implies none.
        modalities: text, audio, video.
        context_turns: Turns the model read, this one included.
        final: False for an interim guess.
    """

    utterance: str
    seq: Count
    speaker: str
    speaker_certain: bool
    dialogue: Count
    text: str
    start_ns: Count
    end_ns: Count
    start: str
    end: str
    label: str
    probabilities: dict[str, Annotated[float, Meta(ge=0, le=1)]]
    confidence: Annotated[float, Meta(ge=0, le=1)]
    sentiment: Literal["negative", "neutral", "positive"] | None
    modalities: dict[str, Modality]
    context_turns: Annotated[int, Meta(ge=1)]
    stages_ms: Stages
    model: str
    backend: str
    final: bool


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """A microphone or camera was `opened`, `lost` or `found` again."""

    device: DeviceKind
    name: str
    state: Literal["opened", "lost", "found", "ended"]


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """Something went wrong and the program goes on. `seq`: the utterance concerned, if one is."""

    message: str
    seq: Count | None


class Status(Struct, frozen=True, forbid_unknown_fields=True):
    """Heartbeat, each second. `role`: who speaks. `state`: `running`, or `stopped` as its last word.

    `queues`, `counters`: names and numbers of what waits and of what was counted since the start (drops, overflows).
    """

    role: Literal["capture", "worker"]
    state: Literal["running", "stopped"]
    queues: dict[str, Count]
    counters: dict[str, Count]


EventData: TypeAlias = SpeechStarted | SpeechEnded | Rejected | Transcript | Emotion | Device | Fault | Status

EVENT_DATA: dict[str, type[EventData]] = {
    "speech.started": SpeechStarted,
    "speech.ended": SpeechEnded,
    "utterance.rejected": Rejected,
    "transcript": Transcript,
    "emotion": Emotion,
    "device": Device,
    "fault": Fault,
    "status": Status,
}
EVENT_TYPES = {data: name for name, data in EVENT_DATA.items()}


class Event(Struct, frozen=True, forbid_unknown_fields=True):
    """A CloudEvents 1.0 object.

    Attributes:
        specversion: "1.0".
        id: Unique within `source`; a repeated id is a repeated event.
        source: `/telme-stream/<session>`.
        type: A key of EVENT_DATA.
        time: When it was made, ISO 8601 UTC.
        datacontenttype: "application/json".
        seq: Counts the stored events of a worker; a gap is a loss. A status repeats the last one.
        data: The struct that `type` names.
    """

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    time: str
    datacontenttype: Literal["application/json"]
    seq: Count
    data: msgspec.Raw

    @property
    def session(self) -> str:
        """The session the event is of."""
        return self.source.rpartition("/")[2]

    def payload(self) -> EventData:
        """`data`, typed.

        Raises:
            WireError: The type is unknown or the data does not fit it.
        """
        return _payload(self.type, self.data, msgspec.json.decode)


def make_event(session: str, seq: int, data: EventData, wall_ns: int, event_id: str) -> bytes:
    """JSON of an event.

    Args:
        session: Its session.
        seq: Its number on the bus.
        data: What it says.
        wall_ns: When, ns since 1970.
        event_id: Unique within the session.
    """
    return msgspec.json.encode(
        Event(
            specversion="1.0",
            id=event_id,
            source=f"/telme-stream/{session}",
            type=EVENT_TYPES[type(data)],
            time=iso_utc(wall_ns),
            datacontenttype="application/json",
            seq=seq,
            data=msgspec.Raw(msgspec.json.encode(data)),
        )
    )


def topic(event_type: str, session: str) -> bytes:
    """Frame 0 of an event."""
    return f"{TOPIC_ROOT}.{event_type}.{session}".encode()


def read_event(json: bytes) -> Event:
    """Read an event's envelope.

    Raises:
        WireError: It is not an event of this schema.
    """
    try:
        return _event_decoder.decode(json)
    except _UNREADABLE as error:
        raise _bad(f"an event that does not decode: {error}") from error


_event_decoder = msgspec.json.Decoder(Event)


def make_report(session: str, data: EventData, wall_ns: int) -> Report:
    """A capture-side event for the worker to publish."""
    return Report(PROTOCOL, session, EVENT_TYPES[type(data)], wall_ns, msgspec.Raw(msgspec.msgpack.encode(data)))


def report_data(report: Report) -> EventData:
    """What a report says.

    Raises:
        WireError: The type is unknown or the data does not fit it.
    """
    return _payload(report.event, report.data, msgspec.msgpack.decode)


def _payload(event_type: str, raw: msgspec.Raw, decode_as: Any) -> EventData:
    if event_type not in EVENT_DATA:
        raise _bad(f"an event of type {event_type!r}")
    try:
        data: EventData = decode_as(raw, type=EVENT_DATA[event_type])
    except _UNREADABLE as error:
        raise _bad(f"a {event_type} event whose data does not decode: {error}") from error
    return data


def event_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of an event; `stream/schema/event-1.json` is its text."""
    names = list(EVENT_DATA)
    (envelope, *data), components = msgspec.json.schema_components(
        [Event, *EVENT_DATA.values()], ref_template="#/$defs/{name}"
    )
    cases = [
        {
            "if": {"properties": {"type": {"const": name}}},
            "then": {"properties": {"data": reference}},
        }
        for name, reference in zip(names, data, strict=True)
    ]
    components["Event"]["properties"]["type"] = {"enum": names}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:telme-stream:event-1",
        "title": "An event of telme-stream (CloudEvents 1.0)",
        **envelope,
        "allOf": cases,
        "$defs": components,
    }


def schema_text() -> str:
    """`stream/schema/event-1.json`."""
    return json_text.dumps(event_schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
