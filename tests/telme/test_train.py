"""All three stages on the miniatures: the loss falls, bundles load and answer, a killed run ends as if it had not been.

Real processes are killed with SIGKILL; all else runs in this one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.meld_f1 import main as meld_f1
from telme import footage, stages
from telme.bundle import CARD_FILE, load_bundle
from telme.cache import FORMAT, MediaCache
from telme.checkpoints import METRICS_FILE, complete_checkpoints
from telme.data import find_clip, read_split, windows
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import INTERRUPTED
from telme.features import FeatureMaker
from telme.fitting import Task, fit_temperature
from telme.learners import ClipExamples
from telme.modeling import TelmeModel
from telme.predictor import TorchNetworks, TorchPredictor
from telme.record import RECORD_FILE, read_record
from telme.train import main
from tests.telme.trainings import RUNS, STAGES, arguments, losses, metrics, shift_logits, train

# The stages that the module trains first take two minutes on a slow machine.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("run", [run for runs in RUNS.values() for run in runs])
def test_the_loss_falls_and_what_is_learnt_shows_on_dev(trained: Path, run: str) -> None:
    folder = trained / "out" / run
    seen = losses(folder)
    assert seen[-1] < 0.8 * seen[0]
    assert metrics(folder)["dev"]["weighted_f1"] > 40  # of four classes, by chance 25
    assert list(folder.glob("runs/*/events.out.tfevents.*"))


def test_each_stage_leaves_a_bundle_with_its_parts(trained: Path) -> None:
    parts = {stage: load_bundle(str(trained / "out" / stage / "bundle")).config.parts for stage in STAGES}
    assert parts == {
        "teacher": ("text",),
        "students": ("text", "audio", "video"),
        "fusion": ("text", "audio", "video", "fusion"),
    }
    bundle = load_bundle(str(trained / "out" / "fusion" / "bundle"))
    assert set(SPEAKER_TOKENS) <= set(bundle.tokenizer.get_vocab())
    figure = f"{metrics(trained / 'out' / 'fusion')['dev']['weighted_f1']:.2f}"
    assert figure in (trained / "out" / "fusion" / "bundle" / CARD_FILE).read_text(encoding="utf-8")


def test_the_last_bundle_answers_live_from_all_three(trained: Path) -> None:
    bundle = load_bundle(str(trained / "out" / "fusion" / "bundle"))
    maker, root = FeatureMaker(bundle.tokenizer, bundle.config), trained / "meld"
    rows = read_split(root, "dev")
    cache = MediaCache(trained / "out" / "cache", maker)
    features = [
        maker.features(window, cache.media(find_clip(row, root, "dev")))
        for window, row in zip(windows(rows, bundle.config.max_turns), rows, strict=True)
    ]
    answers = TorchPredictor(bundle).predict(features)
    assert [answer.unused for answer in answers] == [{}] * 12
    # The stage made its features from these very weights, and its fusion's were rounded as they are in the bundle.
    encoded = load_file(trained / "out" / "fusion" / "audio-dev.safetensors")
    assert encoded["present"].all()
    assert bundle.model.audio is not None
    with torch.inference_mode():
        heard = bundle.model.audio(torch.from_numpy(features[0].sound)[None]).feature
    torch.testing.assert_close(heard[0], encoded["feature"][0])


def test_one_student_after_the_other(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    shutil.copytree(trained / "out" / "teacher" / "bundle", out / "teacher" / "bundle")
    (out / "teacher" / "bundle" / RECORD_FILE).unlink()  # as a bundle that was made before there was one
    students = out / "students" / "bundle"
    for seed, student, parts in ((3, "audio", ("text", "audio")), (4, "video", ("text", "audio", "video"))):
        train(trained, "students", "meld", str(out), "--only", student, "--max-steps", "1", "--seed", str(seed))
        assert load_bundle(str(students)).config.parts == parts
    record = read_record(students)
    assert {part: entry.seed for part, entry in record.items()} == {"audio": 3, "video": 4}
    card = (students / CARD_FILE).read_text(encoding="utf-8").splitlines()
    assert "- text: not recorded how it was trained" in card
    assert {f"- audio: {record['audio']}", f"- video: {record['video']}"} <= set(card)
    train(trained, "students", "meld", str(out), "--only", "audio", "--max-steps", "1", "--seed", "3", "--resume")


def test_a_card_tells_of_each_network_what_it_was_trained_with(trained: Path, tmp_path: Path) -> None:
    """A stage's own recipe says nothing of the networks that it takes over."""
    start = trained / "out" / "students" / "bundle"
    flags = ["--from", str(start), "--seed", "5", "--max-steps", "2", "--lr", "3e-4"]
    train(trained, "fusion", "meld", str(tmp_path / "out"), *flags)
    bundle = tmp_path / "out" / "fusion" / "bundle"
    record, before = read_record(bundle), read_record(start)
    assert record == {**before, "fusion": record["fusion"]}
    kept = record["text"]
    assert (kept.stage, kept.dataset, kept.recipe, kept.seed) == ("teacher", "meld", "clean", 42)
    assert (kept.init, kept.how.epochs, kept.how.lr, kept.how.head_lr) == (str(trained / "text"), 12, 2e-3, 5e-3)
    told = metrics(trained / "out" / "teacher")
    figures = (told["steps"], told["best_step"], told["dev"]["weighted_f1"])
    assert (kept.steps, kept.best_step, kept.dev_weighted_f1) == figures
    added = record["fusion"]
    assert (added.stage, added.init, added.seed, added.steps, added.how.lr) == ("fusion", None, 5, 2, 3e-4)
    card = (bundle / CARD_FILE).read_text(encoding="utf-8").splitlines()
    assert list(record) == ["text", "audio", "video", "fusion"]
    assert {f"- {part}: {entry}" for part, entry in record.items()} <= set(card)
    assert f"- text_init: {trained / 'text'} (published roberta-large): asked for" in card
    assert "- teacher.lr: 0.002 (published 1e-06): asked for" in card
    assert "- fusion.lr: 0.0003 (published 1e-05): asked for" in card


