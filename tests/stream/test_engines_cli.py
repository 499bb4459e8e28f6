"""`telme-stream engines`: real plans of a tiny bundle, what it prints, damage, and its exit codes."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import engines.build
import engines.export
import engines.onednn
import engines.onnx
import engines.predictor
import engines.tensorrt
from telme.errors import MissingDependency
from telme.processor import adds_int8_exactly
from tests.bundles import make_full_bundle, make_tiny_bundle
from tests.commands import ANY_PORT, EXAMPLES, run_here, running
from tests.live import eventually

DEADLINE_S = 150
run = partial(run_here, "engines")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is said without a GPU")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "telme-stream" / "engines"


def on_a_terminal(*arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """The command in a process whose standard error is a terminal; returns it and what that showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "stream", "engines", *arguments]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=DEADLINE_S, check=False
        )
    finally:
        os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    return done, shown.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how Linux ends a terminal
        return b""


def test_build_list_verify_damage_and_build_again(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, shown = on_a_terminal("build", "--bundle", str(bundle))
    assert done.returncode == 0
    assert re.match(r"text +fp16 +tensorrt-rtx 1\..* for .*, weights [0-9a-f]{12}, [0-9.]+ MB, built 20", done.stdout)
    assert "100%" in shown

    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert run("list") == 0
    assert capsys.readouterr().out.endswith(f"  {folder}\n")
    assert run("verify") == 0
    assert capsys.readouterr().out.startswith("ok  text ")

    built = (folder / "engine.plan").stat().st_mtime_ns
    assert run("build", "--bundle", str(bundle)) == 0
    assert (folder / "engine.plan").stat().st_mtime_ns == built
    captured = capsys.readouterr()
    assert captured.err == "", "no bar where nobody looks"

    with (folder / "engine.plan").open("r+b") as plan:
        plan.seek(1000)
        plan.write(b"damage")
    assert run("verify") == 1
    assert re.match(rf"!!  cached engine {folder}: engine.plan is damaged, sha256", capsys.readouterr().out)
    assert run("build", "--bundle", str(bundle)) == 0
    assert run("verify") == 0

    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    capsys.readouterr()
    assert run("list") == 0
    assert "!!  cached engine" in capsys.readouterr().out
    assert run("verify") == 1


def test_ctrl_c_leaves_nothing_half_made(bundle: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "stream", "engines", "build", "--bundle", str(bundle), "--precision", "bf16"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as build:
        eventually(lambda: any(cache.glob("*.building")), "a build")
        build.send_signal(signal.SIGINT)
        said, complaint = build.communicate(timeout=DEADLINE_S)
    assert (build.returncode, said, complaint) == (130, "", "")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_graphs_for_the_processor_lie_beside_them(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("build", "--bundle", str(bundle), "--backend", "onnx", "--precision", "int8") == 0
    assert re.match(r"text +int8 +onnx 1\..* for the processor, weights", capsys.readouterr().out)
    assert run("verify") == 0
    assert capsys.readouterr().out.startswith("ok  text    int8  onnx ")
    monkeypatch.setattr(engines.onnx, "import_onnxruntime", lambda: SimpleNamespace(__version__="99.0"))
    assert run("verify") == 0
    assert capsys.readouterr().out.endswith("; this machine has version 99.0\n")


@needs_no_gpu
def test_torch_reads_the_weights_themselves(bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", "--bundle", str(bundle), "--backend", "torch") == 0
    assert capsys.readouterr().out == "nothing to build for text: torch-fp32 reads the weights themselves\n"
    assert not cache.exists()


@needs_no_gpu
def test_torch_in_bfloat16_on_the_processor_has_graphs(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_full_bundle(tmp_path / "full", ["video"])
    given = ("build", "--bundle", str(bundle), "--backend", "torch", "--precision", "bf16")
    monkeypatch.setattr(engines.onednn, "knows_bfloat16", lambda: False)
    assert run(*given) == 1
    assert "error: torch in bf16 on a processor without it; expected AVX-512" in capsys.readouterr().err
    assert not cache.exists()
    monkeypatch.setattr(engines.onednn, "knows_bfloat16", lambda: True)  # to export takes no such processor
    assert run(*given) == 0
    text, fusion, audio = capsys.readouterr().out.splitlines()
    assert re.match(r"text +bf16 +torch-cpu-bf16 .* for the processor, weights", text)
    assert re.match(r"fusion +fp32 +torch-cpu-bf16 .* for the processor, weights", fusion)
    assert audio == "nothing to build for audio: torch-bf16 reads the weights themselves"


@needs_no_gpu
def test_auto_builds_what_the_worker_would_choose(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("build", "--bundle", str(bundle), "--backend", "auto")
    monkeypatch.setattr(engines.predictor, "multiplies_bfloat16", lambda: False)
    assert run(*given) == 0
    assert re.match(r"text +fp32 +onnx 1\..* for the processor", capsys.readouterr().out)
    monkeypatch.setattr(engines.predictor, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(engines.onednn, "knows_bfloat16", lambda: True)
    assert run(*given) == 0
    assert re.match(r"text +bf16 +torch-cpu-bf16 .* for the processor", capsys.readouterr().out)


@pytest.fixture
def torchs_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees a GPU, and TensorRT-RTX says that there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@needs_no_gpu
@pytest.mark.usefixtures("torchs_gpu")
def test_auto_compiles_no_plan_that_does_not_run_here(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker takes torch."""
    assert run("build", "--bundle", str(bundle), "--backend", "auto") == 0
    said = capsys.readouterr()
    assert said.err.startswith("tensorrt-fp16 cannot run here: tensorrt-rtx 1.")
    assert said.err.count("\n") == 1
    assert said.out == "nothing to build for text: torch-fp16 reads the weights themselves\n"
    assert not cache.exists()


@needs_no_gpu
@pytest.mark.usefixtures("torchs_gpu")
def test_auto_goes_on_where_there_is_no_room_to_try_tensorrt(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(cache / "nowhere"))
    assert run("build", "--bundle", str(bundle), "--backend", "auto") == 0
    said = capsys.readouterr()
    assert re.match(r"tensorrt-fp16 cannot run here: tensorrt-rtx cannot be tried out: .*TMPDIR.*\n\Z", said.err)
    assert said.out == "nothing to build for text: torch-fp16 reads the weights themselves\n"


@needs_no_gpu
def test_auto_does_not_take_another_backend_for_a_cache_that_cannot_be_written(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.predictor, "multiplies_bfloat16", lambda: False)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run("build", "--bundle", str(bundle), "--backend", "auto") == 1
    said = capsys.readouterr()
    assert said.err.startswith("telme-stream: error: the engine cache ")
    assert said.out == ""


def test_what_no_version_here_would_take_is_pruned(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for precision in ("fp32", "int8"):
        assert run("build", "--bundle", str(bundle), "--backend", "onnx", "--precision", precision) == 0
    half = cache / "0123456789abcdef01234567.building"
    half.mkdir()
    assert run("prune") == 0
    assert capsys.readouterr().out.endswith(f"removed {half}: whoever built it was killed\n")
    folders = [path for path in cache.iterdir() if path.is_dir()]
    capsys.readouterr()
    assert run("prune") == 0
    assert capsys.readouterr().out == ""
    (damaged, whole) = folders
    (damaged / "manifest.json").write_text("{}", encoding="utf-8")
    assert run("prune") == 0
    assert capsys.readouterr().out.startswith(f"removed {damaged}: cached engine {damaged}")
    assert [path for path in cache.iterdir() if path.is_dir()] == [whole]
    monkeypatch.setattr(engines.export, "EXPORT_REVISION", 99)
    assert run("verify") == 0
    assert re.match(r"--  text .*; this machine has export 99 opset", capsys.readouterr().out)
    assert run("prune") == 0
    assert capsys.readouterr().out.startswith(f"removed {whole}: this machine has export 99 opset")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_int8_graphs_of_another_processor_stay_and_those_of_another_version_go(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = {True: "signed", False: "unsigned"}
    here = adds_int8_exactly()
    assert run("build", "--bundle", str(bundle), "--backend", "onnx", "--precision", "int8") == 0
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    monkeypatch.setattr(engines.onnx, "adds_int8_exactly", lambda: not here)
    capsys.readouterr()
    assert run("verify") == 0
    assert re.match(rf"--  text .*; this machine has int8_weights {signs[not here]}\n", capsys.readouterr().out)
    assert run("prune") == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(engines.onnx, "_QUANTISED_REVISION", "99")
    assert run("prune") == 0
    assert capsys.readouterr().out == f"removed {folder}: this machine has quantised 99\n"
    assert not folder.exists()


def test_a_plan_made_without_a_gpu_serves_on_one_that_it_accepts(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here TensorRT-RTX's own check, without a GPU, accepts none; then a stand-in that accepts it."""
    monkeypatch.setattr(engines.build, "gpu_name", lambda: engines.build.NO_GPU)
    assert run("build", "--bundle", str(bundle)) == 0
    monkeypatch.setattr(engines.build, "gpu_name", lambda: "NVIDIA L4 8.9")
    assert run("verify") == 0
    assert run("prune") == 0
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["text    f", "ok  text "]
    with monkeypatch.context() as accepting:
        accepting.setattr(engines.tensorrt, "Plan", lambda tensorrt, file: SimpleNamespace(file=file))
        assert run("build", "--bundle", str(bundle)) == 0
    assert "for any GPU that it accepts, weights" in capsys.readouterr().out
    assert run("build", "--bundle", str(bundle)) == 0
    assert "for NVIDIA L4 8.9, weights" in capsys.readouterr().out
    assert run("list") == 0
    assert sorted(re.findall("for (.*), weights", capsys.readouterr().out)) == [
        "NVIDIA L4 8.9",
        "any GPU that it accepts",
    ]


def test_a_plan_of_another_gpu_or_environment_stays(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.build, "gpu_name", lambda: "NVIDIA A10 8.6")
    assert run("build", "--bundle", str(bundle)) == 0
    monkeypatch.setattr(engines.build, "gpu_name", lambda: "NVIDIA L4 8.9")
    capsys.readouterr()
    assert run("verify") == 0
    assert re.match(r"--  text .*; this machine has gpu NVIDIA L4 8\.9\n", capsys.readouterr().out)
    assert run("prune") == 0

    def lacking() -> None:
        raise MissingDependency("no TensorRT", "one", "install it")

    monkeypatch.setattr(engines.build, "toolkit", lacking)
    assert run("prune") == 0
    assert capsys.readouterr().out == ""
    assert run("verify") == 0
    assert capsys.readouterr().out.endswith("; this machine has no TensorRT\n")


def test_an_empty_cache_says_what_fills_it(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    assert capsys.readouterr().out == f"none in {cache}; telme-stream engines build makes them\n"
    assert run("verify") == 0
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--precision", "fp9"), 2, "backend 'tensorrt' in 'fp9'; expected one of auto"),
        (("--backend", "magic"), 2, "backend 'magic' in 'auto'; expected one of auto, tensorrt, onnx, torch in"),
        (("--backend", "torch", "--precision", "fp16"), 2, "torch in fp16 on the CPU; expected fp32 or bf16 or int8"),
        (("--precision", "int8"), 2, "precision int8 on TensorRT; expected one of fp32, fp16, bf16"),
        (("--backend", "onnx", "--precision", "bf16"), 2, "precision bf16 on ONNX Runtime; expected one of fp32, int8"),
        (("--bundle", "nowhere"), 1, "no bundle 'nowhere'"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    given = arguments if "--bundle" in arguments else (*arguments, "--bundle", str(bundle))
    assert run("build", *given) == code
    error = capsys.readouterr().err
    assert error.startswith(f"telme-stream: error: {said}")
    assert error.count("\n") == 1


@needs_no_gpu
def test_without_a_gpu_the_program_ends_with_one_line(tmp_path: Path) -> None:
    """And before it compiles anything."""
    given = ("--input", str(EXAMPLES / "conversation.mp4"), "--fast", "--backend", "tensorrt")
    with running(tmp_path, *given, *ANY_PORT, surroundings={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}) as run:
        assert run.end() == 1
        assert run.process.stderr is not None
        said = run.process.stderr.read()
    assert re.fullmatch(r"telme-stream: error: torch .*; expected .* GPU.*; use --backend onnx or torch here.*\n", said)
    assert not list(tmp_path.rglob("*.plan"))
