"""What the tests of the cache of engines share: a key, builds, a process that builds, and small file systems."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KEY = {"weights": "0f", "graph": "text", "backend": "tensorrt-rtx", "version": "1.7.1", "gpu": "NVIDIA L4 8.9"}
DEADLINE_S = 60

# Builds one artifact: says so, waits for a line, and writes it. Prints the folder at the end.
BUILDER = """
import logging, sys
from pathlib import Path
from engines.store import Store

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")

def build(folder):
    (folder / "half").write_text("half of it")
    print("building", flush=True)
    sys.stdin.readline()
    (folder / "plan").write_text(sys.argv[2])

print(Store(Path(sys.argv[1])).get_or_build(KEY, build), flush=True)
""".replace("KEY", repr(KEY))


def writes(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "plan").write_text(text)

    return build


def refuses(folder: Path) -> None:
    raise AssertionError(f"built again in {folder}")


def start(root: Path, text: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(root), text]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def left(root: Path) -> list[str]:
    """What is in the cache but for the locks."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def in_a_file_system(script: str, folder: Path) -> list[str]:
    """What a script says that mounts one at a folder."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare to mount a small file system with")
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"this user may not mount a small file system: {done.stderr.strip()}")
    return done.stdout.splitlines()
