"""With an extra alone, as on one of two machines, what a user starts there does start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.installs import extra, lay, required, run_with_only

START = "from stream.cli import main; sys.exit(main(sys.argv[1:]))"


def test_listening_needs_the_base_alone(tmp_path: Path) -> None:
    lay(tmp_path, required(extra()))
    done = run_with_only(tmp_path, START, ["watch", "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert run_with_only(tmp_path, "import stream.client").stderr == ""


@pytest.mark.parametrize("role", ["capture", "worker"])
def test_a_role_needs_its_extra_alone(role: str, tmp_path: Path) -> None:
    lay(tmp_path, required(extra(role)))
    assert run_with_only(tmp_path, f"import stream.{role}").stderr == ""
    done = run_with_only(tmp_path, START, ["doctor", "--role", role])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("extras", "modules"),
    [
        (["worker"], "telme.importer, telme.pull, telme.record, telme.shelf, engines.predictor"),
        (["worker", "train"], "telme.compact, telme.evaluate, telme.train, engines.parity"),
    ],
)
def test_models_engines_and_training_need_no_capture(extras: list[str], modules: str, tmp_path: Path) -> None:
    lay(tmp_path, required(extra(*extras)))
    assert run_with_only(tmp_path, f"import {modules}").stderr == ""
