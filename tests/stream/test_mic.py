"""The microphone over openings that a test scripts: what is heard, what is lost, and what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pytest
from msgspec import structs

from stream.backoff import STEADY_S
from stream.config import MicConfig
from stream.items import AudioBlock, Change, Chosen, Pcm, Stalled
from stream.mic import MicPatience, Microphone, Recording
from stream.portaudio import Opened, Piece
from telme.errors import MissingDependency, SourceError, TelmeStreamError
from tests.stream.waits import Waits

Given: TypeAlias = Opened | Piece | TelmeStreamError | None

MS = 1_000_000
HOUR_NS = time.monotonic_ns() + 3600 * 1000 * MS
OPENED = Opened("USB mic", 16_000, 1)
GONE = SourceError("microphone 'USB mic' ended by itself", "sound", "plug it in")
NO_LIBRARY = MissingDependency("no libportaudio", "PortAudio", "run apt-get install libportaudio2")
QUICK = MicPatience(open_s=0.0, first_sound_s=0.0, back_off_s=(0.0,), unsteady_s=(0.0,))


def ramp(start: int, length: int) -> Pcm:
    return np.arange(start, start + length).astype(np.int16)


def piece(number: int, at_ms: int = 0, glitch: bool = False, size: int = 480) -> Piece:
    """The piece of that number of an opening; `at_ms` after the hour, which no clock of a test run has reached."""
    captured_ns = HOUR_NS + at_ms * MS
    return Piece(number * size, captured_ns, glitch, ramp(number * size, size).tobytes())


@dataclass
class FakeRecording:
    """Gives its items one after the other: an error is raised, None is a second without sound; then it has ended."""

    items: Iterator[Given]
    closed: bool = False

    def get(self, timeout_s: float) -> Opened | Piece | None:
        item = next(self.items, GONE)
        if isinstance(item, TelmeStreamError):
            raise item
        return item

    def close(self) -> None:
        self.closed = True


@dataclass
class Openings:
    """Opens the scripted recordings in turn; when they are used up, nothing opens any more."""

    scripts: Sequence[Sequence[Given]]
    opened: list[FakeRecording] = field(default_factory=list)

    def __call__(self, config: MicConfig, chosen: Chosen | None) -> Recording:
        if len(self.opened) == len(self.scripts):
            raise GONE
        self.opened.append(FakeRecording(iter(self.scripts[len(self.opened)])))
        return self.opened[-1]


@dataclass
class Heard:
    """What a microphone gave until its script was used up."""

    mic: Microphone
    openings: Openings
    changes: list[Change]
    items: list[AudioBlock | Stalled]

    @property
    def blocks(self) -> list[AudioBlock]:
        return [item for item in self.items if isinstance(item, AudioBlock)]


def hear(*scripts: Sequence[Given], most: int = 100, channels: int = 1) -> Heard:
    """Listen until all recordings are used up, at most so many items."""
    changes: list[Change] = []
    openings = Openings(scripts)
    items = []
    with Microphone(MicConfig(channels=channels), changes.append, openings, QUICK) as mic:
        for item in mic.blocks():
            items.append(item)
            used_up = len(openings.opened) == len(scripts) and changes and changes[-1] == "lost"
            if len(items) == most or used_up:
                mic.stop()
    assert all(recording.closed for recording in openings.opened)
    return Heard(mic, openings, changes, items)


def test_blocks_carry_the_samples_with_numbers_and_times() -> None:
    heard = hear([OPENED, piece(0), piece(1, 30)])
    first, second = heard.blocks
    np.testing.assert_array_equal(np.concatenate([first.pcm, second.pcm]), ramp(0, 960))
    assert second.first_sample == first.first_sample + 480
    assert (first.captured_ns, second.captured_ns) == (HOUR_NS, HOUR_NS + 30 * MS)
    assert first.arrived_ns <= second.arrived_ns <= time.monotonic_ns()
    assert (heard.mic.name, heard.mic.overflows) == ("USB mic", 0)


CHOSEN = Chosen("USB mic", "ALSA", 0, 1)


@dataclass
class Wanted(Openings):
    """Notes which device each opening is asked for."""

    wanted: list[Chosen | None] = field(default_factory=list)

    def __call__(self, config: MicConfig, chosen: Chosen | None) -> Recording:
        self.wanted.append(chosen)
        return super().__call__(config, chosen)


def hear_wanted(openings: Wanted, chosen: Chosen | None) -> Microphone:
    """Listen to one that an index means, until the last script gives sound."""
    mic = Microphone(MicConfig(device=1), lambda _: None, openings, replace(QUICK, from_start=True), chosen)
    with mic:
        for item in mic.blocks():
            if isinstance(item, AudioBlock) and len(openings.opened) == len(openings.scripts):
                mic.stop()
    return mic


@pytest.mark.parametrize("chosen", [CHOSEN, None])
def test_a_lost_microphone_is_opened_again_as_the_one_that_its_index_meant(chosen: Chosen | None) -> None:
    """`chosen` None: it was meant by name, or is the default one, and the same question is asked again."""
    script: list[Given] = [structs.replace(OPENED, chosen=chosen), piece(0)]
    openings = Wanted([script, script])
    assert hear_wanted(openings, None).chosen == chosen
    assert openings.wanted == [None, chosen]


def test_a_microphone_that_was_chosen_before_is_asked_for_from_the_start() -> None:
    openings = Wanted([[GONE], [structs.replace(OPENED, chosen=CHOSEN), piece(0)]])
    mic = Microphone(MicConfig(device=1), lambda _: None, openings, replace(QUICK, from_start=True), CHOSEN)
    with mic:
        assert mic.name == "USB mic"  # and not the index, which may mean another one by now
        for item in mic.blocks():
            if isinstance(item, AudioBlock):
                mic.stop()
    assert openings.wanted == [CHOSEN, CHOSEN]


def test_an_index_that_first_means_something_after_another_one_stood_in_is_kept_from_then_on() -> None:
    stands_in: list[Given] = [Opened("built-in", 16_000, 1, stands_in=True), piece(0)]
    script: list[Given] = [structs.replace(OPENED, chosen=CHOSEN), piece(0)]
    openings = Wanted([stands_in, script, stands_in, script])
    hear_wanted(openings, None)
    assert openings.wanted == [None, None, CHOSEN, CHOSEN]


def test_a_name_that_several_have_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    script: list[Given] = [structs.replace(OPENED, chosen=replace(CHOSEN, among=2)), piece(0)]
    hear_wanted(Wanted([script, script]), None)
    told = [record.message for record in caplog.records if "are called" in record.message]
    assert len(told) == 1
    assert told[0].startswith("2 microphones are called 'USB mic'")


def test_the_default_one_that_stands_in_is_said(caplog: pytest.LogCaptureFixture) -> None:
    wanted: list[str | int | None] = []

    def open_recording(config: MicConfig, chosen: Chosen | None) -> Recording:
        wanted.append(config.device)
        return FakeRecording(iter([Opened("built-in", 16_000, 1, stands_in=True)]))

    with Microphone(MicConfig(device=3, fallback=True), open_recording=open_recording, patience=QUICK) as mic:
        for _ in mic.blocks():
            if len(wanted) == 2:
                mic.stop()
    assert wanted == [3, 3]
    assert "microphone 3 is not there; the default one, 'built-in', is heard in its place" in caplog.text


def test_numbers_count_from_the_opening_by_the_clock() -> None:
    before_ns = time.monotonic_ns()
    (block,) = hear([OPENED, piece(0)]).blocks
    after_ns = time.monotonic_ns()
    assert (HOUR_NS - after_ns) // 62_500 <= block.first_sample <= (HOUR_NS - before_ns) // 62_500


def test_a_device_of_another_rate_gives_ours() -> None:
    stereo = [Piece(n * 1_440, HOUR_NS + n * 30 * MS, False, ramp(5, 1).tobytes() * 2_880) for n in range(4)]
    script: list[Given] = [Opened("card", 48_000, 2), *stereo]
    blocks = hear(script).blocks
    assert all(b.first_sample == a.first_sample + len(a.pcm) for a, b in pairwise(blocks))
    assert sum(len(block.pcm) for block in blocks) == pytest.approx(
        4 * 480, abs=500
    )  # the filter holds its last ms back
    assert set(blocks[-1].pcm.tolist()) == {5}


def stereo(number: int, left: int, right: int) -> Piece:
    data = np.tile(np.array([left, right], np.int16), (480, 1))
    return Piece(number * 480, HOUR_NS + 30 * number * MS, False, data.tobytes())


def test_channels_that_differ_are_heard_apart_from_the_first_sound_on() -> None:
    script: list[Given] = [
        Opened("interface", 16_000, 2),
        stereo(0, 0, 0),
        stereo(1, 5_000, 0),
        stereo(2, 7_000, 7_000),
    ]
    blocks = hear(script, channels=2).blocks
    assert [(block.channel, int(block.pcm[0])) for block in blocks] == [
        (0, 0),
        (1, 0),
        (0, 5_000),
        (1, 0),
        (0, 7_000),
        (1, 7_000),
    ]
    assert [block.first_sample - blocks[0].first_sample for block in blocks] == [0, 0, 480, 480, 960, 960]
    assert {len(block.pcm) for block in blocks} == {480}


def test_one_channel_that_a_sound_server_made_two_of_is_heard_once(caplog: pytest.LogCaptureFixture) -> None:
    script: list[Given] = [Opened("pulse", 16_000, 2), *(stereo(number, 5_000, 5_000) for number in range(3))]
    blocks = hear(script, channels=2).blocks
    assert [block.channel for block in blocks] == [0, 0, 0]
    assert "same sound on all channels" in caplog.text


def test_losses_on_the_way_are_counted_and_numbered() -> None:
    heard = hear([OPENED, piece(0), piece(2, 60), piece(3, 140, glitch=True)])
    first, second, third = (block.first_sample for block in heard.blocks)
    assert (second - first, third - first) == (960, 140 * 16)
    assert heard.mic.overflows == 2


@pytest.mark.parametrize("loss", [None, GONE, SourceError("PortAudio", "none", "none")])
def test_a_lost_microphone_says_so_and_is_opened_again(loss: TelmeStreamError | None) -> None:
    back: list[Given] = [OPENED, piece(0, 5_000), piece(1, 5_030)]
    heard = hear([OPENED, piece(0), loss], [GONE], [GONE], back)
    assert heard.changes == ["lost", "found", "lost"]
    assert heard.mic.reopens == 1
    assert [type(item) for item in heard.items[:4]] == [AudioBlock, Stalled, Stalled, Stalled]
    before, after, last = heard.blocks
    assert after.first_sample - before.first_sample == 5_000 * 16  # session time stays true
    assert last.first_sample == after.first_sample + 480
    np.testing.assert_array_equal(after.pcm, ramp(0, 480))  # nothing stands for what was lost


def test_why_it_stays_away_is_told_when_that_changes(caplog: pytest.LogCaptureFixture) -> None:
    away, held = (SourceError(seen, "one", "wait") for seen in ("it is not there", "another program holds it"))
    reasons: list[str | None] = []
    openings = Openings([[OPENED, piece(0), None], [away], [away], [held], [OPENED, piece(0, 9_000)]])
    mic = Microphone(MicConfig(), lambda change: reasons.append(mic.lost_reason), openings, QUICK)
    with mic:
        for item in mic.blocks():
            if isinstance(item, AudioBlock) and mic.reopens:
                mic.stop()
    assert str(reasons[0]).startswith("microphone 'USB mic' gave no sound for 1 s")
    assert reasons[1:] == [None]
    told = [record.message.partition(";")[0] for record in caplog.records]
    assert told == [
        "microphone 'USB mic' lost: microphone 'USB mic' gave no sound for 1 s",
        "microphone 'USB mic' is still away: it is not there",
        "microphone 'USB mic' is still away: another program holds it",
        "microphone 'USB mic' is back at 16000 Hz",
    ]


def brief(at_s: int, length_s: float = 0.0) -> list[Given]:
    """An opening that gives sound at that time, and again so much later."""
    at_ms = at_s * 1000
    return [OPENED, piece(0, at_ms), *([piece(1, at_ms + round(length_s * 1000))] if length_s else [])]


def test_a_microphone_that_gives_a_moments_sound_an_opening_is_opened_less_and_less_often() -> None:
    scripts = [brief(0), brief(10), brief(20), brief(30, length_s=STEADY_S), brief(40)]
    patience = MicPatience(back_off_s=(0.25,), unsteady_s=(0.5, 1.0, 2.0), stall_s=60.0)
    openings = Openings(scripts)
    waits = Waits()
    mic = Microphone(MicConfig(), open_recording=openings, patience=patience)
    mic._stopping = waits
    with mic:
        for _ in mic.blocks():
            if len(waits.asked_s) == len(scripts):
                mic.stop()
    assert waits.asked_s[: len(scripts)] == [0.5, 1.0, 2.0, 0.25, 0.5]


def test_a_long_wait_says_that_there_is_no_sound_as_often_as_ever() -> None:
    waits = Waits()
    patience = MicPatience(unsteady_s=(2.5,), stall_s=1.0)
    mic = Microphone(MicConfig(), open_recording=Openings([brief(0), brief(10)]), patience=patience)
    mic._stopping = waits
    with mic:
        kinds = [type(item) for _, item in zip(range(5), mic.blocks(), strict=False)]
    assert kinds == [AudioBlock, Stalled, Stalled, Stalled, AudioBlock]
    assert waits.asked_s == [1.0, 1.0, 0.5]


def test_numbers_never_run_backwards_whatever_the_stamps_say() -> None:
    heard = hear([OPENED, piece(0), None], [OPENED, piece(0, at_ms=-2_000)])
    before, after = heard.blocks
    assert after.first_sample == before.first_sample + 480


def test_it_may_come_back_as_another_device() -> None:
    stereo = [Piece(n * 1_440, HOUR_NS + (9_000 + n * 30) * MS, False, bytes(5_760)) for n in range(3)]
    heard = hear([OPENED, piece(0), None], [Opened("built-in", 48_000, 2), *stereo])
    assert heard.mic.name == "built-in"
    assert heard.blocks[1].first_sample - heard.blocks[0].first_sample == pytest.approx(9_000 * 16, abs=1)


def test_a_device_that_never_gives_sound_is_lost_and_not_an_error() -> None:
    heard = hear([OPENED, None, None, None])
    assert heard.changes == ["lost"]
    assert heard.blocks == []


def test_a_device_that_is_slow_to_give_sound_is_not_lost() -> None:
    changes: list[Change] = []
    openings = Openings([[OPENED, None, None, piece(0)]])
    with Microphone(MicConfig(), changes.append, openings, MicPatience(first_sound_s=3600)) as mic:
        kinds = [type(item) for _, item in zip(range(3), mic.blocks(), strict=False)]
    assert kinds == [Stalled, Stalled, AudioBlock]
    assert changes == []


def test_a_device_that_is_slow_to_open_again_is_waited_for() -> None:
    openings = Openings([[OPENED, piece(0), None], [None, None, OPENED, piece(0, 9_000)]])
    changes: list[Change] = []
    with Microphone(MicConfig(), changes.append, openings, replace(QUICK, open_s=10.0, first_sound_s=5.0)) as mic:
        kinds = [type(item) for _, item in zip(range(5), mic.blocks(), strict=False)]
    assert kinds == [AudioBlock, Stalled, Stalled, Stalled, AudioBlock]
    assert changes == ["lost", "found"]
    assert len(openings.opened) == 2


@pytest.mark.parametrize("first", [GONE, NO_LIBRARY])
def test_a_microphone_that_does_not_open_at_the_start_is_an_error(first: TelmeStreamError) -> None:
    openings = Openings([[first]])
    with pytest.raises(type(first)) as caught, Microphone(MicConfig(), open_recording=openings):
        pass
    assert caught.value is first
    assert openings.opened[0].closed


def test_a_microphone_that_is_waited_for_from_the_start_begins_as_lost() -> None:
    changes: list[Change] = []
    openings = Openings([[GONE], [GONE], [OPENED, piece(0)]])
    with Microphone(MicConfig(), changes.append, openings, replace(QUICK, from_start=True)) as mic:
        assert changes == ["lost"]
        assert not mic.alive
        kinds = [type(item) for _, item in zip(range(2), mic.blocks(), strict=False)]
        assert mic.alive
    assert kinds == [Stalled, AudioBlock]
    assert changes == ["lost", "found"]
    assert openings.opened[0].closed


def test_a_missing_library_is_not_waited_for() -> None:
    with (
        pytest.raises(MissingDependency),
        Microphone(MicConfig(), open_recording=Openings([[NO_LIBRARY]]), patience=replace(QUICK, from_start=True)),
    ):
        pass


def test_a_driver_that_hangs_at_the_start_is_an_error() -> None:
    with (
        pytest.raises(SourceError, match="microphone 'USB' did not open for 10 s"),
        Microphone(MicConfig(device="USB"), open_recording=Openings([[None]])),
    ):
        pass


@pytest.mark.parametrize("when", [lambda mic: True, lambda mic: not mic.alive])
def test_stop_ends_the_blocks_with_sound_and_without(when: Callable[[Microphone], bool]) -> None:
    openings = Openings([[OPENED, *(piece(number, 30 * number) for number in range(9)), None]])
    with Microphone(MicConfig(), open_recording=openings, patience=QUICK) as mic:
        for _ in mic.blocks():
            if when(mic):
                mic.stop()
                mic.stop()
        assert list(mic.blocks()) == []
