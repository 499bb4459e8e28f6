"""What a user types wrong, and what the command says: one line, the right exit code, no traceback."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

import stream.cli
from stream.config import Config
from telme.bundle import bundle_path

COMMAND = (sys.executable, "-m", "stream")
DEADLINE_S = 120


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, cwd=cwd, check=False
    )


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for words in ("telme-stream: error:", *says):
        assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def silent_film(tmp_path: Path) -> Path:
    """A file with pictures and no sound."""
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nonsense"], ["--nonsense"]),
        (["--events", "xml", "--input", __file__], ["'--events'", "'console', 'jsonl'"]),
        (["--fast"], ["--fast without --input"]),
        (["--speakers", "everybody", "--input", __file__], ["'--speakers'", "everybody", "'cluster'"]),
        (["--speakers", "channel"], ["--speakers channel", "--mic-channels 2", "--input FILE", "--speakers cluster"]),
        (["capture", "--speakers", "channel"], ["--speakers channel"]),
        (["--camera-size", "1280"], ["camera.size", "expected WIDTHxHEIGHT"]),
        (["wach"], ["wach", "; expected what telme-stream --help lists"]),
        (["--config", "none.toml"], ["none.toml"]),
        (["--config", "none.toml", "worker"], ["--config before worker", "write telme-stream worker --config"]),
        (["--fast", "models", "list"], ["--fast before models"]),
        (["--input", __file__, "--mic", "USB"], ["--mic beside --input"]),
        (["capture", "--input", __file__, "--camera-fps", "30"], ["--camera-fps beside --input"]),
        (["--camera", "0", "--no-camera"], ["--camera beside --no-camera"]),
        (["--camera-size", "640x480"], ["--camera-size without a camera", "give --camera"]),
        (["capture", "--camera-fps", "30"], ["--camera-fps without a camera"]),
        (["--camera-crop", "face"], ["--camera-crop without a camera"]),
    ],
)
def test_usage_errors(arguments: list[str], says: list[str]) -> None:
    assert_one_line(run(*arguments), 2, *says)


def test_an_unknown_key_in_the_configuration_is_named(tmp_path: Path) -> None:
    config = tmp_path / "telme.toml"
    config.write_text("[segmenter]\nhangovr_ms = 300\n", encoding="utf-8")
    assert_one_line(run("--config", str(config)), 2, "hangovr_ms", "telme.toml")


def test_a_missing_file() -> None:
    assert_one_line(run("--input", "nowhere.wav"), 1, "no file nowhere.wav", "--input")


def test_a_file_without_sound(silent_film: Path) -> None:
    done = run("--input", str(silent_film), "--events-address", "tcp://127.0.0.1:*")
    assert_one_line(done, 1, "no sound")


def test_a_file_that_is_no_media(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a film", encoding="utf-8")
    assert_one_line(run("--input", str(path), "--events-address", "tcp://127.0.0.1:*"), 1, "notes.txt")


def test_a_port_in_use(taken_port: int) -> None:
    done = run("--input", __file__, "--events-address", f"tcp://127.0.0.1:{taken_port}")
    assert_one_line(done, 1, str(taken_port), "--events-address")


def test_a_bundle_that_lacks_a_file(tmp_path: Path) -> None:
    bundle = tmp_path / "half"
    bundle.mkdir()
    for item in bundle_path("compact").iterdir():
        if item.name != "tokenizer.json":
            (bundle / item.name).symlink_to(item)
    done = run("--input", __file__, "--bundle", str(bundle), "--events-address", "tcp://127.0.0.1:*")
    assert_one_line(done, 1, "half lacks tokenizer.json")


def test_an_unknown_microphone_or_no_microphone_at_all() -> None:
    done = run("--mic", "no such microphone", "--events-address", "tcp://127.0.0.1:*")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    complaint = done.stderr.splitlines()[-1]  # PortAudio's own notes may stand before it
    assert complaint.startswith("telme-stream: error:")
    assert "no such microphone" in complaint or "libportaudio2" in complaint


def test_a_whisper_model_that_cannot_be_had_is_not_swapped(tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    folder.mkdir()
    done = run("--input", __file__, "--asr-model", str(folder), "--events-address", "tcp://127.0.0.1:*")
    assert_one_line(done, 1, "Whisper model", "--asr-model offline")


def test_debug_shows_the_traceback() -> None:
    done = run("--input", "nowhere.wav", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("command", ["worker", "capture"])
def test_addresses_come_from_file_and_environment_too(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[str | None] = []

    def noted(config: Config, *_: object) -> int:
        addresses.append(config.link.utterances)
        return 0

    monkeypatch.setattr(stream.cli, f"run_{command}", noted)
    monkeypatch.delenv("TELME_STREAM_LINK_UTTERANCES", raising=False)
    (tmp_path / "c.toml").write_text('[link]\nutterances = "tcp://127.0.0.1:6111"\n', encoding="utf-8")
    for arguments in ([], ["--config", str(tmp_path / "c.toml")], ["--utterances-address", "tcp://127.0.0.1:6222"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            stream.cli.main([command, *arguments])
    monkeypatch.setenv("TELME_STREAM_LINK_UTTERANCES", "tcp://127.0.0.1:6333")
    with pytest.raises(SystemExit, match=r"^0$"):
        stream.cli.main([command])
    assert addresses == [f"tcp://127.0.0.1:{port}" for port in (5555, 6111, 6222, 6333)]


@pytest.mark.parametrize(
    ("arguments", "to", "says"),
    [
        (["--version"], ">/dev/full", "standard output: [Errno 28] No space left on device"),
        (["--input", "tests/__init__.py"], ">&-", "standard output is closed"),
        (["watch"], ">&-", "standard output is closed"),
    ],
)
def test_output_that_takes_nothing_is_one_line(arguments: list[str], to: str, says: str) -> None:
    line = shlex.join([*COMMAND, *arguments])
    done = subprocess.run(
        f"exec {line} {to}", shell=True, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"telme-stream: error: {says}")
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["models", "list"]])
def test_output_that_nobody_reads_any_more_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_error_of_a_file_is_not_told_as_one_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(stream.cli, "devices_report", unreadable)
    with pytest.raises(PermissionError, match="/somewhere"):
        stream.cli.main(["devices"])


def test_version_and_help() -> None:
    assert run("--version", "watch").stdout.startswith("telme-stream 0.")
    assert run("--version").stdout.startswith("telme-stream 0.")
    shown = run("--help").stdout
    for flag in ("--camera", "--no-camera", "--mic", "--input", "--fast", "--events", "devices", "doctor", "watch"):
        assert flag in shown
