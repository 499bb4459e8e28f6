"""Replay of files: formats, time, pace, errors. The media are made here; the clock is a fake one."""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st

import telme.features
from stream.clock import samples_to_ns
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, Missing, Pcm
from stream.replay import FileReplay
from telme.clips import read_clip
from telme.data import ClipSource
from telme.errors import SourceError
from tests.stream.recordings import BLUE, RED, TONE_AT_MS, make, tone, write_channels, write_sound
from tests.stream.replays import MS, NO_PICTURES, FakeClock, frames_of, is_colour, join, onset_ms, replay, sound_of

# name, sound codec, sound rate, picture codec
SOUND_ONLY = [("a.wav", "pcm_s16le", 44_100), ("a.flac", "flac", 48_000), ("a.mp3", "libmp3lame", 44_100)]
WITH_PICTURES = [
    ("a.mp4", "aac", 48_000, "libx264"),
    ("a.mov", "pcm_s16le", 44_100, "mjpeg"),
    ("a.mkv", "flac", 16_000, "mpeg4"),
]


@pytest.mark.parametrize(("name", "codec", "rate_hz"), SOUND_ONLY)
def test_sound_files_become_16_khz_mono_blocks(tmp_path: Path, name: str, codec: str, rate_hz: int) -> None:
    source, blocks = replay(make(tmp_path / name, (codec, rate_hz)), FrameRing())
    pcm = join(blocks)
    assert len(pcm) == pytest.approx(1.5 * SAMPLE_RATE_HZ, abs=0.06 * SAMPLE_RATE_HZ)  # mp3 pads to whole frames
    assert onset_ms(pcm) == pytest.approx(TONE_AT_MS, abs=2)
    spectrum = np.abs(np.fft.rfft(pcm[-8000:]))
    assert abs(int(spectrum.argmax()) * SAMPLE_RATE_HZ / 8000 - 440) < 4
    assert source.pictures == Missing("the file has no pictures")
    assert (source.overflows, source.damaged) == (0, 0)


@pytest.mark.parametrize(("name", "codec", "rate_hz", "pictures"), WITH_PICTURES)
@pytest.mark.parametrize("offset_ms", [0, 400])
def test_pictures_share_the_clock_of_the_sound(
    tmp_path: Path, name: str, codec: str, rate_hz: int, pictures: str, offset_ms: int
) -> None:
    ring = FrameRing(fps=25)
    source, blocks = replay(make(tmp_path / name, (codec, rate_hz), pictures, offset_ms=offset_ms), ring)
    start_ns = blocks[0].captured_ns
    assert source.pictures is ring
    assert onset_ms(join(blocks)) == pytest.approx(TONE_AT_MS, abs=2)
    first, before, after = frames_of(
        ring, [start_ns - 500 * MS, start_ns + (TONE_AT_MS - 30) * MS, start_ns + (TONE_AT_MS + 10) * MS]
    )
    assert first.captured_ns - start_ns == pytest.approx(offset_ms * MS, abs=25 * MS)  # the AAC encoder's priming
    assert is_colour(before, RED)
    assert is_colour(after, BLUE)
    assert first.image.shape == (224, 224, 3)


def test_pictures_are_in_the_ring_before_their_sound_however_the_file_is_interleaved(tmp_path: Path) -> None:
    ring = FrameRing(fps=25)
    clock = FakeClock()
    path = make(tmp_path / "a.mkv", ("flac", 16_000), "mpeg4", duration_ms=2000)
    with FileReplay(path, True, ring, clock.now_ns, clock.wait) as source:
        for block in sound_of(source):
            end_ns = block.captured_ns + samples_to_ns(len(block.pcm))
            newest = frames_of(ring, [end_ns])[0].captured_ns
            assert end_ns - 40 * MS <= newest <= end_ns


def test_the_ring_is_filled_at_its_own_rate(tmp_path: Path) -> None:
    ring = FrameRing(fps=5)
    replay(make(tmp_path / "a.mkv", ("flac", 16_000), "mpeg4"), ring)
    assert len(ring) == 8  # 1.5 s


def test_pictures_that_nobody_wants_are_not_read(tmp_path: Path) -> None:
    source, blocks = replay(make(tmp_path / "a.mkv", ("flac", 16_000), "mpeg4"), Missing("switched off"))
    assert source.pictures == Missing("switched off")
    assert len(join(blocks)) == 24_000


