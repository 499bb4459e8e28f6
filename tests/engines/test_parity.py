"""Parity: its figures, its inputs, its command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import engines.onednn
from engines.parity import compare, conversation, main
from telme.bundle import load_bundle, save_bundle
from telme.errors import DataError
from telme.features import Missing
from telme.modeling import TelmeModel
from tests.bundles import make_full_bundle, make_tiny_bundle, tiny_config, tiny_tokenizer
from tests.miniature import make_iemocap

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPECTED = np.array([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0], [2.0, -1.0, -1.0]])


def test_equal_answers_differ_in_nothing() -> None:
    row = compare("same", EXPECTED, EXPECTED, [0, 1, 2, 0])
    assert (row.largest, row.mean, row.labels_equal, row.f1_difference, row.n) == (0, 0, 1, 0, 4)
    assert row.cosine == pytest.approx(1)


def test_a_label_that_changes_is_seen() -> None:
    found = EXPECTED.copy()
    found[0] = [-1.0, 2.0, -1.0]
    row = compare("odd", found, EXPECTED, [0, 1, 2, 0])
    assert row.labels_equal == 0.75
    assert row.largest == 3
    assert row.mean == pytest.approx(0.5)
    assert row.cosine == pytest.approx(-0.5)
    assert row.f1_difference is not None
    assert row.f1_difference == pytest.approx(-25, abs=1)
    assert compare("odd", found, EXPECTED).f1_difference is None


def test_a_conversation_has_sound_and_pictures(tmp_path: Path) -> None:
    bundle = load_bundle(str(make_full_bundle(tmp_path / "bundle")))
    lines = json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8"))[:2]
    transcript = tmp_path / "short.json"
    transcript.write_text(json.dumps(lines), encoding="utf-8")
    made = conversation(bundle, transcript, EXAMPLES / "conversation.mp4")
    assert [item.context_turns for item in made] == list(range(1, len(lines) + 1))
    for item, line in zip(made, lines, strict=True):
        assert not isinstance(item.sound, Missing)
        assert abs(len(item.sound) - 16 * (line["end_ms"] - line["start_ms"])) <= 16
        assert item.missing == {}
    broken = [{**line, "start_ms": line["start_ms"] + 0.25, "end_ms": line["end_ms"] + 0.25} for line in lines]
    transcript.write_text(json.dumps(broken), encoding="utf-8")
    again = conversation(bundle, transcript, EXAMPLES / "conversation.mp4")
    assert np.array_equal(np.asarray(again[0].sound), np.asarray(made[0].sound))
    transcript.write_text(json.dumps([{**lines[0], "text": None}]), encoding="utf-8")
    with pytest.raises(DataError, match="text None"):
        conversation(bundle, transcript, EXAMPLES / "conversation.mp4")
    transcript.write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(DataError, match=r"short\.json"):
        conversation(bundle, transcript, EXAMPLES / "conversation.mp4")


def test_the_command_prints_a_row_a_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    recorded = ["--transcript", str(EXAMPLES / "conversation.json"), "--recording", str(EXAMPLES / "conversation.mp4")]
    assert main(["--bundle", str(folder), "--backends", "onnx-fp32", *recorded]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["backend"] for row in rows] == ["onnx-fp32"]
    assert 0 < rows[0]["largest"] < 1e-4
    assert main(["--bundle", str(tmp_path / "nothing"), *recorded]) == 1
    assert "parity: error: no bundle" in capsys.readouterr().err


def test_annotations_are_read_as_the_bundles_data_set_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    config.dataset = "iemocap"
    save_bundle(tmp_path / "bundle", config, TelmeModel(config).text, tokenizer, "# A toy for tests.\n")
    csv = make_iemocap(tmp_path / "iemocap", train=1, dev=1) / "IEMOCAP_dev.csv"
    assert main(["--bundle", str(tmp_path / "bundle"), "--backends", "onnx-fp32", "--csv", str(csv)]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["n"] == len(csv.read_text(encoding="utf-8").splitlines()) - 1
    assert row["labels_equal"] == 1
    assert row["f1_difference"] == 0


def test_a_backend_that_cannot_run_keeps_nothing_from_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines.onednn, "knows_bfloat16", lambda: False)
    folder = make_tiny_bundle(tmp_path / "bundle")
    asked = ["--bundle", str(folder), "--transcript", str(EXAMPLES / "conversation.json")]
    asked += ["--recording", str(EXAMPLES / "conversation.mp4"), "--backends", "torch-bf16"]
    assert main([*asked, "onnx-fp32"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert [row["backend"] for row in report["rows"]] == ["onnx-fp32"]
    assert "expected AVX-512" in report["cannot_run"]["torch-bf16"]
    assert lines[-1] == f"torch-bf16 cannot run: {report['cannot_run']['torch-bf16']}"
    assert main(asked) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == []


def test_what_weighted_f1_needs_is_asked_for_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    assert main(["--bundle", "not looked for", "--csv", "dev.csv"]) == 1
    assert "sklearn.metrics" in (said := capsys.readouterr().err)
    assert said.endswith("expected scikit-learn; pip install '.[train]'\n")
