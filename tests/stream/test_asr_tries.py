"""Which tries an utterance is worth, and what is made of their figures; Whisper itself is played."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest

from stream import asr
from stream.asr import Transcriber
from stream.config import AsrConfig
from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.whisper import WINDOW_MS, Decoded, Samples
from telme.errors import TranscriptionError

CONFIG = AsrConfig(window_margin_ms=2000, beam_size=1)
SURE = Decoded("I am so happy.", -0.2, 0.05, 0.9, 0, False, 4000)
UNSURE = replace(SURE, text="I am so hasty.", avg_logprob=-0.7)
REJECTED = replace(SURE, text="Eye Sam.", avg_logprob=-1.2)
LOOPING = replace(SURE, text="so so so so", repeated=4)
FIRST, WIDE, FULL = (2000, 1), (8000, 5), (WINDOW_MS, 1)

Try: TypeAlias = tuple[int, int]


class PlayedWhisper:
    """Answers each try with the next of these, and notes its samples, margin in ms and beam."""

    def __init__(self, *answers: Decoded) -> None:
        self._answers = list(answers)
        self.samples: list[int] = []
        self.tries: list[Try] = []

    def decode(self, samples: Samples, margin_ms: int, beam_size: int) -> Decoded:
        self.samples.append(len(samples))
        self.tries.append((margin_ms, beam_size))
        return self._answers.pop(0)


def transcriber(
    monkeypatch: pytest.MonkeyPatch,
    whisper: PlayedWhisper,
    config: AsrConfig = CONFIG,
    speech: float = 0.29,
    pitch: float = 0.0,
) -> Transcriber:
    monkeypatch.setattr(asr, "_locate", lambda model: model)
    monkeypatch.setattr(asr, "_choose", lambda folder, config: ("cpu", whisper))
    monkeypatch.setattr(asr, "speech_share", lambda pcm: speech)
    monkeypatch.setattr(asr, "periodicity", lambda pcm: pitch)
    return Transcriber(config)


def loud(seconds: int) -> Pcm:
    return np.full(seconds * SAMPLE_RATE_HZ, 8000, np.int16)


@pytest.mark.parametrize(
    ("answers", "tries", "believed"),
    [
        ([SURE], [FIRST], SURE),
        ([replace(SURE, avg_logprob=-0.6)], [FIRST], replace(SURE, avg_logprob=-0.6)),
        ([replace(SURE, repeated=3)], [FIRST], SURE),  # people do say three words twice
        ([UNSURE, SURE], [FIRST, WIDE], SURE),
        ([UNSURE, replace(SURE, avg_logprob=-0.9)], [FIRST, WIDE], UNSURE),
        ([LOOPING, UNSURE], [FIRST, WIDE], UNSURE),  # words that loop are worth less than any others
        ([REJECTED, LOOPING, SURE], [FIRST, WIDE, FULL], SURE),
        ([LOOPING, LOOPING, UNSURE], [FIRST, WIDE, FULL], UNSURE),
        ([REJECTED, replace(REJECTED, avg_logprob=-1.1), LOOPING], [FIRST, WIDE, FULL], None),
        ([REJECTED, replace(REJECTED, avg_logprob=-1.1, window_ms=WINDOW_MS)], [FIRST, WIDE], None),
        ([replace(REJECTED, no_speech_prob=0.95)], [FIRST], None),  # certain that nobody spoke
        ([replace(REJECTED, no_speech_prob=0.9), SURE], [FIRST, WIDE], SURE),
    ],
)
def test_whisper_is_asked_again_where_another_try_can_settle_a_doubt(
    monkeypatch: pytest.MonkeyPatch, answers: list[Decoded], tries: list[Try], believed: Decoded | None
) -> None:
    whisper = PlayedWhisper(*answers)
    made = transcriber(monkeypatch, whisper)
    said = made.transcribe(loud(2))
    assert whisper.tries == tries
    assert (said.rejected is None) == (believed is not None) == said.certain
    if believed is not None:
        assert (said.text, said.avg_logprob) == (believed.text, believed.avg_logprob)
    assert (made.calls, made.fallbacks, said.fell_back) == (1, len(tries) > 1, len(tries) > 1)


MURMUR = replace(UNSURE, no_speech_prob=0.8)
SHORT = replace(UNSURE, text="Hey!", avg_logprob=-0.9, no_speech_prob=0.4)


@pytest.mark.parametrize(
    ("answers", "figure", "believed"),
    [
        ([MURMUR, MURMUR, SHORT], 0.4, UNSURE.text),
        ([MURMUR, MURMUR, replace(SHORT, avg_logprob=-0.65)], 0.4, SHORT.text),
        ([MURMUR, MURMUR, replace(SHORT, no_speech_prob=0.6)], 0.6, None),
        ([LOOPING, LOOPING, replace(SHORT, no_speech_prob=0.6)], 0.6, None),
        ([MURMUR, replace(SHORT, avg_logprob=-0.65)], 0.4, SHORT.text),  # no need to ask
        # The second try of a long one is on the full window.
        ([replace(UNSURE, avg_logprob=-0.7), replace(MURMUR, avg_logprob=-0.9, window_ms=WINDOW_MS)], 0.8, None),
        ([MURMUR, replace(SHORT, window_ms=WINDOW_MS)], 0.4, UNSURE.text),
    ],
)
def test_the_full_window_says_whether_anybody_speaks(
    monkeypatch: pytest.MonkeyPatch, answers: list[Decoded], figure: float, believed: str | None
) -> None:
    whisper = PlayedWhisper(*answers)
    said = transcriber(monkeypatch, whisper).transcribe(loud(1))
    assert len(whisper.tries) == len(answers)
    assert said.no_speech_prob == figure
    assert (None if said.rejected else said.text) == believed


def test_unsure_words_of_certain_speech_get_every_try_and_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = PlayedWhisper(REJECTED, replace(REJECTED, avg_logprob=-1.1), LOOPING)
    said = transcriber(monkeypatch, whisper, speech=0.3).transcribe(loud(2))
    assert whisper.tries == [FIRST, WIDE, FULL]
    assert (said.text, said.avg_logprob, said.rejected, said.certain) == ("Eye Sam.", -1.1, None, False)


UNREAD = replace(SURE, text="the last", avg_logprob=-2.3, no_speech_prob=0.7)


@pytest.mark.parametrize(
    ("answer", "speech", "pitch", "reason"),
    [
        (UNREAD, 0.3, 0.72, None),
        (UNREAD, 0.3, 0.71, "probably no speech"),
        (UNREAD, 0.29, 1.0, "probably no speech"),
        (replace(UNREAD, no_speech_prob=0.9), 0.3, 0.72, None),
        (replace(UNREAD, no_speech_prob=0.91), 0.3, 0.72, "probably no speech"),
        (replace(UNREAD, no_speech_prob=0.1), 0.3, 0.72, None),
        (replace(UNREAD, no_speech_prob=0.1), 0.3, 0.71, "too unsure"),
        (replace(UNREAD, text="..."), 0.3, 0.72, "no words"),
        (replace(UNREAD, repeated=13), 0.3, 0.72, "probably no speech"),
    ],
)
def test_what_one_voice_says_is_marked_where_whisper_cannot_read_it(
    monkeypatch: pytest.MonkeyPatch, answer: Decoded, speech: float, pitch: float, reason: str | None
) -> None:
    said = transcriber(monkeypatch, PlayedWhisper(*[answer] * 3), speech=speech, pitch=pitch).transcribe(loud(1))
    assert not said.certain
    assert (said.rejected is None) if reason is None else (said.rejected or "").startswith(reason)


def test_the_pitch_is_looked_for_only_where_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, speech in ((UNREAD, 0.29), (SURE, 1.0), (replace(UNREAD, text="..."), 1.0)):
        made = transcriber(monkeypatch, PlayedWhisper(*[answer] * 3), speech=speech)
        monkeypatch.setattr(asr, "periodicity", lambda pcm: pytest.fail("looked for"))
        made.transcribe(loud(1))


def test_no_later_try_is_smaller_than_the_configured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = PlayedWhisper(REJECTED, REJECTED, SURE)
    config = AsrConfig(window_margin_ms=12_000, beam_size=7)
    assert transcriber(monkeypatch, whisper, config).transcribe(loud(2)).text == SURE.text
    assert whisper.tries == [(12_000, 7), (12_000, 7), (WINDOW_MS, 7)]


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_whisper_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail(*_: object) -> Decoded:
        raise error("out of memory")

    whisper = PlayedWhisper()
    monkeypatch.setattr(whisper, "decode", fail)
    with pytest.raises(TranscriptionError, match=r"Whisper failed: out of memory; .* run telme-stream doctor"):
        transcriber(monkeypatch, whisper).transcribe(loud(2))


def test_what_reaches_the_limits_before_whisper_passes_them() -> None:
    pcm = loud(1)
    assert asr.why_not_heard(pcm, 0.1, asr.level_dbfs(pcm)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"no_speech_prob": 0.9, "avg_logprob": -0.6},
        {"no_speech_prob": 0.55, "avg_logprob": -0.61},
        {"avg_logprob": -1.0},
        {"compression_ratio": 2.4},
    ],
)
def test_what_is_at_the_limits_after_whisper_passes_them(changes: dict[str, float]) -> None:
    assert asr.why_rejected(replace(SURE, **changes)) is None  # type: ignore[arg-type]


def test_a_guess_is_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = PlayedWhisper(UNSURE)
    said = transcriber(monkeypatch, whisper).glance(loud(2))
    assert (said.text, said.rejected, said.fell_back) == (UNSURE.text, None, False)
    assert whisper.tries == [FIRST]


def test_a_guess_that_loops_is_rejected_only_by_the_limits_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert transcriber(monkeypatch, PlayedWhisper(LOOPING)).glance(loud(2)).rejected is None


@pytest.mark.parametrize(("seconds", "pieces_s"), [(30, [30]), (31, [15.5, 15.5]), (61, [61 / 3] * 3)])
def test_what_is_longer_than_whispers_window_is_heard_in_equal_pieces(
    monkeypatch: pytest.MonkeyPatch, seconds: int, pieces_s: list[float]
) -> None:
    whisper = PlayedWhisper(*[SURE] * len(pieces_s))
    said = transcriber(monkeypatch, whisper).transcribe(loud(seconds))
    assert [samples / SAMPLE_RATE_HZ for samples in whisper.samples] == pytest.approx(pieces_s, abs=1e-4)
    assert said.text == " ".join([SURE.text] * len(pieces_s))


def test_of_several_pieces_the_worst_figures_stand_for_all() -> None:
    better = Decoded("Come in.", -0.2, 0.1, 1.0, 1, False, 4000)
    worse = Decoded("Sit down.", -0.5, 0.3, 2.0, 3, True, 9000)
    for one, other in ((better, worse), (worse, better)):
        text = f"{one.text} {other.text}"
        assert asr._join([one, other]) == replace(worse, text=text)


def test_a_piece_without_words_leaves_no_gap() -> None:
    silent = replace(SURE, text="")
    assert asr._join([silent, SURE, silent, SURE, silent]).text == f"{SURE.text} {SURE.text}"
