"""Clips kept on disk: the same tensors, made once, under a key of all that they depend on."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from telme import cache as cache_module
from telme import clips
from telme.bundle import load_bundle
from telme.cache import MediaCache, prepare
from telme.clips import Clip, read_clip
from telme.config import Part
from telme.data import ClipSource, Row, find_clip, read_split
from telme.dialogue import Turn
from telme.errors import DataError
from telme.features import FeatureMaker, Media, Missing
from tests.bundles import make_full_bundle
from tests.miniature import LOOKS, make_meld, pictures, tone, write_clip

Counted = list[ClipSource]


def maker_of(folder: Path, without: tuple[Part, ...] = (), mode: str = "clean") -> FeatureMaker:
    name = "-".join(["bundle", mode, *without])
    bundle = load_bundle(str(make_full_bundle(folder / name, without, mode)))
    return FeatureMaker(bundle.tokenizer, bundle.config)


@pytest.fixture
def source(tmp_path: Path) -> ClipSource:
    root = make_meld(tmp_path / "meld", train=1, dev=1)
    return find_clip(read_split(root, "train")[0], root, "train")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """The clips that were decoded, in order."""
    seen: Counted = []

    def counting(source: ClipSource, audio: bool = True, video: bool = True) -> Clip:
        seen.append(source)
        return read_clip(source, audio, video)

    monkeypatch.setattr(cache_module, "read_clip", counting)
    return seen


def same(left: Media, right: Media) -> bool:
    assert not isinstance(left.sound, Missing)
    assert not isinstance(left.pictures, Missing)
    return np.array_equal(left.sound, right.sound) and np.array_equal(left.pictures, right.pictures)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["clean", "published-meld"])
def test_a_clip_is_decoded_once_and_its_tensors_are_those_of_the_maker(
    tmp_path: Path, source: ClipSource, decoded: Counted, mode: str
) -> None:
    maker = maker_of(tmp_path, mode=mode)
    first = MediaCache(tmp_path / "cache", maker).media(source)
    again = MediaCache(tmp_path / "cache", maker).media(source)
    assert decoded == [source]
    assert same(first, again)
    clip = read_clip(source)
    window = maker.window([Turn("a", "hello")])
    made = maker.make(window, clip.sound, clip.frames, clip.sound_rate_hz)
    kept = maker.features(window, again)
    assert kept.prompt_ids == made.prompt_ids
    assert np.array_equal(kept.sound, made.sound)  # type: ignore[arg-type]
    assert torch.equal(kept.pixels, made.pixels)  # type: ignore[arg-type]


def test_another_mode_another_file_and_other_students_are_other_entries(
    tmp_path: Path, source: ClipSource, decoded: Counted
) -> None:
    folder = tmp_path / "cache"
    heard = MediaCache(folder, maker_of(tmp_path)).media(source)
    published = MediaCache(folder, maker_of(tmp_path, mode="published-meld")).media(source)
    assert len(heard.sound) < len(published.sound)  # type: ignore[arg-type]
    deaf = MediaCache(folder, maker_of(tmp_path, ("audio",))).media(source)
    assert deaf.missing == {"audio": "the bundle has no audio student"}
    assert isinstance(source.sound, Path)
    write_clip(source.sound, tone_of(0.7), None)
    changed = MediaCache(folder, maker_of(tmp_path)).media(source)
    assert changed.missing == {"video": "its file has no pictures"}
    assert len(decoded) == 4


@pytest.mark.parametrize("mode", ["clean", "published-meld"])
def test_a_long_clip_is_one_whether_its_sound_is_read_or_not(tmp_path: Path, source: ClipSource, mode: str) -> None:
    assert isinstance(source.sound, Path)
    write_clip(source.sound, tone_of(31), np.full((8, 48, 64, 3), 200, np.uint8))
    both = MediaCache(tmp_path / "cache", maker_of(tmp_path, mode=mode)).media(source)
    deaf = MediaCache(tmp_path / "cache", maker_of(tmp_path, ("audio",), mode)).media(source)
    assert deaf.blank == both.blank == (mode != "clean")
    assert isinstance(deaf.pictures, Missing) == isinstance(both.pictures, Missing) == (mode == "clean")


def tone_of(seconds: float) -> NDArray[np.int16]:
    return tone(LOOKS["joy"], seconds, 16_000, np.random.default_rng(0))


def test_what_is_missing_stays_missing_with_its_reason(tmp_path: Path, decoded: Counted) -> None:
    lost = ClipSource(Missing("known to be bad"), Missing("its file is not there"))
    cache = MediaCache(tmp_path / "cache", maker_of(tmp_path))
    assert cache.media(lost).missing == cache.media(lost).missing
    assert cache.media(lost).missing == {"audio": "known to be bad", "video": "its file is not there"}
    assert len(decoded) == 1


def test_a_half_file_is_made_again(tmp_path: Path, source: ClipSource, decoded: Counted) -> None:
    cache = MediaCache(tmp_path / "cache", maker_of(tmp_path))
    first = cache.media(source)
    (entry,) = (tmp_path / "cache").glob("*/*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-7])
    assert same(first, cache.media(source))
    assert len(decoded) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_system_refuses_is_not_kept_as_a_damaged_clip(
    tmp_path: Path, source: ClipSource, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    cache = MediaCache(tmp_path / "cache", maker_of(tmp_path))

    def refuse(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as crowded:
        crowded.setattr(clips, "open_media", refuse)
        with pytest.raises(DataError, match=r"dia0_utt0\.mp4 cannot be read: Too many open files"):
            prepare(cache, [source], workers)
    assert [path.name for path in (tmp_path / "cache").glob("*/*")] == ["settings.json"]
    assert prepare(cache, [source], workers).reasons == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(
    tmp_path: Path, source: ClipSource, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    cache = MediaCache(tmp_path / "cache", maker_of(tmp_path))

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"cannot be written: No space left on device.*free some space"):
        prepare(cache, [source], workers)
    assert [path.name for path in (tmp_path / "cache").glob("*/*")] == ["settings.json"]


def test_a_whole_cache_is_read_where_nothing_can_be_written(
    tmp_path: Path, source: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = maker_of(tmp_path)
    first = MediaCache(tmp_path / "cache", maker).media(source)
    (settings,) = (tmp_path / "cache").glob("*/settings.json")

    def refuse(path: Path, content: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "write_bytes", refuse)
        assert same(MediaCache(tmp_path / "cache", maker).media(source), first)
        settings.write_text("{", encoding="utf-8")
        with pytest.raises(DataError, match=r"cannot be written: Read-only file system.*--cache"):
            MediaCache(tmp_path / "cache", maker)
    MediaCache(tmp_path / "cache", maker)
    assert json.loads(settings.read_bytes())["read"] == list(maker.media_settings["read"])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_bad_clip_is_counted_with_its_reason(tmp_path: Path, workers: int) -> None:
    root = make_meld(tmp_path / "meld", train=3, dev=1)
    clips = root / "train_splits"
    (clips / "dia0_utt0.mp4").write_bytes(b"")
    (clips / "dia0_utt1.mp4").unlink()
    write_clip(clips / "dia0_utt2.mp4", tone_of(0.5), None)
    chance = np.random.default_rng(1)
    write_clip(clips / "dia0_utt3.mp4", None, pictures([LOOKS["joy"]], 1.0, chance))
    write_clip(clips / "dia1_utt0.mp4", np.zeros(31 * 16_000, np.int16), pictures([LOOKS["joy"]], 1.0, chance))
    write_clip(clips / "dia1_utt1.mp4", np.zeros(32 * 16_000, np.int16), pictures([LOOKS["joy"]], 1.0, chance))
    rows: list[Row] = read_split(root, "train")
    cache = MediaCache(tmp_path / "cache", maker_of(tmp_path))
    report = prepare(cache, [find_clip(row, root, "train") for row in rows], workers)
    assert (report.clips, report.audio, report.video) == (12, 7, 7)
    assert report.reasons == {
        "audio: a clip of N s; expected at most N s; treat the audio as absent": 2,
        "video: the clip is too long": 2,
        "audio: its file is damaged or holds no media: Invalid data found when processing input": 1,
        "video: its file is damaged or holds no media: Invalid data found when processing input": 1,
        "audio: its file is not there": 1,
        "video: its file is not there": 1,
        "video: its file has no pictures": 1,
        "audio: its file has no sound": 1,
    }
    assert report.missing[1] == {"audio": "its file is not there", "video": "its file is not there"}
    assert "12 utterances, 7 with sound, 7 with pictures; 2 without audio: a clip of N s" in str(report)
