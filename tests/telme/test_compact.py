"""The compact bundle's recipe on a miniature: a teacher, a pupil that learns from it, a run that goes on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from bench.meld_f1 import main as meld_f1
from telme import compact
from telme.bundle import CARD_FILE, TEXT_FILE, load_bundle, open_bundle, save_bundle
from telme.compact import _taught, main
from telme.data import read_split
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import INTERRUPTED
from telme.lessons import answers
from telme.models import TextTeacher
from telme.record import read_record
from tests.bundles import make_tiny_bundle, tiny_config, tiny_tokenizer
from tests.miniature import make_meld

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Annotations whose words give the emotion away, and a random encoder to start from."""
    make_meld(tmp_path / "data", train=24, dev=6, clips=False)
    tokenizer = tiny_tokenizer()
    settings = dict(tiny_config(len(tokenizer)).text_config or {})
    settings.pop("model_type")
    torch.manual_seed(5)
    BertModel(BertConfig(**settings)).save_pretrained(tmp_path / "init")
    tokenizer.save_pretrained(tmp_path / "init")
    return tmp_path


def run(folder: Path, out: str, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, float]:
    """Train; returns the last line."""
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / out)]
    main([*places, "--lr", "3e-3", "--head-lr", "5e-3", *more])
    report: dict[str, float] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return report


