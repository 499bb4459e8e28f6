"""How the capture process begins."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path

import pytest

from stream import capture
from stream.config import AsrConfig, Config
from stream.control import Control, Word, hear, say
from stream.items import Session


def test_the_supervisor_hears_that_the_start_goes_on_while_the_recognizer_is_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is downloaded takes longer than a start may."""
    heard: list[Word] = []

    class DownloadedTranscriber:
        model_name = "medium.en"

        def __init__(self, config: AsrConfig) -> None:
            assert near.poll(10), "nobody was told"
            heard.append(hear(near))

    monkeypatch.setattr(capture, "Transcriber", DownloadedTranscriber)
    near, far = Pipe()
    with near, far:
        say(near, Word("stop", {}))
        capture.run(Config(), Session(None, fast=False, pictures=True), tmp_path, Control(far))
        heard.append(hear(near))
    assert heard == [Word("preparing", {}), Word("ready", {"asr": "medium.en"})]
