"""Clips decoded once: what is in them, and a reason for whatever is not."""

from __future__ import annotations

import errno
import resource
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from telme import clips
from telme.clips import Clip, read_clip
from telme.data import ClipSource
from telme.errors import DataError
from telme.features import Missing
from telme.frames import frame_indices
from tests.miniature import LOOKS, pictures, tone, write_clip

CHANCE = np.random.default_rng(3)
SOUND = tone(LOOKS["joy"], 0.5, 16_000, CHANCE)


def counting(frames: int) -> NDArray[np.uint8]:
    """Pictures that tell their number by their brightness."""
    grey = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 4 + 8
    return np.broadcast_to(grey, (frames, 32, 48, 3))


def numbers(clip: Clip) -> list[int]:
    assert not isinstance(clip.frames, Missing), clip.frames
    return [round((float(frame.mean()) - 8) / 4) for frame in clip.frames]


def read(path: Path, span_s: tuple[float, float] | None = None) -> Clip:
    return read_clip(ClipSource(path, path, span_s))


def reasons(clip: Clip) -> tuple[str | None, str | None]:
    return tuple(item.reason if isinstance(item, Missing) else None for item in (clip.sound, clip.frames))  # type: ignore[return-value]


def test_a_wav_gives_its_samples_at_its_own_rate(tmp_path: Path) -> None:
    clip = read(write_clip(tmp_path / "a.wav", SOUND, None, rate_hz=22_050))
    assert not isinstance(clip.sound, Missing)
    assert clip.sound_rate_hz == 22_050
    np.testing.assert_array_equal(clip.sound, SOUND.astype(np.float32) / 32_768)
    assert reasons(clip) == (None, "its file has no pictures")


def test_channels_become_their_mean(tmp_path: Path) -> None:
    left, right = SOUND, np.zeros_like(SOUND)
    clip = read(write_clip(tmp_path / "a.wav", np.stack([left, right], axis=1), None))
    assert not isinstance(clip.sound, Missing)
    np.testing.assert_allclose(clip.sound, left.astype(np.float32) / 65_536, rtol=0, atol=1e-7)


@pytest.mark.parametrize("channels", [6, 8, 9])
def test_many_channels_become_their_mean_too(tmp_path: Path, channels: int) -> None:
    sound = np.zeros((len(SOUND), channels), np.int16)
    sound[:, -1] = SOUND
    with wave.open(str(tmp_path / "a.wav"), "wb") as wav:
        wav.setparams((channels, 2, 16_000, 0, "NONE", ""))
        wav.writeframes(sound.tobytes())
    clip = read(tmp_path / "a.wav")
    assert not isinstance(clip.sound, Missing)
    np.testing.assert_allclose(clip.sound, SOUND / (32_768 * channels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 5, 8, 15, 16, 50])
def test_pictures_are_those_of_the_frame_rule(tmp_path: Path, count: int) -> None:
    clip = read(write_clip(tmp_path / "a.mp4", SOUND, counting(count)))
    assert numbers(clip) == list(frame_indices(count))
    assert reasons(clip) == (None, None)


def test_the_pictures_of_a_span(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", None, counting(60))
    # From picture 12 of 1 to 60 on, two seconds of 12: every third of 24.
    assert numbers(read(path, (1.0, 3.0))) == list(range(12 + 2 - 1, 12 + 24 - 1, 3))
    # Every sixth of 48, of which there are four; the last stands in for what comes after the film's end.
    assert numbers(read(path, (3.0, 7.0))) == [40, 46, 52, 58, 58, 58, 58, 58]
    assert reasons(read(path, (9.0, 9.5)))[1] == "its file ends before 9.0 s"


def test_a_clip_without_sound_and_one_without_pictures(tmp_path: Path) -> None:
    blind, silent = (tmp_path / "blind.mp4", tmp_path / "silent.mp4")
    assert reasons(read(write_clip(blind, SOUND, None))) == (None, "its file has no pictures")
    assert reasons(read(write_clip(silent, None, counting(12)))) == ("its file has no sound", None)


@pytest.mark.parametrize("content", [b"", b"no media at all" * 99])
def test_a_file_that_is_no_media(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    heard, seen = reasons(read(path))
    assert heard == seen
    assert heard is not None
    assert heard.startswith("its file is damaged or holds no media")


def test_a_clip_that_is_cut_off_or_overwritten_is_missing(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.mp4", SOUND, pictures([LOOKS["joy"]], 4.0, CHANCE)).read_bytes()
    cut, holed = tmp_path / "cut.mp4", tmp_path / "holed.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    holed.write_bytes(whole[:2000] + bytes(CHANCE.integers(0, 256, 4000).astype(np.uint8)) + whole[6000:])
    assert all(reason is not None for reason in reasons(read(cut)))
    assert reasons(read(holed))[1] is not None


def test_a_process_that_may_open_no_file_is_an_error_and_not_a_damaged_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.wav", SOUND, None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(DataError) as raised:
            read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert str(raised.value).startswith(f"{path} cannot be read: Too many open files; expected a clip")
    assert reasons(read(path))[0] is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENFILE, errno.ENOENT])
def test_what_the_system_refuses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = write_clip(tmp_path / "a.wav", SOUND, None)

    def refuse(*_: object) -> None:
        av.error.err_check(-number, str(path))

    monkeypatch.setattr(clips, "open_media", refuse)
    with pytest.raises(DataError, match=r"a\.wav cannot be read: .*run again"):
        read(path)


def test_sound_of_zero_length(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.wav", SOUND, None)
    path.write_bytes(path.read_bytes()[: -2 * len(SOUND)])  # the header alone
    assert reasons(read(path))[0] == "its file has sound of zero length"


def test_a_modality_that_is_not_wanted_is_not_decoded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", SOUND, counting(12))
    clip = read_clip(ClipSource(path, path), video=False)
    assert reasons(clip) == (None, "not given")
    assert reasons(read_clip(ClipSource(path, path), audio=False)) == ("not given", None)


def test_where_a_file_is_cut_the_pictures_that_are_left_count(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", None, counting(40))
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux() if packet.size]
    path.write_bytes(path.read_bytes()[: positions[30]])
    assert numbers(read(path)) == list(frame_indices(30))
