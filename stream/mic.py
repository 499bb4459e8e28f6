"""A live microphone: 16 kHz int16, whatever the device runs at, for as long as it is wanted.

The rate of its callback is watched, not the list of devices. A microphone that gives nothing for a second is lost; it
is opened again, with back-off, until it is back. What was lost in between is skipped in the numbering of samples, which
follows the system's clock; nothing is put in its place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import Protocol, Self

from stream.backoff import STEADY_S, UNSTEADY_S, BackOff
from stream.channels import Channels
from stream.clock import samples_to_ns
from stream.config import MicConfig
from stream.items import AudioBlock, Change, Chosen, Stalled
from stream.portaudio import Opened, Piece
from stream.recorder import RecorderProcess
from stream.sampleline import SampleLine
from telme.errors import SourceError, TelmeStreamError

_LOG = logging.getLogger(__name__)
_NS_PER_S = 1_000_000_000


class Recording(Protocol):
    """An opened microphone: stream.recorder.RecorderProcess, as the microphone needs it."""

    def get(self, timeout_s: float) -> Opened | Piece | None:
        """What came next, `Opened` first; None when nothing came in time. Raises TelmeStreamError when it ended."""

    def close(self) -> None:
        """Give the device back."""


@dataclass(frozen=True)
class MicPatience:
    """How long a microphone may take, in seconds.

    Attributes:
        open_s: To open.
        first_sound_s: From then to its first sound: sound servers and Bluetooth take a second or two.
        stall_s: Between two pieces, before it counts as lost.
        back_off_s: Waits before each attempt to open one that is away; the last one repeats.
        unsteady_s: The same for one that gives sound for a moment only.
        steady_s: Sound for so long is no moment.
        from_start: Whether a microphone that is not there at the start is waited for too, as one that is lost.
    """

    open_s: float = 10.0
    first_sound_s: float = 5.0
    stall_s: float = 1.0
    back_off_s: tuple[float, ...] = (0.0, 0.5, 1.0)
    unsteady_s: tuple[float, ...] = UNSTEADY_S
    steady_s: float = STEADY_S
    from_start: bool = False


class Microphone:
    """A live microphone: a context manager whose `blocks` yields what it hears.

    Args:
        config: Device, whether the default one may stand in for it, channels to keep apart, length of the queue in
            blocks of 30 ms.
        on_change: Called when it is lost and when it gives sound again, in the thread that reads `blocks`.
        open_recording: Opens the device; it may fail at once or at `get`.
        patience: Deadlines.
        chosen: The device that an index in `config` meant before; None: it is what the index means now.

    Attributes:
        name: The device's name.
        chosen: The device that an index meant; None where none was given, and until it was there.
        lost_reason: Why it is lost, as far as is known by now; None while it is not.
        overflows: Times that sound was lost on its way here.
        reopens: Times that a lost device gave sound again.

    Raises:
        MissingDependency: On entering: sounddevice or PortAudio is not installed.
        SourceError: On entering: no such device, several, or it does not open, and it is not waited for from the start.
    """

    def __init__(
        self,
        config: MicConfig,
        on_change: Callable[[Change], None] = lambda change: None,
        open_recording: Callable[[MicConfig, Chosen | None], Recording] = RecorderProcess,
        patience: MicPatience = MicPatience(),
        chosen: Chosen | None = None,
    ) -> None:
        self._config = config
        self._on_change = on_change
        self._open_recording = open_recording
        self._patience = patience
        self._stopping = Event()
        self._recording: Recording | None = None
        self._opened: Opened | None = None
        self._back_off = BackOff(patience.back_off_s, patience.unsteady_s, patience.steady_s)
        self._first_ns: int | None = None  # when the first sound of this opening was in the air
        self._channels = Channels("the microphone")
        self.chosen = chosen
        self.name = "default" if self._wanted is None else str(self._wanted)
        self.lost_reason: str | None = None
        self.overflows = 0
        self.reopens = 0

    def __enter__(self) -> Self:
        try:
            self._open()
        except TelmeStreamError as error:
            self._close()
            if not (self._patience.from_start and isinstance(error, SourceError)):
                raise
            self._lose(error)
        # Session time begins now, not with the first sound: a sound server may take a second to give any.
        self._next_sample, self._next_ns = 0, time.monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._close()

    def stop(self) -> None:
        """End `blocks`, within `stall_s`. From any thread, any number of times."""
        self._stopping.set()

    @property
    def alive(self) -> bool:
        """Whether it is not lost."""
        return self.lost_reason is None

    def blocks(self) -> Iterator[AudioBlock | Stalled]:
        """Yield what it hears, about 30 ms at a time, and `Stalled` each second without sound, until `stop`."""
        while not self._stopping.is_set():
            try:
                yield from self._listen()
            except TelmeStreamError as error:
                self._lose(error)
                yield Stalled(time.monotonic_ns())
                self._close()
                yield from self._wait(self._back_off.after(self._given_s()))

    @property
    def _wanted(self) -> str | int | None:
        return self._config.device if self.chosen is None else self.chosen.name

    def _given_s(self) -> float | None:
        return None if self._first_ns is None else (self._next_ns - self._first_ns) / _NS_PER_S

    def _wait(self, wait_s: float) -> Iterator[Stalled]:
        """Wait, not deaf to what else happens."""
        step_s = self._patience.stall_s
        while not self._stopping.wait(min(wait_s, step_s)) and wait_s > step_s:
            wait_s -= step_s
            yield Stalled(time.monotonic_ns())

    def _open(self) -> None:
        self._recording = self._open_recording(self._config, self.chosen)
        opened = self._recording.get(self._patience.open_s)
        if not isinstance(opened, Opened):
            raise self._no("did not open", self._patience.open_s)
        self._opened = opened
        self._name(opened)
        _LOG.info("microphone %r at %d Hz", opened.name, opened.rate_hz)

    def _listen(self) -> Iterator[AudioBlock | Stalled]:
        """One opening, to its end."""
        self._first_ns = None
        recording = self._recording = self._recording or self._open_recording(self._config, self.chosen)
        opened, line, wait_s = self._opened, None, self._patience.open_s
        since_ns = time.monotonic_ns()
        while not self._stopping.is_set():
            item = recording.get(self._patience.stall_s)
            now_ns = time.monotonic_ns()
            if isinstance(item, Opened):
                opened, wait_s, since_ns = item, self._patience.first_sound_s, now_ns
            elif isinstance(item, Piece) and opened is not None:
                line = line or self._find(opened, item)
                yield from self._hear(line, item)
            elif line is not None:
                raise self._no("gave no sound", self._patience.stall_s)
            elif now_ns - since_ns > wait_s * _NS_PER_S:
                raise self._no("did not open" if opened is None else "gave no sound", wait_s)
            else:
                yield Stalled(now_ns)

    def _hear(self, line: SampleLine, piece: Piece) -> Iterator[AudioBlock]:
        losses = line.losses
        for first_sample, captured_ns, pcm in line.feed(piece):
            length = pcm.shape[1]
            self._next_sample = first_sample + length
            self._next_ns = captured_ns + samples_to_ns(length)
            arrived_ns = time.monotonic_ns()
            for number, channel in enumerate(self._channels.heard(pcm)):
                yield AudioBlock(first_sample, channel, captured_ns, arrived_ns, number)
        self.overflows += line.losses - losses

    def _find(self, opened: Opened, piece: Piece) -> SampleLine:
        """The first sound of an opening: number it by the clock, from where the sound before it ended."""
        if self.lost_reason is not None:
            self.lost_reason = None
            self._name(opened)
            self.reopens += 1
            _LOG.warning("microphone %r is back at %d Hz", self.name, opened.rate_hz)
            self._on_change("found")
        self._channels = Channels(f"microphone {self.name!r}")
        self._first_ns = piece.captured_ns
        first_sample = self._next_sample + max(0, piece.captured_ns - self._next_ns) // samples_to_ns(1)
        return SampleLine(opened.rate_hz, opened.channels, first_sample, splits=self._config.channels > 1)

    def _name(self, opened: Opened) -> None:
        self.name = opened.name
        if opened.stands_in:
            _LOG.warning(
                "microphone %r is not there; the default one, %r, is heard in its place", self._wanted, opened.name
            )
        elif self.chosen is None and opened.chosen is not None:
            # An index counts the devices that are there now: when one goes, it may mean another one.
            self.chosen = opened.chosen
            if self.chosen.among > 1:
                _LOG.warning(
                    "%d microphones are called %r; when this one is opened again, it is known by its place in the"
                    " order of `telme-stream devices`, as long as there are as many",
                    self.chosen.among,
                    self.name,
                )

    def _lose(self, error: TelmeStreamError) -> None:
        before, self.lost_reason = self.lost_reason, str(error)
        if self.lost_reason == before:
            _LOG.debug("microphone %r is still away: %s", self.name, error)
        elif before is not None:  # the first reason is often that no sound came; a later one says why
            _LOG.warning("microphone %r is still away: %s", self.name, error)
        else:
            _LOG.warning("microphone %r lost: %s", self.name, error)
            self._on_change("lost")

    def _close(self) -> None:
        recording, self._recording, self._opened = self._recording, None, None
        if recording is not None:
            recording.close()

    def _no(self, what: str, waited_s: float) -> SourceError:
        return SourceError(
            f"microphone {self.name!r} {what} for {waited_s:g} s",
            "sound each 30 ms",
            "see whether it is still plugged in; `telme-stream devices` lists what there is",
        )
