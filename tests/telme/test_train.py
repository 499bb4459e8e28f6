"""The trainer on a made-up miniature: it learns, it saves a bundle that loads, it goes on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from bench.meld_f1 import main as meld_f1
from telme.bundle import CARD_FILE, load_bundle
from telme.data import MELD_FORMAT
from telme.dialogue import SPEAKER_TOKENS
from telme.train import main
from tests.bundles import tiny_config, tiny_tokenizer

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
LINES = (
    ("i am so happy !", "joy"),
    ("i am so sad .", "sadness"),
    ("what is it ?", "surprise"),
    ("hello there", "neutral"),
)


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    """Annotations whose words give the emotion away, and a random encoder to start from."""
    data = tmp_path / "data"
    data.mkdir()
    for name, dialogues in ((MELD_FORMAT.train, 24), (MELD_FORMAT.dev, 6)):
        rows = [
            f"1,{text},{speaker},{emotion},neutral,{dialogue},{turn}"
            for dialogue in range(dialogues)
            for turn, ((text, emotion), speaker) in enumerate(zip(LINES, "abab", strict=True))
        ]
        (data / name).write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    tokenizer = tiny_tokenizer()
    settings = dict(tiny_config(len(tokenizer)).text_config or {})
    settings.pop("model_type")
    BertModel(BertConfig(**settings)).save_pretrained(tmp_path / "init")
    tokenizer.save_pretrained(tmp_path / "init")
    return tmp_path


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    places = ["--data", str(folder / "data"), "--init", str(folder / "init"), "--out", str(folder / out)]
    return ["teacher", *places, "--lr", "2e-3", "--head-lr", "5e-3", *more]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    found: dict[str, float] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return found


def test_it_learns_what_the_words_give_away(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(miniature, "out", "--epochs", "20"))
    report = last_line(capsys)
    assert report["weighted_f1"] > 90
    bundle = load_bundle(str(miniature / "out" / "bundle"))
    assert set(SPEAKER_TOKENS) <= set(bundle.tokenizer.get_vocab())
    assert f"{report['weighted_f1']:.2f}" in (miniature / "out" / "bundle" / CARD_FILE).read_text(encoding="utf-8")

    dev = str(miniature / "data" / MELD_FORMAT.dev)
    assert meld_f1(["--csv", dev, "--bundle", str(miniature / "out" / "bundle"), "--text", "gold", "--json"]) == 0
    scored = last_line(capsys)
    # The bundle went through float16, the trainer's own evaluation through bfloat16.
    assert scored["weighted_f1"] == pytest.approx(report["weighted_f1"], abs=5)
    assert scored["n"] == 24


def test_it_goes_on_where_it_was_stopped(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(miniature, "whole", "--epochs", "3"))
    whole = last_line(capsys)
    main(arguments(miniature, "parts", "--epochs", "3"))
    last = max((miniature / "parts").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in sorted(last.iterdir()):
        path.unlink()
    last.rmdir()  # as if the run had died after its second epoch
    capsys.readouterr()
    main(arguments(miniature, "parts", "--epochs", "3", "--resume"))
    assert last_line(capsys)["weighted_f1"] == pytest.approx(whole["weighted_f1"])


def test_bad_annotations_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert meld_f1(["--csv", str(tmp_path / "none.csv"), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("meld_f1: error: no file")
    assert captured.err.count("\n") == 1
