"""A sound card that runs fast or slow: measured, and corrected in the session's time."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.clock import SampleClock, samples_to_ns
from stream.drift import DriftMeter
from stream.items import AudioBlock

MS = 1_000_000
BLOCK = 480
BLOCKS_PER_MINUTE = 2_000
START_NS = 5_000_000_000_000
SILENCE = np.zeros(BLOCK, np.int16)


class Card:
    """A sound card whose clock runs `fast_ppm` fast, and whose stamps are up to `jitter_ms` late."""

    def __init__(self, fast_ppm: int, jitter_ms: float, seed: int) -> None:
        self._rate_hz = 16_000 * (1 + fast_ppm / 1e6)
        self._jitter_ns = int(jitter_ms * MS)
        self._random = Random(seed)

    def true_ns(self, sample: int) -> int:
        """When a sample was in the air, by the system's clock, since sample 0."""
        return round(sample / self._rate_hz * 1e9)

    def block(self, number: int) -> AudioBlock:
        captured_ns = START_NS + self.true_ns(number * BLOCK) + self._random.randint(0, self._jitter_ns)
        return AudioBlock(number * BLOCK, SILENCE, captured_ns, captured_ns + 40 * MS)


@settings(max_examples=12)
@given(st.integers(-200, 200), st.sampled_from([0.0, 2.0, 15.0]), st.integers(0, 9))
def test_session_time_follows_the_systems_clock(fast_ppm: int, jitter_ms: float, seed: int) -> None:
    card, clock = Card(fast_ppm, jitter_ms, seed), SampleClock(16_000 * 20)
    last_ns = -1
    for number in range(3 * BLOCKS_PER_MINUTE):
        clock.observe(card.block(number))
        now_ns = clock.session_ns(number * BLOCK)
        assert now_ns > last_ns  # time never stands or runs backwards
        last_ns = now_ns
        assert abs(now_ns - card.true_ns(number * BLOCK)) <= (jitter_ms + 3) * MS
        assert clock.captured_ns(number * BLOCK) - now_ns == clock.captured_ns((number + 1) * BLOCK) - clock.session_ns(
            (number + 1) * BLOCK
        )
    assert clock.fast_ppm == pytest.approx(fast_ppm, abs=2 + jitter_ms)


@pytest.mark.parametrize("fast_ppm", [-200, 200])
def test_an_hour_stays_together_with_the_pictures(fast_ppm: int) -> None:
    card, clock = Card(fast_ppm, 5.0, seed=1), SampleClock(16_000 * 20)
    for number in range(60 * BLOCKS_PER_MINUTE):
        clock.observe(card.block(number))
    last = 60 * BLOCKS_PER_MINUTE * BLOCK - BLOCK
    assert abs(samples_to_ns(last) - card.true_ns(last)) > 700 * MS  # as it would be uncorrected
    assert abs(clock.session_ns(last) - card.true_ns(last)) < 6 * MS
    assert abs(clock.captured_ns(last) - START_NS - card.true_ns(last)) < 10 * MS
    assert clock.fast_ppm == pytest.approx(fast_ppm, abs=2)


def test_a_replay_is_exact() -> None:
    clock = SampleClock(16_000 * 20)
    for number in range(BLOCKS_PER_MINUTE):
        at_ns = START_NS + samples_to_ns(number * BLOCK)
        clock.observe(AudioBlock(number * BLOCK, SILENCE, at_ns, at_ns))
        assert clock.session_ns(number * BLOCK) == samples_to_ns(number * BLOCK)


def test_one_wild_stamp_does_not_move_the_session() -> None:
    card, clock = Card(0, 0.0, seed=0), SampleClock(16_000 * 20)
    for number in range(BLOCKS_PER_MINUTE):
        block = card.block(number)
        late_ns = 400 * MS if number == 1_000 else 0
        clock.observe(AudioBlock(block.first_sample, SILENCE, block.captured_ns + late_ns, block.arrived_ns + late_ns))
        assert abs(clock.session_ns(number * BLOCK) - card.true_ns(number * BLOCK)) <= 15 * MS


def test_a_microphone_that_comes_back_is_measured_anew() -> None:
    clock = SampleClock(16_000 * 20)
    before, after = Card(200, 0.0, seed=0), Card(-200, 0.0, seed=0)
    for number in range(2 * BLOCKS_PER_MINUTE):
        clock.observe(before.block(number))
    assert clock.fast_ppm == 200
    end = 2 * BLOCKS_PER_MINUTE * BLOCK
    end_ns = START_NS + before.true_ns(end)
    silent_ns = 4_000 * MS
    first = end + silent_ns // 62_500  # numbered by the clock, as stream.mic does
    for number in range(2 * BLOCKS_PER_MINUTE):
        at_ns = end_ns + silent_ns + after.true_ns(number * BLOCK)
        clock.observe(AudioBlock(first + number * BLOCK, SILENCE, at_ns, at_ns))
        assert abs(clock.captured_ns(first + number * BLOCK) - at_ns) < 3 * MS
        if number == 0:
            assert clock.fast_ppm is None
    assert clock.fast_ppm == -200


def test_drift_is_not_told_before_it_is_known() -> None:
    meter = DriftMeter()
    known = []
    for second in range(90):
        for block in range(34):
            meter.observe(second * 16_000 + block * BLOCK, 0)
        known.append(meter.fast_ppm)
    assert known[:70] == [None] * 70
    assert known[-1] == 0
    assert all(a is None or b is not None for a, b in pairwise(known))


def test_a_meter_that_restarts_is_as_new() -> None:
    meter, new = DriftMeter(), DriftMeter()
    for number in range(2 * BLOCKS_PER_MINUTE):
        meter.observe(number * BLOCK, number * 5_000)
    meter.observe(2 * BLOCKS_PER_MINUTE * BLOCK, -(10**12))  # of a second that has just begun
    assert meter.fast_ppm is not None
    meter.restart()
    assert meter.fast_ppm is None
    for number in range(2 * BLOCKS_PER_MINUTE):
        late_ns = 10**9 - number * 5_000
        assert meter.observe(number * BLOCK, late_ns) == new.observe(number * BLOCK, late_ns)
        assert meter.fast_ppm == new.fast_ppm
    assert new.fast_ppm is not None
