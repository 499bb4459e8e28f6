"""What was heard against what was said: a pure scorer. Times are samples at 16 kHz; figures are in milliseconds.

A turn and an utterance belong together when they share at least 100 ms (of shorter ones: half). Turns and utterances
that hang together form a group: one turn and one utterance when all is well; one turn and two utterances is a turn cut
in two; two turns in one utterance are merged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import permutations

import jiwer
import numpy as np

from stream.items import SAMPLE_RATE_HZ

_MS = SAMPLE_RATE_HZ // 1000
_SHARED = 100 * _MS
_FIRST_WORD = 30 * _MS  # so much of a turn's beginning may be missing in the cut: one frame of the detector
_INTRODUCTION = 2  # turns of each voice that are not counted as speaker errors


@dataclass(frozen=True)
class Turn:
    """The truth of one turn: its first audible sample and one past the last; `text` None: nobody wrote it down."""

    speaker: str
    text: str | None
    start: int
    end: int


@dataclass(frozen=True)
class Heard:
    """One utterance as the program heard it.

    Attributes:
        start, end: Its speech.
        cut_start: First sample of the cut, pre-roll included.
        text: The transcript; empty when it was rejected.
        speaker: Whose it is said to be; empty when it was rejected.
        rejected: Why it is not believed to be speech, or None.
        certain: False where its words are marked as unsure.
        ready: When its transcript was there, in samples of the session; None where that was not in real time.
    """

    start: int
    end: int
    cut_start: int
    text: str
    speaker: str
    rejected: str | None = None
    certain: bool = True
    ready: int | None = None


@dataclass
class Score:
    """Counts and errors of one or more conversations. Errors are heard minus true, so late is positive."""

    turns: int = 0
    utterances: int = 0  # not rejected
    unsure: int = 0  # of those: marked, for the words may be wrong
    missed: int = 0
    missed_by_gates: int = 0  # of those: heard, but rejected
    invented: int = 0
    cut_in_two: int = 0
    merged: int = 0  # turns that share an utterance with another one
    first_words_lost: int = 0  # the cut begins after the voice
    first_words_unwritten: int = 0  # the sound is there, the recognizer left the word out
    words: int = 0
    word_errors: int = 0
    labelled: int = 0
    mislabelled: int = 0
    start_errors_ms: list[float] = field(default_factory=list)
    end_errors_ms: list[float] = field(default_factory=list)
    delays_ms: list[float] = field(default_factory=list)  # from the turn's last audible sample

    def add(self, other: Score) -> None:
        """Count another conversation in."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def figures(self) -> dict[str, float | int | None]:
        """Shares, percentiles and counts, ready for JSON."""
        return {
            "turns": self.turns,
            "utterances": self.utterances,
            "unsure": self.unsure,
            "start_error_p50_ms": percentile(self.start_errors_ms, 50),
            "start_error_p95_ms": percentile(self.start_errors_ms, 95),
            "start_offset_median_ms": percentile(self.start_errors_ms, 50, signed=True),
            "end_error_p50_ms": percentile(self.end_errors_ms, 50),
            "end_error_p95_ms": percentile(self.end_errors_ms, 95),
            "end_offset_median_ms": percentile(self.end_errors_ms, 50, signed=True),
            "missed": self.missed,
            "missed_by_gates": self.missed_by_gates,
            "missed_share": share(self.missed, self.turns),
            "invented": self.invented,
            "invented_share": share(self.invented, self.turns),
            "cut_in_two": self.cut_in_two,
            "cut_in_two_share": share(self.cut_in_two, self.turns),
            "merged": self.merged,
            "first_words_lost": self.first_words_lost,
            "first_words_unwritten": self.first_words_unwritten,
            "wer": share(self.word_errors, self.words),
            "speaker_error": share(self.mislabelled, self.labelled),
        }


def score(turns: Sequence[Turn], heard: Sequence[Heard]) -> Score:
    """Score one conversation.

    Args:
        turns: The truth, in order; turns do not overlap.
        heard: What the program heard, rejected utterances included, in order.
    """
    passed = [one for one in heard if one.rejected is None]
    total = Score(turns=len(turns), utterances=len(passed), unsure=sum(not one.certain for one in passed))
    labels: list[tuple[str, str]] = []
    for said, found in groups(turns, heard):
        believed = [one for one in found if one.rejected is None]
        if not believed:
            total.missed += len(said)
            total.missed_by_gates += len(said) if found else 0
        elif not said:
            total.invented += len(believed)
        _count_boundaries(said, found, believed, total)
        _count_words(said, believed, total)
        labels += [(max(said, key=lambda turn: shared(turn, one)).speaker, one.speaker) for one in believed if said]
    total.labelled, total.mislabelled = count_mislabelled(labels)
    return total


