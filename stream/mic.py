"""A live microphone over PortAudio: 16 kHz mono int16, whatever the device runs at.

PortAudio's callback only stamps, copies and queues; all else happens where `Microphone.blocks` is read.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

import numpy as np
import soxr
from numpy.typing import NDArray

from stream.clock import samples_to_ns
from stream.config import MicConfig
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Pcm
from telme.errors import MissingDependency, SourceError

_LOG = logging.getLogger(__name__)
_NS_PER_S = 1_000_000_000
_BLOCK_MS = 30
_MAX_LATENCY_S = 5.0  # a converter's stamp older than this against PortAudio's clock is no stamp
_CLOSE_S = 2.0


@dataclass(frozen=True)
class MicrophoneInfo:
    """An input device as PortAudio lists it.

    Attributes:
        index: PortAudio's number; changes when devices come and go.
        name: The device's name, not always unique.
        host_api: ALSA, Core Audio, WASAPI, ...
        channels: Most input channels.
        rate_hz: Its native sample rate.
        is_default: Whether it is the one used when none is named.
    """

    index: int
    name: str
    host_api: str
    channels: int
    rate_hz: int
    is_default: bool


def list_microphones(portaudio: Any = None) -> list[MicrophoneInfo]:
    """Input devices, as they were when PortAudio was loaded into this process.

    Args:
        portaudio: The sounddevice module; None imports it.

    Raises:
        MissingDependency: sounddevice or PortAudio is not installed.
        SourceError: PortAudio cannot list its devices.
    """
    portaudio = portaudio or _import_sounddevice()
    try:
        default = portaudio.default.device[0]
        host_apis = [api["name"] for api in portaudio.query_hostapis()]
        devices = list(portaudio.query_devices())
    except portaudio.PortAudioError as error:
        raise SourceError(f"PortAudio: {error}", "a list of devices", "see whether the sound server runs") from error
    return [
        MicrophoneInfo(
            index=index,
            name=str(device["name"]),
            host_api=str(host_apis[device["hostapi"]]),
            channels=int(device["max_input_channels"]),
            rate_hz=round(device["default_samplerate"]),
            is_default=index == default,
        )
        for index, device in enumerate(devices)
        if device["max_input_channels"] > 0
    ]


def choose_microphone(microphones: Sequence[MicrophoneInfo], wanted: str | int | None) -> MicrophoneInfo:
    """The device meant by an index, an exact name or a part of one name only; None means the default one.

    Raises:
        SourceError: None or several of the devices are meant.
    """
    if wanted is None:
        found = [mic for mic in microphones if mic.is_default]
    elif isinstance(wanted, int) or wanted.isdecimal():
        found = [mic for mic in microphones if mic.index == int(wanted)]
    else:
        found = [mic for mic in microphones if mic.name == wanted]
        found = found or [mic for mic in microphones if wanted.lower() in mic.name.lower()]
    if len(found) == 1:
        return found[0]
    meant = "the default microphone" if wanted is None else f"microphone {wanted!r}"
    candidates = ", ".join(f"{mic.index} {mic.name!r}" for mic in (found or microphones)) or "no input device at all"
    raise SourceError(
        f"{meant} is {'ambiguous' if found else 'not there'}",
        f"one of: {candidates}",
        "name one by index or full name; `telme-stream devices` lists them",
    )


def _import_sounddevice() -> Any:
    try:
        import sounddevice
    except OSError as error:  # the Python package is there, the C library is not
        raise MissingDependency(f"{error}", "PortAudio", "run `apt-get install libportaudio2`") from error
    except ImportError as error:
        raise MissingDependency(f"{error}", "sounddevice", "run `pip install sounddevice`") from error
    return sounddevice


def capture_time_ns(now_ns: int, adc_s: float, current_s: float, length_ns: int) -> int:
    """When a block's first sample was in the air, on the clock of `now_ns`.

    Some hosts give zeros or nonsense as stamps. A sample cannot be younger than its block is long.

    Args:
        now_ns: time.monotonic_ns in the callback.
        adc_s: PortAudio's time of the first sample at the converter.
        current_s: PortAudio's time of the callback, on the same clock as `adc_s`.
        length_ns: The block's length.
    """
    latency_s = current_s - adc_s
    if adc_s > 0 and 0 < latency_s < _MAX_LATENCY_S:  # false for NaN too
        return now_ns - max(round(latency_s * _NS_PER_S), length_ns)
    return now_ns - length_ns


@dataclass(frozen=True)
class Piece:
    """What one PortAudio callback brought.

    Attributes:
        first_frame: Number of its first frame (one sample of each channel) since the stream was opened.
        captured_ns: When that frame was in the air.
        has_glitch: PortAudio lost an unknown number of frames before it.
        data: Interleaved int16.
    """

    first_frame: int
    captured_ns: int
    has_glitch: bool
    data: bytes


class SampleLine:
    """Pieces of a device's rate and channels -> stamped 16 kHz mono samples, numbered honestly across losses.

    What was lost is skipped in the numbering; nothing is put in its place, and the samples on both sides of a
    gap are not filtered into each other.

    Args:
        rate_hz: The device's rate.
        channels: The device's channels, mixed down to their mean.
    """

    def __init__(self, rate_hz: int, channels: int) -> None:
        self._rate_hz = rate_hz
        self._channels = channels
        self._lost_frames = 0  # inside PortAudio, estimated
        self._next_frame = 0
        self._next_captured_ns = 0
        self._start_run(0)

    def feed(self, piece: Piece) -> list[tuple[int, int, Pcm]]:
        """Take one piece; return (first sample, captured_ns, samples) for what is ready: none, one or two."""
        frames = self._mono(piece.data)
        if piece.has_glitch and self._next_captured_ns:
            gap_ns = piece.captured_ns - self._next_captured_ns
            self._lost_frames += max(0, gap_ns * self._rate_hz // _NS_PER_S)
        first_frame = piece.first_frame + self._lost_frames
        ready = []
        if first_frame != self._next_frame:
            ready.append(self._numbered(self._resample(np.empty(0, np.float32), is_last=True)))
            self._start_run(first_frame)
        # The stamp of the run's first frame, seen from this piece: drift of the device's clock is followed.
        self._run_captured_ns = piece.captured_ns - (first_frame - self._run_frame) * _NS_PER_S // self._rate_hz
        ready.append(self._numbered(self._resample(frames, is_last=False)))
        self._next_frame = first_frame + len(frames)
        self._next_captured_ns = piece.captured_ns + len(frames) * _NS_PER_S // self._rate_hz
        return [item for item in ready if len(item[2])]

    def _start_run(self, frame: int) -> None:
        self._run_frame = frame
        self._run_sample = frame * SAMPLE_RATE_HZ // self._rate_hz
        self._run_length = 0
        self._run_captured_ns = 0
        self._resampler = (
            None
            if self._rate_hz == SAMPLE_RATE_HZ
            else soxr.ResampleStream(self._rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        )

    def _mono(self, data: bytes) -> NDArray[np.float32]:
        frames = np.frombuffer(data, np.int16).reshape(-1, self._channels)
        return np.asarray(frames.mean(axis=1, dtype=np.float32))

    def _resample(self, frames: NDArray[np.float32], is_last: bool) -> Pcm:
        if self._resampler is not None:
            frames = self._resampler.resample_chunk(frames, last=is_last)
        return np.rint(frames).clip(-32768, 32767).astype(np.int16)

    def _numbered(self, pcm: Pcm) -> tuple[int, int, Pcm]:
        first = self._run_sample + self._run_length
        captured_ns = self._run_captured_ns + samples_to_ns(self._run_length)
        self._run_length += len(pcm)
        return first, captured_ns, pcm


class Microphone:
    """A live microphone: a context manager whose `blocks` yields what it hears.

    Args:
        config: Device and length of the queue in blocks of 30 ms.
        portaudio: The sounddevice module; None imports it when the device is opened.
        patience_s: A device that gives nothing for so long is lost.
        start_s: The same before its first block: sound servers and Bluetooth take a second or two.

    Attributes:
        overflows: Times that sound was lost, because the queue was full or in PortAudio.

    Raises:
        MissingDependency: On entering: sounddevice or PortAudio is not installed.
        SourceError: On entering: no such device, several, or it does not open.
    """

    def __init__(self, config: MicConfig, portaudio: Any = None, patience_s: float = 1.0, start_s: float = 5.0) -> None:
        self._config = config
        self._portaudio = portaudio
        self._patience_s = patience_s
        self._wait_s = start_s
        self._pieces: queue.Queue[Piece | None] = queue.Queue(config.queue_blocks)
        self._stopping = Event()
        self._frames_seen = 0
        self._glitch = False
        self._rate_hz = SAMPLE_RATE_HZ
        self.overflows = 0

    def __enter__(self) -> Self:
        self._portaudio = self._portaudio or _import_sounddevice()
        self._info = choose_microphone(list_microphones(self._portaudio), self._config.device)
        self._stream, self._line = self._open(self._info)
        _LOG.info("microphone %r at %d Hz", self._info.name, self._rate_hz)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        # PortAudio may hang when it closes a device that was unplugged.
        closer = Thread(target=self._stream.close, name="microphone-close", daemon=True)
        closer.start()
        closer.join(_CLOSE_S)
        if closer.is_alive():
            _LOG.warning("microphone %r did not close within %g s", self._info.name, _CLOSE_S)

    def stop(self) -> None:
        """End `blocks`. From any thread, any number of times."""
        self._stopping.set()
        self._wake()

    def blocks(self) -> Iterator[AudioBlock]:
        """Yield what the microphone hears, about 30 ms at a time, until `stop`.

        Raises:
            SourceError: The device is lost: nothing came for `patience_s` (at first `start_s`), or PortAudio ended the
                stream.
        """
        while (piece := self._receive()) is not None:
            for first_sample, captured_ns, pcm in self._line.feed(piece):
                yield AudioBlock(first_sample, pcm, captured_ns, time.monotonic_ns())

    def _receive(self) -> Piece | None:
        if self._stopping.is_set():
            return None
        try:
            piece = self._pieces.get(timeout=self._wait_s)
            reason = "ended by itself"
        except queue.Empty:
            piece = None
            reason = f"gave no sound for {self._wait_s:g} s"
        if self._stopping.is_set():
            return None
        if piece is None:
            _LOG.warning("microphone %r lost: %s", self._info.name, reason)
            raise SourceError(
                f"microphone {self._info.name!r} {reason}", "a block each 30 ms", "see whether it is still plugged in"
            )
        self._wait_s = self._patience_s
        return piece

    def _open(self, info: MicrophoneInfo) -> tuple[Any, SampleLine]:
        refusals = []
        for rate_hz, channels in _formats(info):
            self._rate_hz = rate_hz
            line = SampleLine(rate_hz, channels)
            try:
                return self._start(info.index, rate_hz, channels), line
            except self._portaudio.PortAudioError as error:
                refusals.append(f"{rate_hz} Hz x {channels}: {error}")
        raise SourceError(
            f"microphone {info.name!r} does not open ({'; '.join(refusals)})",
            "a free device",
            "see whether another program holds it, or choose another one of `telme-stream devices`",
        )

    def _start(self, device: int, rate_hz: int, channels: int) -> Any:
        settings = {"device": device, "channels": channels, "dtype": "int16", "samplerate": rate_hz}
        self._portaudio.check_input_settings(**settings)
        stream = self._portaudio.RawInputStream(
            **settings,
            blocksize=rate_hz * _BLOCK_MS // 1000,
            callback=self._on_audio,
            finished_callback=self._wake,
        )
        try:
            stream.start()
        except self._portaudio.PortAudioError:
            stream.close()
            raise
        return stream

    def _on_audio(self, data: Any, frames: int, times: Any, status: Any) -> None:
        now_ns = time.monotonic_ns()
        length_ns = frames * _NS_PER_S // self._rate_hz
        captured_ns = capture_time_ns(now_ns, times.inputBufferAdcTime, times.currentTime, length_ns)
        if status.input_overflow:
            self.overflows += 1
            self._glitch = True
        piece = Piece(self._frames_seen, captured_ns, self._glitch, bytes(data))
        self._frames_seen += frames
        try:
            self._pieces.put_nowait(piece)
            self._glitch = False
        except queue.Full:
            self.overflows += 1

    def _wake(self) -> None:
        try:
            self._pieces.put_nowait(None)
        except queue.Full:
            return  # then nobody waits for it


def _formats(info: MicrophoneInfo) -> list[tuple[int, int]]:
    """Rates in Hz and channels to try, best first: ours, then the device's own."""
    native = [(info.rate_hz, channels) for channels in sorted({1, min(2, info.channels), info.channels})]
    return list(dict.fromkeys([(SAMPLE_RATE_HZ, 1), *native]))
