"""What may be gone on with: whole checkpoints only, of the same run only, the best weights whatever was killed when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from telme.checkpoints import (
    BEST_FILE,
    METRICS_FILE,
    RUN_FILE,
    begin,
    best,
    best_weights,
    keep_best,
    mark_complete,
)
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


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("file", ["checkpoint-500/model.safetensors", "checkpoint-last/x", BEST_FILE, METRICS_FILE])
def test_what_no_run_json_speaks_for_is_neither_removed_nor_gone_on_with(
    tmp_path: Path, file: str, resume: bool
) -> None:
    stranger = tmp_path / file
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_bytes(b"a week's work")
    with pytest.raises(
        UsageError, match=rf"{file.partition('/')[0]} in .* without a run\.json; expected an empty folder"
    ):
        begin(tmp_path, SETTINGS, resume)
    assert stranger.read_bytes() == b"a week's work"
    assert not (tmp_path / RUN_FILE).exists()


def test_a_run_whose_run_json_was_removed_is_not_begun_under_other_settings(tmp_path: Path) -> None:
    begin(tmp_path, SETTINGS, resume=False)
    checkpoint(tmp_path, 8)
    (tmp_path / RUN_FILE).unlink()
    with pytest.raises(UsageError, match=r"checkpoint-8 in .* without a run\.json"):
        begin(tmp_path, {**SETTINGS, "seed": 7}, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_died_before_its_run_json_begins(tmp_path: Path, resume: bool) -> None:
    """What a stage makes before it trains is no run: counts of clips, encodings, another stage's bundle."""
    for name in ("run.json.4711", "clips-train.json", "audio-dev.safetensors", "bundle/text.safetensors", "audio/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{", encoding="utf-8")
    assert begin(tmp_path, SETTINGS, resume) is None
    assert begin(tmp_path, SETTINGS, resume=True) is None


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
