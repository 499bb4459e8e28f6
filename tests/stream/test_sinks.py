"""Sinks: the lines people see, and the lines programs read."""

from __future__ import annotations

import io
import json
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import bus
from stream.sinks import SinkName, emotion_line, make_sink
from telme.errors import OutputError
from tests.stream.samples import EMOTION, EVENTS, event_json

NO_TOTAL = msgspec.structs.replace(EMOTION, stages_ms=msgspec.structs.replace(EMOTION.stages_ms, total=None))


def written(name: SinkName, *events: bus.EventData) -> str:
    out = io.StringIO()
    sink = make_sink(name, out)
    for data in events:
        json_bytes = event_json(data)
        sink(bus.read_event(json_bytes), json_bytes)
    return out.getvalue()


@pytest.mark.parametrize(
    ("emotion", "line"),
    [
        (EMOTION, "00:01.2  speaker1  Ça va, Joey?                  joy      ████████░░  75%  0.83s"),
        (
            msgspec.structs.replace(EMOTION, text_certain=False),
            "00:01.2  speaker1  (?) Ça va, Joey?              joy      ████████░░  75%  0.83s",
        ),
        (NO_TOTAL, "00:01.2  speaker1  Ça va, Joey?                  joy      ████████░░  75%       "),
    ],
)
def test_the_line_of_an_emotion(emotion: bus.Emotion, line: str) -> None:
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
    assert lines[2:] == [
        "          (camera /dev/video0 lost: no picture for 3 s)",
        "          (fault: a message was refused)",
    ]


class Terminal(io.StringIO):
    """Notes what was there at the last flush."""

    flushed = ""

    def __init__(self, is_terminal: bool = True) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def flush(self) -> None:
        self.flushed = self.getvalue()


SO_FAR = msgspec.structs.replace(EMOTION, text="Ça va,", final=False)


def shown(out: Terminal, *events: bus.EventData) -> str:
    sink = make_sink("console", out)
    for data in events:
        sink(bus.read_event(event_json(data)), event_json(data))
    assert out.flushed == out.getvalue()
    return out.flushed


def test_a_file_has_a_marked_line_for_each_guess() -> None:
    guess, final = shown(Terminal(is_terminal=False), SO_FAR, EMOTION).splitlines()
    assert "  ... Ça va,  " in guess
    assert "  Ça va, Joey?  " in final


def test_in_a_terminal_what_comes_next_is_written_over_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    over, line = "\r\x1b[K", emotion_line(EMOTION, 80)
    guess = emotion_line(SO_FAR, 79)
    assert shown(Terminal(), SO_FAR, SO_FAR, EMOTION) == f"{guess}{over}{guess}{over}{line}\n"
    assert shown(Terminal(), EMOTION, SO_FAR) == f"{line}\n{guess}"
    assert shown(Terminal(), SO_FAR, bus.Rejected(8, "noise")).startswith(f"{guess}{over}          (utterance 8")


def test_the_console_does_not_pass_on_what_steers_a_terminal() -> None:
    assert written("console", bus.Fault("\x1b[2Jgone\r\nnext", None)) == "          (fault:  [2Jgone  next)\n"


@pytest.mark.parametrize(("name", "encoding"), [("console", "latin-1"), ("jsonl", "utf-8")])
def test_a_locale_without_the_characters_loses_no_event(name: SinkName, encoding: str) -> None:
    raw = io.BytesIO()
    sink = make_sink(name, io.TextIOWrapper(raw, encoding="latin-1"))
    json_bytes = event_json(msgspec.structs.replace(EMOTION, text="\u4f60, Joey?"))
    sink(bus.read_event(json_bytes), json_bytes)
    shown = raw.getvalue().decode(encoding)
    assert ("?, Joey?" if name == "console" else "\u4f60, Joey?") in shown


def test_without_a_standard_output_it_says_so() -> None:
    with pytest.raises(OutputError, match="standard output is closed"):
        make_sink("console", None)


def test_jsonl_is_one_object_per_line_and_nothing_else() -> None:
    output = written("jsonl", *EVENTS)
    assert output.endswith("\n")
    lines = output.splitlines()
    assert [json.loads(line)["type"] for line in lines] == list(bus.EVENT_DATA)
    assert [line.encode() for line in lines] == [event_json(data) for data in EVENTS]


def test_jsonl_lines_are_written_at_once() -> None:
    for name in get_args(SinkName):
        out = Terminal()
        make_sink(name, out)(bus.read_event(event_json(EMOTION)), event_json(EMOTION))
        assert out.flushed == out.getvalue() != ""
