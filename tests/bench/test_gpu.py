"""The bench for a CUDA machine, as far as it goes without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # it has no other public name

from bench.floor import Ceilings, count_flops, measure_ceilings
from bench.gpu import main, print_table, slowest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"
DEADLINE_S = 900


def test_the_floor_is_the_larger_of_arithmetic_and_memory() -> None:
    ceilings = Ceilings(flops_per_s=1e12, bytes_per_s=1e11)
    assert ceilings.floor_ms(2e9, 1e8) == 2.0
    assert ceilings.floor_ms(2e9, 1e9) == 10.0
    measured = measure_ceilings(torch.device("cpu"), torch.float32)
    assert measured.flops_per_s > 0
    assert measured.bytes_per_s > 0


def test_operations_are_counted() -> None:
    assert count_flops(nn.Linear(8, 4), torch.ones(3, 8)) == 2 * 3 * 8 * 4


def test_the_table_names_what_did_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"batched_per_s": 9.0, "mixed_per_s": 8.0}
    rows = [
        {"backend": "torch-cuda", "alone_p50_ms": 40.0, "alone_p95_ms": 50.0, **figures},
        {
            "backend": "tensorrt-fp16",
            "alone_p50_ms": 4.0,
            "alone_p95_ms": 5.0,
            "logits_max_difference": 0.001,
            **figures,
        },
        {"backend": "torch-cuda-bf16", "error": "its process ended with -9"},
    ]
    print_table({"rows": rows, "floor": {"alone_ms": 1.5, "batched_per_s": 700.0}})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["1.00", "10.00"]
    assert lines[3].endswith("its process ended with -9")
    assert lines[4].split() == ["floor", "1.5", "700"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is said without a GPU")
def test_without_a_gpu_it_says_how_to_try_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "torch sees no GPU; expected one; try bash bench/gpu.sh --cpu-check" in capsys.readouterr().err


def test_a_machine_without_the_packages_is_told_which(tmp_path: Path) -> None:
    """With no site-packages at all."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    command = ["bash", str(SCRIPT), "--cpu-check"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": str(bare)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "lacks: torch transformers msgspec filelock platformdirs soxr" in done.stderr
    assert "--wheels DIR, which --pack DIR fills" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(DEADLINE_S)
def test_the_check_without_a_gpu_goes_through(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = ["bash", str(SCRIPT), "--cpu-check", "--runs", "2", "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0
    baseline, graphs, plans = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert baseline["alone_p50_ms"] > 0
    assert graphs["backend"] == "onnx-fp32"
    assert graphs["logits_max_difference"] < 1e-4
    assert graphs["same_labels"] == 1
    assert all(plans[f"{part}_bytes"] > 1_000_000 for part in ("text", "audio", "video", "fusion"))
    assert torch.cuda.is_available() or "CUDA" in plans["not_run"]


def test_an_operator_is_no_kernel_and_its_time_counts_once() -> None:
    # As torch's profile averages them: an operator has its kernel's time, and so has the kernel.
    events = [
        SimpleNamespace(key=key, device_type=device, self_device_time_total=time_us)
        for key, device, time_us in (
            ("aten::addmm", DeviceType.CPU, 5000),
            ("softmax", DeviceType.CUDA, 1000),
            ("sgemm", DeviceType.CUDA, 5000),
        )
    ]
    assert slowest(events, 1, runs=10) == {"sgemm": 0.5}
    assert list(slowest(events, 10, runs=10)) == ["sgemm", "softmax"]
