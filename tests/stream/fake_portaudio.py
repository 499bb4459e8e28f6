"""PortAudio as sounddevice shows it, without a sound card: the test plays the part of the audio thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from stream.items import Pcm

NO_STATUS = SimpleNamespace(input_overflow=False)
OVERFLOWN = SimpleNamespace(input_overflow=True)


class FakePortAudioError(Exception):
    """As sounddevice.PortAudioError."""


@dataclass
class FakeStream:
    """As sounddevice.RawInputStream; the test plays the part of the audio thread."""

    settings: dict[str, Any]
    start_error: Exception | None = None
    closed: bool = False

    def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    def close(self) -> None:
        self.closed = True
        self.settings["finished_callback"]()

    def hear(self, pcm: Pcm, status: Any = NO_STATUS, adc_s: float = 0.0, now_s: float = 0.0) -> None:
        """One callback with interleaved samples; times of 0 are those of a host that gives none."""
        times = SimpleNamespace(inputBufferAdcTime=adc_s, currentTime=now_s)
        self.settings["callback"](pcm.tobytes(), len(pcm) // self.settings["channels"], times, status)


@dataclass
class FakePortAudio:
    """As the module sounddevice."""

    devices: Sequence[dict[str, Any]]
    default_input: int = 0
    formats: set[tuple[int, int]] = field(default_factory=lambda: {(16_000, 1)})
    start_error: Exception | None = None
    streams: list[FakeStream] = field(default_factory=list)
    PortAudioError = FakePortAudioError

    @property
    def default(self) -> Any:
        return SimpleNamespace(device=(self.default_input, -1))

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "ALSA"}, {"name": "JACK"}]

    def query_devices(self) -> Sequence[dict[str, Any]]:
        return self.devices

    def check_input_settings(self, device: int, channels: int, dtype: str, samplerate: int) -> None:
        if (samplerate, channels) not in self.formats:
            raise FakePortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def RawInputStream(self, **settings: Any) -> FakeStream:
        self.streams.append(FakeStream(settings, self.start_error))
        return self.streams[-1]


def device(name: str, channels: int = 1, rate_hz: float = 48_000.0, host_api: int = 0) -> dict[str, Any]:
    return {"name": name, "hostapi": host_api, "max_input_channels": channels, "default_samplerate": rate_hz}


def portaudio(**options: Any) -> FakePortAudio:
    return FakePortAudio([device("built-in", channels=2), device("speakers", channels=0), device("USB mic")], **options)
