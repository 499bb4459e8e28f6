"""Numbers and stamps of samples: true however the sound is cut, lost, halted and resampled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.portaudio import Piece
from stream.sampleline import SampleLine

MS = 1_000_000


def ramp(start: int, length: int) -> Pcm:
    return np.arange(start, start + length).astype(np.int16)


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
            assert captured_ns + pcm.shape[1] * 62_500 <= end_ns + 2 * 62_500
            next_sample = first + pcm.shape[1]


@given(st.lists(st.integers(0, 9_600), max_size=12))
def test_the_cut_does_not_change_the_sound(cuts: list[int]) -> None:
    at = np.arange(9_600) / 48_000
    frames = np.repeat((np.sin(2 * np.pi * 440 * at) * 10_000).astype(np.int16)[:, None], 2, axis=1)

    def through(cuts: Sequence[int]) -> Pcm:
        line = SampleLine(48_000, 2)
        ready = [pcm[0] for piece in pieces(frames, cuts, set(), 48_000, 2) for _, _, pcm in line.feed(piece)]
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
    assert sum(pcm.shape[1] for first, _, pcm in got if first < 960) == pytest.approx(480, abs=1)
    assert next(first for first, _, _ in got if first >= 480) == 960


def test_channels_are_mixed_to_their_mean() -> None:
    frames = np.stack([ramp(0, 480), ramp(1_000, 480)], axis=1)
    ((_, _, pcm),) = SampleLine(16_000, 2).feed(Piece(0, 0, False, frames.tobytes()))
    np.testing.assert_array_equal(pcm, [ramp(500, 480)])


@pytest.mark.parametrize(("rate_hz", "frames"), [(16_000, 480), (48_000, 1_440)])
def test_channels_are_kept_apart_where_that_is_asked_for(rate_hz: int, frames: int) -> None:
    line = SampleLine(rate_hz, 2, splits=True)
    data = np.tile(np.array([100, -700], np.int16), (3 * frames, 1))
    ready = [pcm for piece in pieces(data, [frames, 2 * frames], set(), rate_hz, 2) for _, _, pcm in line.feed(piece)]
    heard = np.concatenate(ready, axis=1)
    assert len(heard) == 2
    assert heard.shape[1] >= 480
    assert set(heard[0, 100:]) == {100}
    assert set(heard[1, 100:]) == {-700}


def test_frames_lost_inside_portaudio_are_told_from_the_stamps() -> None:
    line = SampleLine(16_000, 1)
    line.feed(Piece(0, 10**9, False, ramp(0, 480).tobytes()))
    ((first, captured_ns, _),) = line.feed(Piece(480, 10**9 + 50 * MS, True, ramp(0, 480).tobytes()))
    assert (first, captured_ns) == (800, 10**9 + 50 * MS)
    ((first, _, _),) = line.feed(Piece(960, 10**9 + 80 * MS, False, ramp(0, 480).tobytes()))
    assert first == 1_280


def silence(first_frame: int, captured_ms: int, has_glitch: bool = False) -> Piece:
    """100 ms of one channel at 16 kHz."""
    return Piece(first_frame, captured_ms * MS, has_glitch, bytes(3_200))


def test_what_was_lost_before_stays_lost() -> None:
    line = SampleLine(16_000, 1)
    given = (silence(0, 1_000), silence(1_600, 1_150, True), silence(3_200, 1_250), silence(4_800, 1_450, True))
    firsts = [first for piece in given for first, _, _ in line.feed(piece)]
    assert firsts == [0, 1_600 + 800, 3_200 + 800, 4_800 + 2_400]
    assert line.losses == 2


def test_a_glitch_whose_stamp_is_early_counts_but_takes_no_number_back() -> None:
    line = SampleLine(16_000, 1)
    given = (silence(0, 1_000), silence(1_600, 1_098, True))
    assert [first for piece in given for first, _, _ in line.feed(piece)] == [0, 1_600]
    assert line.losses == 1


def test_what_overshoots_in_resampling_is_full_scale_and_does_not_wrap() -> None:
    step = np.repeat(np.array([-32_768, 32_767], np.int16), 4_800)
    line = SampleLine(48_000, 1)
    ((_, _, pcm),) = line.feed(Piece(0, 10**9, False, step.tobytes()))
    middle = len(step) // 2 // 3
    assert (pcm[0, 100 : middle - 2] < 0).all()
    assert (pcm[0, middle + 2 :] > 0).all()


def test_numbers_begin_where_they_are_told_to() -> None:
    line = SampleLine(16_000, 1, first_sample=7_000)
    assert line.feed(Piece(0, 10**9, False, bytes(960)))[0][0] == 7_000
    assert line.feed(Piece(960, 10**9 + 60 * MS, False, bytes(960)))[0][0] == 7_960  # one piece never came
    assert line.losses == 1


def test_a_device_that_was_halted_does_not_number_on_as_if_it_had_not() -> None:
    line = SampleLine(16_000, 1)
    line.feed(Piece(0, 10**9, False, bytes(960)))
    ((first, captured_ns, _),) = line.feed(Piece(480, 10**9 + 930 * MS, False, bytes(960)))
    assert (first, captured_ns) == (930 * 16, 10**9 + 930 * MS)
    assert line.losses == 1


def test_a_late_stamp_is_no_halt() -> None:
    line = SampleLine(16_000, 1)
    line.feed(Piece(0, 10**9, False, bytes(960)))
    assert line.feed(Piece(480, 10**9 + 400 * MS, False, bytes(960)))[0][0] == 480
    assert line.losses == 0


def test_what_the_queue_lost_is_not_counted_twice() -> None:
    line = SampleLine(16_000, 1)
    line.feed(Piece(0, 10**9, False, bytes(960)))
    assert line.feed(Piece(32_000, 10**9 + 2_000 * MS, True, bytes(960)))[0][0] == 32_000
    assert line.losses == 1
