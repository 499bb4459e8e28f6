"""The bench for a CUDA machine, as far as it goes without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # it has no other public name
from torch.nn import functional

import bench.floor
import bench.gpu
from bench.floor import Ceilings, count_flops, measure_ceilings
from bench.gpu import compare, in_process, main, print_table, profiled, slowest
from telme.bundle import load_bundle
from telme.predictor import TorchPredictor
from tests.bundles import make_tiny_bundle
from tests.installs import lay, required, run_with_only

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"
DEADLINE_S = 900


def test_the_floor_is_the_larger_of_arithmetic_and_memory() -> None:
    ceilings = Ceilings(flops_per_s=1e12, bytes_per_s=1e11)
    assert ceilings.floor_ms(2e9, 1e8) == 2.0
    assert ceilings.floor_ms(2e9, 1e9) == 10.0
    measured = measure_ceilings(torch.device("cpu"), torch.float32)
    assert measured.flops_per_s > 0
    assert measured.bytes_per_s > 0


@pytest.mark.parametrize(("torch_s", "onnx_s"), [(2.0, 1.0), (1.0, 2.0)])
def test_the_ceiling_in_float32_is_that_of_the_faster_library(
    torch_s: float, onnx_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's may be slower on some processors; the other's figures would lie below their floor."""

    def by_onnx() -> None:
        """Stands for its product."""

    monkeypatch.setattr(bench.floor, "_onnx_product", lambda edge, dtype: by_onnx)
    monkeypatch.setattr(bench.floor, "_best_s", lambda work, device: onnx_s if work is by_onnx else torch_s)
    measured = measure_ceilings(torch.device("cpu"), torch.float32)
    assert measured.flops_per_s == 2 * 1024**3 / 1.0


def test_operations_are_counted() -> None:
    assert count_flops(nn.Linear(8, 4), torch.ones(3, 8)) == 2 * 3 * 8 * 4


