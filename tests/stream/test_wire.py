"""The wire: pinned bytes, every class there and back, and what bad bytes get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import bus, wire
from telme.errors import WireError
from tests.stream.golden_wire import GOLDEN, golden_files
from tests.stream.samples import (
    AUDIO,
    EMOTION,
    EVENTS,
    MESSAGES,
    NO_VIDEO,
    SESSION,
    VIDEO,
    WALL_NS,
    changed,
    event_json,
    utterance,
)

SCHEMA_FILE = Path(wire.__file__).parent / "schema" / "event-1.json"
HELLO = MESSAGES[0][0]
REPORT = next(message for message, _ in MESSAGES if isinstance(message, wire.Report))


def outcome(frames: Sequence[wire.Frame]) -> wire.Message | bus.EventData | WireError:
    """What reading a message gives; anything but a message or a WireError passes through as an exception."""
    try:
        header, _ = wire.decode(frames)
        return wire.report_data(header) if isinstance(header, wire.Report) else header
    except WireError as error:
        return error


OUTCOMES = (*get_args(wire.Message), *get_args(bus.EventData), WireError)


def name_of(value: object) -> str:
    return type(value).__name__


# ------------------------------------------------------------------------------------------------ golden bytes


def test_the_bytes_of_this_protocol_are_what_they_were() -> None:
    stored = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    assert golden_files() == stored


@pytest.mark.parametrize("number", range(len(MESSAGES)))
def test_golden_bytes_are_read_as_what_they_say(number: int) -> None:
    frames = [path.read_bytes() for path in sorted(GOLDEN.glob(f"{number:02d}-*.bin"))]
    header, media = wire.decode(frames)
    assert header == MESSAGES[number][0]
    assert len(frames) == 1 + sum(not isinstance(item, wire.Absent) for item in media)


def test_every_class_has_a_sample() -> None:
    assert {type(message) for message, _ in MESSAGES} == set(get_args(wire.Message))
    assert {type(data) for data in EVENTS} == set(get_args(bus.EventData)) == set(bus.EVENT_DATA.values())
    reported = {message.event for message, _ in MESSAGES if isinstance(message, wire.Report)}
    assert reported == set(bus.EVENT_DATA)


# --------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(("message", "media"), MESSAGES)
def test_a_message_comes_back_as_it_went(message: wire.Message, media: tuple[wire.Media, ...]) -> None:
    header, received = wire.decode(wire.encode(message, media))
    assert header == message
    assert len(received) == len(media)
    for back, sent in zip(received, media, strict=True):
        if isinstance(sent, wire.Absent):
            assert back == sent
        else:
            np.testing.assert_array_equal(back, sent)
            assert not isinstance(back, wire.Absent)
            assert back.dtype == sent.dtype


@pytest.mark.parametrize("data", EVENTS, ids=name_of)
def test_an_event_comes_back_as_it_went(data: bus.EventData) -> None:
    event = bus.read_event(event_json(data))
    assert event.payload() == data
    assert event.session == SESSION
    assert wire.report_data(wire.make_report(SESSION, data, WALL_NS)) == data


@given(
    text=st.text(min_size=1, max_size=50),
    seq=st.integers(0, 2**63 - 1),
    samples=st.integers(1, 2000),
    frames=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_utterance_comes_back_as_it_went(text: str, seq: int, samples: int, frames: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    audio = random.integers(-(2**15), 2**15, samples, dtype=np.int16)
    video = random.integers(0, 256, (frames, 4, 3, 3), dtype=np.uint8)
    message = msgspec.structs.replace(utterance(seq, media=(audio, video)), text=text)
    header, (heard, seen) = wire.decode([bytes(frame) for frame in wire.encode(message, (audio, video))])
    assert header == message
    assert not isinstance(heard, wire.Absent)
    assert not isinstance(seen, wire.Absent)
    np.testing.assert_array_equal(heard, audio)
    np.testing.assert_array_equal(seen, video)


def test_buffers_are_views_on_both_sides() -> None:
    frames = wire.encode(utterance(), (AUDIO, VIDEO))
    assert np.shares_memory(np.frombuffer(frames[1], np.uint8), AUDIO)
    assert np.shares_memory(np.frombuffer(frames[2], np.uint8), VIDEO)
    _, (audio, video) = wire.decode(frames)
    assert isinstance(audio, np.ndarray)
    assert isinstance(video, np.ndarray)
    assert np.shares_memory(audio, AUDIO)
    assert np.shares_memory(video, VIDEO)


def test_a_strided_array_is_sent_in_order() -> None:
    backwards = AUDIO[::-1]
    _, (audio, _) = wire.decode(wire.encode(utterance(media=(backwards, NO_VIDEO)), (backwards, NO_VIDEO)))
    np.testing.assert_array_equal(np.asarray(audio), backwards)


# -------------------------------------------------------------------------------------------- what bad bytes get

GOOD = [bytes(frame) for frame in wire.encode(utterance(), (AUDIO, VIDEO))]
DEEP = msgspec.Raw(b"\x91" * 100_000 + b"\xc0")


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "no frames"),
        ([b""], "truncated"),
        ([b"not msgpack"], "does not decode"),
        ([GOOD[0][:-1], *GOOD[1:]], "truncated"),
        ([GOOD[0]], "no frame for the sound"),
        (GOOD[:2], "no frame for the pictures"),
        ([*GOOD, b"more"], "1 frames more than the header describes"),
        ([GOOD[0], GOOD[1][:-1], GOOD[2]], "sound of 15 bytes for int16 [8], which has 16"),
        ([GOOD[0], GOOD[2], GOOD[1]], "sound of 24 bytes"),
        ([changed(HELLO, protocol=1)], "protocol 1;"),
        ([changed(HELLO, protocol=1, new="thing", started_wall_ns=...)], "protocol 1;"),
        ([changed(HELLO, protocol="2")], "$.protocol"),
        ([changed(HELLO, extra=1)], "unknown field `extra`"),
        ([changed(HELLO, type="shout")], "shout"),
        ([changed(HELLO, type=...)], "`type`"),
        ([changed(HELLO, session=...)], "`session`"),
        ([changed(HELLO, session="../../etc")], "$.session"),
        ([changed(HELLO, session="")], "$.session"),
        ([changed(HELLO, session="two\nlines")], "$.session"),
        ([changed(HELLO, session="end\n")], "$.session"),
        ([changed(HELLO, started_wall_ns=-1)], "$.started_wall_ns"),
        ([changed(HELLO, started_wall_ns=2**63)], "$.started_wall_ns"),
        ([changed(HELLO, session="sess").replace(b"sess", b"\xff\xfe\xfd\xfc")], "utf-8"),
        ([changed(REPORT, data=DEEP)], "recursion"),
        ([changed(utterance(), text="")], "$.text"),
        ([changed(utterance(), audio={"type": "absent", "reason": ""})], "$.audio.reason"),
        ([changed(utterance(), audio={"type": "buffer", "dtype": "float64", "shape": [1]})], "$.audio.dtype"),
        ([changed(utterance(), audio={"type": "buffer", "dtype": "uint8", "shape": [8]}), *GOOD[1:]], "sound of uint8"),
        ([changed(utterance(), audio={"type": "buffer", "dtype": "int16", "shape": [2, 4]})], "sound of int16 [2, 4]"),
        ([changed(utterance(), audio={"type": "buffer", "dtype": "int16", "shape": [0]}), b""], "sound of int16 [0]"),
        ([changed(utterance(), audio={"type": "buffer", "dtype": "int16", "shape": []}), b"ab"], "sound of int16 []"),
        ([changed(utterance(), audio={"type": "buffer", "dtype": "int16", "shape": [2**62]}), b""], "0 bytes"),
        ([changed(utterance(), video={"type": "buffer", "dtype": "uint8", "shape": [1] * 70}), *GOOD[1:]], "pictures"),
        (
            [
                changed(utterance(), video={"type": "buffer", "dtype": "uint8", "shape": [0, 2**40, 2**40, 3]}),
                GOOD[1],
                b"",
            ],
            "pictures of uint8 [0, ",
        ),
    ],
)
def test_a_bad_message_says_what_is_wrong(frames: list[bytes], says: str) -> None:
    with pytest.raises(WireError) as error:
        wire.decode(frames)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_an_error_does_not_repeat_a_long_message() -> None:
    with pytest.raises(WireError) as error:
        wire.decode([changed(HELLO, **{"x " * 100_000: 1})])
    assert len(str(error.value)) < 500


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_any_bytes_are_a_message_or_a_wire_error(frames: list[bytes]) -> None:
    assert isinstance(outcome(frames), OUTCOMES)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_damaged_message_is_a_message_or_a_wire_error(
    sample: tuple[wire.Message, tuple[wire.Media, ...]], data: st.DataObject
) -> None:
    frames = [bytearray(frame) for frame in wire.encode(*sample)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(outcome(frames), OUTCOMES)


def test_a_report_whose_data_does_not_fit_its_type_is_refused() -> None:
    report = wire.make_report(SESSION, bus.Fault("x", None), WALL_NS)
    with pytest.raises(WireError, match="transcript event whose data does not decode"):
        wire.report_data(msgspec.structs.replace(report, event="transcript"))
    with pytest.raises(WireError, match="an event of type 'gossip'"):
        wire.report_data(msgspec.structs.replace(report, event="gossip"))
    with pytest.raises(WireError, match="utf-8"):
        wire.report_data(msgspec.structs.replace(report, data=msgspec.Raw(b"\x81\xa7message\xa2\xff\xfe")))


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_json_is_an_event_or_a_wire_error(json_bytes: bytes) -> None:
    with pytest.raises(WireError):
        bus.read_event(json_bytes)


@pytest.mark.parametrize("bad", [b'{"id":"\xff\xfe"}', b'{"data":' + b"[" * 100_000], ids=["utf8", "depth"])
def test_json_that_no_parser_takes_is_a_wire_error(bad: bytes) -> None:
    with pytest.raises(WireError):
        bus.read_event(bad)


# ------------------------------------------------------------------------------------------------------ schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_packaged_schema_is_that_of_the_structs() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == bus.schema_text()
    assert json.loads(bus.schema_text()) == bus.event_schema()


@pytest.mark.parametrize("data", EVENTS, ids=name_of)
def test_an_event_is_valid_and_a_cloud_event(validator: jsonschema.Draft202012Validator, data: bus.EventData) -> None:
    event = json.loads(event_json(data))
    validator.validate(event)
    assert event["specversion"] == "1.0"
    assert event["id"] == f"{SESSION}-42"
    assert event["source"] == f"/telme-stream/{SESSION}"
    assert event["type"] == bus.EVENT_TYPES[type(data)]
    assert event["time"] == "2026-11-22T13:44:55.000000Z"
    assert event["datacontenttype"] == "application/json"


def wrong(**fields: object) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(event_json(EMOTION))
    return {key: value for key, value in (event | fields).items() if value is not ...}


GOOD_EMOTION: dict[str, Any] = json.loads(msgspec.json.encode(EMOTION))


@pytest.mark.parametrize(
    "event",
    [
        wrong(type="fault"),
        wrong(type="gossip"),
        wrong(data=...),
        wrong(id=...),
        wrong(specversion="0.3"),
        wrong(seq=-1),
        wrong(extra=1),
        wrong(data=GOOD_EMOTION | {"confidence": 1.5}),
        wrong(data=GOOD_EMOTION | {"probabilities": {"joy": "likely"}}),
        wrong(data=GOOD_EMOTION | {"mood": "good"}),
        wrong(data={key: value for key, value in GOOD_EMOTION.items() if key != "label"}),
    ],
)
def test_a_wrong_event_is_invalid(validator: jsonschema.Draft202012Validator, event: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(event)


def test_heartbeats_and_interim_guesses_have_no_number_of_their_own() -> None:
    unstored = [data for data in EVENTS if not bus.read_event(event_json(data)).is_stored()]
    assert [type(data) for data in unstored] == [bus.Status]
    interims = (EMOTION, next(data for data in EVENTS if isinstance(data, bus.Transcript)))
    for data in interims:
        assert not bus.read_event(event_json(msgspec.structs.replace(data, final=False))).is_stored()


def test_topics_lead_with_the_type() -> None:
    assert bus.topic("emotion", SESSION) == b"telme.emotion." + SESSION.encode()
