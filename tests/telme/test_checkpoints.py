"""What may be gone on with: whole checkpoints only, of the same run only, the best weights whatever was killed when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from telme.checkpoints import RUN_FILE, begin, best, best_weights, keep_best, mark_complete
from telme.errors import DataError, UsageError

SETTINGS: dict[str, Any] = {"seed": 1, "clips": {"train": 8}}


def checkpoint(folder: Path, step: int, whole: bool = True) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "trainer_state.json").write_text("{}", encoding="utf-8")
    if whole:
        mark_complete(made)
    return made


def layer(value: float) -> nn.Module:
    made = nn.Linear(2, 2)
    nn.init.constant_(made.weight, value)
    return made


def test_a_new_run_starts_from_the_beginning(tmp_path: Path) -> None:
    assert begin(tmp_path / "run", SETTINGS, resume=False) is None
    assert json.loads((tmp_path / "run" / RUN_FILE).read_text(encoding="utf-8")) == SETTINGS


def test_the_last_whole_checkpoint_is_taken_and_half_ones_are_removed(tmp_path: Path) -> None:
    begin(tmp_path, SETTINGS, resume=False)
    for step in (9, 10):
        checkpoint(tmp_path, step)
    half = checkpoint(tmp_path, 20, whole=False)
    cut = checkpoint(tmp_path, 30)
    (cut / "model.safetensors").write_bytes(b"weig")
    lacking = checkpoint(tmp_path, 40)
    (lacking / "trainer_state.json").unlink()
    scrawled = checkpoint(tmp_path, 50)
    (scrawled / "complete").write_text('{"model', encoding="utf-8")
    assert begin(tmp_path, SETTINGS, resume=True) == tmp_path / "checkpoint-10"
    assert not any(path.exists() for path in (half, cut, lacking, scrawled))


def test_no_whole_checkpoint_is_the_beginning(tmp_path: Path) -> None:
    begin(tmp_path, SETTINGS, resume=False)
    checkpoint(tmp_path, 5, whole=False)
    assert begin(tmp_path, SETTINGS, resume=True) is None


def test_a_run_is_not_overwritten_and_not_gone_on_with_as_another(tmp_path: Path) -> None:
    begin(tmp_path, SETTINGS, resume=False)
    with pytest.raises(UsageError, match="go on with it by --resume"):
        begin(tmp_path, SETTINGS, resume=False)
    with pytest.raises(UsageError, match=r"clips \{'train': 9\} \(was \{'train': 8\}\), lr 0.1 \(was None\)"):
        begin(tmp_path, {**SETTINGS, "clips": {"train": 9}, "lr": 0.1}, resume=True)


def test_the_first_of_the_best_evaluations_is_kept(tmp_path: Path) -> None:
    assert best(tmp_path) is None
    kept = [
        keep_best(tmp_path, layer(step), score, step) for score, step in ((50.0, 1), (40.0, 2), (50.0, 3), (60.0, 4))
    ]
    assert kept == [True, False, False, True]
    assert best(tmp_path) == (60.0, 4)
    assert torch.equal(best_weights(tmp_path)["weight"], torch.full((2, 2), 4.0))


def test_evaluations_that_come_again_after_a_kill_end_in_the_same_best(tmp_path: Path) -> None:
    for score, step in ((50.0, 1), (60.0, 4), (50.0, 1), (55.0, 2), (60.0, 4), (60.0, 5)):
        keep_best(tmp_path, layer(step), score, step)
    assert best(tmp_path) == (60.0, 4)


def test_a_full_disk_leaves_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_best(tmp_path, layer(1), 50.0, 1)

    def full(weights: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("telme.checkpoints.save_file", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        keep_best(tmp_path, layer(2), 60.0, 2)
    assert best(tmp_path) == (50.0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]
