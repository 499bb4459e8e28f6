"""The worker's bench, on the published shape in little."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.latency
import bench.stages
import engines.onednn
from bench.latency import main, time_backends
from bench.stages import TimedNetworks, print_rows
from telme.bundle import load_bundle
from telme.models import EncoderOutput
from telme.predictor import TorchNetworks
from tests.bundles import make_full_bundle, make_tiny_bundle


class _Networks:
    """Answers with what it was asked."""

    backend, most_rows = "fake", 3

    def text(self, ids: torch.Tensor, mask: torch.Tensor) -> EncoderOutput:
        return EncoderOutput(ids, mask)

    def audio(self, values: torch.Tensor) -> torch.Tensor:
        return values

    video = audio

    def fusion(
        self, text: torch.Tensor, audio: torch.Tensor, video: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        return text + audio + video + present


def test_each_call_is_timed_and_its_answer_untouched() -> None:
    timed, one = TimedNetworks(_Networks()), torch.ones(1, 1)
    assert timed.most_rows == 3
    assert timed.text(one, 2 * one).logits == 2
    assert timed.audio(one) is one
    assert timed.video(one) is one
    assert timed.fusion(one, one, one, one) == 4
    timed.audio(one)
    assert timed.tokens == [1]
    assert {part: len(times) for part, times in timed.times_ms.items()} == {
        "text": 1,
        "audio": 2,
        "video": 1,
        "fusion": 1,
    }


def test_the_floor_stands_beside_what_it_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"p50_ms": 4.0, "p95_ms": 5.0, "p99_ms": 6.0, "times_faster": 2.0}
    row = {**figures, "stages": {"text": figures, "fusion": figures}, "batch": {"size": 8, "per_s": 500, "ms_each": 2}}
    print_rows({"onnx-fp32": row}, {"fp32": {"text": {"ms": 1.5}, "total": {"ms": 1.75}}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["onnx-fp32", "total", "4.00", "5.00", "6.00", "1.75", "2.00"]
    assert lines[2] == ["onnx-fp32", "text", "4.00", "5.00", "6.00", "1.50", "2.00"]
    assert lines[3] == ["onnx-fp32", "fusion", "4.00", "5.00", "6.00", "2.00"]
    assert "batch of 8: 500 utterances/s, 2 ms each" in " ".join(lines[4])


def test_all_networks_are_timed_against_torch_eager(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--worker-only", "onnx-fp32", "--full-size", "small", "--runs", "2", "--batch", "2"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(report["worker"]) == ["torch-fp32", "onnx-fp32"]
    for row in report["worker"].values():
        assert row["n"] == 2
        assert list(row["stages"]) == ["text", "video", "audio", "fusion"]
        assert row["batch"]["size"] == 2
        assert row["batch"]["per_s"] > 0
    assert report["worker"]["torch-fp32"]["times_faster"] == 1
    assert report["networks_timed"] == "in the total's own pass, one after another"
    parts = report["floor"]["fp32"]
    assert parts["total"]["flops"] == sum(parts[part]["flops"] for part in ("text", "audio", "video"))
    assert 0 < parts["text"]["bytes"] < parts["total"]["bytes"]


def test_where_networks_overlap_the_total_waits_for_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU; a batch neither."""
    done: list[str] = []
    time_alone = bench.stages.time_alone

    def noted(*given: Any) -> dict[str, list[float]]:
        done.append("pass")
        return time_alone(*given)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    monkeypatch.setattr(bench.latency, "time_alone", noted)
    for module in (bench.latency, bench.stages):
        monkeypatch.setattr(module, "networks_overlap", lambda: True)
    bundle = load_bundle(str(make_full_bundle(tmp_path / "bundle")))
    networks = {"torch-fp32": TimedNetworks(TorchNetworks(bundle.model))}
    rows = time_backends(networks, bundle, Namespace(full_size="small", runs=3, batch=2))
    assert done == ["pass", *["wait"] * 3 * 4, "pass"]
    assert (rows["torch-fp32"]["n"], rows["torch-fp32"]["batch"]["size"]) == (3, 2)
    assert list(rows["torch-fp32"]["stages"]) == ["text", "video", "audio", "fusion"]
    print_rows({}, {})
    assert "networks timed in a pass of their own" in capsys.readouterr().out


def test_prompts_have_the_length_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = make_tiny_bundle(tmp_path / "bundle")
    assert main(["--worker-only", "onnx-int8", "--bundle", str(bundle), "--tokens", "60"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows, floor = report["worker"], report["floor"]
    assert {name: row["tokens"] for name, row in rows.items()} == {"torch-fp32": 60, "onnx-int8": 60}
    assert floor["int8"]["text"]["flops"] == floor["fp32"]["text"]["flops"]
    assert 4 * floor["int8"]["text"]["bytes"] == floor["fp32"]["text"]["bytes"]
    assert not list((tmp_path / "cache").rglob("*.onnx"))  # a worker has no use for such graphs
    assert min(report["ceilings"]["int8"].values()) > 0
    with pytest.raises(SystemExit):
        main(["--worker-only", "onnx-fp32", "--full-size", "--tokens", "60"])
    assert "--tokens goes with a bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--tokens", "1"], "argument --tokens: 1 is not above 1"),
        (["--batch", "0"], "argument --batch: 0 is not above 0"),
        (["--runs", "0"], "argument --runs: 0 is not above 0"),
        (["--threads", "-1"], "argument --threads: -1 is not above -1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--worker-only", "onnx-fp32", *given])
    assert said in capsys.readouterr().err


def test_prompts_longer_than_the_network_has_positions_for_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle")
    assert main(["--worker-only", "onnx-fp32", "--bundle", str(bundle), "--tokens", "100000"]) == 2
    assert re.search(
        r"prompts of 100000 tokens; expected at most the \d+ .*; give --tokens \d+ or", capsys.readouterr().err
    )


def test_a_backend_without_its_precision_is_that_which_it_would_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle")
    assert main(["--worker-only", "onnx", "--bundle", str(bundle)]) == 0
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])["worker"]) == ["torch-fp32", "onnx-fp32"]


def test_a_backend_that_cannot_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--worker-only", "onnx-bf16", "--full-size", "small", "--runs", "1"]) != 0
    assert "precision bf16 on ONNX Runtime" in capsys.readouterr().err


def test_a_backend_that_cannot_run_keeps_nothing_from_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines.onednn, "knows_bfloat16", lambda: False)
    monkeypatch.setattr(bench.latency, "WORKER_RUNS", 40)
    bundle = str(make_tiny_bundle(tmp_path / "bundle"))
    assert main(["--worker-only", "torch-bf16", "onnx-fp32", "--bundle", bundle]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert list(report["worker"]) == ["torch-fp32", "onnx-fp32"]
    assert "expected AVX-512" in report["cannot_run"]["torch-bf16"]
    assert lines[-1] == f"torch-bf16 cannot run: {report['cannot_run']['torch-bf16']}"
    assert main(["--worker-only", "torch-bf16", "--bundle", bundle]) == 1
    assert "torch-bf16 cannot run: torch in bf16 on a processor without it" in capsys.readouterr().err
