"""Offline weighted F1 on a MELD annotation file: `python bench/meld_f1.py --csv FILE --bundle compact --text gold`.

Protocol "streaming": each utterance is answered from itself and the turns before it, as the live worker does, with the
same features and the same predictor. Text "gold": the annotated words.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from telme.bundle import load_bundle
from telme.data import read_rows, windows
from telme.errors import TelmeStreamError
from telme.evaluate import Report, score
from telme.features import FeatureMaker, Features
from telme.predictor import Predictor, TorchPredictor

PROTOCOL = "streaming"
BATCH = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, help="annotation file, for instance dev_meld_emo.csv")
    parser.add_argument("--bundle", default="compact", help="packaged name or folder (default: compact)")
    parser.add_argument("--text", choices=["gold"], default="gold", help="whose words: gold, the annotated ones")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(arguments)
    try:
        report, model_id = evaluate(options.csv, options.bundle, quiet=options.json)
    except TelmeStreamError as error:
        sys.stderr.write(f"meld_f1: error: {error}\n")
        return error.exit_code
    if not options.json:
        print(table(report))
    print(
        json.dumps(
            {
                "weighted_f1": round(report.weighted_f1, 3),
                "per_class": {name: round(value, 3) for name, value in report.per_class.items()},
                "calibration_error": round(report.calibration_error, 4),
                "protocol": PROTOCOL,
                "text": options.text,
                "model": model_id,
                "n": report.n,
            }
        )
    )
    return 0


def evaluate(csv: Path, bundle_name: str, quiet: bool) -> tuple[Report, str]:
    """Score a bundle on an annotation file; returns the report and the model's id.

    Raises:
        DataError: The file does not hold what it must.
        BundleError: The bundle cannot be loaded.
    """
    rows = read_rows(csv)
    bundle = load_bundle(bundle_name)
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    features = [maker.make(window) for window in windows(rows, bundle.config.max_turns)]
    predictor = TorchPredictor(bundle)
    probabilities = predict_all(predictor, features, quiet)
    return score(probabilities, [row.label for row in rows], bundle.config.label_set), predictor.model_id


def predict_all(predictor: Predictor, features: Sequence[Features], quiet: bool) -> NDArray[np.float64]:
    """Probabilities [N, C], in the order of the features; batched by length, which changes no row's answer."""
    order = sorted(range(len(features)), key=lambda index: len(features[index].prompt_ids))
    answers: dict[int, tuple[float, ...]] = {}
    for start in tqdm(range(0, len(order), BATCH), disable=quiet, unit="batch", file=sys.stderr):
        indices = order[start : start + BATCH]
        predictions = predictor.predict([features[index] for index in indices])
        answers |= {index: item.probabilities for index, item in zip(indices, predictions, strict=True)}
    return np.array([answers[index] for index in range(len(features))])


def table(report: Report) -> str:
    """The report for people."""
    lines = [f"{name:<10} {value:6.2f}" for name, value in report.per_class.items()]
    return "\n".join([*lines, f"{'weighted':<10} {report.weighted_f1:6.2f}   ({report.n} utterances)"])


if __name__ == "__main__":
    sys.exit(main())
