"""Which of many files are the authors' four: by name, else by parameters, and never one of two."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from telme.bundle import load_bundle
from telme.published import PARTS
from tests.telme.authors import Shelf, put, put_bytes, refused
from tests.telme.checkpoints import pack


@pytest.mark.parametrize("dataset", ["meld", "iemocap"])
def test_of_an_archive_with_both_the_asked_for_data_set_is_taken(shelf: Shelf, tmp_path: Path, dataset: str) -> None:
    archive = tmp_path / "both.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        for name, folder in shelf.authors.items():
            tar.add(folder, f"TelME/{name.upper()}/save_model")
    bundle = load_bundle(str(shelf.imported(archive, tmp_path / "bundle", dataset)))
    assert bundle.config.dataset == dataset


def test_weights_of_the_other_data_set_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    refused(
        shelf, shelf.authors["iemocap"], tmp_path, r"mis-shaped .*classifier.weight: \[6, 768\], expected \[7, 768\]"
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_named(shelf: Shelf, authors: Path, tmp_path: Path, part: Any) -> None:
    (authors / PARTS[part].file).unlink()
    says = (
        f"without the {PARTS[part].title} of meld: there is no {PARTS[part].file}.*expected one of each: teacher.bin, "
    )
    refused(shelf, authors, tmp_path, says)


def test_two_of_a_file_are_not_chosen_from(shelf: Shelf, authors: Path, tmp_path: Path) -> None:
    shutil.copytree(shelf.authors["meld"], authors / "meld" / "one")
    shutil.copytree(shelf.authors["meld"], authors / "meld" / "two")
    says = r"3 files that may be the text teacher of meld: meld/one/teacher.bin \(text teacher\), meld/two/.*remove the"
    refused(shelf, authors, tmp_path, says)
    pack(authors, tmp_path / "three.tar.gz", "files")
    refused(shelf, tmp_path / "three.tar.gz", tmp_path, r"3 files that may be the text teacher of meld: files/")


def test_a_damaged_file_of_two_is_not_passed_over(shelf: Shelf, authors: Path, tmp_path: Path) -> None:
    (authors / "low_logit_fusion.bin").write_bytes(b"worn")
    says = r"2 files that may be the fusion of meld: low_logit_fusion.bin \(.*damaged.*total_fusion.bin \(fusion\)"
    refused(shelf, authors, tmp_path, says)


def renamed(folder: Path, names: dict[str, str]) -> Path:
    for old, new in names.items():
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / old).rename(folder / new)
    return folder


INFERENCE = {
    "student_audio/total_student.bin": "student_audio/low_logit_student.bin",
    "student_video/total_student.bin": "student_video/low_logit_student.bin",
    "total_fusion.bin": "low_logit_fusion.bin",
}
NONE_KNOWN = {
    "teacher.bin": "checkpoints/1.bin",
    "student_audio/total_student.bin": "checkpoints/2.bin",
    "student_video/total_student.bin": "checkpoints/3.bin",
    "total_fusion.bin": "checkpoints/4.bin",
}


@pytest.mark.parametrize("names", [INFERENCE, NONE_KNOWN, {"total_fusion.bin": "best.bin"}])
@pytest.mark.parametrize("packed", [False, True])
def test_files_of_other_names_are_known_too(shelf: Shelf, tmp_path: Path, names: dict[str, str], packed: bool) -> None:
    """Under the names that the authors' inference on IEMOCAP reads, and under any by what they hold."""
    source = renamed(Path(shutil.copytree(shelf.authors["iemocap"], tmp_path / "renamed")), names)
    # Of training: no network's, and nothing that may be run.
    torch.save({"state": {}, "param_groups": []}, source / "optimizer.bin")
    torch.save({"W.weight": torch.ones(2)}, source / "other.bin")
    (source / "worn.bin").write_bytes(b"worn")
    if packed:
        (source / "logs.bin").mkdir()
        (source / "best_link.bin").symlink_to("other.bin")
        pack(source, tmp_path / "renamed.tar.gz")
        source = tmp_path / "renamed.tar.gz"
    bundle = shelf.imported(source, tmp_path / "bundle", "iemocap")
    usual = shelf.imported(shelf.authors["iemocap"], tmp_path / "usual", "iemocap")
    for path in usual.glob("*.safetensors"):
        assert path.read_bytes() == (bundle / path.name).read_bytes(), path.name
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert f"| fusion | {Path(names['total_fusion.bin']).name} |" in card


def test_files_of_both_data_sets_are_told_apart_by_their_parameters(shelf: Shelf, tmp_path: Path) -> None:
    """By their classes, where neither folder nor name says whose they are."""
    for number, folder in enumerate(shelf.authors.values()):
        shutil.copytree(folder, tmp_path / "both" / str(number))
    for dataset, folder in shelf.authors.items():
        bundle = shelf.imported(tmp_path / "both", tmp_path / dataset, dataset)
        usual = shelf.imported(folder, tmp_path / "usual" / dataset, dataset)
        assert load_bundle(str(bundle)).weights == load_bundle(str(usual)).weights


