"""A checkpoint with the authors' names and shapes, at full size: imported, verified, and run by the whole program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bench.transcripts import as_captured
from stream.bus import Emotion
from stream.items import SAMPLE_RATE_HZ
from telme.clips import read_clip
from telme.config import Part
from telme.data import ClipSource
from telme.features import Missing
from tests.commands import ANY_PORT, COMMAND, EXAMPLES, emotions, running
from tests.miniature import write_clip
from tests.telme.checkpoints import ROBERTA_TOKENS, make_checkpoint, processor_files, toy_tokenizer_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
_ONE_UTTERANCE_S = 4.8


@pytest.fixture(scope="module", params=["meld", "iemocap"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    make_checkpoint(folder / "authors", request.param)
    toy_tokenizer_files(folder / "tokenizer", ROBERTA_TOKENS)
    processors = processor_files(folder / "processors")
    given = ["--tokenizer", str(folder / "tokenizer"), "--processors", str(processors)]
    source = ["import", str(folder / "authors"), "--dataset", request.param, "--out", str(folder / "bundle"), *given]
    subprocess.run([*COMMAND, "models", *source], check=True)
    shutil.rmtree(folder / "authors")
    return folder / "bundle"


def without(bundle: Path, part: Part, folder: Path) -> Path:
    """The bundle without a student."""
    made = Path(shutil.copytree(bundle, folder / part, copy_function=os.link))
    (made / f"{part}.safetensors").unlink()
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    (made / "config.json").unlink()
    (made / "config.json").write_text(json.dumps({**config, f"{part}_config": None}), encoding="utf-8")
    return made


def answer(folder: Path, bundle: Path, *arguments: str) -> Emotion:
    """What the program answers to one utterance with sound and pictures."""
    film = EXAMPLES / "conversation.mp4"
    clip = read_clip(ClipSource(film, film), video=False)
    assert not isinstance(clip.sound, Missing)
    sound = as_captured(clip.sound, clip.sound_rate_hz)[: int(_ONE_UTTERANCE_S * SAMPLE_RATE_HZ)]
    frames = np.random.default_rng(0).integers(0, 256, (58, 64, 96, 3)).astype(np.uint8)
    given = write_clip(folder / "utterance.mp4", sound, frames)
    options = ("--input", str(given), "--bundle", str(bundle), "--backend", "torch", "--events", "jsonl", *ANY_PORT)
    with running(folder, *options, *arguments) as run:
        events = list(run.events())
        assert run.end() == 0
    (found,) = emotions(events)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    return found


def test_it_verifies(bundle: Path) -> None:
    ran = subprocess.run([*COMMAND, "models", "verify", str(bundle)], capture_output=True, text=True, check=True)
    assert ran.stdout.rstrip().endswith("from text, audio, video")


def test_one_utterance_with_all_and_with_each_absent(bundle: Path, tmp_path: Path) -> None:
    runs = {
        "all": answer(tmp_path, bundle),
        "no camera": answer(tmp_path, bundle, "--no-camera"),
        "no audio student": answer(tmp_path, without(bundle, "audio", tmp_path)),
        "no video student": answer(tmp_path, without(bundle, "video", tmp_path)),
    }
    used = {name: [key for key, item in run.modalities.items() if item.used] for name, run in runs.items()}
    assert used == {
        "all": ["text", "audio", "video"],
        "no camera": ["text", "audio"],
        "no audio student": ["text", "video"],
        "no video student": ["text", "audio"],
    }
    assert runs["no audio student"].modalities["audio"].reason == "the bundle has no audio student"
    assert runs["no camera"].probabilities == pytest.approx(runs["no video student"].probabilities, abs=1e-5)
    assert runs["all"].probabilities != runs["no camera"].probabilities
