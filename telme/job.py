"""What one stage of training was asked to do, and what all of them read first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telme.bundle import sha256_of
from telme.config import TelmeConfig
from telme.data import Row, annotation_file, windows
from telme.datasets import Dataset, Split
from telme.features import FeatureMaker, Media
from telme.fitting import Run
from telme.recipes import Recipe

SPLITS: tuple[Split, Split] = ("train", "dev")


@dataclass(frozen=True)
class Job:
    """What all stages need.

    Attributes:
        data: The data set.
        root: Its folder.
        out: The stage's folder.
        recipe: The numbers.
        run: Seed, steps, checkpoints.
    """

    data: Dataset
    root: Path
    out: Path
    recipe: Recipe
    run: Run

    @property
    def bundle(self) -> Path:
        """Where the stage's bundle goes."""
        return self.out / "bundle"

    @property
    def described(self) -> dict[str, Any]:
        """What decides the outcome of every stage."""
        return {
            "dataset": self.data.name,
            "mode": self.recipe.mode,
            **{split: digest_of_file(annotation_file(self.root, split, self.data)) for split in SPLITS},
        }


def prompts_of(rows: Sequence[Row], maker: FeatureMaker, config: TelmeConfig) -> list[tuple[int, ...]]:
    """The prompt of each row, in order, with the turns before it."""
    made = windows(rows, config.max_turns, maker.mode)
    return [maker.features(window, Media()).prompt_ids for window in made]


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file; empty where there is none, which reading it will say."""
    return sha256_of(path) if path.is_file() else ""
