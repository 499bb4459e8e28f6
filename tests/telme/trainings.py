"""All three stages on the miniatures, as the tests of training run them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from telme.bundle import TEXT_FILE
from telme.checkpoints import METRICS_FILE
from telme.train import main
from tests.miniature import make_iemocap, make_meld
from tests.telme.encoders import make_encoders

# Tiny encoders learn little in little time.
STAGES: dict[str, list[str]] = {
    "teacher": ["--batch", "8", "--epochs", "12", "--lr", "2e-3", "--head-lr", "5e-3"],
    "students": ["--batch", "8", "--epochs", "4", "--lr", "5e-4", "--head-lr", "1e-3"],
    "fusion": ["--batch", "8", "--epochs", "3", "--lr", "1e-3"],
}
RUNS = {
    "teacher": ("teacher",),
    "students": ("students/audio", "students/video"),
    "fusion": ("fusion",),
}


def arguments(folder: Path, stage: str, dataset: str, out: str, *more: str) -> list[str]:
    inits = {
        "teacher": ["--init", str(folder / "text"), "--max-tokens", "96"],
        "students": ["--audio-init", str(folder / "audio"), "--video-init", str(folder / "video")],
        "fusion": [],
    }
    places = ["--data", str(folder / dataset), "--out", str(folder / out), "--dataset", dataset, "--workers", "0"]
    return [stage, *places, *inits[stage], *STAGES[stage], *more]


def train(folder: Path, stage: str, dataset: str = "meld", out: str = "out", *more: str) -> None:
    assert main(arguments(folder, stage, dataset, out, *more)) == 0


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    return found


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in metrics(folder)["log"] if "loss" in entry]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both miniatures, the encoders, and all stages of MELD trained without an interruption."""
    folder = tmp_path_factory.mktemp("training")
    make_meld(folder / "meld", train=8, dev=3)
    make_iemocap(folder / "iemocap", train=5, dev=2)
    make_encoders(folder)
    for stage in STAGES:
        train(folder, stage, "meld", "out", "--save-every", "6")
    return folder


def shift_logits(bundle: Path, target: Path, offsets: list[float]) -> None:
    """The bundle, with that added to its teacher's logits, as telme.compact does it."""
    shutil.copytree(bundle, target)
    weights = load_file(target / TEXT_FILE)
    weights["classifier.bias"] = (weights["classifier.bias"].float() + torch.tensor(offsets)).half()
    save_file(weights, target / TEXT_FILE)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, "logit_offsets": offsets}), encoding="utf-8")