def test_a_pupil_learns_from_a_teacher(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "teacher", capsys, "--epochs", "30", "--batch", "4")["weighted_f1"] > 90
    teacher = folder / "teacher" / "bundle"
    # What the pupil learns is the teacher's, not the labels': they are of no use here.
    labels = folder / "data" / "train_meld_emo.csv"
    labels.write_text(labels.read_text(encoding="utf-8").replace("surprise", "joy"), encoding="utf-8")
    report = run(folder, "pupil", capsys, "--epochs", "30", "--batch", "4", "--teacher", str(teacher))
    assert report["weighted_f1"] > 90
    pupil = folder / "pupil" / "bundle"
    bundle = load_bundle(str(pupil))
    starts = [bundle.tokenizer.get_vocab()[token] for token in (*SPEAKER_TOKENS, "[SEP]")]
    assert bundle.config.turn_starts == starts
    assert f"{report['weighted_f1']:.2f}" in (pupil / CARD_FILE).read_text(encoding="utf-8")
    for record, smoothing in ((read_record(pupil)["text"], 0.0), (read_record(teacher)["text"], 0.05)):
        assert (record.recipe, record.steps, record.seed, record.init) == ("compact", 180, 1, "init")
        assert record.how.label_smoothing == smoothing  # a teacher's answers are smooth themselves
    assert read_record(pupil)["text"].dev_weighted_f1 == report["weighted_f1"]
    (change,) = read_record(pupil)["text"].changes
    assert "telme.compact --init init --teacher bundle --epochs 30 --batch 4 --lr 0.003" in change

    # The bundle answers prompts one by one as the trainer did packed dialogues.
    dev = str(folder / "data" / "dev_meld_emo.csv")
    assert meld_f1(["--csv", dev, "--bundle", str(pupil), "--text", "gold", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert scored["weighted_f1"] == pytest.approx(report["weighted_f1"], abs=1e-3)
    assert scored["n"] == 24


def test_prompts_one_by_one_teach_and_are_taught(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of whole prompts a token sees all, and the figure is that of the bundle in use."""
    teacher = run(folder, "teacher", capsys, "--whole", "--epochs", "40", "--batch", "16")
    assert teacher["weighted_f1"] > 90
    bundle = folder / "teacher" / "bundle"
    assert load_bundle(str(bundle)).config.turn_starts is None
    assert "Every token sees the whole prompt." in (bundle / CARD_FILE).read_text(encoding="utf-8")
    dev = str(folder / "data" / "dev_meld_emo.csv")
    assert meld_f1(["--csv", dev, "--bundle", str(bundle), "--text", "gold", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert scored["weighted_f1"] == pytest.approx(teacher["weighted_f1"], abs=1e-3)
    labels = folder / "data" / "train_meld_emo.csv"
    labels.write_text(labels.read_text(encoding="utf-8").replace("surprise", "joy"), encoding="utf-8")
    # Its answers teach packed dialogues as well: they are one a row.
    for name, more in (
        ("whole", ["--whole", "--epochs", "40", "--batch", "16"]),
        ("packed", ["--epochs", "30", "--batch", "4"]),
    ):
        assert run(folder, name, capsys, *more, "--teacher", str(bundle))["weighted_f1"] > 90


@pytest.mark.parametrize(("capability", "precision"), [("AVX512", "bf16"), ("AVX2", "no")])
def test_it_trains_in_float32_where_bfloat16_has_no_kernels(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, capability: str, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    run(folder, "out", capsys, "--max-steps", "1")
    assert AcceleratorState().mixed_precision == precision
    kept = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))["precision"]
    assert kept == {"bf16": "bfloat16", "no": "float32"}[precision]


def test_only_the_speakers_rows_of_the_embeddings_move(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "out", capsys, "--max-steps", "3")
    before = BertModel.from_pretrained(folder / "init").get_parameter("embeddings.word_embeddings.weight")
    bundle = load_bundle(str(folder / "out" / "bundle"))
    after = bundle.model.text.get_parameter("text_model.embeddings.word_embeddings.weight")
    moved = (after - before).abs().amax(1) > 2e-3  # float16 lies between
    speakers = {bundle.tokenizer.get_vocab()[token] for token in SPEAKER_TOKENS[:2]}
    assert set(moved.nonzero().flatten().tolist()) == speakers


def test_two_teachers_know_more_than_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_split(folder / "data", "train")
    truth = torch.tensor([row.label for row in rows])
    known = 6.0 * torch.nn.functional.one_hot(truth, 7)
    named = []
    for number, held in enumerate((known * (truth < 4)[:, None], known * (truth >= 4)[:, None])):
        save_file({"logits": held}, folder / f"{number}.safetensors")
        named += ["--teacher", str(folder / f"{number}.safetensors")]
    labels = folder / "data" / "train_meld_emo.csv"
    labels.write_text(re.sub("anger|disgust|fear|sadness|surprise", "joy", labels.read_text("utf-8")), encoding="utf-8")
    assert run(folder, "both", capsys, "--epochs", "60", "--batch", "4", *named)["weighted_f1"] > 90
    assert run(folder, "one", capsys, "--epochs", "60", "--batch", "4", *named[:2])["weighted_f1"] < 90
    lines = labels.read_text("utf-8").splitlines(keepends=True)
    labels.write_text("".join(lines[:-1]), encoding="utf-8")
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "other")]
    assert main([*places, *named[:2]]) == 1
    assert f"compact: error: {folder / '0.safetensors'} with {len(rows)} answers" in capsys.readouterr().err


def test_each_teacher_gives_its_own_answers_and_keeps_them(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_split(folder / "data", "train")
    for seed in (1, 2):
        run(folder, str(seed), capsys, "--max-steps", "1", "--seed", str(seed))
        shutil.copytree(folder / str(seed) / "bundle", folder / "shelf" / str(seed))
    first, second = (_taught(folder / "shelf" / name, rows) for name in ("1", "2"))
    assert not torch.allclose(first, second, atol=1e-2)
    monkeypatch.setattr(compact, "answers", None)  # they are kept
    assert torch.equal(_taught(folder / "shelf" / "1", rows), first)


def test_a_teacher_teaches_without_the_offsets_of_its_rule(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_split(folder / "data", "train")
    monkeypatch.setattr(compact, "offsets_for_f1", lambda probabilities: np.zeros(7))
    run(folder, "plain", capsys, "--max-steps", "1")
    monkeypatch.setattr(compact, "offsets_for_f1", lambda probabilities: np.linspace(-0.6, 0.6, 7))
    ruled = run(folder, "ruled", capsys, "--max-steps", "1")
    plain, shifted = (load_bundle(str(folder / name / "bundle")) for name in ("plain", "ruled"))
    assert plain.config.logit_offsets == [0.0] * 7
    offsets = torch.tensor(shifted.config.logit_offsets)
    # In the weights, at the temperature of what it was found on, and rounded as they are.
    moved = shifted.model.text.classifier.bias - plain.model.text.classifier.bias
    torch.testing.assert_close(moved, offsets, rtol=0, atol=0)
    expected = plain.config.calibration_temperature * torch.linspace(-0.6, 0.6, 7)
    torch.testing.assert_close(offsets, expected, rtol=0, atol=2e-3)
    # The figures are those of the bundle as it is used.
    dev = str(folder / "data" / "dev_meld_emo.csv")
    assert meld_f1(["--csv", dev, "--bundle", str(folder / "ruled" / "bundle"), "--text", "gold", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert scored["weighted_f1"] == pytest.approx(ruled["weighted_f1"], abs=1e-3)
    assert scored["calibration_error"] == pytest.approx(ruled["calibration_error"], abs=1e-3)
    monkeypatch.setattr(compact, "knows_bfloat16", lambda: False)  # in which offsets come off less exactly
    said = _taught(folder / "ruled" / "bundle", rows)
    torch.testing.assert_close(said, _taught(folder / "plain" / "bundle", rows), rtol=0, atol=1e-5)


def test_answers_that_cannot_be_kept_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = make_tiny_bundle(folder / "shelf" / "made")
    # In the place of a folder that may not be written, which root may: a folder where the file belongs.
    name = compact._answers_name(open_bundle(str(teacher)), read_split(folder / "data", "train"))
    (teacher.parent / name).mkdir()
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    assert main([*places, "--teacher", str(teacher)]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("compact: error"))
    assert f"{teacher.parent / name} with the teacher's answers cannot be written" in line


def test_a_teacher_without_offsets_teaches_what_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "knows_bfloat16", lambda: False)
    rows = read_split(folder / "data", "train")
    made = make_tiny_bundle(folder / "shelf" / "made")  # as telme.train makes them
    bundle = load_bundle(str(made))
    assert bundle.config.logit_offsets is None
    said = answers(bundle.model.text, rows, bundle.tokenizer, bundle.config)
    torch.testing.assert_close(_taught(made, rows), said, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"logit_prior": 0.3}, "with logit_prior 0.3 and no logit_offsets; expected what was added to each class's"),
        ({"logit_offsets": [0.1] * 6}, "with logit_offsets [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]; expected 7 numbers;"),
        ({"logit_offsets": [None] * 7}, "expected a number for each class, or null; mend it"),
        ({"logit_offsets": 0.3}, "with logit_offsets 0.3; expected a number for each class, or null;"),
    ],
)
def test_a_teacher_that_does_not_tell_what_to_take_off_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, object], says: str
) -> None:
    config = make_tiny_bundle(folder / "shelf" / "made") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), **settings}), encoding="utf-8")
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    assert main([*places, "--teacher", str(config.parent)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"compact: error: {config} with logit_")
    assert says in line


def test_an_old_teacher_that_was_told_its_offsets_teaches_without_them(folder: Path) -> None:
    rows = read_split(folder / "data", "train")
    config = make_tiny_bundle(folder / "shelf" / "made") / "config.json"
    plain = _taught(config.parent, rows)
    told = {"logit_prior": 0.3, "logit_offsets": [1, 0.5, 0, 0, 0, 0, -2]}
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), **told}), encoding="utf-8")
    expected = plain - torch.tensor([1, 0.5, 0, 0, 0, 0, -2])
    torch.testing.assert_close(_taught(config.parent, rows), expected, rtol=0, atol=1e-6)


def test_a_teacher_of_other_classes_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    config.dataset = "iemocap"
    save_bundle(folder / "iemocap", config, TextTeacher(config), tokenizer, "card")
    save_file({"logits": torch.zeros(96, 6)}, folder / "six.safetensors")
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    for teacher, code, says in (
        ("iemocap", 2, "with the classes of iemocap; expected those of meld: anger, "),
        ("six.safetensors", 1, "with 96 answers, logits [96, 6]; expected [96, 7], "),
    ):
        assert main([*places, "--teacher", str(folder / teacher)]) == code
        assert f"{folder / teacher} {says}" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--data", "nowhere", "no file nowhere/train_meld_emo.csv"),
        ("--init", "nowhere", "no folder nowhere; expected"),
        ("--init", "{folder}/data", "{folder}/data without a tokenizer"),
        ("--max-tokens", "129", "prompts of 129 tokens; expected at most the 128 that {folder}/init has positions for"),
        ("--teacher", "{folder}/init/config.json", "{folder}/init/config.json without a teacher's answers"),
        ("--teacher", "{folder}/init/model.safetensors", "without a teacher's answers: 'logits'"),
    ],
)
def test_what_is_not_there_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, says: str
) -> None:
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    assert main([*places, flag, value.format(folder=folder)]) in (1, 2)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("compact: error"))
    assert says.format(folder=folder) in line


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--epochs", "0"), ("--batch", "0"), ("--lr", "nan"), ("--head-lr", "inf")),
        *(("--max-tokens", "7"), ("--max-steps", "0"), ("--seed", "-1")),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    with pytest.raises(SystemExit, match=r"^2$"):
        main([*places, flag, value])
    assert f"argument {flag}: {value} is not above" in capsys.readouterr().err


def test_a_disk_that_fills_up_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", Mock(side_effect=OSError(28, "No space left on device")))
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    assert main([*places, "--max-steps", "1"]) == 1
    assert f"compact: error: {folder / 'out'} cannot be written: " in capsys.readouterr().err.splitlines()[-1]


def test_answers_that_are_no_numbers_end_it_without_a_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    assert main([*places, "--lr", "1e30", "--head-lr", "1e30", "--max-steps", "3"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("compact: error: answers on dev that are no numbers; expected a loss that falls")
    assert not (folder / "out" / "bundle").exists()


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "error: no room on the GPU for a batch of 8: CUDA out of"),
        (KeyboardInterrupt(), INTERRUPTED, "compact: interrupted; --resume goes on"),
    ],
)
def test_a_full_gpu_and_an_interrupt_are_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr("telme.pupil.read", Mock(side_effect=failure))  # in the first step
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    assert main(places) == code
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_is_cut_short_is_the_beginning_of_the_whole(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "whole", capsys, "--epochs", "2")
    run(folder, "short", capsys, "--epochs", "2", "--max-steps", "3", "--max-tokens", "64")
    (change,) = read_record(folder / "short" / "bundle")["text"].changes
    assert change.endswith(" --max-tokens 64 --max-steps 3 --seed 1")
    whole, short = (load_file(folder / name / "checkpoint-3" / "model.safetensors") for name in ("whole", "short"))
    for name in (name for name in whole if name.startswith("teacher.")):
        torch.testing.assert_close(short[name], whole[name], rtol=0, atol=1e-6, msg=name)


def test_the_bundle_holds_the_moving_average(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "out", capsys, "--epochs", "4", "--batch", "1")
    (kept,) = (folder / "out").glob("checkpoint-96")
    trained = load_file(kept / "model.safetensors")
    saved = load_file(folder / "out" / "bundle" / "text.safetensors")
    weight = saved["classifier.weight"].float()
    torch.testing.assert_close(weight, trained["averaged.module.classifier.weight"], rtol=1e-3, atol=1e-4)
    assert (weight - trained["teacher.classifier.weight"]).abs().max() > 1e-3


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(folder, "out", capsys, "--epochs", "1")
    for path in (folder / "out").glob("checkpoint-*"):
        (path / "complete").unlink()  # it was killed while it wrote
    again = run(folder, "out", capsys, "--epochs", "1", "--resume")
    assert again["weighted_f1"] == pytest.approx(whole["weighted_f1"])
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
    assert main([*places, "--epochs", "1"]) == 2
    assert "go on with it by --resume" in capsys.readouterr().err


def test_it_goes_on_where_it_was_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(folder, "whole", capsys, "--epochs", "3")
    run(folder, "parts", capsys, "--epochs", "3")
    last = max((folder / "parts").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    shutil.rmtree(last)  # as if the run had died after its second epoch
    again = run(folder, "parts", capsys, "--epochs", "3", "--resume")
    assert again["weighted_f1"] == pytest.approx(whole["weighted_f1"])
    assert again["temperature"] == pytest.approx(whole["temperature"], rel=1e-3)


@pytest.mark.parametrize(
    ("more", "steps"),
    [(["--epochs", "2", "--max-steps", "2"], 2), (["--epochs", "1", "--max-steps", "5"], 5), (["--epochs", "1.25"], 4)],
    ids=["trial", "beyond the epochs", "part of an epoch"],
)
def test_a_run_that_was_killed_before_its_bundle_was_written_takes_no_further_step(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], steps: int
) -> None:
    whole = run(folder, "out", capsys, *more)
    saved = (folder / "out" / "bundle" / TEXT_FILE).read_bytes()
    assert read_record(folder / "out" / "bundle")["text"].steps == steps
    shutil.rmtree(folder / "out" / "bundle")
    assert run(folder, "out", capsys, *more, "--resume") == whole
    assert (folder / "out" / "bundle" / TEXT_FILE).read_bytes() == saved
    assert max(int(path.name.rpartition("-")[2]) for path in (folder / "out").glob("checkpoint-*")) == steps


def test_it_goes_on_with_the_same_data_and_teacher_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_split(folder / "data", "train")
    said = folder / "said.safetensors"
    save_file({"logits": torch.zeros(len(rows), 7)}, said)
    bundle = make_tiny_bundle(folder / "shelf" / "tiny")
    more = ["--epochs", "2", "--teacher", str(said), "--teacher", str(bundle)]
    run(folder, "out", capsys, *more, "--max-steps", "3")

    def refused(*names: str) -> None:
        places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / "out")]
        assert main([*places, "--lr", "3e-3", "--head-lr", "5e-3", *more, "--resume"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "another run in" in line
        assert [name for name in ("data", "train", "dev", "teacher") if f" {name} " in line] == list(names)

    for split in ("train", "dev"):
        path = folder / "data" / f"{split}_meld_emo.csv"
        before = path.read_bytes()
        path.write_bytes(before.replace(b"surprise", b"joy"))
        refused(split)
        path.write_bytes(before)
    save_file({"logits": torch.ones(len(rows), 7)}, said)
    refused("teacher")
    save_file({"logits": torch.zeros(len(rows), 7)}, said)
    weights = bundle / TEXT_FILE
    before, network = weights.read_bytes(), load_file(weights)
    save_file({**network, "classifier.bias": network["classifier.bias"] + 1}, weights)
    refused("teacher")
    weights.write_bytes(before)
    # The same files at another place are the same data.
    (folder / "data").rename(folder / "elsewhere")
    run(folder, "out", capsys, *more, "--resume", "--data", str(folder / "elsewhere"))
