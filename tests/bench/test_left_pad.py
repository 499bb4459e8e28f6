"""The left pad of sounds is the bundle's or the run's: heard in evaluation as in live use, and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from bench import meld_f1
from telme.predictor import TorchNetworks
from tests.bundles import make_full_bundle
from tests.miniature import make_meld


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("padded")
    make_meld(made / "meld", train=0, dev=2)
    make_full_bundle(made / "bundle", mode="published-meld")
    return made


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the audio student is given."""
    given: list[Tensor] = []
    usual: Callable[[TorchNetworks, Tensor], Tensor] = TorchNetworks.audio

    def audio(networks: TorchNetworks, sound: Tensor) -> Any:
        given.append(sound)
        return usual(networks, sound)

    monkeypatch.setattr(TorchNetworks, "audio", audio)
    return given


def run(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    places = ["--csv", str(folder / "meld" / "dev_meld_emo.csv"), "--clips", str(folder / "meld")]
    given = [*places, "--bundle", str(folder / "bundle"), "--cache", str(folder / "cache"), "--workers", "0"]
    assert meld_f1.main([*given, *more]) == 0
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


@pytest.mark.parametrize("protocol", ["streaming", "published"])
def test_every_sound_is_padded_as_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], heard: list[Tensor], protocol: str
) -> None:
    """In the rate of the mode, and in the published protocol in place of the padding to a group's longest."""
    run(folder, capsys, "--modalities", "audio")
    bare = [sound.shape[1] for sound in heard]
    heard.clear()
    line = run(folder, capsys, "--modalities", "audio", "--left-pad-ms", "500", "--protocol", protocol)
    assert line["left_pad_ms"] == 500
    assert [sound.shape[1] for sound in heard] == [samples + 11_025 for samples in bare]
    assert all(not sound[:, :11_025].any() for sound in heard)


def test_a_bundles_own_pad_is_used_and_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run(folder, capsys, "--left-pad-ms", "300")
    config = folder / "bundle" / "config.json"
    before = config.read_text(encoding="utf-8")
    config.write_text(json.dumps({**json.loads(before), "audio_left_pad_ms": 300}), encoding="utf-8")
    try:
        assert run(folder, capsys) == asked
        assert "left_pad_ms" not in run(folder, capsys, "--modalities", "text")
    finally:
        config.write_text(before, encoding="utf-8")


def test_another_pad_asks_the_audio_student_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], heard: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, capsys, "--left-pad-ms", "0")

    def never(*_: object) -> None:
        raise AssertionError("made again")

    for network in ("text", "video"):
        monkeypatch.setattr(TorchNetworks, network, never)
    heard.clear()
    run(folder, capsys, "--left-pad-ms", "700")
    assert len(heard) == 8


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--left-pad-ms", "300", "--modalities", "text"], 2, "--left-pad-ms in a step without audio"),
        (["--left-pad-ms", "-1"], 1, "audio_left_pad_ms -1; expected 0 to 30000"),
        (["--left-pad-ms", "30001"], 1, "audio_left_pad_ms 30001; expected 0 to 30000"),
    ],
)
def test_a_pad_that_makes_no_sense_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, says: str
) -> None:
    places = ["--csv", str(folder / "meld" / "dev_meld_emo.csv"), "--clips", str(folder / "meld")]
    assert meld_f1.main([*places, "--bundle", str(folder / "bundle"), *more]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
