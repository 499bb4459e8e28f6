"""What the doctor says of CUDA and TensorRT: presence, versions, remedies."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import types
from importlib.metadata import version
from pathlib import Path

import pytest
import tensorrt_rtx
import torch

import engines.tensorrt
import stream.doctor
from stream.config import Config, load_config
from stream.doctor import doctor_report


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    # Neither matters here, and both take seconds.
    monkeypatch.setattr(stream.doctor, "_recognizer", lambda config: "not asked")
    monkeypatch.setattr(stream.doctor, "_model", lambda config: "not asked")
    return Lines()


class Lines:
    """The report's lines about something."""

    def __call__(self, name: str) -> list[str]:
        report, _ = doctor_report(load_config(None, {}, {}))
        all_lines = report.splitlines()
        start = next(number for number, line in enumerate(all_lines) if line[4:].startswith(f"{name} "))
        return [" ".join(line.split()) for line in all_lines[start : start + 2] if line[4:].startswith((name, " "))]


def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20_000_000_000, 24_000_000_000))
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is said without a GPU")
def test_without_a_gpu_nothing_is_wrong(lines: Lines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stream.doctor, "_NVIDIA_DRIVER", tmp_path / "none")
    assert lines("CUDA") == ["ok CUDA no NVIDIA driver, so no GPU; the processor does it"]
    said = f"ok TensorRT tensorrt-rtx {tensorrt_rtx.__version__}, compiles plans here, but runs them on a GPU only"
    assert lines("TensorRT") == [said]
    assert lines("onnxruntime")[0].startswith("ok onnxruntime 1.")


def test_a_gpu_is_described(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch)
    assert lines("CUDA") == ["ok CUDA 13.0 on NVIDIA L4, compute capability 8.9, 20.0 of 24.0 GB free"]
    monkeypatch.setattr(engines.tensorrt, "check_runs_here", lambda found: None)
    assert lines("TensorRT")[0].endswith("runs on the GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a TensorRT that finds no GPU")
def test_a_tensorrt_that_does_not_run_on_the_gpu_is_wrong(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is a GPU; TensorRT-RTX itself is asked, and finds none."""
    a_gpu(monkeypatch)
    wrong, remedy = lines("TensorRT")
    assert wrong.startswith("!! TensorRT tensorrt-rtx")
    assert "says that" in wrong
    assert remedy == "remedy: install the GPU's driver, or use --backend onnx"


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is said without a GPU")
@pytest.mark.parametrize(
    ("backend", "precision", "said", "remedy"),
    [
        ("onnx", "fp16", "precision fp16 on ONNX Runtime; expected one of fp32, int8", "choose another"),
        ("torch", "fp16", "torch in fp16 on the CPU; expected fp32 or bf16 or int8", "choose one of them"),
        ("auto", "fp16", "torch in fp16 on the CPU; expected fp32 or bf16 or int8", "choose one of them"),
        ("tensorrt", "int8", "precision int8 on TensorRT; expected one of fp32, fp16, bf16", "choose another"),
        ("tensorrt", "fp16", "torch", "use --backend onnx or torch here"),
    ],
)
def test_a_backend_that_the_worker_would_refuse_is_wrong(
    monkeypatch: pytest.MonkeyPatch, backend: str, precision: str, said: str, remedy: str
) -> None:
    surroundings = {"TELME_STREAM_WORKER_BACKEND": backend, "TELME_STREAM_WORKER_PRECISION": precision}
    report, is_well = doctor_report(load_config(None, surroundings, {}), "worker")
    assert not is_well
    assert f"!! backend {said}" in " ".join(report.split())
    assert f"remedy: {remedy}" in report


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a TensorRT that finds no GPU")
def test_the_backend_is_the_one_that_runs(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines("backend")[0].startswith("ok backend ")
    a_gpu(monkeypatch)
    assert lines("backend") == ["ok backend torch in fp16 (TensorRT cannot run here)"]


def test_a_driver_that_torch_does_not_use_is_wrong(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "version").write_text("NVRM version: 580", encoding="utf-8")
    monkeypatch.setattr(stream.doctor, "_NVIDIA_DRIVER", tmp_path / "version")
    wrong, remedy = lines("CUDA")
    assert wrong.startswith("!! CUDA an NVIDIA driver, and torch")
    assert remedy.startswith("remedy: pip install torch")


def test_no_tensorrt_is_no_fault_and_a_broken_one_is(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None)
        assert lines("TensorRT") == ["ok TensorRT not installed; only --backend tensorrt needs it (README, Engines)"]
    load = importlib.import_module

    def broken(name: str) -> types.ModuleType:
        if name == "tensorrt_rtx":
            raise OSError("libcudart.so.13: cannot open shared object file")
        return load(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    wrong, remedy = lines("TensorRT")
    assert wrong.startswith("!! TensorRT tensorrt-rtx cannot be loaded: libcudart.so.13")
    assert remedy.startswith("remedy: pip install")


def test_the_room_is_looked_at_where_a_run_keeps_what_is_not_answered(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert lines("disk")[0].endswith(f"GB free in {tmp_path}")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=12_000_000))
    report, is_well = doctor_report(load_config(None, {"TELME_STREAM_JOURNAL_FOLDER": str(tmp_path / "new")}, {}))
    assert f"!! disk 0.01 GB free in {tmp_path}; expected 0.5 GB" in " ".join(report.split())
    assert not is_well


def test_a_role_is_asked_only_for_what_it_needs(lines: Lines) -> None:
    """A capture machine has no torch, a worker no OpenCV, and both are well."""

    def names(role: stream.doctor.Role) -> set[str]:
        report, _ = doctor_report(load_config(None, {}, {}), role)
        return {line[4:22].strip() for line in report.splitlines()} - {""}

    shared = {"python", "onnxruntime", "soxr", "pyzmq", "disk"}
    capture, worker = names("capture"), names("worker")
    assert capture & worker == shared
    assert {"opencv-python", "sounddevice", "speech recognizer", "microphones", "cameras"} < capture
    assert {"torch", "transformers", "model", "CUDA", "backend"} < worker
    assert capture | worker == names("all")


def test_the_recognizer_is_tried_before_torch_brings_a_gpus_libraries(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    really = importlib.import_module

    def recognize(config: Config) -> str:
        order.append("recognizer")
        return "ok"

    def load(name: str) -> types.ModuleType:
        order.append(name)
        return really(name)

    monkeypatch.setattr(stream.doctor, "_recognizer", recognize)
    monkeypatch.setattr(importlib, "import_module", load)
    lines("torch")
    assert order.index("recognizer") < order.index("torch")


@pytest.mark.parametrize(("installed", "mark"), [("2.10.9", "!!"), ("2.11.0+cu130", "ok"), ("3.1", "ok")])
def test_a_package_older_than_what_was_asked_for_is_wrong(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, installed: str, mark: str
) -> None:
    monkeypatch.setattr("stream.doctor.version", lambda name: installed if name == "torch" else version(name))
    said, *after = lines("torch")
    assert said.startswith(f"{mark} torch {installed}")
    if mark == "!!":
        assert said.endswith("expected >=2.11")
        assert after == ["remedy: pip install 'torch>=2.11'"]