def test_a_cover_is_not_a_picture_of_the_speaker(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        cover = container.add_stream("png", rate=1)
        assert isinstance(sound, AudioStream)
        assert isinstance(cover, VideoStream)
        cover.width = cover.height = 32
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        container.mux(cover.encode(None))
        write_sound(container, sound, 500)
    source, _ = replay(path, FrameRing())
    assert source.pictures == Missing("the file has no pictures")


@settings(max_examples=10, deadline=None)
@given(duration_ms=st.integers(200, 900), rate_hz=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]))
def test_blocks_are_consecutive_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, duration_ms: int, rate_hz: int
) -> None:
    path = make(tmp_path_factory.mktemp("media") / "a.wav", ("pcm_s16le", rate_hz), duration_ms=duration_ms)
    _, blocks = replay(path)
    lengths = [len(block.pcm) for block in blocks]
    assert [block.first_sample for block in blocks] == [sum(lengths[:index]) for index in range(len(lengths))]
    assert all(length == 480 for length in lengths[:-1])
    assert sum(lengths) == pytest.approx(duration_ms * 16, abs=2)
    start_ns = blocks[0].captured_ns
    assert [block.captured_ns - start_ns for block in blocks] == [samples_to_ns(block.first_sample) for block in blocks]


def test_no_block_comes_before_its_end_when_paced(tmp_path: Path) -> None:
    clock = FakeClock()
    start_ns = clock.time_ns
    with FileReplay(
        make(tmp_path / "a.wav", ("pcm_s16le", 16_000)), False, NO_PICTURES, clock.now_ns, clock.wait
    ) as source:
        blocks = list(sound_of(source))
    assert blocks[0].captured_ns == start_ns
    for block in blocks:
        late_ns = block.arrived_ns - block.captured_ns - samples_to_ns(len(block.pcm))
        assert 0 <= late_ns < MS


def test_a_fast_replay_never_waits(tmp_path: Path) -> None:
    clock = FakeClock()
    with FileReplay(
        make(tmp_path / "a.wav", ("pcm_s16le", 16_000)), True, NO_PICTURES, clock.now_ns, clock.wait
    ) as source:
        assert {block.arrived_ns for block in sound_of(source)} == {clock.time_ns}
    assert clock.waits == []


def test_a_slow_reader_is_not_made_slower(tmp_path: Path) -> None:
    clock = FakeClock()
    with FileReplay(
        make(tmp_path / "a.wav", ("pcm_s16le", 16_000)), False, NO_PICTURES, clock.now_ns, clock.wait
    ) as source:
        for _ in sound_of(source):
            clock.time_ns += 1_000_000_000
    assert len(clock.waits) == 1  # the first


def test_stop_ends_the_wait_and_the_blocks(tmp_path: Path) -> None:
    clock = FakeClock()
    with FileReplay(
        make(tmp_path / "a.wav", ("pcm_s16le", 16_000)), False, NO_PICTURES, clock.now_ns, clock.wait
    ) as source:
        blocks = sound_of(source)
        next(blocks)
        clock.on_wait = source.stop
        assert list(blocks) == []
        source.stop()
        assert list(sound_of(source)) == []


def test_sound_missing_in_the_file_is_skipped_in_the_numbering(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", ("pcm_s16le", 16_000), gap_ms=(200, 500))
    _, blocks = replay(path)
    ends = [block.first_sample + len(block.pcm) for block in blocks]
    jumps = [
        after.first_sample - end for end, after in zip(ends, blocks[1:], strict=False) if after.first_sample != end
    ]
    assert len(jumps) == 1
    assert jumps[0] == pytest.approx(300 * 16, abs=1024)
    assert ends[-1] == pytest.approx(1500 * 16, abs=32)
    heard = next(block for block in blocks if np.abs(block.pcm).max() > 4_000)
    assert heard.captured_ns - blocks[0].captured_ns == pytest.approx(TONE_AT_MS * MS, abs=31 * MS)


def test_damage_is_counted_and_said_and_the_rest_is_replayed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path / "a.mp3", ("libmp3lame", 16_000), duration_ms=3000)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = np.random.default_rng(0).bytes(600)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        source, blocks = replay(path)
    assert source.damaged > 0
    assert "is damaged" in caplog.text
    assert f"{source.damaged} damaged packets or frames were left out" in caplog.text
    assert blocks[-1].first_sample > 2500 * 16


