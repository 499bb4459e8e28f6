"""The line between the supervisor and a child."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Literal

import pytest

from stream import control as control_module
from stream.control import Control, Word, hear, meanwhile, say
from telme.errors import ProcessError


@pytest.fixture
def line() -> Iterator[tuple[Connection, Control]]:
    near, far = Pipe()
    with near, far:
        yield near, Control(far)


Line = tuple[Connection, Control]


def test_words_arrive_as_they_were_said(line: Line) -> None:
    near, control = line
    control.ready({"events": "tcp://127.0.0.1:1"})
    control.failed({"seen": "é"})
    assert hear(near) == Word("ready", {"events": "tcp://127.0.0.1:1"})
    assert hear(near) == Word("failed", {"seen": "é"})


def test_go_begins(line: Line) -> None:
    near, control = line
    say(near, Word("go", {}))
    assert control.wait_go()
    assert not control.stop_asked()


def test_stop_before_go_is_stop(line: Line) -> None:
    near, control = line
    say(near, Word("stop", {}))
    assert not control.wait_go()
    assert control.stop_asked()


def test_stop_behind_go_is_seen(line: Line) -> None:
    near, control = line
    say(near, Word("go", {}))
    say(near, Word("stop", {}))
    assert control.stop_asked()
    control.wait_stop()


def test_each_word_of_a_new_dialogue_is_heard_until_stop(line: Line) -> None:
    near, control = line
    heard: list[str] = []
    kinds: tuple[Literal["go", "dialogue"], ...] = ("go", "dialogue", "dialogue")
    for kind in kinds:
        say(near, Word(kind, {}))
    assert control.wait_go()

    def on_dialogue() -> None:
        heard.append("dialogue")
        if len(heard) == 2:
            say(near, Word("stop", {}))

    control.wait_stop(on_dialogue)
    assert heard == ["dialogue", "dialogue"]


def test_what_takes_long_is_told_until_it_is_over(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    near, control = line
    monkeypatch.setattr(control_module, "_TELL_EVERY_S", 0.01)
    with meanwhile(control.preparing):
        for _ in range(3):
            assert hear(near) == Word("preparing", {})
    control.ready({})
    words = [hear(near)]
    while words[-1].kind == "preparing":
        words.append(hear(near))
    assert words[-1] == Word("ready", {})
    assert not near.poll(0.1)


def test_what_takes_long_goes_on_when_nobody_is_told(line: Line) -> None:
    near, control = line
    near.close()
    with meanwhile(control.preparing):
        pass
    with pytest.raises(ProcessError, match="the supervisor is gone"):
        control.ready({})


def test_the_end_of_the_line_is_stop(line: Line) -> None:
    near, control = line
    assert not control.stop_asked()
    assert not control.orphaned
    near.close()
    assert control.stop_asked()
    assert control.orphaned
    control.wait_stop()
    assert not control.wait_go()


def test_a_word_cut_off_by_death_is_stop(line: Line) -> None:
    near, control = line
    os.write(near.fileno(), b"\x00\x00\x00\x20half of it")
    near.close()
    assert control.stop_asked()


def test_speaking_to_nobody_is_an_error(line: Line) -> None:
    near, control = line
    near.close()
    with pytest.raises(ProcessError, match="the supervisor is gone"):
        control.ready({})


def test_what_is_to_be_remembered_is_said_to_whoever_hears_it(line: Line) -> None:
    near, control = line
    control.remember({"microphone": "USB mic"})
    assert hear(near) == Word("remember", {"microphone": "USB mic"})
    near.close()
    control.remember({"microphone": "USB mic"})
    assert control.stop_asked()  # and it ends as one whose supervisor is gone


def test_what_is_done_is_said_to_whoever_hears_it(line: Line) -> None:
    near, control = line
    control.done()
    assert hear(near) == Word("done", {})
    near.close()
    control.done()


def test_a_poller_can_wait_for_the_line(line: Line) -> None:
    near, control = line
    assert wait([control.fileno()], 0) == []
    say(near, Word("go", {}))
    assert wait([control.fileno()], 10) == [control.fileno()]
