"""The microphone against a fake PortAudio: stamps, losses, rates, device choice, end."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.config import MicConfig
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Pcm
from stream.mic import (
    Microphone,
    MicrophoneInfo,
    Piece,
    SampleLine,
    capture_time_ns,
    choose_microphone,
    list_microphones,
)
from telme.errors import MissingDependency, SourceError

MS = 1_000_000
DEADLINE_S = 20.0
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
        return [{"name": "ALSA"}]

    def query_devices(self) -> Sequence[dict[str, Any]]:
        return self.devices

    def check_input_settings(self, device: int, channels: int, dtype: str, samplerate: int) -> None:
        if (samplerate, channels) not in self.formats:
            raise FakePortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def RawInputStream(self, **settings: Any) -> FakeStream:
        self.streams.append(FakeStream(settings, self.start_error))
        return self.streams[-1]


def device(name: str, channels: int = 1, rate_hz: float = 48_000.0) -> dict[str, Any]:
    return {"name": name, "hostapi": 0, "max_input_channels": channels, "default_samplerate": rate_hz}


def portaudio(**options: Any) -> FakePortAudio:
    return FakePortAudio([device("built-in", channels=2), device("speakers", channels=0), device("USB mic")], **options)


def ramp(start: int, length: int) -> Pcm:
    return np.arange(start, start + length).astype(np.int16)


def take(mic: Microphone, blocks: int) -> list[AudioBlock]:
    source = mic.blocks()
    return [next(source) for _ in range(blocks)]


def info(index: int, name: str, is_default: bool = False) -> MicrophoneInfo:
    return MicrophoneInfo(index, name, "ALSA", 1, 48_000, is_default)


MICROPHONES = [info(0, "USB mic", is_default=True), info(2, "USB mic pro"), info(5, "built-in")]


@pytest.mark.parametrize(
    ("wanted", "index"), [(None, 0), (2, 2), ("2", 2), ("USB mic", 0), ("pro", 2), ("BUILT", 5), ("usb mic p", 2)]
)
def test_a_microphone_is_chosen_by_index_name_or_part_of_one(wanted: str | int | None, index: int) -> None:
    assert choose_microphone(MICROPHONES, wanted).index == index


@pytest.mark.parametrize(("wanted", "seen"), [("usb", "ambiguous"), ("radio", "not there"), (1, "not there")])
def test_an_unknown_or_ambiguous_microphone_names_the_candidates(wanted: str | int, seen: str) -> None:
    with pytest.raises(SourceError, match="telme-stream devices") as caught:
        choose_microphone(MICROPHONES, wanted)
    assert seen in caught.value.seen
    assert "0 'USB mic', 2 'USB mic pro'" in caught.value.expected
    assert ("built-in" in caught.value.expected) == (seen == "not there")


def test_a_machine_without_a_microphone_says_so() -> None:
    with pytest.raises(SourceError, match="the default microphone is not there; expected one of: no input device"):
        choose_microphone([], None)


def test_list_microphones_leaves_outputs_out() -> None:
    assert list_microphones(portaudio(default_input=2)) == [
        MicrophoneInfo(0, "built-in", "ALSA", 2, 48_000, False),
        MicrophoneInfo(2, "USB mic", "ALSA", 1, 48_000, True),
    ]


def test_without_portaudio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(MissingDependency, match="apt-get install libportaudio2"):
        list_microphones()


def test_without_sounddevice_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependency, match="pip install sounddevice"):
        list_microphones()


def test_sounddevice_is_not_loaded_before_a_microphone_is_opened() -> None:
    code = "import sys, stream.mic; raise SystemExit('sounddevice' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("adc_s", "current_s", "age_ns"),
    [
        (100.0, 100.25, 250 * MS),
        (100.0, 100.01, 30 * MS),  # a sample cannot be younger than its block
        (0.0, 0.0, 30 * MS),
        (0.0, 100.0, 30 * MS),
        (100.0, 0.0, 30 * MS),
        (100.0, 99.0, 30 * MS),
        (1.0, 100.0, 30 * MS),
        (math.nan, 100.0, 30 * MS),
    ],
)
def test_capture_time_is_portaudios_where_it_makes_sense(adc_s: float, current_s: float, age_ns: int) -> None:
    assert capture_time_ns(10**12, adc_s, current_s, 30 * MS) == pytest.approx(10**12 - age_ns, abs=1000)


# --- SampleLine


def pieces(frames: Pcm, cuts: Sequence[int], lost: set[int], rate_hz: int, channels: int) -> list[Piece]:
    """The frames [F, channels] cut at `cuts`; those pieces whose number is in `lost` never arrive."""
    edges = [0, *sorted(cuts), len(frames)]
    return [
        Piece(start, 10**9 + start * 10**9 // rate_hz, False, frames[start:end].tobytes())
        for number, (start, end) in enumerate(pairwise(edges))
        if number not in lost
    ]


@given(
    st.sampled_from([8_000, 16_000, 44_100, 48_000]),
    st.integers(1, 3),
    st.lists(st.integers(0, 6_000), max_size=12),
    st.sets(st.integers(1, 12)),
)
def test_numbers_and_stamps_stay_true_however_sound_is_cut_and_lost(
    rate_hz: int, channels: int, cuts: list[int], lost: set[int]
) -> None:
    line = SampleLine(rate_hz, channels)
    frames = np.zeros((6_000, channels), np.int16)
    next_sample = 0
    for piece in pieces(frames, cuts, lost, rate_hz, channels):
        end_ns = piece.captured_ns + len(piece.data) // 2 // channels * 10**9 // rate_hz
        for first, captured_ns, pcm in line.feed(piece):
            assert first >= next_sample
            assert captured_ns == pytest.approx(10**9 + first * 10**9 / SAMPLE_RATE_HZ, abs=10**9 / rate_hz + 62_500)
            assert captured_ns + len(pcm) * 62_500 <= end_ns + 2 * 62_500
            next_sample = first + len(pcm)


@given(st.lists(st.integers(0, 9_600), max_size=12))
def test_the_cut_does_not_change_the_sound(cuts: list[int]) -> None:
    at = np.arange(9_600) / 48_000
    frames = np.repeat((np.sin(2 * np.pi * 440 * at) * 10_000).astype(np.int16)[:, None], 2, axis=1)

    def through(cuts: Sequence[int]) -> Pcm:
        line = SampleLine(48_000, 2)
        ready = [pcm for piece in pieces(frames, cuts, set(), 48_000, 2) for _, _, pcm in line.feed(piece)]
        return np.concatenate([*ready, np.zeros(0, np.int16)])

    whole, cut = through([]), through(cuts)
    shared = min(len(whole), len(cut))
    np.testing.assert_allclose(cut[:shared], whole[:shared], atol=1)
    assert len(whole) == pytest.approx(3_200, abs=400)  # the filter holds its last ms back
    expected = np.sin(2 * np.pi * 440 * np.arange(shared) / SAMPLE_RATE_HZ) * 10_000
    assert np.abs(cut[200:shared] - expected[200:]).max() < 50  # neither late nor early


def test_a_gap_ends_the_sound_before_it() -> None:
    line = SampleLine(48_000, 1)
    frames = np.full((4_800, 1), 1_000, np.int16)
    before, _, after = pieces(frames, [1_440, 2_880], set(), 48_000, 1)
    got = [*line.feed(before), *line.feed(after)]
    assert sum(len(pcm) for first, _, pcm in got if first < 960) == pytest.approx(480, abs=1)
    assert next(first for first, _, _ in got if first >= 480) == 960


def test_channels_are_mixed_to_their_mean() -> None:
    frames = np.stack([ramp(0, 480), ramp(1_000, 480)], axis=1)
    ((_, _, pcm),) = SampleLine(16_000, 2).feed(Piece(0, 0, False, frames.tobytes()))
    np.testing.assert_array_equal(pcm, ramp(500, 480))


def test_frames_lost_inside_portaudio_are_told_from_the_stamps() -> None:
    line = SampleLine(16_000, 1)
    line.feed(Piece(0, 10**9, False, ramp(0, 480).tobytes()))
    ((first, captured_ns, _),) = line.feed(Piece(480, 10**9 + 50 * MS, True, ramp(0, 480).tobytes()))
    assert (first, captured_ns) == (800, 10**9 + 50 * MS)
    ((first, _, _),) = line.feed(Piece(960, 10**9 + 80 * MS, False, ramp(0, 480).tobytes()))
    assert first == 1_280


# --- Microphone


def test_blocks_carry_the_samples_with_numbers_and_times() -> None:
    module = portaudio()
    with Microphone(MicConfig(), module) as mic:
        before_ns = time.monotonic_ns()
        module.streams[0].hear(ramp(0, 480), adc_s=100.0, now_s=100.2)
        module.streams[0].hear(ramp(480, 480))
        first, second = take(mic, 2)
    np.testing.assert_array_equal(np.concatenate([first.pcm, second.pcm]), ramp(0, 960))
    assert (first.first_sample, second.first_sample) == (0, 480)
    assert before_ns - 200 * MS <= first.captured_ns <= first.arrived_ns - 199 * MS
    assert second.captured_ns <= second.arrived_ns - 30 * MS
    assert mic.overflows == 0
    assert module.streams[0].settings["blocksize"] == 480
    assert module.streams[0].closed


def test_the_callbacks_buffer_is_copied() -> None:
    module = portaudio()
    with Microphone(MicConfig(), module) as mic:
        buffer = bytearray(ramp(1, 480).tobytes())
        times = SimpleNamespace(inputBufferAdcTime=0.0, currentTime=0.0)
        module.streams[0].settings["callback"](memoryview(buffer), 480, times, NO_STATUS)
        buffer[:] = bytes(960)
        np.testing.assert_array_equal(take(mic, 1)[0].pcm, ramp(1, 480))


def test_a_full_queue_is_counted_and_the_numbers_stay_honest() -> None:
    module = portaudio()
    with Microphone(MicConfig(queue_blocks=2), module) as mic:
        for number in range(5):
            module.streams[0].hear(ramp(480 * number, 480))
        blocks = mic.blocks()
        assert [next(blocks).first_sample, next(blocks).first_sample] == [0, 480]
        module.streams[0].hear(ramp(2_400, 480))
        late = next(blocks)
    assert mic.overflows == 3
    assert late.first_sample == late.pcm[0] == 2_400


def test_portaudios_own_overflow_is_counted() -> None:
    module = portaudio()
    with Microphone(MicConfig(), module) as mic:
        module.streams[0].hear(ramp(0, 480), OVERFLOWN)
        assert take(mic, 1)[0].first_sample == 0
    assert mic.overflows == 1


@pytest.mark.parametrize(
    ("formats", "opened"),
    [
        ({(16_000, 1), (48_000, 1)}, (16_000, 1)),
        ({(48_000, 1), (48_000, 2)}, (48_000, 1)),
        ({(48_000, 2)}, (48_000, 2)),
    ],
)
def test_the_devices_own_format_is_used_where_ours_is_refused(
    formats: set[tuple[int, int]], opened: tuple[int, int]
) -> None:
    module = portaudio(formats=formats)
    rate_hz, channels = opened
    with Microphone(MicConfig(), module) as mic:
        settings = module.streams[0].settings
        assert (settings["samplerate"], settings["channels"], settings["blocksize"]) == (*opened, rate_hz * 30 // 1000)
        for _ in range(4):
            module.streams[0].hear(np.full(rate_hz * 30 // 1000 * channels, 1_000, np.int16))
        blocks = take(mic, 2)
    assert blocks[1].first_sample == len(blocks[0].pcm)
    assert blocks[1].pcm[len(blocks[1].pcm) // 2] == pytest.approx(1_000, abs=5)


def test_a_device_that_refuses_all_formats_says_which() -> None:
    with (
        pytest.raises(SourceError, match="16000 Hz x 1: Invalid sample rate") as caught,
        Microphone(MicConfig(), portaudio(formats=set())),
    ):
        pass
    assert "48000 Hz x 2" in caught.value.seen


def test_a_busy_device_is_an_error_and_is_closed() -> None:
    module = portaudio(start_error=FakePortAudioError("Device unavailable"))
    with pytest.raises(SourceError, match="Device unavailable"), Microphone(MicConfig(), module):
        pass
    assert module.streams[0].closed


def test_a_driver_that_falls_silent_is_a_lost_device(caplog: pytest.LogCaptureFixture) -> None:
    module = portaudio()
    with Microphone(MicConfig(), module, patience_s=0.01, start_s=DEADLINE_S) as mic:
        module.streams[0].hear(ramp(0, 480))
        blocks = mic.blocks()
        next(blocks)
        with pytest.raises(SourceError, match=r"gave no sound for 0\.01 s"):
            next(blocks)
        assert "lost" in caplog.text


def test_a_driver_that_never_gives_sound_is_a_lost_device() -> None:
    with (
        pytest.raises(SourceError, match=r"gave no sound for 0\.02 s"),
        Microphone(MicConfig(), portaudio(), start_s=0.02) as mic,
    ):
        next(mic.blocks())


def test_a_stream_that_ends_by_itself_is_a_lost_device() -> None:
    module = portaudio()
    with Microphone(MicConfig(), module) as mic:
        module.streams[0].settings["finished_callback"]()
        with pytest.raises(SourceError, match="ended by itself"):
            next(mic.blocks())


def test_stop_from_another_thread_ends_the_blocks() -> None:
    module = portaudio()
    heard: list[AudioBlock] = []
    with Microphone(MicConfig(), module, patience_s=DEADLINE_S) as mic:
        reader = Thread(target=lambda: heard.extend(mic.blocks()))
        reader.start()
        module.streams[0].hear(ramp(0, 480))
        mic.stop()
        mic.stop()
        reader.join(DEADLINE_S)
        assert not reader.is_alive()
        assert list(mic.blocks()) == []
    assert len(heard) <= 1


def test_stop_with_a_full_queue_ends_the_blocks() -> None:
    module = portaudio()
    with Microphone(MicConfig(queue_blocks=1), module) as mic:
        module.streams[0].hear(ramp(0, 480))
        mic.stop()
        assert list(mic.blocks()) == []
