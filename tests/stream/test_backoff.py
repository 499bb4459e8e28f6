"""How long a lost device is left alone."""

from __future__ import annotations

import pytest

from stream.backoff import STEADY_S, UNSTEADY_S, BackOff
from stream.camera import Patience
from stream.mic import MicPatience


def waits(patience: Patience | MicPatience, *given_s: float | None) -> list[float]:
    back_off = BackOff(patience.back_off_s, UNSTEADY_S, STEADY_S)
    return [back_off.after(one_s) for one_s in given_s]


@pytest.mark.parametrize("patience", [Patience(), MicPatience()])
def test_a_device_that_is_away_is_asked_for_each_second_however_long(patience: Patience | MicPatience) -> None:
    first, *later = waits(patience, 60.0, *[None] * 100)
    assert first <= 0.25
    assert later == sorted(later)
    assert set(later[1:]) == {1.0}


@pytest.mark.parametrize("patience", [Patience(), MicPatience()])
def test_a_device_that_comes_for_a_moment_and_goes_waits_longer_each_time(patience: Patience | MicPatience) -> None:
    assert waits(patience, *[0.0] * 6) == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert waits(patience, *[STEADY_S - 0.01, None] * 3)[::2] == [0.5, 1.0, 2.0]  # away in between is not steady


def test_steady_pictures_or_sound_end_the_long_waits() -> None:
    assert waits(Patience(), *[0.0] * 6, STEADY_S, 0.0)[-2:] == [0.25, 0.5]


def test_a_plug_that_bounces_after_a_long_absence_does_not_wait_long() -> None:
    assert waits(Patience(), 60.0, *[None] * 100, 0.0)[-1] == 0.5