def groups(turns: Sequence[Turn], heard: Sequence[Heard]) -> Iterator[tuple[list[Turn], list[Heard]]]:
    """Turns and utterances that hang together, each group once; those that belong to nothing are groups of one."""
    left = list(heard)
    waiting = list(turns)
    while waiting:
        said, found = [waiting.pop(0)], list[Heard]()
        while more := [one for one in left if any(belongs(turn, one) for turn in said)]:
            found += more
            left = [one for one in left if one not in more]
            joined = [turn for turn in waiting if any(belongs(turn, one) for one in found)]
            said += joined
            waiting = [turn for turn in waiting if turn not in joined]
        yield said, found
    for one in left:
        yield [], [one]


def shared(turn: Turn, heard: Heard) -> int:
    """Samples that both cover; not positive when they do not touch."""
    return min(turn.end, heard.end) - max(turn.start, heard.start)


def belongs(turn: Turn, heard: Heard) -> bool:
    """Whether an utterance is of a turn."""
    shorter = min(turn.end - turn.start, heard.end - heard.start)
    return shared(turn, heard) >= max(min(_SHARED, shorter // 2), 1)


def _count_boundaries(said: list[Turn], found: list[Heard], believed: list[Heard], total: Score) -> None:
    if len(said) > 1:
        total.merged += len(said)
        return
    if not said or not believed:
        return
    (turn,) = said
    total.cut_in_two += len(found) > 1
    total.start_errors_ms.append((min(one.start for one in found) - turn.start) / _MS)
    total.end_errors_ms.append((max(one.end for one in found) - turn.end) / _MS)
    total.first_words_lost += min(one.cut_start for one in found) > turn.start + _FIRST_WORD
    last = max(believed, key=lambda one: one.end)
    if last.ready is not None:
        total.delays_ms.append((last.ready - turn.end) / _MS)


def _count_words(said: list[Turn], believed: list[Heard], total: Score) -> None:
    texts = [turn.text for turn in said]
    if None in texts:
        return
    reference = plain(" ".join(text for text in texts if text))
    written = plain(" ".join(one.text for one in believed))
    if not reference:
        total.word_errors += len(written.split())
        return
    compared = jiwer.process_words(reference, written)
    total.words += len(reference.split())
    total.word_errors += compared.substitutions + compared.deletions + compared.insertions
    total.first_words_unwritten += bool(believed) and compared.alignments[0][0].type == "delete"


def plain(text: str) -> str:
    """Lower-case words without punctuation."""
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("\u2019", "'")).split())


def count_mislabelled(labels: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """How many utterances of a conversation count, and how many of those have the wrong label.

    The first two of each voice do not count. Labels are mapped one to one to voices as is best for all utterances.

    Args:
        labels: For each utterance, in order, the voice and its label.
    """
    voices = sorted({voice for voice, _ in labels})
    given = sorted({label for _, label in labels})
    padded = [*given, *(f"nobody {number}" for number in range(len(voices) - len(given)))]
    best = max(
        (dict(zip(voices, chosen, strict=True)) for chosen in permutations(padded, len(voices))),
        key=lambda mapping: sum(mapping[voice] == label for voice, label in labels),
    )
    heard = dict.fromkeys(voices, 0)
    counted = wrong = 0
    for voice, label in labels:
        heard[voice] += 1
        if heard[voice] > _INTRODUCTION:
            counted += 1
            wrong += best[voice] != label
    return counted, wrong


def share(part: int, whole: int) -> float | None:
    """A share; None of nothing."""
    return round(part / whole, 4) if whole else None


def percentile(values: Sequence[float], percent: int, signed: bool = False) -> float | None:
    """A percentile of the sizes (or of the values themselves), to a tenth; None of nothing."""
    if not len(values):
        return None
    return round(float(np.percentile(values if signed else np.abs(values), percent)), 1)
