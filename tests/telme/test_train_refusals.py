"""What training refuses, and says before it begins: one line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import DistilBertConfig, TimesformerConfig

from telme.record import RECORD_FILE
from telme.train import main
from tests.bundles import tiny_tokenizer
from tests.miniature import LOOKS, make_meld, tone, write_clip
from tests.telme.trainings import arguments, shift_logits

# The stages that the module trains first take two minutes on a slow machine.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(900)]


def test_a_damaged_record_ends_a_stage_before_it_trains(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, before in (("students", "teacher"), ("fusion", "students")):
        start = tmp_path / before
        shutil.copytree(trained / "out" / before / "bundle", start)
        (start / RECORD_FILE).write_text('{"text": {"stage": "teacher"}}', encoding="utf-8")
        assert main(arguments(trained, stage, "meld", str(tmp_path / "out"), "--from", str(start))) == 1
        assert f"{RECORD_FILE}: Object missing required field" in capsys.readouterr().err.splitlines()[-1]
        assert not list((tmp_path / "out" / stage).rglob("run.json"))


@pytest.mark.parametrize(("stage", "more"), [("students", ["--only", "video"]), ("fusion", [])])
def test_students_of_another_teacher_than_the_one_that_is_there_are_not_gone_on_with_in_silence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, more: list[str]
) -> None:
    """As after a trial of the stages, and then the whole first one."""
    out = tmp_path / "out"
    shutil.copytree(trained / "out" / "students" / "bundle", out / "students" / "bundle")
    shift_logits(trained / "out" / "teacher" / "bundle", out / "teacher" / "bundle", [0.5] * 7)  # another one
    flags = arguments(trained, stage, "meld", str(out), "--max-steps", "1", *more)
    assert main(flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    students = out / "students" / "bundle"
    assert f"error: another teacher in {students} than in {out / 'teacher' / 'bundle'}" in line
    assert f"--from {students}" in line
    assert main([*flags, "--from", str(students)]) == 0


def test_a_run_is_not_begun_again_nor_gone_on_with_under_other_settings(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = arguments(trained, "teacher", "meld", "out", "--save-every", "6")
    assert main(again) == 2
    assert "go on with it by --resume" in capsys.readouterr().err
    assert main([*again, "--resume", "--seed", "7"]) == 2
    assert "seed 7 (was 42)" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 12


@pytest.mark.parametrize(
    ("stage", "more", "says"),
    [
        ("teacher", ["--init", "/nowhere/encoder"], "no encoder '/nowhere/encoder'"),
        ("teacher", ["--max-tokens", "129"], "prompts of 129 tokens; expected at most the 128"),
        ("teacher", ["--data", "/nowhere"], "no file /nowhere/train_meld_emo.csv"),
        # What is wrong with the data is said before a network is asked for an encoder.
        ("teacher", ["--data", "/nowhere", "--init", "/nowhere/encoder"], "no file /nowhere/train_meld_emo.csv"),
        ("students", ["--from", "/nowhere/bundle"], "no bundle '/nowhere/bundle'"),
        ("students", ["--recipe", "published"], "in mode clean; expected meld in mode published-meld"),
        ("students", ["--audio-init", "{video}"], "of type timesformer, 768 wide; expected data2vec-audio, 768 wide"),
        ("students", ["--video-init", "{sixteen}"], "of 16 pictures; expected one of 8"),
        ("teacher", ["--init", "{distilled}"], "an encoder of type distilbert"),
        # transformers makes up a tokenizer for it that knows no word.
        ("teacher", ["--init", "{untold}"], "{untold} without a tokenizer"),
        ("teacher", ["--init", "{worn}"], "{worn}/tokenizer.json: "),
        ("fusion", ["--from", "{teacher}"], "without students"),
    ],
)
def test_what_is_not_there_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, more: list[str], says: str
) -> None:
    teacher = trained / "out" / "teacher" / "bundle"
    start = ["--from", str(teacher)] if stage != "teacher" else []
    odd = {name: tmp_path / name for name in ("sixteen", "distilled", "untold", "worn")}
    shutil.copytree(trained / "text", odd["untold"], ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json"])
    shutil.copytree(trained / "text", odd["worn"])
    (odd["worn"] / "tokenizer.json").write_text("{", encoding="utf-8")
    settings = json.loads((trained / "video" / "config.json").read_text(encoding="utf-8"))
    TimesformerConfig(**{**settings, "num_frames": 16}).save_pretrained(odd["sixteen"])
    tiny_tokenizer().save_pretrained(odd["distilled"])
    DistilBertConfig(dim=64, n_layers=1, n_heads=2, hidden_dim=64).save_pretrained(odd["distilled"])
    given = [part.format(video=trained / "video", teacher=teacher, **odd) for part in more]
    flags = arguments(trained, stage, "meld", str(tmp_path / "new"), *start, *given)
    assert main(flags) in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: error: ")]
    assert len(errors) == 1
    assert says.format(**odd) in errors[0]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--batch", "0"), ("--accumulate", "0"), ("--save-every", "0"), ("--epochs", "0"), ("--workers", "-1")),
        *(("--lr", "nan"), ("--head-lr", "inf"), ("--max-tokens", "7"), ("--max-turns", "0")),
        *(("--max-steps", "0"), ("--seed", "-1"), ("--seed", str(2**32))),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    trained: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main([*arguments(trained, "teacher", "meld", "new"), flag, value])
    assert f"argument {flag}: {value} is not above" in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "before"), [("students", "teacher"), ("fusion", "students")])
def test_a_stage_before_its_time_names_the_one_before(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, before: str
) -> None:
    assert main(arguments(trained, stage, "meld", str(tmp_path / "new"))) == 2
    assert f"expected the bundle of the stage before, {before}; run that first" in capsys.readouterr().err


def test_a_student_without_any_clip_is_an_error(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_meld(tmp_path / "meld", train=2, dev=1, clips=False)
    flags = arguments(trained, "students", "meld", str(tmp_path / "new"), "--data", str(tmp_path / "meld"))
    assert main([*flags, "--from", str(trained / "out" / "teacher" / "bundle")]) == 1
    said = capsys.readouterr().err
    assert "8 without audio: its file is not there" in said
    assert "no audio in any clip of train" in said


def test_what_the_second_student_lacks_is_said_before_the_first_is_trained(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_meld(tmp_path / "meld", train=1, dev=1, clips=False)
    for place in ("train_splits", "dev_splits_complete"):
        for turn, look in enumerate(LOOKS.values()):
            sound = tone(look, 0.5, 16_000, np.random.default_rng(turn))
            write_clip(data / place / f"dia0_utt{turn}.mp4", sound, None)
    flags = ["--from", str(trained / "out" / "teacher" / "bundle"), "--data", str(data)]
    assert main(arguments(trained, "students", "meld", str(tmp_path / "new"), *flags)) == 1
    assert "no video in any clip of train" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "new").rglob("run.json"))


def test_what_a_run_changes_is_said_before_it_begins(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(trained, "teacher", "meld", str(tmp_path / "new"), "--max-steps", "1", "--lr", "0.5")
    assert main(flags) == 0
    said = capsys.readouterr().err.splitlines()
    assert "teacher.lr: 0.5 (published 1e-06): asked for" in said
    assert any(
        line.startswith("teacher.schedule_counts: steps (published samples): the schedule counts") for line in said
    )
    assert not any(line.startswith(("audio.", "video.", "fusion.")) for line in said)
