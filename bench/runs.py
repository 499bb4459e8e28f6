"""A finished evaluation: its JSON line, its table, and how it compares with another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telme.data import Row
from telme.errors import DataError
from telme.evaluate import NO_ANSWER, Interval, Report, bootstrap, confusions, paired_bootstrap
from telme.ladder import Modality

MODALITIES: tuple[Modality, ...] = ("text", "audio", "video")
_NO_ANSWER_COLUMN = "none"


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        rows: The annotated utterances.
        answers: Place of an utterance in the file -> its probabilities [C]. `None`: it got no answer, and is wrong.
            Places that are missing were left out.
        left_out: Why -> how many.
        clips: What the clips hold, in a line; empty without any.
        left_pad_ms: Zeros before each sound, where the bundle or the run has set them; None without audio.
        wer: Word error rate of recognized text, or None.
    """

    model_id: str
    backend: str
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    rows: Sequence[Row]
    answers: Mapping[int, NDArray[np.float64] | None]
    left_out: Mapping[str, int]
    clips: str
    wer: float | None
    left_pad_ms: int | None
    report: Report

    def tables(self, places: Sequence[int]) -> NDArray[np.int64]:
        """The confusion tables of the dialogues of these utterances."""
        return confusions(
            [self.rows[place].dialogue for place in places],
            [self.rows[place].label for place in places],
            [answer_of(self.answers[place]) for place in places],
            len(self.labels),
        )


def answer_of(given: NDArray[np.float64] | Sequence[float] | None) -> int:
    """The class of an answer."""
    return NO_ANSWER if given is None else int(np.argmax(given))


def summary(run: Run, settings: Mapping[str, str], against: Path | None) -> dict[str, Any]:
    """The JSON line.

    Args:
        run: The run.
        settings: What else to say of it.
        against: Answers of another run.

    Raises:
        DataError: The other run cannot be read, or is about other utterances.
    """
    report, places = run.report, list(run.answers)
    return {
        "weighted_f1": round(report.weighted_f1, 3),
        "interval": _rounded(bootstrap(run.tables(places)))[1:],
        "per_class": {name: round(value, 3) for name, value in report.per_class.items()},
        "calibration_error": round(report.calibration_error, 4),
        "confusion": report.confusion,
        **settings,
        "modalities": ",".join(run.modalities),
        "model": run.model_id,
        "backend": run.backend,
        **({} if run.left_pad_ms is None else {"left_pad_ms": run.left_pad_ms}),
        "n": report.n,
        "no_answer": sum(given is None for given in run.answers.values()),
        "left_out": run.left_out,
        **({} if run.wer is None else {"word_error_rate": round(run.wer, 4)}),
        **({} if against is None else {"against": compared(run, against)}),
    }


def saved(run: Run) -> dict[str, Any]:
    """What `--against` needs of a run."""
    return {
        "utterances": [
            {
                "dialogue": row.dialogue,
                "utterance": row.utterance,
                "label": run.labels[row.label],
                "left_out": place not in run.answers,
                "probabilities": None if (answer := run.answers.get(place)) is None else list(answer),
            }
            for place, row in enumerate(run.rows)
        ]
    }


def compared(run: Run, path: Path) -> dict[str, Any]:
    """This run minus another one, on the utterances that neither left out.

    Raises:
        DataError: The file is none of `--save`, or is about other utterances.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        others, model = held["utterances"], held["summary"]["model"]
        names = [(item["dialogue"], item["utterance"], item["label"]) for item in others]
        theirs = {place: item["probabilities"] for place, item in enumerate(others) if not item["left_out"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}", "a file of --save", "check --against") from error
    if names != [(row.dialogue, row.utterance, run.labels[row.label]) for row in run.rows]:
        raise DataError(f"{path} is about other utterances", "the same annotation file", "check --csv and --against")
    both = [place for place in run.answers if place in theirs]
    if not both:
        raise DataError(f"{path} left out all that was answered here", "utterances in common", "check --against")
    other = replace(run, answers={place: theirs[place] for place in both})
    difference = _rounded(paired_bootstrap(run.tables(both), other.tables(both)))
    return {"model": model, "difference": difference[0], "interval": difference[1:], "n": len(both)}


def _rounded(interval: Interval) -> list[float]:
    return [round(interval.value, 3), round(interval.low, 3), round(interval.high, 3)]


def table(run: Run, line: Mapping[str, Any]) -> str:
    """The report for people."""
    report = run.report
    columns = [*run.labels, _NO_ANSWER_COLUMN] if line["no_answer"] else list(run.labels)
    head = f"{'':<10} {'F1':>6}   " + " ".join(f"{name[:4]:>5}" for name in columns) + "   (rows: annotated)"
    body = [
        f"{name:<10} {report.per_class[name]:6.2f}   " + " ".join(f"{count:5d}" for count in row[: len(columns)])
        for name, row in zip(run.labels, report.confusion, strict=True)
    ]
    low, high = line["interval"]
    foot = [
        f"{'weighted':<10} {report.weighted_f1:6.2f}   "
        f"({report.n} utterances; {low:.2f} to {high:.2f} in 95 % of resamples)",
        f"calibration error {report.calibration_error:.4f}",
    ]
    if run.wer is not None:
        foot.append(f"word error rate {run.wer:.4f}; {line['no_answer']} utterances rejected by the recognizer")
    if run.clips:
        foot.append(run.clips)
    if run.left_out:
        foot.append(f"left out: {told(run.left_out)}")
    if "against" in line:
        other = line["against"]
        low, high = other["interval"]
        foot.append(
            f"minus {other['model']}: {other['difference']:+.2f}, {low:+.2f} to {high:+.2f} ({other['n']} utterances)"
        )
    return "\n".join([head, *body, *foot])


def told(left_out: Mapping[str, int]) -> str:
    """Why utterances were left out, and how many."""
    return "; ".join(f"{count} {why}" for why, count in left_out.items())
