"""Model cards of bundles that were trained here: data, figures, limits, licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from telme.config import TelmeConfig
from telme.evaluate import Report
from telme.record import Record, told

_LICENCES = {
    "meld": "declare-lab/MELD; annotations GPL-3.0, the clips are copyrighted television",
    "iemocap": "its owners' licence is needed",
}
_LIMITS = {
    "meld": "acted English television dialogue",
    "iemocap": "acted English dialogue of ten actors in a laboratory",
}


def model_card(config: TelmeConfig, stage: str, reports: Mapping[str, Report], record: Record) -> str:
    """The bundle's README.

    Args:
        config: Of the bundle.
        stage: The last stage.
        reports: Network trained in that stage -> its scores on dev.
        record: How the networks were trained, in that stage and before, as far as that is known.
    """
    figures = "\n".join(
        f"- {name}: weighted F1 {report.weighted_f1:.2f}"
        f" ({', '.join(f'{label} {value:.1f}' for label, value in report.per_class.items())}),"
        f" expected calibration error {report.calibration_error:.3f}, {report.n} utterances"
        for name, report in reports.items()
    )
    is_grouped = stage != "teacher" and config.input_mode.fusion_across_batch
    protocol = "published protocol: groups of rows in the file's order" if is_grouped else "streaming protocol"
    trained = "\n".join(f"- {line}" for line in told(config.parts, record))
    whose: dict[str, list[str]] = {}
    for part, training in record.items():
        for line in training.changes:
            whose.setdefault(line, []).append(part)
    changed = "\n".join(_said(line, parts) for line, parts in whose.items()) or "- nothing"
    data = config.dataset
    return f"""# TelME, stage `{stage}`

TelME (Yun et al., NAACL 2024, arXiv 2401.12987), trained with `python -m telme.train`.

Data of this stage: {data}'s training split ({_LICENCES[data]}). The epoch, and the temperature, were chosen on the dev
split; the test split was not looked at.

## How each network was trained

{trained}

## Figures on dev (chosen and calibrated there, so a little too good; gold text, {protocol})

{figures}

## What differs from the published recipe, in the networks whose training is recorded

{changed}

## Limits

Labels: {", ".join(config.label_set.names)}. Trained on {_LIMITS[data]}: rare classes are mostly missed, and recognized
words in place of written ones cost accuracy. Do not decide about people with it.

Licences: weights by whoever trained them; those of the encoders and of the data are their owners'.
"""


def _said(change: str, parts: Sequence[str]) -> str:
    """Most names tell whose they are; distillation is of both students, which may have been trained apart."""
    apart = change.startswith("distillation.") and len(parts) == 1
    return f"- {parts[0]}: {change}" if apart else f"- {change}"


def compact_card(report: Report, command: str, reads_whole: bool) -> str:
    """The README of a bundle that telme.compact made.

    Args:
        report: Its scores on dev.
        command: Arguments that make it again.
        reads_whole: Whether a token sees all of its prompt.
    """
    per_class = ", ".join(f"{name} {value:.1f}" for name, value in report.per_class.items())
    sight = "Every token sees the whole prompt" if reads_whole else "A turn sees itself and the turns before it"
    return f"""# A TelME text teacher

The text teacher of TelME (Yun et al., NAACL 2024, arXiv 2401.12987) on a small encoder, trained by the telme-stream
authors. It reads the words of a dialogue; it has no audio and no video student. {sight}.

- Trained with `python -m telme.compact {command}`.
  The moving average of its weights is kept. Its temperature is fitted on dev; so are, on what it says there and without
  the labels, the offsets of its classes (`logit_offsets`), for the best expected weighted F1 of its likeliest answers.
- Data: MELD's training split, text and speakers only (declare-lab/MELD; annotations GPL-3.0). Chosen on MELD's dev
  split. The test split was not looked at.
- Figures on dev (chosen and calibrated there, so a little too good; gold text, streaming protocol): weighted F1
  {report.weighted_f1:.2f} ({per_class}), expected calibration error
  {report.calibration_error:.3f}, {report.n} utterances.
- Labels: anger, disgust, fear, joy, neutral, sadness, surprise.
- Limits: acted English television dialogue. Rare classes (fear, disgust) are mostly missed. Recognised words in place
  of written ones cost accuracy. Do not decide about people with it.
- Licences: weights by the telme-stream authors, Apache-2.0 as far as they can say so; those of the start are its own.
"""
