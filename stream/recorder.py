"""The microphone's own small process, both ends of its pipe.

PortAudio lists the devices once, when it is loaded; and when a sound server or a device goes away, its thread may spin
and its calls may hang for ever. Nothing inside a process cures that. So each opening of the microphone is a process:
a new one sees the devices as they are now, and an old one can be killed. It ends with its parent, whose end closes its
standard input.

On the pipe (the child's standard output): 4 bytes of length, little endian, then msgpack of a tagged struct.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from typing import IO, TypeAlias

import msgspec
from msgspec import Struct

from stream.config import MicConfig
from stream.items import Chosen
from stream.portaudio import Opened, Piece, PortAudioRecording
from telme.errors import MissingDependency, SourceError, TelmeStreamError

_LENGTH_BYTES = 4
_FOR_EVER_S = 3600.0
_EXIT_S = 2.0


class Refused(Struct, frozen=True, tag="refused"):
    """The last word: it did not open, or it ended. `is_missing`: a library is not installed."""

    seen: str
    expected: str
    remedy: str
    is_missing: bool


Message: TypeAlias = Opened | Piece | Refused

_decoder = msgspec.msgpack.Decoder(Message)


def write_message(out: IO[bytes], message: Message) -> None:
    """Put one message on the pipe, now."""
    body = msgspec.msgpack.encode(message)
    out.write(len(body).to_bytes(_LENGTH_BYTES, "little") + body)
    out.flush()


def read_message(pipe: IO[bytes]) -> Message | None:
    """Take one message off the pipe; None at its end, and where it was cut."""
    head = pipe.read(_LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    body = pipe.read(length) if len(head) == _LENGTH_BYTES else b""
    return _decoder.decode(body) if body and len(body) == length else None


# -P: what lies in the user's folder is not imported.
_COMMAND = (sys.executable, "-P", "-m", "stream.recorder")


class RecorderProcess:
    """A microphone opened by a process of its own: first `Opened`, then pieces of 30 ms.

    Args:
        config: Device, whether the default one may stand in for it, length of the queue in pieces.
        chosen: The device that the index meant when it was opened first; None: this is the first time.
        command: Starts the process; both of these as JSON are added as its last arguments.
    """

    def __init__(self, config: MicConfig, chosen: Chosen | None, command: tuple[str, ...] = _COMMAND) -> None:
        self._arrived: queue.Queue[Opened | Piece | None] = queue.Queue(config.queue_blocks)
        self._failure: TelmeStreamError | None = None
        # Standard error is PortAudio's and ALSA's: they write thousands of lines there while a device is away.
        self._process = subprocess.Popen(
            [*command, *(msgspec.json.encode(part).decode() for part in (config, chosen))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._reader = threading.Thread(target=self._read, name="microphone", daemon=True)
        self._reader.start()

    def get(self, timeout_s: float) -> Opened | Piece | None:
        """What came next; None when nothing came in so many seconds.

        Raises:
            MissingDependency: sounddevice or PortAudio is not installed.
            SourceError: The microphone did not open, or it ended.
        """
        try:
            item = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            item = None
        if item is None and self._failure is not None:
            raise self._failure
        return item

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the process, by force if it does not listen."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while (message := read_message(self._process.stdout)) is not None:
            if isinstance(message, Refused):
                kind = MissingDependency if message.is_missing else SourceError
                self._failure = kind(message.seen, message.expected, message.remedy)
                break
            try:
                self._arrived.put_nowait(message)
            except queue.Full:
                continue  # the numbers of the frames show what is missing
        self._failure = self._failure or SourceError(
            "the microphone's process ended", "sound", "run `python -P -m stream.recorder '{}' null` to see why"
        )
        try:
            self._arrived.put_nowait(None)
        except queue.Full:
            return  # what is queued is heard first


def record(config: MicConfig, chosen: Chosen | None, out: IO[bytes]) -> None:
    """The child: open the microphone and write what it brings, until it ends or cannot be opened."""
    try:
        recording = PortAudioRecording(config, chosen=chosen)
        while True:
            item = recording.get(_FOR_EVER_S)
            if item is not None:
                write_message(out, item)
    except TelmeStreamError as error:
        write_message(out, Refused(error.seen, error.expected, error.remedy, isinstance(error, MissingDependency)))


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # PortAudio may hang in an orderly exit


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    _config, _chosen = sys.argv[1:]
    record(
        msgspec.json.decode(_config, type=MicConfig),
        msgspec.json.decode(_chosen, type=Chosen | None),
        sys.stdout.buffer,
    )
    os._exit(0)
