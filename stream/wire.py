"""What crosses the link between the two processes, and its bytes. What goes on to subscribers is `stream.bus`.

DEALER <-> ROUTER. Frame 0 is a msgpack header: a tagged struct, unknown fields refused. A header of
type `utterance` is followed by one raw frame for each buffer it describes, sound first. No pickle, no base64.

    capture -> worker   hello, utterance, interim, report
    worker -> capture   ack

Times named `*_ns` without `heard`/`asr`/`sent`/`decided` are session time: nanoseconds from the first sample. The
others are monotonic nanoseconds of the machine `clock_id`; they mean nothing on another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from stream.bus import EVENT_TYPES, UNREADABLE, Count, EventData, Status, read_payload, unreadable
from telme.errors import WireError

PROTOCOL = 4

SessionId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+\Z")]
Frame: TypeAlias = bytes | bytearray | memoryview


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


class Spoken(Header, frozen=True):
    """What was said, or is being said.

    Attributes:
        seq: Number in its session, from 0 in the order in which speech began, without gaps other than rejected ones.
        speaker: Id of who spoke, the same person throughout the dialogue.
        speaker_certain: False where the speaker is only the nearest guess.
        dialogue: Number of the dialogue in its session, from 0; the next one begins without context.
        text: What was said.
        text_certain: False where the recognizer is unsure of the words.
        start_ns, end_ns: Session time of the speech, pre-roll and tail left out.
        started_wall_ns: As in Hello, by the wall clock as it stood at the utterance.
        clock_id: Names the machine whose monotonic clock the following four are of.
        heard_ns: Last voiced sample; of an interim, the last sample that its text is of.
        decided_ns: End of the utterance decided; of an interim, its sound taken.
        asr_started_ns, asr_ended_ns: Transcription and the finding of the speaker, as far as they came after the
            decision.
        asr_hidden_ns: How long the transcription ran before the decision.
    """

    seq: Count
    speaker: Annotated[str, Meta(min_length=1, max_length=64)]
    speaker_certain: bool
    dialogue: Count
    text: Annotated[str, Meta(min_length=1, max_length=10_000)]
    text_certain: bool
    start_ns: Count
    end_ns: Count
    started_wall_ns: Count
    clock_id: str
    heard_ns: Count
    decided_ns: Count
    asr_started_ns: Count
    asr_ended_ns: Count
    asr_hidden_ns: Count


class Utterance(Spoken, frozen=True, tag="utterance"):
    """One transcribed utterance, with its sound (int16 [S], 16 kHz) and pictures (uint8 RGB [8, 224, 224, 3])."""

    audio: Buffer | Absent
    video: Buffer | Absent


class Interim(Spoken, frozen=True, tag="interim"):
    """An utterance that is not over: its words so far, without sound and pictures. No ack, never sent again."""


class Report(Header, frozen=True, tag="report"):
    """An event of the capture side, for the worker to publish. `data`: msgpack of the struct that `event` names."""

    event: str
    wall_ns: Count
    data: msgspec.Raw


class Ack(Header, frozen=True, tag="ack"):
    """The worker has stored its answer to an utterance. It need not be sent again."""

    seq: Count


Message: TypeAlias = Hello | Utterance | Interim | Report | Ack
Media: TypeAlias = NDArray[np.int16] | NDArray[np.uint8] | Absent

# Kind, dtype and dimensions of an Utterance's buffers.
_SHAPED = (("sound", "int16", 1), ("pictures", "uint8", 4))

_header_decoder = msgspec.msgpack.Decoder(Message)


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
    except UNREADABLE as error:
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
    except UNREADABLE:
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
    return unreadable(seen, f"a message of protocol {PROTOCOL}")


def make_report(session: str, data: EventData, wall_ns: int) -> Report:
    """A capture-side event for the worker to publish."""
    return Report(PROTOCOL, session, EVENT_TYPES[type(data)], wall_ns, msgspec.Raw(msgspec.msgpack.encode(data)))


def is_of_the_moment(message: Message) -> bool:
    """A guess or a heartbeat: said later it would be wrong, and it would take the place of what happened."""
    return isinstance(message, Interim) or (isinstance(message, Report) and message.event == EVENT_TYPES[Status])


def report_data(report: Report) -> EventData:
    """What a report says.

    Raises:
        WireError: The type is unknown or the data does not fit it.
    """
    return read_payload(report.event, report.data, msgspec.msgpack.decode)
