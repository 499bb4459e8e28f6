"""Sinks: the lines people see, and the lines programs read."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import wire
from stream.sinks import SINKS, emotion_line, make_sink
from telme.errors import UsageError
from tests.stream.samples import EMOTION, EVENTS, event_json

NO_TOTAL = msgspec.structs.replace(EMOTION, stages_ms=msgspec.structs.replace(EMOTION.stages_ms, total=None))


def written(name: str, *events: wire.EventData) -> str:
    out = io.StringIO()
    sink = make_sink(name, out)
    for data in events:
        json_bytes = event_json(data)
        sink(wire.read_event(json_bytes), json_bytes)
    return out.getvalue()


@pytest.mark.parametrize(
    ("emotion", "line"),
    [
        (EMOTION, "00:01.2  speaker1  Ça va, Joey?                  joy      ████████░░  75%  0.83s"),
        (NO_TOTAL, "00:01.2  speaker1  Ça va, Joey?                  joy      ████████░░  75%       "),
    ],
)
def test_the_line_of_an_emotion(emotion: wire.Emotion, line: str) -> None:
    assert emotion_line(emotion, 80) == line


@pytest.mark.parametrize(
    ("start_ns", "clock"),
    [(0, "00:00.0"), (59_999_999_999, "00:59.9"), (60_000_000_000, "01:00.0"), (3_725_400_000_000, "62:05.4")],
)
def test_the_time_of_a_line(start_ns: int, clock: str) -> None:
    assert emotion_line(msgspec.structs.replace(EMOTION, start_ns=start_ns), 80).startswith(clock + "  ")


def test_a_long_text_is_shortened_to_the_width() -> None:
    line = emotion_line(msgspec.structs.replace(EMOTION, text="word " * 50), 80)
    assert len(line) == 80
    assert "word word wo…  joy" in line
    assert line.endswith(emotion_line(EMOTION, 80)[-30:])


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=64), st.floats(0, 1))
def test_the_console_writes_one_printable_line_per_emotion(text: str, speaker: str, confidence: float) -> None:
    output = written("console", msgspec.structs.replace(EMOTION, text=text, speaker=speaker, confidence=confidence))
    assert output.endswith("\n")
    assert output[:-1].isprintable()


def test_the_console_says_what_people_want_to_know_and_no_more() -> None:
    lines = written("console", *EVENTS).splitlines()
    assert len(lines) == 4
    assert lines[0] == "          (utterance 8 left out: no speech (0.93))"
    assert "Ça va, Joey?" in lines[1]
    assert lines[2:] == ["          (camera /dev/video0 lost)", "          (fault: a message was refused)"]


def test_the_console_does_not_pass_on_what_steers_a_terminal() -> None:
    assert written("console", wire.Fault("\x1b[2Jgone\r\nnext", None)) == "          (fault:  [2Jgone  next)\n"


def test_jsonl_is_one_object_per_line_and_nothing_else() -> None:
    output = written("jsonl", *EVENTS)
    assert output.endswith("\n")
    lines = output.splitlines()
    assert [json.loads(line)["type"] for line in lines] == list(wire.EVENT_DATA)
    assert [line.encode() for line in lines] == [event_json(data) for data in EVENTS]


def test_jsonl_lines_are_written_at_once() -> None:
    class Terminal(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    for name in SINKS:
        out = Terminal()
        make_sink(name, out)(wire.read_event(event_json(EMOTION)), event_json(EMOTION))
        assert out.flushed == out.getvalue() != ""


def test_an_unknown_sink_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="--events yaml; expected one of console, jsonl"):
        make_sink("yaml", io.StringIO())
