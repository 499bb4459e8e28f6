"""`telme-stream models`: what it prints, what it makes, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest

from telme.recipes import recipe_named
from telme.record import RECORD_FILE, Training, encoded
from tests.bundles import make_full_bundle, make_tiny_bundle
from tests.commands import run_here
from tests.telme.hub import serve

DEADLINE_S = 150
run = partial(run_here, "models")


def elsewhere(endpoint: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with another hub and an empty cache."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "stream", "models", *arguments]
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run(
        command, env={**kept, **settings}, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_list_names_what_is_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_full_bundle(tmp_path / "full", mode="published-meld")
    make_full_bundle(tmp_path / "deaf", ["audio"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (make_full_bundle(tmp_path / "worn") / "config.json").write_text("{", encoding="utf-8")
    assert run("list", str(tmp_path)) == 0
    deaf, full, worn = [line for line in capsys.readouterr().out.splitlines() if str(tmp_path) in line]
    assert deaf == f"{tmp_path}/deaf  meld  clean  text+video+fusion"
    assert full == f"{tmp_path}/full  meld  published-meld  text+audio+video+fusion"
    assert worn.startswith(f"{tmp_path}/worn  cannot be used: {tmp_path}/worn/config.json: ")
    assert run("list", str(tmp_path / "full")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == full


def test_show_describes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_full_bundle(tmp_path / "full", mode="published-meld")
    assert run("show", str(folder)) == 0
    shown = capsys.readouterr().out
    sums = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    for part in (
        "labels   meld: anger, disgust, fear, joy, neutral, sadness, surprise",
        "mode     published-meld",
        "  audio_rate_hz = 22050",
        "  fusion ",
        "F16",
        *sums,
        "# A toy for tests",
        "training none recorded\n",
    ):
        assert part in shown


def test_show_tells_how_each_network_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_full_bundle(tmp_path / "full")
    recipe = recipe_named("clean", "meld")
    training = Training(
        stage="students",
        dataset="meld",
        recipe="clean",
        how=replace(recipe.audio, epochs=2.5, batch=2, accumulate=8, lr=3e-5, head_lr=1e-4, precision="float16"),
        changes=(),
        seed=7,
        init="someone/else",
        steps=120,
        best_step=90,
        dev_weighted_f1=45.678,
    )
    (folder / RECORD_FILE).write_bytes(encoded({"audio": training}))
    assert run("show", str(folder)) == 0
    assert (
        "training\n  text: not recorded how it was trained\n"
        "  audio: stage students on meld, recipe clean, seed 7, from someone/else; step 90 of 120 taken (2.5 epochs"
        " planned), batch 16, learning rate 3e-05, heads 0.0001, float16; weighted F1 45.68 on dev\n"
        "  video: not recorded how it was trained\n"
    ) in capsys.readouterr().out
    (folder / RECORD_FILE).write_text("{", encoding="utf-8")
    assert run("show", str(folder)) == 1
    assert f"{folder / RECORD_FILE}: " in capsys.readouterr().err


def test_verify_finds_a_whole_bundle_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", str(make_full_bundle(tmp_path / "full"))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", name] for name in ("digests", "card", "labels", "mode", "parts", "numbers", "answer")
    ]
    assert lines[-1].endswith("probabilities sum to 1, from text, audio, video")


def test_verify_says_everything_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_tiny_bundle(tmp_path / "tiny")
    (folder / "README.md").write_text("\n", encoding="utf-8")
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"clean"', '"murky"'), encoding="utf-8")
    (folder / "stranger.bin").write_bytes(b"")
    assert run("verify", str(folder)) == 1
    wrong = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("!!")}
    assert list(wrong) == ["digests", "card", "mode", "answer"]
    assert "changed config.json; not recorded stranger.bin" in wrong["digests"]
    assert "mode 'murky'" in wrong["mode"]


@pytest.mark.parametrize("value", ["0", "[]", "NaN", "true", '"x"'])
def test_verify_of_a_configuration_that_is_none_is_a_line_a_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    config = make_tiny_bundle(tmp_path / "tiny") / "config.json"
    text = config.read_text(encoding="utf-8").replace('"audio_config": null', f'"audio_config": {value}')
    config.write_text(text, encoding="utf-8")
    assert run("verify", str(config.parent)) == 1
    said = capsys.readouterr()
    assert "audio_config" in said.out
    assert "Traceback" not in said.out + said.err


def test_verify_finds_a_network_that_cannot_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_tiny_bundle(tmp_path / "tiny") / "config.json"
    text = config.read_text(encoding="utf-8").replace('"hidden_size"', '"chunk_size_feed_forward": 7, "hidden_size"')
    config.write_text(text, encoding="utf-8")
    assert run("verify", str(config.parent)) == 1
    assert "config.json describes networks that cannot answer: " in capsys.readouterr().out


def test_verify_finds_a_changed_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_tiny_bundle(tmp_path / "tiny")
    content = bytearray((folder / "text.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "text.safetensors").write_bytes(content)
    assert run("verify", str(folder)) == 1
    assert "changed text.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["show", "nothing"], 1, "no bundle 'nothing'"),
        (["verify", "nothing"], 1, "no bundle 'nothing'"),
        (["list", "nothing"], 1, "no folder nothing"),
        (["import", "nothing", "--dataset", "meld", "--out", "made"], 1, "no file or folder nothing"),
        (["import", __file__, "--dataset", "meld", "--out", "made"], 1, "test_models_cli.py is no archive"),
        (["import", ".", "--dataset", "emory", "--out", "made"], 2, "dataset 'emory'"),
        (["import", ".", "--dataset", "meld"], 2, "--out"),
        (["import", ".", "--dataset", "meld", "--out", "made"], 1, ". without the text teacher of meld"),
        (["burn"], 2, "burn"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert says in captured.err
    assert not list(tmp_path.iterdir())


def test_a_bundle_comes_from_the_hub_once_and_then_without_it(tmp_path: Path) -> None:
    folder, home = make_full_bundle(tmp_path / "full"), tmp_path / "home"
    with serve({"someone/toy-telme": folder}) as endpoint:
        first = elsewhere(endpoint, home, "show", "someone/toy-telme")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "bundle   someone/toy-telme in " in first.stdout
    again = elsewhere(endpoint, home, "verify", "someone/toy-telme")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "from text, audio, video" in again.stdout


def test_a_hub_id_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert run("show", "someone/else") == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "no bundle 'someone/else': neither a folder nor to be had from the hub" in captured.err


def test_without_a_network_the_tokenizer_is_asked_for(tmp_path: Path) -> None:
    out, archive = tmp_path / "made", tmp_path / "model.tar"  # an archive is unpacked later: that takes minutes
    tarfile.open(archive, "w").close()
    ran = elsewhere("http://127.0.0.1:9", tmp_path, "import", str(archive), "--dataset", "meld", "--out", str(out))
    assert ran.returncode == 1
    assert "FacebookAI/roberta-large cannot be had from the hub" in ran.stderr
    assert ran.stderr.rstrip().endswith("name that folder with models import --tokenizer")
    assert len(ran.stderr.splitlines()) == 1
