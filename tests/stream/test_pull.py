"""`telme-stream models pull` as a user runs it, against a Google Drive and a hub on loopback."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gdown.download import CHUNK_SIZE

from telme.backbones import PUBLISHED_BACKBONES
from telme.errors import BundleError
from telme.pull import ARCHIVE_ID, ARCHIVE_NAME, archive_path, fetch_archive, pull_published
from telme.shelf import verify
from tests.commands import run_here
from tests.telme import drive, hub
from tests.telme.checkpoints import (
    ROBERTA_TOKENS,
    make_checkpoint,
    pack,
    processor_files,
    toy_backbones,
    toy_tokenizer_files,
)
from tests.telme.drive import Drive, Mood

DEADLINE_S = 150
NOWHERE = "http://127.0.0.1:9"
TOKENIZER = "FacebookAI/roberta-large"


class World:
    """A user with empty caches, and what they can reach.

    Attributes:
        drive: Google Drive; it shares an archive without weights.
        cached: Where the command keeps the archive.
    """

    def __init__(self, folder: Path, drive: Drive, endpoint: str) -> None:
        self.folder, self.drive = folder, drive
        self.cached = folder / "cache" / "telme-stream" / "published" / ARCHIVE_NAME
        kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        self.environment = {
            **kept,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **drive.environment,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
        }

    def part_bytes(self) -> int:
        """Bytes on disk of an archive that is on its way."""
        return sum(path.stat().st_size for path in self.cached.parent.glob("*.part"))

    def start(self, *arguments: str, before: str = "", stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start the command; `before` is a line of shell that goes first."""
        command = [sys.executable, "-m", "stream", "models", "pull", *arguments]
        return subprocess.Popen(
            ["sh", "-c", f'{before}\nexec "$@"', "sh", *command],
            cwd=self.folder,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pull(self, *arguments: str, before: str = "", deadline_s: float = DEADLINE_S) -> tuple[int, str, str]:
        """Run the command: exit code, output and errors."""
        with self.start(*arguments, before=before) as process:
            out, err = process.communicate(timeout=deadline_s)
            return process.returncode, out, err


def hub_files(folder: Path, tokens: int) -> dict[str, Path]:
    toy_tokenizer_files(folder / "roberta", tokens)
    processors = processor_files(folder / "processors")
    return {
        TOKENIZER: folder / "roberta",
        "facebook/data2vec-audio-base-960h": processors / "data2vec-audio-base-960h",
        "MCG-NJU/videomae-base": processors / "videomae-base",
    }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(4 << 20))
    with tarfile.open(tmp_path / ARCHIVE_NAME, "w:gz") as tar:
        tar.add(noise, "MELD/save_model/readme")
    content = (tmp_path / ARCHIVE_NAME).read_bytes()
    with (
        hub.serve(hub_files(tmp_path / "hub", ROBERTA_TOKENS)) as endpoint,
        drive.serve(ARCHIVE_ID, content, tmp_path) as google,
    ):
        yield World(tmp_path, google, endpoint)


def test_the_archive_is_had_past_the_warning_page_and_kept(world: World) -> None:
    code, out, err = world.pull("meld", "--yes")
    assert code == 1
    assert "state no licence" in out
    assert "100%" in err
    assert world.cached.read_bytes() == world.drive.content
    # This one has no weights, which is for the import to say.
    assert f"{world.cached} without the text teacher of meld: there is no teacher.bin" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith(f"the archive is {world.cached}: without it, it is fetched anew")
    asked = len(world.drive.ranges)
    assert world.pull("iemocap", "--yes")[0] == 1
    assert len(world.drive.ranges) == asked
    assert not list(world.folder.glob("telme-*"))


def test_a_killed_download_goes_on_where_it_stopped(world: World) -> None:
    half = len(world.drive.content) // 2
    on_disk = half - half % CHUNK_SIZE
    world.drive.mood = "stalling"
    with world.start("meld", "--yes") as process:
        while process.poll() is None and world.part_bytes() < on_disk:
            world.drive.stopping.wait(0.02)
        process.kill()
    world.drive.mood, world.drive.ranges = "willing", []
    assert "there is no teacher.bin" in world.pull("meld", "--yes")[2]
    assert world.drive.ranges[-1] == f"bytes={on_disk}-"
    assert world.cached.read_bytes() == world.drive.content
    assert [path.name for path in world.cached.parent.iterdir()] == [ARCHIVE_NAME]


def test_without_a_network_it_is_one_line(world: World) -> None:
    world.environment["HF_ENDPOINT"] = NOWHERE
    code, _, err = world.pull("meld", "--yes")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "cannot be had from the hub: [Errno 111] Connection refused" in err
    assert world.drive.ranges == []


def test_a_full_disk_is_named(world: World) -> None:
    # Python would leave the .pyc files that it writes meanwhile cut short at the limit.
    code, _, err = world.pull("meld", "--yes", before="export PYTHONDONTWRITEBYTECODE=1; ulimit -f 6000")
    assert code == 1
    assert f"{world.cached} cannot be written: [Errno 27]" in err.splitlines()[-1]
    assert not world.cached.exists()


