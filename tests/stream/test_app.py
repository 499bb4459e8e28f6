"""The folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.app import run_folder
from stream.config import Config, JournalConfig
from telme.errors import JournalError


def test_a_private_folder_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with run_folder(Config()) as folder:
        (folder / "events.sqlite").touch()
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_journal_stays_and_serves_one_run_at_a_time(tmp_path: Path) -> None:
    config = Config(journal=JournalConfig(folder=str(tmp_path / "kept")))
    with run_folder(config) as folder:
        (folder / "events.sqlite").touch()
        with pytest.raises(JournalError, match="another telme-stream"), run_folder(config):
            pass
    with run_folder(config) as folder:
        assert (folder / "events.sqlite").exists()


def test_a_journal_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(JournalError, match="file"),
        run_folder(Config(journal=JournalConfig(folder=str(tmp_path / "file" / "journal")))),
    ):
        pass
