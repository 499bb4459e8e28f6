"""The microphone's process: its messages, its refusals and its end."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from stream.config import MicConfig
from stream.items import Chosen
from stream.portaudio import Opened, Piece
from stream.recorder import Message, RecorderProcess, Refused, read_message, write_message
from telme.errors import MissingDependency, SourceError
from tests.live import eventually

DEADLINE_S = 60.0
CHOSEN = Chosen("USB mic", "ALSA", 1, 2)
OPENED = Opened("USB mic", 48_000, 2, chosen=CHOSEN)
PIECE = Piece(1_440, 123_456_789_012, True, b"\x01\x00\x02\x00")
REFUSED = Refused("no microphone", "one", "plug it in", False)


def bytes_of(*messages: Message) -> bytes:
    pipe = io.BytesIO()
    for message in messages:
        write_message(pipe, message)
    return pipe.getvalue()


def child(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os, signal, sys\nout = sys.stdout.buffer\n{script}")


def says(*messages: Message, then: str = "sys.stdin.read()") -> tuple[str, ...]:
    return child(f"out.write({bytes_of(*messages)!r}); out.flush(); {then}")


def test_messages_come_back_as_they_were() -> None:
    pipe = io.BytesIO(bytes_of(OPENED, PIECE, REFUSED))
    assert [read_message(pipe) for _ in range(4)] == [OPENED, PIECE, REFUSED, None]


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_message_that_was_cut_is_the_end(cut: int) -> None:
    assert read_message(io.BytesIO(bytes_of(PIECE)[:cut])) is None


def test_what_the_process_says_is_handed_on_until_it_ends() -> None:
    recording = RecorderProcess(MicConfig(), None, says(OPENED, PIECE, then="pass"))
    assert recording.get(DEADLINE_S) == OPENED
    assert recording.get(DEADLINE_S) == PIECE
    with pytest.raises(SourceError, match="the microphone's process ended"):
        recording.get(DEADLINE_S)
    recording.close()


@pytest.mark.parametrize(("is_missing", "kind"), [(False, SourceError), (True, MissingDependency)])
def test_a_refusal_is_the_error_it_was(is_missing: bool, kind: type[Exception]) -> None:
    refused = msgspec.structs.replace(REFUSED, is_missing=is_missing)
    recording = RecorderProcess(MicConfig(), None, says(refused))
    with pytest.raises(kind, match="no microphone; expected one; plug it in"):
        recording.get(DEADLINE_S)
    recording.close()


def test_silence_is_none_and_not_an_end() -> None:
    recording = RecorderProcess(MicConfig(), None, says(OPENED))
    assert recording.get(DEADLINE_S) == OPENED
    assert recording.get(0.01) is None
    recording.close()


def test_a_full_queue_loses_pieces_and_never_the_end() -> None:
    pieces = [msgspec.structs.replace(PIECE, first_frame=number) for number in range(9)]
    recording = RecorderProcess(MicConfig(queue_blocks=3), None, says(OPENED, *pieces, then="pass"))
    eventually(lambda: recording.ended, "the process has said all")  # `close` would not wait for long
    recording.close()  # all of it has been read by now
    assert recording.get(0) == OPENED
    assert [recording.get(0), recording.get(0)] == pieces[:2]
    with pytest.raises(SourceError):
        recording.get(0)


def test_a_process_that_does_not_listen_is_killed() -> None:
    deaf = says(OPENED, then="signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()")
    recording = RecorderProcess(MicConfig(), None, deaf)
    assert recording.get(DEADLINE_S) == OPENED
    recording.close()
    assert recording.ended


@pytest.mark.parametrize("chosen", [CHOSEN, None])
def test_what_is_wanted_reaches_the_process(chosen: Chosen | None) -> None:
    config = MicConfig(device="USB", fallback=True)
    echo = "from stream.recorder import *; write_message(out, Refused(*sys.argv[1:], '', False))"
    recording = RecorderProcess(config, chosen, child(echo))
    with pytest.raises(SourceError) as caught:
        recording.get(DEADLINE_S)
    assert msgspec.json.decode(caught.value.seen, type=MicConfig) == config
    assert msgspec.json.decode(caught.value.expected, type=Chosen | None) == chosen
    recording.close()


def test_the_real_process_says_why_it_cannot_open_and_ends() -> None:
    recording = RecorderProcess(MicConfig(device="no such microphone"), None)
    with pytest.raises((SourceError, MissingDependency), match=r"no such microphone|libportaudio2|PortAudio"):
        recording.get(DEADLINE_S)
    recording.close()
    assert recording.ended


def test_what_lies_in_the_users_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stream", "queue", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('foreign')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    recording = RecorderProcess(MicConfig(device="no such microphone"), None)
    with pytest.raises((SourceError, MissingDependency), match=r"no such microphone|libportaudio2|PortAudio"):
        recording.get(DEADLINE_S)
    recording.close()


def test_the_real_process_ends_with_its_parent() -> None:
    # A parent that was killed is one whose end of standard input is closed.
    done = subprocess.run(
        [sys.executable, "-m", "stream.recorder", '{"device": "none"}', "null"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0
