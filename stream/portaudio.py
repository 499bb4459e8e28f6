"""PortAudio: which microphones there are, and one of them opened. Only `stream.recorder` opens one in earnest.

PortAudio's callback only stamps, copies and queues. sounddevice is imported when it is needed, not before.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from threading import Thread
from typing import Any

from msgspec import Struct

from stream.config import MicConfig
from stream.items import SAMPLE_RATE_HZ, Chosen
from telme.errors import MissingDependency, SourceError

_LOG = logging.getLogger(__name__)
_NS_PER_S = 1_000_000_000
_BLOCK_MS = 30
_MAX_LATENCY_S = 5.0  # a converter's stamp older than this against PortAudio's clock is no stamp
_A_SECOND = 1000 // _BLOCK_MS  # in callbacks
_TEN_SECONDS = 10 * _A_SECOND
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
    elif _is_index(wanted):
        found = [mic for mic in microphones if mic.index == int(wanted)]
    else:
        name = str(wanted)
        found = [mic for mic in microphones if mic.name == name]
        found = found or [mic for mic in microphones if name.lower() in mic.name.lower()]
    if len(found) == 1:
        return found[0]
    meant = "the default microphone" if wanted is None else f"microphone {wanted!r}"
    if not microphones:
        raise SourceError(
            f"{meant} is not there, nor any other",
            "a microphone that PortAudio lists",
            "plug one in, see that the sound server runs, or replay a recording with --input FILE",
        )
    candidates = ", ".join(f"{mic.index} {mic.name!r}" for mic in (found or microphones))
    raise SourceError(
        f"{meant} is {'ambiguous' if found else 'not there'}",
        f"one of: {candidates}",
        "name one by index or full name; `telme-stream devices` lists them",
    )


def known_as(microphones: Sequence[MicrophoneInfo], info: MicrophoneInfo) -> Chosen:
    """How a listed device is found in a later list."""
    same = _named(microphones, info.name, info.host_api)
    return Chosen(info.name, info.host_api, same.index(info), len(same))


def find_again(microphones: Sequence[MicrophoneInfo], chosen: Chosen) -> MicrophoneInfo:
    """The device that was chosen, in a later list.

    Those of one name have nothing but their order, which says nothing once there are more or fewer of them.

    Raises:
        SourceError: It is not there, or it cannot be told which one it is.
    """
    same = _named(microphones, chosen.name, chosen.host_api)
    if len(same) == chosen.among:
        return same[chosen.place]
    name = f"{chosen.name!r} ({chosen.host_api})"
    if not same:
        raise SourceError(
            f"microphone {name} is not there",
            "the one that was chosen by index",
            "plug it in, or start again with another one of `telme-stream devices`",
        )
    raise SourceError(
        f"which microphone {name} is meant cannot be told: their number is {len(same)}",
        f"{chosen.among}, as when one of them was chosen by index",
        "plug in what went or unplug what came, or start again with another one of `telme-stream devices`",
    )


def _named(microphones: Sequence[MicrophoneInfo], name: str, host_api: str) -> list[MicrophoneInfo]:
    return [mic for mic in microphones if (mic.name, mic.host_api) == (name, host_api)]


def _is_index(wanted: str | int | None) -> bool:
    return isinstance(wanted, int) or (wanted is not None and wanted.isdecimal())


def _import_sounddevice() -> Any:
    try:
        import sounddevice
    except OSError as error:  # the Python package is there, the C library is not
        raise MissingDependency(f"{error}", "PortAudio", "run `apt-get install libportaudio2`") from error
    except ImportError as error:
        raise MissingDependency(f"{error}", "sounddevice", "run `pip install sounddevice`") from error
    return sounddevice


class LatencyMeter:
    """How long a sample takes from the air to the callback: the median of what PortAudio says in the first ten seconds.

    The true figure does not change while nothing is lost, but what PortAudio says of it does: half a second too much
    in a stream's first second, and a saw tooth of 30 ms over most of a minute, were seen with PulseAudio. Some hosts
    say nothing or nonsense. The time of the callback itself is steady to a millisecond.
    """

    def __init__(self) -> None:
        self._median_ns = 0
        self.restart()

    def restart(self) -> None:
        """Measure anew: sound was lost, and what waits on the way may be more or less than before."""
        self._said_ns: list[int] = []
        self._seen = 0

    def observe(self, adc_s: float, current_s: float, length_ns: int) -> int:
        """Take what one callback was told; return the latency in ns, of the block's first sample.

        Args:
            adc_s: PortAudio's time of that sample at the converter.
            current_s: PortAudio's time of the callback, on the same clock.
            length_ns: The block's length. A sample cannot be younger than its block is long.
        """
        self._seen += 1
        said_s = current_s - adc_s
        is_sense = adc_s > 0 and 0 < said_s < _MAX_LATENCY_S  # false for NaN too
        if is_sense and _A_SECOND < self._seen <= _TEN_SECONDS:
            self._said_ns.append(round(said_s * _NS_PER_S))
            if self._seen % _A_SECOND == 1:
                self._median_ns = median_low(self._said_ns)
        return max(self._median_ns, length_ns)


class Opened(Struct, frozen=True, tag="opened"):
    """The microphone is open.

    Attributes:
        name: Its own.
        rate_hz: Of its pieces.
        channels: Of its pieces.
        stands_in: It is the default one, opened in the place of the one that was asked for.
        chosen: How it is known again, where an index was asked for and it is the one.
    """

    name: str
    rate_hz: int
    channels: int
    stands_in: bool = False
    chosen: Chosen | None = None


class Piece(Struct, frozen=True, tag="piece"):
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


class PortAudioRecording:
    """A microphone opened in this process: first `Opened`, then pieces of 30 ms.

    Args:
        config: Device, whether the default one may stand in for it, length of the queue in pieces.
        portaudio: The sounddevice module; None imports it.
        chosen: The device that the index meant when it was opened first; None: this is the first time.

    Raises:
        MissingDependency: sounddevice or PortAudio is not installed.
        SourceError: No such device, several, or it does not open.
    """

    def __init__(self, config: MicConfig, portaudio: Any = None, chosen: Chosen | None = None) -> None:
        self._portaudio = portaudio or _import_sounddevice()
        self._pieces: queue.Queue[Piece | None] = queue.Queue(config.queue_blocks)
        self._latency = LatencyMeter()
        self._frames_seen = 0
        self._glitch = False
        microphones = list_microphones(self._portaudio)
        self._info, stands_in = _choose(microphones, config, chosen)
        self._channels = config.channels
        self._rate_hz = SAMPLE_RATE_HZ
        self._stream, channels = self._open()
        by_index = _is_index(config.device) and not stands_in
        known = known_as(microphones, self._info) if by_index else None
        self._opened: Opened | None = Opened(self._info.name, self._rate_hz, channels, stands_in, known)

    def get(self, timeout_s: float) -> Opened | Piece | None:
        """What came next; None when nothing came in so many seconds.

        Raises:
            SourceError: The stream ended by itself.
        """
        if self._opened is not None:
            opened, self._opened = self._opened, None
            return opened
        try:
            piece = self._pieces.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if piece is None:
            raise SourceError(
                f"microphone {self._info.name!r} ended by itself", "sound", "see whether it is still plugged in"
            )
        return piece

    def close(self) -> None:
        """Give the device back. PortAudio may hang when it closes one that was unplugged; then it is left alone."""
        closer = Thread(target=self._stream.close, name="microphone-close", daemon=True)
        closer.start()
        closer.join(_CLOSE_S)
        if closer.is_alive():
            _LOG.warning("microphone %r did not close within %g s", self._info.name, _CLOSE_S)

    def _open(self) -> tuple[Any, int]:
        refusals = []
        for rate_hz, channels in _formats(self._info, self._channels):
            self._rate_hz = rate_hz
            try:
                return self._start(self._info.index, rate_hz, channels), channels
            except self._portaudio.PortAudioError as error:
                refusals.append(f"{rate_hz} Hz x {channels}: {error}")
        raise SourceError(
            f"microphone {self._info.name!r} does not open ({'; '.join(refusals)})",
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
            finished_callback=self._on_end,
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
        latency_ns = self._latency.observe(times.inputBufferAdcTime, times.currentTime, length_ns)
        if status.input_overflow:
            self._latency.restart()
            self._glitch = True
        piece = Piece(self._frames_seen, now_ns - latency_ns, self._glitch, bytes(data))
        self._frames_seen += frames
        try:
            self._pieces.put_nowait(piece)
            self._glitch = False
        except queue.Full:
            return  # the numbers of the frames show what is missing

    def _on_end(self) -> None:
        try:
            self._pieces.put_nowait(None)
        except queue.Full:
            return  # what comes no more will be noticed


def _choose(
    microphones: Sequence[MicrophoneInfo], config: MicConfig, chosen: Chosen | None
) -> tuple[MicrophoneInfo, bool]:
    """The device to open, and whether it stands in for the one that is asked for."""
    try:
        if chosen is not None:
            return find_again(microphones, chosen), False
        return choose_microphone(microphones, config.device), False
    except SourceError:
        if config.device is None or not config.fallback:
            raise
    return choose_microphone(microphones, None), True


def _formats(info: MicrophoneInfo, channels: int) -> list[tuple[int, int]]:
    """Rates in Hz and channels to try, best first: ours, then the device's own.

    Raises:
        SourceError: Several channels are wanted, and the device has fewer.
    """
    if channels > info.channels:
        raise SourceError(
            f"microphone {info.name!r} has {info.channels} input channels",
            f"{channels}, as --mic-channels says",
            "choose another one of `telme-stream devices`, or use --speakers cluster with one channel",
        )
    if channels > 1:
        return list(dict.fromkeys([(SAMPLE_RATE_HZ, channels), (info.rate_hz, channels)]))
    native = [(info.rate_hz, channels) for channels in sorted({1, min(2, info.channels), info.channels})]
    return list(dict.fromkeys([(SAMPLE_RATE_HZ, 1), *native]))
