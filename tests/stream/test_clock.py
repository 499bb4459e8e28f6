"""Samples to nanoseconds: exact, and never by a clock that the blocks did not bring."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.clock import SampleClock, iso_utc, ms_to_samples, samples_to_ns
from stream.items import AudioBlock
from telme.errors import SourceError

NS_PER_SAMPLE = 62_500


def block(first_sample: int, samples: int, captured_ns: int, arrived_ns: int) -> AudioBlock:
    return AudioBlock(first_sample, np.zeros(samples, np.int16), captured_ns, arrived_ns)


def test_the_start_is_when_sample_0_would_have_been_captured() -> None:
    clock = SampleClock(16_000)
    clock.observe(block(1600, 480, 5_100_000_000, 5_130_000_000))
    assert clock.started_ns == 5_000_000_000


@given(st.integers(0, 2**50))
def test_samples_are_exact_nanoseconds(samples: int) -> None:
    assert samples_to_ns(samples) * 16_000 == samples * 1_000_000_000


@given(st.integers(0, 2**40))
def test_a_millisecond_is_sixteen_samples(duration_ms: int) -> None:
    assert ms_to_samples(duration_ms) == 16 * duration_ms
    assert samples_to_ns(ms_to_samples(duration_ms)) == duration_ms * 1_000_000


@given(st.integers(0, 2**63 - 1))
def test_iso_times_are_exact_to_the_microsecond_and_never_later(wall_ns: int) -> None:
    text = iso_utc(wall_ns)
    back = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    assert text.endswith("Z")
    assert back // timedelta(microseconds=1) == wall_ns // 1000


def test_iso_times_keep_their_form_at_a_whole_second() -> None:
    assert iso_utc(1_795_355_095_000_000_999) == "2026-11-22T13:44:55.000000Z"


@given(
    st.lists(
        st.tuples(st.integers(1, 960), st.integers(-50_000, 50_000), st.integers(0, 10**9)), min_size=1, max_size=20
    ),
    st.data(),
)
def test_every_sample_is_timed_within_the_jitter_of_the_stamps(
    blocks: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    clock = SampleClock(keep_samples=10**6)
    times: list[int] = []
    arrivals: list[int] = []
    for samples, jitter_ns, delay_ns in blocks:
        first = len(times)
        captured = 10**12 + first * NS_PER_SAMPLE + jitter_ns
        clock.observe(block(first, samples, captured, captured + delay_ns))
        times += [10**12 + (first + index) * NS_PER_SAMPLE for index in range(samples)]
        arrivals += [captured + delay_ns] * samples
    sample = data.draw(st.integers(0, len(times) - 1))
    assert abs(clock.captured_ns(sample) - times[sample]) <= 50_000 + 1
    ended = times[sample] + NS_PER_SAMPLE
    assert abs(clock.heard_ns(sample + 1) - min(ended, arrivals[sample])) <= 50_000 + 1
    assert clock.captured_ns(sample) - clock.captured_ns(0) == clock.session_ns(sample) - clock.session_ns(0)


def test_a_live_sample_is_heard_when_it_was_in_the_air() -> None:
    clock = SampleClock(16_000)
    clock.observe(block(0, 480, captured_ns=1_000_000_000, arrived_ns=1_045_000_000))
    assert clock.heard_ns(480) == 1_030_000_000
    assert clock.heard_ns(240) == 1_015_000_000


def test_a_sample_of_a_fast_replay_is_heard_when_it_arrived() -> None:
    clock = SampleClock(10**6)
    for number in range(100):
        clock.observe(block(number * 480, 480, number * 30_000_000, arrived_ns=5_000 + number))
    assert clock.heard_ns(480) == 5_000
    assert clock.heard_ns(481) == 5_001
    assert clock.heard_ns(100 * 480) == 5_099


def test_speech_that_ends_before_a_stall_was_not_heard_after_it() -> None:
    clock = SampleClock(16_000)
    clock.observe(block(0, 480, captured_ns=0, arrived_ns=31_000_000))
    clock.observe(block(480, 480, captured_ns=900_000_000, arrived_ns=931_000_000))
    assert clock.heard_ns(480) == 30_000_000
    assert clock.captured_ns(480) == 900_000_000


def test_old_samples_are_forgotten_and_asking_for_them_is_an_error() -> None:
    clock = SampleClock(keep_samples=960)
    for number in range(10):
        clock.observe(block(number * 480, 480, number * 30_000_000, number * 30_000_000 + 30_000_000))
    assert clock.captured_ns(10 * 480 - 960) == 8 * 30_000_000
    for sample in (0, 480, 10 * 480 + 1):
        with pytest.raises(SourceError, match=f"sample {sample} is not among"):
            clock.captured_ns(sample)


def test_lost_samples_have_no_time() -> None:
    clock = SampleClock(16_000)
    clock.observe(block(0, 480, 0, 30_000_000))
    clock.observe(block(1_000, 480, 62_500_000, 92_500_000))
    with pytest.raises(SourceError):
        clock.captured_ns(700)
    assert clock.captured_ns(1_000) == 62_500_000