def test_a_file_cut_short_ends_cleanly(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", ("flac", 16_000), "mpeg4", duration_ms=3000)
    path.write_bytes(path.read_bytes()[:-2000])
    _, blocks = replay(path, FrameRing())
    assert 0 < blocks[-1].first_sample < 3000 * 16


def bad_files(folder: Path) -> dict[str, Path]:
    notes = folder / "notes"
    notes.write_text("words, not media\n" * 100)
    empty = folder / "empty.wav"
    empty.touch()
    return {
        "no file": folder / "nowhere.mp4",
        "is not a file": folder,
        "cannot be read as media": notes,
        "cannot be read as media (": empty,
        "has no sound": make(folder / "silent.mp4", None, "libx264"),
    }


@pytest.mark.parametrize(
    "seen", ["no file", "is not a file", "cannot be read as media", "cannot be read as media (", "has no sound"]
)
def test_what_cannot_be_replayed_is_said_in_one_line(tmp_path: Path, seen: str) -> None:
    with pytest.raises(SourceError) as caught, FileReplay(bad_files(tmp_path)[seen], True, NO_PICTURES):
        pass
    assert seen in caught.value.seen
    assert "\n" not in str(caught.value)


def test_a_name_like_a_protocol_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.wav", ("pcm_s16le", 16_000)).rename(tmp_path / "http:a.wav")
    monkeypatch.chdir(tmp_path)
    assert len(join(replay(Path("http:a.wav"))[1])) == 24_000


@pytest.mark.parametrize("channels", [2, 3, 6, 7, 8, 9, 10])
def test_channels_without_names_are_heard_alike(tmp_path: Path, channels: int) -> None:
    path = write_channels(tmp_path / "a.wav", tone(SAMPLE_RATE_HZ, 1500), channels)
    with FileReplay(path, True, NO_PICTURES) as source:
        pcm = join(list(sound_of(source)))
    assert abs(int(pcm.max()) - round(12_000 / channels)) <= 1, "of the last channel one part"
    assert len(pcm) == SAMPLE_RATE_HZ * 3 // 2


@pytest.mark.parametrize("channels", [3, 8, 9])
def test_each_of_many_channels_is_handed_over(tmp_path: Path, channels: int) -> None:
    expected = tone(SAMPLE_RATE_HZ, 1500)
    path = write_channels(tmp_path / "a.wav", expected, channels)
    with FileReplay(path, True, NO_PICTURES, splits=True) as source:
        blocks = list(sound_of(source))
    for channel in range(channels):
        pcm = np.concatenate([block.pcm for block in blocks if block.channel == channel])
        assert np.array_equal(pcm, expected if channel == channels - 1 else np.zeros_like(expected))


def stereo_file(path: Path, left: Pcm, right: Pcm) -> Path:
    with wave.open(str(path), "wb") as wav:
        wav.setparams((2, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
        wav.writeframes(np.stack([left, right], axis=1).tobytes())
    return path


def test_two_channels_that_are_one_are_heard_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = tone(SAMPLE_RATE_HZ, 1500)
    loud = sound[np.abs(sound).argmax() :]
    with FileReplay(stereo_file(tmp_path / "a.wav", loud, loud), True, NO_PICTURES, splits=True) as source:
        blocks = list(sound_of(source))
    assert {block.channel for block in blocks} == {0}
    np.testing.assert_array_equal(join(blocks), loud)
    assert "a.wav gives the same sound on all channels; one is heard" in caplog.text


def test_channels_with_names_are_heard_as_in_training(tmp_path: Path) -> None:
    """Of 5.1 the fourth is for explosions; the published code takes the mean, and so does what trains."""
    path = tmp_path / "film.flac"
    sound = np.zeros((24_000, 6), np.int16)
    sound[:, 3] = tone(SAMPLE_RATE_HZ, 1500)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="5.1")
        frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), "s16", "5.1")
        frame.sample_rate = SAMPLE_RATE_HZ
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with FileReplay(path, True, NO_PICTURES) as source:
        live = join(list(sound_of(source)))
    trained = read_clip(ClipSource(path, path), video=False).sound
    assert not isinstance(trained, telme.features.Missing)
    assert np.abs(live - trained * 32_768).max() <= 1
    assert abs(int(live.max()) - 2_000) <= 1
