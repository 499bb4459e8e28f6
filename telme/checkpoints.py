"""What a run of training leaves on disk, so that it can be killed at any instant and gone on with.

run.json              what the run is: a run is gone on with only under the same settings
checkpoint-N/         the Trainer's own: weights, optimizer, scheduler, random states, log
checkpoint-N/complete names and sizes of its files, written when all are there; without it the folder does not count
best.safetensors      weights of the best evaluation, with its score and step
metrics.json          written last: a run that has it is finished
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from telme.errors import DataError, UsageError

_MARK = "complete"
RUN_FILE = "run.json"
BEST_FILE = "best.safetensors"
METRICS_FILE = "metrics.json"


def write_json(path: Path, value: object) -> None:
    """Write a file whole or not at all.

    Raises:
        DataError: The folder cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def begin(folder: Path, settings: Mapping[str, Any], resume: bool) -> Path | None:
    """Open a run's folder; returns the checkpoint to go on from, or None to start from the beginning.

    Args:
        folder: The run's.
        settings: All that decides its outcome, as values of JSON.
        resume: Go on with what is there. Otherwise nothing may be there.

    Raises:
        UsageError: A run is there and `resume` was not asked for, it had other settings, or nothing says which it had.
        DataError: The folder cannot be written.
    """
    path = folder / RUN_FILE
    if path.is_file():
        if not resume:
            raise UsageError(
                f"a run in {folder}", "an empty folder", "go on with it by --resume, or name another --out"
            )
        _check_same(path, settings)
    else:
        _check_nothing_trained(folder)
        write_json(path, settings)
    for incomplete in _checkpoints(folder) - complete_checkpoints(folder):
        shutil.rmtree(incomplete)
    return max(complete_checkpoints(folder), key=step_of, default=None)


def _check_nothing_trained(folder: Path) -> None:
    """Weights without a run.json are another program's, or of unknown settings: neither removed nor gone on with."""
    found = [path.name for pattern in ("checkpoint-*", BEST_FILE, METRICS_FILE) for path in folder.glob(pattern)]
    if found:
        raise UsageError(
            f"{', '.join(sorted(found))} in {folder} without a {RUN_FILE}", "an empty folder", "name another --out"
        )


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(settings))
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        told = ", ".join(f"{name} {now.get(name)!r} (was {before.get(name)!r})" for name in sorted(differing))
        raise UsageError(
            f"another run in {path.parent}: {told}", "the settings it was begun with", "name another --out"
        )


def mark_complete(checkpoint: Path) -> None:
    """Say that all of a checkpoint's files are there.

    Raises:
        DataError: The folder cannot be written.
    """
    write_json(checkpoint / _MARK, {path.name: path.stat().st_size for path in checkpoint.iterdir()})


def complete_checkpoints(folder: Path) -> set[Path]:
    """The checkpoints that were written to their end, and whose files have kept their size since."""
    return {checkpoint for checkpoint in _checkpoints(folder) if _is_complete(checkpoint)}


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / _MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _checkpoints(folder: Path) -> set[Path]:
    return {path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()}


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written at."""
    return int(checkpoint.name.rpartition("-")[2])


def keep_best(folder: Path, network: nn.Module, score: float, step: int) -> bool:
    """Keep the weights if no evaluation before this step was as good; says whether they were kept.

    Raises:
        DataError: The folder cannot be written.
    """
    before = best(folder)
    # A run that was killed after its last checkpoint comes by the same evaluations again.
    if before is not None and before[1] < step and before[0] >= score:
        return False
    path = folder / BEST_FILE
    unfinished = path.with_name(f"{BEST_FILE}.{os.getpid()}")
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    try:
        save_file(weights, unfinished, metadata={"score": repr(score), "step": str(step)})
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error}", "room for the weights", "free some space") from error
    return True


def best(folder: Path) -> tuple[float, int] | None:
    """Score and step of the best evaluation so far; None before the first."""
    path = folder / BEST_FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        said = file.metadata()
    return float(said["score"]), int(said["step"])


def best_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of the best evaluation, by name."""
    with safe_open(folder / BEST_FILE, "pt") as file:
        return {name: torch.as_tensor(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written: {error.strerror}", "a folder with room", "free some space")