def test_nothing_is_fetched_unasked(world: World) -> None:
    code, out, err = world.pull("meld")
    assert code == 2
    assert "They state no licence" in out
    assert err == (
        "telme-stream: error: weights without a licence and nobody to ask; expected your consent; add --yes\n"
    )
    assert not world.cached.exists()


def test_whoever_says_no_gets_nothing(world: World) -> None:
    terminal, keyboard = pty.openpty()
    with os.fdopen(terminal, "wb", buffering=0) as typed, os.fdopen(keyboard, "rb") as stdin:
        typed.write(b"n\n")
        with world.start("meld", stdin=stdin.fileno()) as process:
            out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (1, "")
    assert "Fetch them? [y/N]" in out
    assert world.drive.ranges == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["emory", "--yes"], "dataset 'emory'; expected one of meld, iemocap"),
        (["meld", "--out", "taken", "--yes"], "taken exists; expected a new folder"),
    ],
)
def test_what_cannot_be_made_is_not_fetched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run_here("models", "pull", *arguments) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert says in shown.err


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drive]:
    """Google Drive for this process, with a file of 4 MB."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("telme.pull._RETRIES", 1)
    with drive.serve(ARCHIVE_ID, os.urandom(4 << 20), tmp_path) as google:
        for name, value in google.environment.items():
            monkeypatch.setenv(name, value)
        yield google


@pytest.mark.parametrize(
    ("mood", "says"),
    [
        ("quota", "does not give model.tar.gz: Too many users have viewed or downloaded this file recently"),
        ("private", "does not give model.tar.gz: Cannot retrieve the public link"),
        ("broken", "does not give model.tar.gz: Cannot retrieve the public link"),
    ],
)
def test_a_drive_that_refuses_is_one_line_with_a_way_out(google: Drive, mood: Mood, says: str) -> None:
    google.mood = mood
    with pytest.raises(BundleError) as caught:
        fetch_archive()
    assert says in caught.value.seen
    assert "\n" not in str(caught.value)
    assert f"or fetch https://drive.google.com/file/d/{ARCHIVE_ID}/view with a browser" in caught.value.remedy
    assert google.ranges == []


def test_a_transfer_that_breaks_off_once_goes_on(google: Drive) -> None:
    google.mood = "cut once"
    assert fetch_archive().read_bytes() == google.content
    assert [asked is not None for asked in google.ranges] == [False, False, True]


def test_a_transfer_that_always_breaks_off_goes_on_when_asked_again(google: Drive) -> None:
    google.mood = "cut"
    with pytest.raises(BundleError, match=r"cannot be had from Google Drive \(DownloadError: Download is incomplete"):
        fetch_archive()
    assert not archive_path().exists()
    google.mood = "willing"
    assert fetch_archive().read_bytes() == google.content
    assert google.ranges[-1] == f"bytes={3 << 20}-"


def test_a_drive_out_of_reach_is_one_line(google: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, NOWHERE)
    with pytest.raises(BundleError, match=r"cannot be had from Google Drive \(ProxyError") as caught:
        fetch_archive()
    assert "\n" not in str(caught.value)


def test_a_bundle_is_made_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, google: Drive) -> None:
    files = hub_files(tmp_path / "hub", 0)
    backbones = toy_backbones(toy_tokenizer_files(tmp_path / "size"))
    make_checkpoint(tmp_path / "model" / "MELD" / "save_model", "meld", backbones)
    pack(tmp_path / "model", tmp_path / ARCHIVE_NAME, "model")
    google.content = (tmp_path / ARCHIVE_NAME).read_bytes()
    monkeypatch.setattr("telme.hub.snapshot_download", lambda hub_id, **_: str(files[hub_id]))
    pull_published("meld", tmp_path / "bundle", backbones)
    findings = {finding.name: finding for finding in verify(str(tmp_path / "bundle"))}
    assert not [finding for finding in findings.values() if finding.wrong]
    assert findings["inputs"].seen == (
        "made as the processors say of facebook/data2vec-audio-base-960h, MCG-NJU/videomae-base"
    )
    archive_path().write_bytes(b"nonsense")
    with pytest.raises(BundleError, match=f"the archive is {archive_path()}"):
        pull_published("meld", tmp_path / "again", backbones)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_full_size_archive_is_pulled(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model" / "MELD" / "save_model", "meld", PUBLISHED_BACKBONES)
    pack(tmp_path / "model", tmp_path / ARCHIVE_NAME, "model")
    with (
        hub.serve(hub_files(tmp_path / "hub", ROBERTA_TOKENS)) as endpoint,
        drive.serve(ARCHIVE_ID, (tmp_path / ARCHIVE_NAME).read_bytes(), tmp_path) as google,
    ):
        code, out, err = World(tmp_path, google, endpoint).pull("meld", "--yes", deadline_s=1500)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("made telme-meld; ")
    assert not [finding for finding in verify(str(tmp_path / "telme-meld")) if finding.wrong]
