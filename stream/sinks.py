"""Where events go: the console and JSON lines. Sinks are subscribers like any other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from io import TextIOWrapper
from typing import Literal, TextIO, TypeAlias

from stream.bus import Device, Emotion, Event, Fault, Rejected
from telme.errors import OutputError

_NS_PER_TENTH = 100_000_000
_BAR_CELLS = 10
_NARROWEST_TEXT = 20
_LINE_BEGIN = "\r\x1b[K"  # to the line's begin, and the line emptied


class JsonlSink:
    """One JSON object per event and line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: Event, json: bytes) -> None:
        """Write an event."""
        self._out.write(json.decode() + "\n")
        self._out.flush()


class ConsoleSink:
    """One line per utterance: time, speaker, text, emotion, probability bar, latency.

    An interim guess is marked with dots. In a terminal what comes next is written over it.

    Args:
        out: A terminal or a file.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._passing = False  # the terminal's line is one to write over

    def __call__(self, event: Event, json: bytes) -> None:
        """Write what people want to see; the rest is for programs."""
        passing = False
        match event.payload():
            case Emotion() as emotion:
                passing = self._out.isatty() and not emotion.final
                line = emotion_line(emotion, shutil.get_terminal_size((120, 24)).columns - passing)
            case Rejected() as rejected:
                line = f"          (utterance {rejected.seq} left out: {rejected.reason})"
            case Fault() as fault:
                line = f"          (fault: {fault.message})"
            case Device() as device if device.state in ("lost", "found"):
                why = f": {device.reason}" if device.reason else ""
                line = f"          ({device.device} {device.name} {device.state}{why})"
            case _:
                return
        self._out.write(_LINE_BEGIN * self._passing + _plain(line) + "\n" * (not passing))
        self._out.flush()
        self._passing = passing


def _plain(text: str) -> str:
    """One line without control characters: words that came over a network must not steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def emotion_line(emotion: Emotion, width: int) -> str:
    """An emotion event as a line of at most `width` characters, where the width allows."""
    minutes, tenths = divmod(emotion.start_ns // _NS_PER_TENTH, 600)
    speaker = emotion.speaker if emotion.speaker_certain else f"{emotion.speaker}?"
    head = f"{minutes:02d}:{tenths // 10:02d}.{tenths % 10}  {speaker:<9} "
    filled = round(emotion.confidence * _BAR_CELLS)
    bar = "█" * filled + "░" * (_BAR_CELLS - filled)
    total = emotion.stages_ms.total
    latency = "      " if total is None else f"{total / 1000:5.2f}s"
    tail = f"  {emotion.label:<8} {bar} {emotion.confidence:4.0%} {latency}"
    room = max(width - len(head) - len(tail), _NARROWEST_TEXT)
    text = emotion.text if emotion.text_certain else f"(?) {emotion.text}"
    text = text if emotion.final else f"... {text}"
    text = text if len(text) <= room else text[: room - 1] + "…"
    return f"{head}{text:<{room}}{tail}"


SinkName: TypeAlias = Literal["console", "jsonl"]


def make_sink(name: SinkName, out: TextIO | None) -> Callable[[Event, bytes], None]:
    """A sink by name.

    Args:
        name: Which.
        out: Standard output; None where the program was started without one.

    Raises:
        OutputError: There is none.
    """
    if out is None:
        raise OutputError("standard output is closed", "one that takes events", "send it to a file or to /dev/null")
    if isinstance(out, TextIOWrapper):
        if name == "jsonl":
            out.reconfigure(encoding="utf-8")  # what JSON is, whatever the locale
        else:
            out.reconfigure(errors="replace")  # bars that the locale cannot write
    return ConsoleSink(out) if name == "console" else JsonlSink(out)


def drop_output() -> None:
    """After standard output failed: what is still in Python's buffer must go somewhere at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
