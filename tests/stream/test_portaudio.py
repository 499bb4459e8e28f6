"""Which microphone is meant, and one of them opened, against a fake PortAudio."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from stream.config import MicConfig
from stream.items import Chosen, Pcm
from stream.portaudio import (
    LatencyMeter,
    MicrophoneInfo,
    Opened,
    Piece,
    PortAudioRecording,
    choose_microphone,
    find_again,
    known_as,
    list_microphones,
)
from telme.errors import MissingDependency, SourceError
from tests.stream.fake_portaudio import NO_STATUS, OVERFLOWN, FakePortAudio, FakePortAudioError, device, portaudio

MS = 1_000_000
DEADLINE_S = 20.0


def ramp(start: int, length: int) -> Pcm:
    return np.arange(start, start + length).astype(np.int16)


def info(index: int, name: str, is_default: bool = False, host_api: str = "ALSA") -> MicrophoneInfo:
    return MicrophoneInfo(index, name, host_api, 1, 48_000, is_default)


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
    with pytest.raises(SourceError, match=r"the default microphone is not there, nor any other; .*--input FILE"):
        choose_microphone([], None)


def test_a_device_is_known_again_whatever_its_index_has_become() -> None:
    before = [info(0, "USB mic"), info(1, "USB mic", host_api="JACK"), info(2, "built-in"), info(3, "USB mic")]
    after = [info(0, "headset"), info(1, "USB mic"), info(4, "USB mic"), info(7, "USB mic", host_api="JACK")]
    assert known_as(before, before[3]) == Chosen("USB mic", "ALSA", 1, 2)
    assert [find_again(after, known_as(before, before[n])).index for n in (0, 1, 3)] == [1, 7, 4]


@pytest.mark.parametrize(
    ("there", "seen"),
    [
        ([info(0, "USB mic pro"), info(1, "USB mic", host_api="JACK")], r"'USB mic' \(ALSA\) is not there"),
        (
            [info(0, "USB mic"), info(1, "USB mic")],
            r"'USB mic' \(ALSA\) is meant cannot be told: their number is 2; expected 1",
        ),
        ([], "is not there"),
    ],
)
def test_no_other_device_is_taken_for_the_one_that_was_chosen(there: list[MicrophoneInfo], seen: str) -> None:
    with pytest.raises(SourceError, match=rf"{seen}.*telme-stream devices"):
        find_again(there, Chosen("USB mic", "ALSA", 0, 1))


def test_one_of_several_of_a_name_is_not_guessed_when_another_one_is_gone() -> None:
    with pytest.raises(SourceError, match="cannot be told: their number is 1; expected 2"):
        find_again([info(0, "USB mic")], Chosen("USB mic", "ALSA", 0, 2))


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
    code = "import sys, stream.mic, stream.recorder; raise SystemExit('sounddevice' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("adc_s", "current_s", "latency_ns"),
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
def test_the_latency_is_what_portaudio_says_where_it_makes_sense(
    adc_s: float, current_s: float, latency_ns: int
) -> None:
    meter = LatencyMeter()
    said = [meter.observe(adc_s, current_s, 30 * MS) for _ in range(100)]
    assert said[0] == 30 * MS  # the first second is not believed
    assert said[-1] == pytest.approx(latency_ns, abs=1_000)


def test_a_latency_that_wanders_is_held_still() -> None:
    meter = LatencyMeter()
    said = [500 * MS] * 33 + [(30 + number % 1_500 * 30 // 1_500) * MS for number in range(6_000)]
    measured = [meter.observe(100.0, 100.0 + latency_ns / 1e9, 30 * MS) for latency_ns in said]
    assert max(measured) < 60 * MS
    assert len(set(measured[330:])) == 1


def test_a_latency_is_measured_anew_after_a_loss() -> None:
    meter = LatencyMeter()
    for _ in range(400):
        meter.observe(100.0, 100.1, 30 * MS)
    meter.restart()
    again = [meter.observe(100.0, 100.2, 30 * MS) for _ in range(100)]
    assert again[0] == pytest.approx(100 * MS, abs=1_000)  # what is known holds until there is better
    assert again[-1] == pytest.approx(200 * MS, abs=1_000)


# --- PortAudioRecording


def heard(recording: PortAudioRecording) -> Piece:
    piece = recording.get(DEADLINE_S)
    assert isinstance(piece, Piece)
    return piece


def test_pieces_carry_the_frames_with_numbers_and_times() -> None:
    module = portaudio()
    recording = PortAudioRecording(MicConfig(), module)
    assert recording.get(DEADLINE_S) == Opened("built-in", 16_000, 1)
    before_ns = time.monotonic_ns()
    module.streams[0].hear(ramp(0, 480))
    module.streams[0].hear(ramp(480, 480))
    first, second = heard(recording), heard(recording)
    assert (first.first_frame, second.first_frame) == (0, 480)
    assert first.data + second.data == ramp(0, 960).tobytes()
    assert before_ns - 30 * MS <= first.captured_ns <= second.captured_ns <= time.monotonic_ns() - 30 * MS
    assert not first.has_glitch
    assert recording.get(0.01) is None
    assert module.streams[0].settings["blocksize"] == 480
    recording.close()
    assert module.streams[0].closed


def test_the_callbacks_buffer_is_copied() -> None:
    module = portaudio()
    recording = PortAudioRecording(MicConfig(), module)
    recording.get(DEADLINE_S)
    buffer = bytearray(ramp(1, 480).tobytes())
    times = SimpleNamespace(inputBufferAdcTime=0.0, currentTime=0.0)
    module.streams[0].settings["callback"](memoryview(buffer), 480, times, NO_STATUS)
    buffer[:] = bytes(960)
    assert heard(recording).data == ramp(1, 480).tobytes()


def test_a_full_queue_loses_the_newest_and_the_numbers_stay_honest() -> None:
    module = portaudio()
    recording = PortAudioRecording(MicConfig(queue_blocks=2), module)
    recording.get(DEADLINE_S)
    for number in range(5):
        module.streams[0].hear(ramp(480 * number, 480))
    assert [heard(recording).first_frame, heard(recording).first_frame] == [0, 480]
    module.streams[0].hear(ramp(2_400, 480))
    late = heard(recording)
    assert late.first_frame == 2_400
    assert late.data == ramp(2_400, 480).tobytes()


def test_portaudios_own_overflow_is_told() -> None:
    module = portaudio()
    recording = PortAudioRecording(MicConfig(), module)
    recording.get(DEADLINE_S)
    module.streams[0].hear(ramp(0, 480), OVERFLOWN)
    module.streams[0].hear(ramp(480, 480))
    assert [heard(recording).has_glitch, heard(recording).has_glitch] == [True, False]


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
    assert PortAudioRecording(MicConfig(), module).get(DEADLINE_S) == Opened("built-in", *opened)
    settings = module.streams[0].settings
    assert (settings["samplerate"], settings["channels"], settings["blocksize"]) == (*opened, opened[0] * 30 // 1000)


@pytest.mark.parametrize(("formats", "opened"), [({(16_000, 2)}, (16_000, 2)), ({(48_000, 2)}, (48_000, 2))])
def test_as_many_channels_are_opened_as_are_asked_for(formats: set[tuple[int, int]], opened: tuple[int, int]) -> None:
    module = portaudio(formats=formats | {(16_000, 1), (48_000, 1)})
    recording = PortAudioRecording(MicConfig(channels=2), module)
    assert recording.get(DEADLINE_S) == Opened("built-in", *opened)


def test_a_device_with_too_few_channels_says_so() -> None:
    with pytest.raises(SourceError, match=r"'USB mic' has 1 input channels; expected 2.*--speakers cluster"):
        PortAudioRecording(MicConfig(device="USB", channels=2), portaudio())


def test_a_device_that_refuses_all_formats_says_which() -> None:
    with pytest.raises(SourceError, match="16000 Hz x 1: Invalid sample rate") as caught:
        PortAudioRecording(MicConfig(), portaudio(formats=set()))
    assert "48000 Hz x 2" in caught.value.seen


def test_a_busy_device_is_an_error_and_is_closed() -> None:
    module = portaudio(start_error=FakePortAudioError("Device unavailable"))
    with pytest.raises(SourceError, match="Device unavailable"):
        PortAudioRecording(MicConfig(), module)
    assert module.streams[0].closed


def test_a_stream_that_ends_by_itself_is_an_error() -> None:
    module = portaudio()
    recording = PortAudioRecording(MicConfig(), module)
    recording.get(DEADLINE_S)
    module.streams[0].settings["finished_callback"]()
    with pytest.raises(SourceError, match="ended by itself"):
        recording.get(DEADLINE_S)


def test_the_default_device_stands_in_for_one_that_is_away_where_that_is_wanted() -> None:
    assert PortAudioRecording(MicConfig(device="headset", fallback=True), portaudio()).get(0) == Opened(
        "built-in", 16_000, 1, stands_in=True
    )
    assert PortAudioRecording(MicConfig(device="USB", fallback=True), portaudio()).get(0) == Opened(
        "USB mic", 16_000, 1
    )
    with pytest.raises(SourceError, match="'headset' is not there"):
        PortAudioRecording(MicConfig(device="headset"), portaudio())


@pytest.mark.parametrize("wanted", [2, "2"])
def test_a_device_that_was_asked_for_by_index_says_how_it_is_known_again(wanted: str | int) -> None:
    chosen = Chosen("USB mic", "ALSA", 0, 1)
    opened = PortAudioRecording(MicConfig(device=wanted), portaudio()).get(0)
    assert opened == Opened("USB mic", 16_000, 1, chosen=chosen)
    moved = FakePortAudio([device("USB mic"), device("built-in"), device("headset")], default_input=1)
    assert PortAudioRecording(MicConfig(device=wanted), moved, chosen).get(0) == opened
    assert moved.streams[0].settings["device"] == 0


@pytest.mark.parametrize("wanted", ["USB", None])
def test_a_device_that_was_not_asked_for_by_index_is_looked_for_as_it_was(wanted: str | None) -> None:
    opened = PortAudioRecording(MicConfig(device=wanted), portaudio()).get(0)
    assert isinstance(opened, Opened)
    assert opened.chosen is None


def test_the_default_device_stands_in_for_the_chosen_one_and_is_not_it() -> None:
    chosen = Chosen("headset", "ALSA", 0, 1)
    config = MicConfig(device=2, fallback=True)
    assert PortAudioRecording(config, portaudio(), chosen).get(0) == Opened("built-in", 16_000, 1, stands_in=True)
    with pytest.raises(SourceError, match=r"'headset' \(ALSA\) is not there"):
        PortAudioRecording(MicConfig(device=2), portaudio(), chosen)