def test_the_teachers_figure_is_that_of_its_bundle(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev, bundle = trained / "meld" / "dev_meld_emo.csv", trained / "out" / "teacher" / "bundle"
    assert meld_f1(["--csv", str(dev), "--bundle", str(bundle), "--text", "gold", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    told = metrics(trained / "out" / "teacher")["dev"]
    assert scored["weighted_f1"] == round(told["weighted_f1"], 3)
    assert scored["calibration_error"] == round(told["calibration_error"], 4)
    assert scored["n"] == 12


def test_text_needs_no_media_and_clips_are_counted(trained: Path) -> None:
    assert not list((trained / "out" / "teacher").glob("clips-*"))
    said = json.loads((trained / "out" / "students" / "clips-train.json").read_text(encoding="utf-8"))
    assert said["summary"] == "32 utterances, 32 with sound, 32 with pictures"


@pytest.mark.parametrize("recipe", ["clean", "published"])
def test_iemocap_goes_the_same_way(trained: Path, recipe: str) -> None:
    out = f"iemocap-{recipe}"
    for stage in STAGES:
        train(trained, stage, "iemocap", out, "--recipe", recipe, "--max-steps", "3")
    bundle = load_bundle(str(trained / out / "fusion" / "bundle"))
    assert bundle.config.mode == {"clean": "clean", "published": "published-iemocap"}[recipe]
    assert bundle.config.fusion_settings.heads == 4
    protocol = {"clean": "streaming protocol", "published": "published protocol: groups of rows in the file's order"}
    for stage, said in {"teacher": "streaming protocol", "fusion": protocol[recipe]}.items():
        assert f"gold text, {said})" in (trained / out / stage / "bundle" / CARD_FILE).read_text(encoding="utf-8")
    assert len(losses(trained / out / "fusion")) == 1
    # Where sounds are padded to the longest of a group, its size is of what features are kept for.
    key = json.loads((trained / out / "fusion" / "audio-train.json").read_text(encoding="utf-8"))
    assert key.get("group") == {"clean": None, "published": 8}[recipe]


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_killed_run_ends_as_if_it_had_not_been(trained: Path, stage: str, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    flags = arguments(trained, stage, "meld", str(out), "--save-every", "6")
    if stage != "teacher":
        flags += ["--from", str(trained / "out" / {"students": "teacher", "fusion": "students"}[stage] / "bundle")]
    # Another number of workers changes nothing either.
    command = [sys.executable, "-m", "telme.train", *flags, "--workers", "1"]
    child = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert child.stderr is not None
    with child:
        for line in child.stderr:
            # The log of a step after the first checkpoint, which is at 4, and before the last.
            if '{"step": 6' in line:
                os.kill(child.pid, signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    runs = [out / run for run in RUNS[stage]]
    assert not any((run / METRICS_FILE).exists() for run in runs)
    assert complete_checkpoints(runs[0])
    assert main([*flags, "--resume"]) == 0
    for run, whole in zip(runs, RUNS[stage], strict=True):
        assert metrics(run) == metrics(trained / "out" / whole)


def test_a_fusion_does_not_go_on_when_clips_have_changed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "meld", tmp_path / "out"
    shutil.copytree(trained / "meld", data)
    start = ["--from", str(trained / "out" / "students" / "bundle"), "--data", str(data), "--max-steps", "1"]
    flags = arguments(trained, "fusion", "meld", str(out), *start)
    assert main(flags) == 0
    clip = sorted(data.glob("train_splits/*.mp4"))[0]
    clip.unlink()
    assert main([*flags, "--resume"]) == 2
    assert "clips" in capsys.readouterr().err.splitlines()[-1]
    shutil.copy(trained / "meld" / "train_splits" / clip.name, clip)
    with monkeypatch.context() as later:
        later.setattr(footage, "FORMAT", FORMAT + 1)  # the same files, from which something else is made
        assert main([*flags, "--resume"]) == 2
    assert "clips" in capsys.readouterr().err.splitlines()[-1]
    pad_sounds(Path(start[1]), out / "padded")
    assert main([*flags[: flags.index("--from")], "--from", str(out / "padded"), *start[2:], "--resume"]) == 2
    assert "clips" in capsys.readouterr().err.splitlines()[-1]
    assert main([*flags, "--resume"]) == 0


def pad_sounds(bundle: Path, target: Path) -> None:
    """The bundle, whose sounds begin with half a second of zeros now."""
    shutil.copytree(bundle, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, "audio_left_pad_ms": 500}), encoding="utf-8")


@pytest.mark.parametrize(("stage", "before"), [("students", "teacher"), ("fusion", "students")])
def test_training_keeps_no_copy_of_the_encoders_and_an_interrupt_is_one_line(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    before: str,
) -> None:
    made: list[weakref.ref[TorchNetworks]] = []

    def networks(model: TelmeModel) -> TorchNetworks:
        found = TorchNetworks(model)
        made.append(weakref.ref(found))
        return found

    def fit(*_: object) -> None:
        assert [copy() for copy in made] == [None]
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "TorchNetworks", networks)
    monkeypatch.setattr(stages, "fit", fit)
    start = ["--from", str(trained / "out" / before / "bundle")]
    assert main(arguments(trained, stage, "meld", str(tmp_path / "out"), *start)) == INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == "train: interrupted; --resume goes on"


def test_students_that_take_a_fusions_place_do_not_keep_its_temperature(trained: Path, tmp_path: Path) -> None:
    start = trained / "out" / "fusion" / "bundle"
    flags = ["--from", str(start), "--only", "audio", "--max-steps", "1"]
    train(trained, "students", "meld", str(tmp_path / "out"), *flags)
    out = tmp_path / "out" / "students"
    config = load_bundle(str(out / "bundle")).config
    kept = load_file(out / "teacher-dev.safetensors")
    truth = [row.label for row in read_split(trained / "meld", "dev")]
    assert config.fusion is None
    assert set(read_record(out / "bundle")) == {"text", "audio", "video"}
    assert config.calibration_temperature == fit_temperature(kept["logits"].numpy(), truth)
    assert config.calibration_temperature != load_bundle(str(start)).config.calibration_temperature


def test_students_learn_from_a_teacher_without_the_offsets_of_its_rule(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, shifted = trained / "out" / "teacher" / "bundle", tmp_path / "shifted"
    shift_logits(plain, shifted, [0.0, 0.75, 1.0, -0.5, -0.75, 0.0, -0.5])
    tasks: list[Task] = []

    def fit(task: Task, *_: object) -> None:
        tasks.append(task)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "fit", fit)
    for start in (plain, shifted):
        flags = ["--from", str(start), "--only", "audio"]
        assert main(arguments(trained, "students", "meld", str(tmp_path / start.parent.name), *flags)) == INTERRUPTED
    for split in ("train", "dev"):
        one, other = (getattr(task, split) for task in tasks)
        assert isinstance(one, ClipExamples)
        torch.testing.assert_close(other.teacher.logits, one.teacher.logits, rtol=0, atol=2e-3)
        torch.testing.assert_close(other.teacher.feature, one.teacher.feature, rtol=0, atol=0)
    # A run whose teacher needed no change goes on as it was begun; other offsets are another run.
    assert "logit_offsets" not in tasks[0].described
    assert tasks[1].described["logit_offsets"] == [0.0, 0.75, 1.0, -0.5, -0.75, 0.0, -0.5]