def test_the_other_data_sets_folder_gives_nothing(shelf: Shelf, tmp_path: Path) -> None:
    """A lone file of that name is not taken for one of the data set that was asked for."""
    shutil.copytree(shelf.authors["meld"], tmp_path / "both" / "MELD" / "save_model")
    shutil.copytree(shelf.authors["iemocap"], tmp_path / "both" / "IEMOCAP" / "save_model")
    (tmp_path / "both" / "MELD" / "save_model" / "teacher.bin").unlink()
    says = (
        r"without the text teacher of meld: there is no teacher.bin, .*; 4 more are under folders of another data set"
    )
    refused(shelf, tmp_path / "both", tmp_path, says)


def test_what_no_file_holds_is_said_with_what_they_hold(shelf: Shelf, authors: Path, tmp_path: Path) -> None:
    renamed(authors, {"teacher.bin": "one.bin", "student_audio/total_student.bin": "two.bin"})
    weights = torch.load(authors / "one.bin", weights_only=True)
    del weights["W.bias"]
    put(authors / "one.bin", weights)
    torch.save({"step": torch.ones(1)}, authors / "three.bin")
    (authors / "four.bin").write_bytes(b"worn")
    says = (
        r"without the text teacher of meld: none of 4 .bin files holds it: four.bin \(.*damaged.*\), one.bin \(text"
        r" teacher, 1 missing: W.bias\), three.bin \(other parameters\), two.bin \(audio student\); expected one"
    )
    refused(shelf, authors, tmp_path, says)


def test_two_of_other_names_are_not_chosen_from(shelf: Shelf, authors: Path, tmp_path: Path) -> None:
    renamed(authors, {"total_fusion.bin": "first.bin"})
    shutil.copy(authors / "first.bin", authors / "last.bin")
    refused(
        shelf, authors, tmp_path, "2 files that may be the fusion of meld: first.bin .*, last.bin .*four files alone"
    )


@pytest.mark.parametrize("known", [False, True])
def test_a_damaged_file_in_an_archive_is_named(shelf: Shelf, authors: Path, tmp_path: Path, known: bool) -> None:
    name = "student_video/total_student.bin" if known else "film.bin"
    renamed(authors, {"student_video/total_student.bin": name})
    content = bytearray((authors / name).read_bytes())
    content[len(content) // 2] ^= 0x40
    put_bytes(authors / name, bytes(content))
    pack(authors, tmp_path / "TelME.tar.gz")
    refused(shelf, tmp_path / "TelME.tar.gz", tmp_path, f"TelME/{name} is damaged in")


def test_a_disk_that_is_full_is_not_taken_for_a_damaged_archive(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(shelf.authors["meld"], tmp_path / "TelME.tar.gz")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    refused(shelf, tmp_path / "TelME.tar.gz", tmp_path, "cannot be unpacked: .*No space left.*; free some space")


def test_a_stranger_in_an_archive_cannot_write_outside(shelf: Shelf, authors: Path, tmp_path: Path) -> None:
    content = (authors / "teacher.bin").read_bytes()
    archive = archive_with(tmp_path / "evil.tar", authors, tarfile.TarInfo("../escaped.bin"), content)
    refused(shelf, archive, tmp_path, "outside the archive's own folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authors", "evil.tar", "made"]


def archive_with(path: Path, authors: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    """The authors' archive with its teacher.bin replaced."""
    with tarfile.open(path, "w") as tar:
        for published in list(PARTS.values())[1:]:
            tar.add(authors / published.file, published.file)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../escaped/teacher.bin", "../../teacher.bin", "a/../../teacher.bin"])
def test_an_archive_cannot_write_outside(shelf: Shelf, authors: Path, tmp_path: Path, name: str) -> None:
    content = (authors / "teacher.bin").read_bytes()
    archive = archive_with(tmp_path / "evil.tar", authors, tarfile.TarInfo(name), content)
    refused(shelf, archive, tmp_path, "outside the archive's own folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authors", "evil.tar", "made"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_plain_file_in_an_archive_is_refused(
    shelf: Shelf, authors: Path, tmp_path: Path, kind: bytes
) -> None:
    member = tarfile.TarInfo("teacher.bin")
    member.type, member.linkname = kind, "/etc/hostname"
    refused(shelf, archive_with(tmp_path / "evil.tar", authors, member), tmp_path, "teacher.bin is no file")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_flipped_bit_in_an_archive_is_one_line(shelf: Shelf, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"TelME.tar.{kind}"
    with tarfile.open(archive, f"w:{kind}") as tar:  # type: ignore[call-overload]  # its modes are literals
        tar.add(shelf.authors["meld"], "TelME")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0x40
    archive.write_bytes(bytes(content))
    refused(shelf, archive, tmp_path, "damaged|cannot be unpacked")
