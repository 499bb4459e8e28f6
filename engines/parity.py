"""Every backend and precision against torch in float32: `python -m engines.parity --csv dev_meld_emo.csv`.

The inputs are recorded: the utterances of an annotation file, or a conversation with its transcript, sound and
pictures. Of each backend: the largest and mean difference of the logits, their cosine, the share of equal labels, and
with an annotation file the difference of weighted F1. Logits are compared without their mean over the classes, which
no probability depends on. A backend that cannot run here is a row with the reason. A table, then one JSON object as the
last line; the exit code is 1 where none can run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.predictor import Choice, choices, networks_of
from engines.spec import RunSettings
from engines.store import Store
from telme.bundle import Bundle, load_bundle
from telme.data import ClipSource, read_rows, windows
from telme.datasets import DATASETS
from telme.dialogue import Turn
from telme.errors import DataError, MissingDependency, TelmeStreamError
from telme.features import FeatureMaker, Features, Missing
from telme.predictor import NetworkPredictor, Predictor, TorchPredictor

DEFAULT = ("torch-bf16", "torch-int8", "onnx-fp32", "onnx-int8")


@dataclass(frozen=True)
class Parity:
    """How far a backend's answers are from torch's in float32.

    Attributes:
        backend: What ran it.
        largest: Largest difference of a logit.
        mean: Mean difference.
        cosine: Least cosine of an utterance's logits.
        labels_equal: Share of utterances with the same label, 0..1.
        f1_difference: Weighted F1 less torch's, in percent points; None without annotations.
        n: Utterances.
    """

    backend: str
    largest: float
    mean: float
    cosine: float
    labels_equal: float
    f1_difference: float | None
    n: int


def compare(
    backend: str, found: NDArray[np.float64], expected: NDArray[np.float64], truth: Sequence[int] | None = None
) -> Parity:
    """Compare logits [N, C] without their mean over the classes."""
    difference = np.abs(found - expected)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    f1 = None if truth is None else _weighted_f1(found, truth) - _weighted_f1(expected, truth)
    return Parity(
        backend=backend,
        largest=float(difference.max()),
        mean=float(difference.mean()),
        cosine=float(((found * expected).sum(1) / lengths).min()),
        labels_equal=float((found.argmax(1) == expected.argmax(1)).mean()),
        f1_difference=f1,
        n=len(found),
    )


def logits(predictor: Predictor, features: Sequence[Features], temperature: float) -> NDArray[np.float64]:
    """Logits [N, C] without their mean over the classes, from probabilities."""
    answers = np.log([answer.probabilities for answer in predictor.predict(features)]) * temperature
    centred: NDArray[np.float64] = answers - answers.mean(1, keepdims=True)
    return centred


def annotated(bundle: Bundle, csv: Path) -> tuple[list[Features], list[int]]:
    """The utterances of an annotation file of the bundle's data set, as text, and their labels.

    Raises:
        DataError: It does not hold what it must.
    """
    rows = read_rows(csv, DATASETS[bundle.config.dataset])
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    made = [maker.make(window) for window in windows(rows, bundle.config.max_turns, maker.mode)]
    return made, [row.label for row in rows]


def conversation(bundle: Bundle, transcript: Path, recording: Path) -> list[Features]:
    """The utterances of a recording with its sound and pictures.

    Raises:
        DataError: The transcript does not hold what it must.
    """
    try:
        lines = json.loads(transcript.read_text(encoding="utf-8"))
        spoken = [(_turn(line), round(line["start_ms"]), round(line["end_ms"])) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{transcript}: {error!r}", "a list of speaker, text, start_ms and end_ms", "see examples/conversation.json"
        ) from error
    from telme.clips import read_clip  # needs PyAV, which a worker does not

    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    read = bundle.config.parts
    whole = read_clip(ClipSource(recording, recording), video=False)
    window = maker.window()
    made = []
    for turn, start_ms, end_ms in spoken:
        window.append(maker.heard(turn))
        span = ClipSource(recording, recording, (start_ms / 1000, end_ms / 1000))
        frames = read_clip(span, audio=False, video="video" in read).frames
        sound, rate_hz = whole.sound, whole.sound_rate_hz
        if not isinstance(sound, Missing):
            sound = sound[start_ms * rate_hz // 1000 : end_ms * rate_hz // 1000]
        made.append(maker.make(window, sound, frames, rate_hz))
    return made


def _turn(line: Mapping[str, Any]) -> Turn:
    if not isinstance(line["text"], str):
        raise ValueError(f"text {line['text']!r}")  # bench/conversations.py writes null where nobody knows it
    return Turn(line["speaker"], line["text"])


def measure(
    bundle: Bundle, wanted: Sequence[Choice], features: Sequence[Features], truth: Sequence[int] | None, store: Store
) -> tuple[list[Parity], dict[str, str]]:
    """Each backend against torch in float32, and of those that cannot run here BACKEND-PRECISION and the reason.

    Raises:
        TelmeStreamError: torch in float32 cannot run.
    """
    temperature = bundle.config.calibration_temperature
    expected = logits(TorchPredictor(bundle), features, temperature)
    rows: list[Parity] = []
    cannot_run: dict[str, str] = {}
    for choice in wanted:
        try:
            predictor = NetworkPredictor(bundle, networks_of(bundle, choice, RunSettings(), store))
            found = logits(predictor, features, temperature)
        except TelmeStreamError as error:
            cannot_run[choice.name] = str(error)
            continue
        rows.append(compare(predictor.backend, found, expected, truth))
    return rows, cannot_run


def table(rows: Sequence[Parity], cannot_run: Mapping[str, str]) -> str:
    """The rows as Markdown, and what did not run."""
    lines = [
        "| backend | largest difference | mean | least cosine | labels equal | weighted F1 | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        f1 = "" if row.f1_difference is None else f"{row.f1_difference:+.2f}"
        lines.append(
            f"| {row.backend} | {row.largest:.1e} | {row.mean:.1e} | {row.cosine:.6f} | {100 * row.labels_equal:.2f} % "
            f"| {f1} | {row.n} |"
        )
    return "\n".join([*lines, *(f"{name} cannot run: {reason}" for name, reason in cannot_run.items())])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="compact", help="packaged name or folder (default: compact)")
    parser.add_argument(
        "--backends", nargs="+", default=DEFAULT, help=f"BACKEND-PRECISION (default: {' '.join(DEFAULT)})"
    )
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--csv", type=Path, help="annotation file of the bundle's data set; text alone")
    inputs.add_argument("--transcript", type=Path, help="JSON as examples/conversation.json; needs --recording")
    parser.add_argument("--recording", type=Path, help="the transcript's sound and pictures")
    options = parser.parse_args(arguments)
    if options.transcript is not None and options.recording is None:
        parser.error("--transcript needs --recording")
    try:
        wanted = [choices(*name.split("-", 1))[0] for name in options.backends]
        if options.csv is not None:
            _import_f1_score()  # before minutes are spent
        bundle = load_bundle(options.bundle)
        if options.csv is not None:
            features, truth = annotated(bundle, options.csv)
        else:
            features, truth = conversation(bundle, options.transcript, options.recording), None
        with TemporaryDirectory() as cache:
            rows, cannot_run = measure(bundle, wanted, features, truth, Store(Path(cache)))
    except TelmeStreamError as error:
        sys.stderr.write(f"parity: error: {error}\n")
        return error.exit_code
    report = {"model": bundle.model_id, "rows": [asdict(row) for row in rows], "cannot_run": cannot_run}
    sys.stdout.write(f"{table(rows, cannot_run)}\n{json.dumps(report)}\n")
    return 0 if rows else 1


def _weighted_f1(answers: NDArray[np.float64], truth: Sequence[int]) -> float:
    """In percent."""
    return 100 * float(_import_f1_score()(truth, answers.argmax(1), average="weighted", zero_division=0.0))


def _import_f1_score() -> Callable[..., float]:
    try:
        from sklearn.metrics import f1_score
    except ImportError as error:
        raise MissingDependency(f"{error}", "scikit-learn", "pip install '.[train]'") from error
    found: Callable[..., float] = f1_score
    return found


if __name__ == "__main__":
    sys.exit(main())
