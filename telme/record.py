"""What the networks of a bundle were trained with: its training.json.

A stage takes over what the bundle that it begins with says of the networks it keeps, and adds those that it trains, so
that each entry is of the run that made the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from telme.config import Part
from telme.errors import BundleError
from telme.recipes import StageRecipe

RECORD_FILE = "training.json"


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one network was trained.

    Attributes:
        stage: `teacher`, `students` or `fusion`.
        dataset: Key of `telme.labels.LABEL_SETS`.
        recipe: Name of the recipe.
        how: Its numbers for this network with what flags changed, in the precision that the machine had.
        changes: One line for each value that differs from the published recipe.
        seed: Of the run.
        init: Folder or hub id of the encoder that it began as; None for the fusion, whose weights began random.
        steps: Steps of the optimizer that the run took, fewer than its epochs have in a trial.
        best_step: The one whose weights were kept.
        dev_weighted_f1: Of those weights, in percent.
    """

    stage: str
    dataset: str
    recipe: str
    how: StageRecipe
    changes: tuple[str, ...]
    seed: int
    init: str | None
    steps: int
    best_step: int
    dev_weighted_f1: float

    def __str__(self) -> str:
        """In one line."""
        how = self.how
        return (
            f"stage {self.stage} on {self.dataset}, recipe {self.recipe}, seed {self.seed}, from"
            f" {self.init or 'random weights'}; step {self.best_step} of {self.steps} taken ({how.epochs:g} epochs"
            f" planned), batch {how.batch * how.accumulate}, learning rate {how.lr:g}, heads {how.head_lr:g},"
            f" {how.precision}; weighted F1 {self.dev_weighted_f1:.2f} on dev"
        )


Record = Mapping[Part, Training]


def read_record(folder: Path) -> dict[Part, Training]:
    """What a bundle's folder says of its networks; nothing of those whose training is not recorded.

    Raises:
        BundleError: The file is damaged.
    """
    path = folder / RECORD_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[Part, Training])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"{path}: {error}", "what a stage of training writes", "copy the bundle again") from error


def encoded(record: Record) -> bytes:
    """The content of training.json."""
    return msgspec.json.format(msgspec.json.encode(dict(record)), indent=2) + b"\n"


def told(parts: Iterable[Part], record: Record) -> list[str]:
    """One line for each of a bundle's parts."""
    return [f"{part}: {record.get(part, 'not recorded how it was trained')}" for part in parts]
