"""The model card of a bundle that was trained here: data, figures, limits, licences."""

from __future__ import annotations

from collections.abc import Mapping

from telme.datasets import Dataset
from telme.evaluate import Report
from telme.modes import mode_named
from telme.recipes import Recipe, differences

_LICENCES = {
    "meld": "declare-lab/MELD; annotations GPL-3.0, the clips are copyrighted television",
    "iemocap": "its owners' licence is needed",
}
_LIMITS = {
    "meld": "acted English television dialogue",
    "iemocap": "acted English dialogue of ten actors in a laboratory",
}


def model_card(data: Dataset, recipe: Recipe, stage: str, reports: Mapping[str, Report], seed: int) -> str:
    """The bundle's README.

    Args:
        data: What it was trained on.
        recipe: How.
        stage: The last stage.
        reports: Network trained in that stage -> its scores on dev.
        seed: Of the run.
    """
    figures = "\n".join(
        f"- {name}: weighted F1 {report.weighted_f1:.2f}"
        f" ({', '.join(f'{label} {value:.1f}' for label, value in report.per_class.items())}),"
        f" expected calibration error {report.calibration_error:.3f}, {report.n} utterances"
        for name, report in reports.items()
    )
    is_grouped = stage != "teacher" and mode_named(recipe.mode).fusion_across_batch
    protocol = "published protocol: groups of rows in the file's order" if is_grouped else "streaming protocol"
    changed = "\n".join(f"- {line}" for line in differences(recipe, data.name)) or "- nothing"
    return f"""# TelME, stage `{stage}`

TelME (Yun et al., NAACL 2024, arXiv 2401.12987), trained with `python -m telme.train {stage} --recipe {recipe.name}
--seed {seed}`. Encoders: {recipe.text_init}, {recipe.audio_init}, {recipe.video_init}, as far as they are in it.

Data: {data.name}'s training split ({_LICENCES[data.name]}). The epoch, and the temperature, were chosen on the dev
split; the test split was not looked at.

## Figures on dev (chosen and calibrated there, so a little too good; gold text, {protocol})

{figures}

## What differs from the published recipe

{changed}

## Limits

Labels: {", ".join(data.labels.names)}. Trained on {_LIMITS[data.name]}: rare classes are mostly missed, and recognized
words in place of written ones cost accuracy. Do not decide about people with it.

Licences: weights by whoever trained them; those of the encoders and of the data are their owners'.
"""


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
  The moving average of its weights is kept; its temperature is fitted on dev.
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