@pytest.mark.parametrize("masked", [False, True])
def test_operations_of_attention_are_counted(masked: bool) -> None:
    class Attention(nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            mask = torch.ones(2, 1, 5, 5, dtype=torch.bool) if masked else None
            return functional.scaled_dot_product_attention(states, states, states, attn_mask=mask)

    assert count_flops(Attention(), torch.ones(2, 3, 5, 8)) == 4 * 2 * 3 * 5**2 * 8


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


def test_the_table_has_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"backend": "torch-eager-fp32", "error": "it was not done in 900 s"},
        {"backend": "torch-cuda-fp16", "alone_p50_ms": 4.0, "error": "its process ended with -9"},
    ]
    print_table({"rows": rows, "floor": {"backend": "floor", "error": "it was not done in 900 s"}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("it was not done in 900 s")
    assert lines[2].split() == ["torch-cuda-fp16", "4"]
    assert lines[3].endswith("its process ended with -9")
    assert lines[4].split()[0] == "floor"


FIGURES = 'import os, time; print(\'{"backend": "one", "ready_s": 2.0}\', flush=True); '


@pytest.mark.parametrize(
    ("code", "timeout_s", "row"),
    [
        ("print('a word of a library')", 60, {"ready_s": 2.0}),
        ("os._exit(3)", 60, {"ready_s": 2.0, "error": "its process ended with 3; what it said is above"}),
        ("time.sleep(600)", 5, {"ready_s": 2.0, "error": "it was not done in 5 s"}),
    ],
)
def test_a_case_that_breaks_off_keeps_its_figures(code: str, timeout_s: float, row: dict[str, object]) -> None:
    assert in_process("one", [sys.executable, "-c", FIGURES + code], timeout_s) == {"backend": "one", **row}


def test_a_case_without_figures_says_so() -> None:
    assert in_process("one", [sys.executable, "-c", ""], 60)["error"] == "its process printed no figures"


def test_no_runs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--cpu-check", "--runs", "0"])
    assert "argument --runs: 0 is not above 0" in capsys.readouterr().err


def test_the_file_is_written_after_each_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And only those that are asked for run, beside the floor and the baseline."""
    out, asked = tmp_path / "results" / "gpu.json", list[str]()

    def broken_off(name: str, command: list[str], timeout_s: float) -> dict[str, object]:
        asked.append(name)
        if name == "tensorrt-bf16":
            raise KeyboardInterrupt
        return {"backend": name}

    monkeypatch.setattr(bench.gpu, "make_random_bundle", lambda *given: None)
    monkeypatch.setattr(bench.gpu, "in_process", broken_off)
    only = ["--only", "onnx-fp32", "tensorrt-bf16"]
    with pytest.raises(KeyboardInterrupt):
        main(["--cpu-check", "--out", str(out), *only])
    assert asked == ["floor", "torch-eager-fp32", "onnx-fp32", "tensorrt-bf16"]
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["floor"] == {"backend": "floor"}
    assert [row["backend"] for row in report["rows"]] == ["torch-eager-fp32", "onnx-fp32"]


@pytest.mark.parametrize(("given", "runs"), [([], "2"), (["--runs", "7"], "7")])
def test_a_check_measures_nothing_and_takes_no_time_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: list[str], runs: str
) -> None:
    """200 of each case took more than its 15 minutes on two busy cores."""
    asked: list[str] = []

    def noted(name: str, command: list[str], timeout_s: float) -> dict[str, object]:
        asked.append(command[command.index("--runs") + 1])
        return {"backend": name, "error": "not run"}

    monkeypatch.setattr(bench.gpu, "make_random_bundle", lambda *given: None)
    monkeypatch.setattr(bench.gpu, "in_process", noted)
    main(["--cpu-check", "--out", str(tmp_path / "gpu.json"), "--only", "onnx-fp32", *given])
    assert asked == [runs] * 3


def test_a_profiler_that_does_not_run_costs_its_own_figures_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(**given: object) -> NoReturn:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(torch.profiler, "profile", refused)
    bundle = load_bundle(str(make_tiny_bundle(tmp_path / "bundle")))
    assert profiled(TorchPredictor(bundle), bundle) == {
        "kernels_error": "RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"
    }


def test_without_the_baselines_answers_a_case_goes_on(tmp_path: Path) -> None:
    bundle = load_bundle(str(make_tiny_bundle(tmp_path / "bundle")))
    found = compare(TorchPredictor(bundle), bundle, tmp_path / "reference.npy", is_reference=False)
    assert found == {"parity_error": "torch-eager-fp32 gave no answers"}


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


def test_what_is_packed_needs_nothing_that_the_machine_may_lack(tmp_path: Path) -> None:
    """They are installed without what they depend on."""
    listed = re.search(r'^needed="([^"]*)"', SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed is not None
    pairs = dict(pair.split("=") for pair in listed[1].split())
    there = {*pairs.values()} | required(["torch", "transformers"])
    assert required(pairs.values()) <= there
    assert all(find_spec(module) for module in pairs)
    # Not all that is needed is asked for: Pillow is, by a part of transformers.
    lay(tmp_path, there)
    assert run_with_only(tmp_path, "import bench.gpu, onnxruntime.quantization").stderr == ""


RECORDING = """#!/bin/sh
echo "$@" >> "$0.log"
if [ "$1" = - ] && [ ! -e "$0.asked" ]; then
    touch "$0.asked"
    echo msgspec
fi
"""


def test_paths_are_those_of_who_calls_it(tmp_path: Path) -> None:
    """Not of the repository, where the script works."""
    python = tmp_path / "python"
    python.write_text(RECORDING, encoding="utf-8")
    python.chmod(0o755)
    command = ["bash", str(SCRIPT), "--wheels", "wheels", "--out", "figures/gpu.json", "--runs", "2"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHON": "./python"}, timeout=60, check=True)
    asked = (tmp_path / "python.log").read_text(encoding="utf-8").splitlines()
    (installed,) = (line for line in asked if line.startswith("-m pip install") and line.endswith(" msgspec"))
    assert f"--find-links {tmp_path}/wheels " in installed
    assert asked[-1] == f"-m bench.gpu --out {tmp_path}/figures/gpu.json --runs 2"


@pytest.mark.slow
@pytest.mark.timeout(DEADLINE_S)
def test_the_check_without_a_gpu_goes_through(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = ["bash", str(SCRIPT), "--cpu-check", "--out", str(out)]
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
