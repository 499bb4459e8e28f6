"""What goes over the event bus: the schema that subscribers see, and its JSON.

XPUB. Two frames: topic `telme.<type>.<session>`, and one CloudEvents 1.0 object as JSON, whose `data` is one of the
structs of `EVENT_DATA`. `stream/schema/event-1.json` is its JSON Schema; after a change here,
`python -m stream.bus > stream/schema/event-1.json` writes it anew.

Times named `*_ns` are session time: nanoseconds from the first sample.
"""

from __future__ import annotations

import inspect
import json as json_text
import sys
import textwrap
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from stream.clock import iso_utc
from telme.errors import WireError

TOPIC_ROOT = "telme"

DeviceKind: TypeAlias = Literal["microphone", "camera", "file"]
# 63 bits: what SQLite and a calendar of nanoseconds hold.
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# What msgspec raises on bytes that are no message; text that is not UTF-8 is a plain ValueError.
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def unreadable(seen: str, expected: str = "an event of this schema") -> WireError:
    """What is wrong with a message. What a peer sent may be long; the error goes into a log line and an event."""
    return WireError(textwrap.shorten(seen, 300), expected, "run the same version on both sides")


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
    """What was said in utterance `seq`; speaker, dialogue, `text_certain` and `final` as in Emotion."""

    seq: Count
    speaker: str
    speaker_certain: bool
    dialogue: Count
    text: str
    text_certain: bool
    start_ns: Count
    end_ns: Count
    final: bool


class Modality(Struct, frozen=True, forbid_unknown_fields=True):
    """`captured`: it reached the worker. `used`: the model read it.

    `reason`: why it was not used, or why what was made of earlier pictures was used instead; else null.
    """

    captured: bool
    used: bool
    reason: str | None


class Stages(Struct, frozen=True, forbid_unknown_fields=True):
    """Milliseconds, counted from the last voiced sample.

    `hangover`: to the decision that the utterance ended. `asr_wait`, `asr`: until and during transcription and the
    finding of the speaker, after that decision. `asr_hidden`: transcription that ran within the hangover; a part of it,
    not one more stage. `link`: to the worker. `compute`: context, features and model. `total`: all of it. `link` and
    `total` are null when capture and worker run on different machines, whose clocks cannot be compared.

    Of an interim guess they count from the last sample that its text is of; `hangover` is how old that one was.
    """

    hangover: float
    asr_wait: float
    asr: float
    asr_hidden: float
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
        text_certain: False where somebody spoke but the recognizer is unsure of the words.
        start, end: Wall clock of `start_ns`, `end_ns`, ISO 8601 UTC; for a replay as if it had been live.
        label: The likeliest class.
        probabilities: Every class; they sum to 1.
        confidence: Probability of `label`.
        sentiment: What the label implies; null where it implies none.
        modalities: text, audio, video.
        context_turns: Turns the model read, this one included.
        final: False for an interim guess at an utterance that is not over (--interim): from its words so far alone,
            not stored, not part of the dialogue; the final one has the same `utterance`.
    """

    utterance: str
    seq: Count
    speaker: str
    speaker_certain: bool
    dialogue: Count
    text: str
    text_certain: bool
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
    """A microphone or camera was `opened`, `lost` or `found` again, or has `ended`; a file was opened or has ended.

    A session whose capture process was started again while the device was away begins with `lost`. `reason`: why it is
    lost, as it was seen first; else null.
    """

    device: DeviceKind
    name: str
    state: Literal["opened", "lost", "found", "ended"]
    reason: str | None


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
        seq: Counts the stored events of a worker, over all types and sessions; events that are not stored repeat the
            last one. To a subscriber of all of `telme.` a gap is a loss. What was published before is not sent again.
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
        return read_payload(self.type, self.data, msgspec.json.decode)

    def is_stored(self) -> bool:
        """Whether the worker keeps the event and gives it a number of its own: all but heartbeats and interim guesses.

        Raises:
            WireError: As of `payload`.
        """
        match self.payload():
            case Status():
                return False
            case Emotion(final=final) | Transcript(final=final):
                return final
            case _:
                return True


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
    except UNREADABLE as error:
        raise unreadable(f"an event that does not decode: {error}") from error


_event_decoder = msgspec.json.Decoder(Event)


def read_payload(event_type: str, raw: msgspec.Raw, decode_as: Any) -> EventData:
    """The struct that an event's type names.

    Args:
        event_type: It.
        raw: `data`, not decoded yet.
        decode_as: msgspec's function that decodes it: JSON on the bus, msgpack on the utterance link.

    Raises:
        WireError: The type is unknown or the data does not fit it.
    """
    if event_type not in EVENT_DATA:
        raise unreadable(f"an event of type {event_type!r}")
    try:
        data: EventData = decode_as(raw, type=EVENT_DATA[event_type])
    except UNREADABLE as error:
        raise unreadable(f"a {event_type} event whose data does not decode: {error}") from error
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
    for described in components.values():
        if "description" in described:  # a docstring, which Python before 3.13 leaves indented
            described["description"] = inspect.cleandoc(described["description"])
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
