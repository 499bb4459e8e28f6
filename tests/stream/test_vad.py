"""The speech decision: each witness by itself, and the three together on real sound."""

from __future__ import annotations

import numpy as np
import pytest
import webrtcvad
from hypothesis import given
from hypothesis import strategies as st

from stream.items import Pcm
from stream.silero import SileroStream
from stream.vad import FRAME_SAMPLES, Evidence, NoiseFloor, SpeechDetector
from tests.stream.sounds import example_clips, no_speech


def frames(pcm: Pcm) -> list[Pcm]:
    return list(pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES))


def steady(level: int, count: int = 1) -> list[Pcm]:
    """Square waves: RMS is the level."""
    return [np.resize(np.array([level, -level], np.int16), FRAME_SAMPLES)] * count


# ----------------------------------------------------------------------------------------------- noise floor


def test_the_floor_rises_to_steady_noise_in_three_seconds_and_falls_in_a_third_of_one() -> None:
    floor = NoiseFloor()
    heard = [floor.above(frame) for frame in steady(328, 100)]
    assert heard[0] == pytest.approx(75 - 40, abs=0.1)  # -40 dBFS over the bottom
    assert heard[88] > 30
    assert heard[-1] == 0
    fallen = [floor.above(frame) for frame in steady(33, 12)]  # 20 dB softer
    assert fallen[0] == pytest.approx(-20, abs=0.1)
    assert fallen[-1] == 0


def test_speech_of_two_seconds_does_not_lift_the_floor() -> None:
    floor = NoiseFloor()
    for frame in steady(33, 100):
        floor.above(frame)
    assert min(floor.above(frame) for frame in steady(3300, 66)) == pytest.approx(40, abs=0.1)


def test_digital_silence_is_the_bottom_and_not_below_it() -> None:
    floor = NoiseFloor()
    assert [floor.above(frame) for frame in steady(0, 200)] == [0] * 200
    assert floor.above(steady(33)[0]) == pytest.approx(15, abs=0.1)


@given(st.lists(st.integers(0, 32767), min_size=1, max_size=300))
def test_the_floor_is_the_eleventh_lowest_of_the_last_hundred(levels: list[int]) -> None:
    floor = NoiseFloor()
    heard = [-75.0] * 100
    for level in levels:
        heard.append(max(20 * np.log10(level / 32768), -75.0) if level else -75.0)
        above = floor.above(steady(level)[0])
        assert above == pytest.approx(heard[-1] - sorted(heard[-100:])[10], abs=1e-6)


# -------------------------------------------------------------------------------------------- three witnesses


class Witnesses:
    """WebRTC's word, the level and Silero's figure, by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.voice, self.above_db, self.probability = True, 0.0, 0.0
        monkeypatch.setattr(webrtcvad.Vad, "is_speech", lambda *_: self.voice)
        monkeypatch.setattr(NoiseFloor, "above", lambda *_: self.above_db)
        monkeypatch.setattr(SileroStream, "__call__", lambda *_: self.probability)


@pytest.mark.parametrize(
    ("voice", "above_db", "probability", "evidence"),
    [
        (False, 40, 1.0, Evidence.NONE),
        (True, 0, 0.5, Evidence.STRONG),  # as loud as the noise, and Silero is sure
        (True, 0, 0.49, Evidence.NONE),
        (True, 3, 0.2, Evidence.WEAK),
        (True, 3, 0.49, Evidence.WEAK),
        (True, 2.9, 0.49, Evidence.NONE),
        (True, 6, 0.3, Evidence.STRONG),
        (True, 6, 0.29, Evidence.WEAK),
        (True, 6, 0.19, Evidence.AUDIBLE),
        (True, 5.9, 0.19, Evidence.NONE),
    ],
)
def test_what_the_witnesses_together_say(
    monkeypatch: pytest.MonkeyPatch, voice: bool, above_db: float, probability: float, evidence: Evidence
) -> None:
    witnesses = Witnesses(monkeypatch)
    witnesses.voice, witnesses.above_db, witnesses.probability = voice, above_db, probability
    assert SpeechDetector(2)(steady(100)[0]) == evidence


def test_speech_opens_an_utterance_and_what_is_none_does_not() -> None:
    detector = SpeechDetector(2)
    evidence = [detector(frame) for frame in frames(example_clips()[0].pcm)]
    assert np.mean([each >= Evidence.WEAK for each in evidence]) > 0.5
    for name, pcm in no_speech(4.0):
        detector = SpeechDetector(2)
        strong = sum(detector(frame) == Evidence.STRONG for frame in frames(pcm))
        assert strong <= 8, name  # less than the shortest speech


def test_the_same_frames_give_the_same_evidence() -> None:
    pcm = frames(example_clips()[1].pcm)
    first, second = SpeechDetector(2), SpeechDetector(2)
    assert [first(frame) for frame in pcm] == [second(frame) for frame in pcm]
