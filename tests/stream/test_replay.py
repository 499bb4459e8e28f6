"""Replay of files: formats, time, pace, errors. The media are made here; the clock is a fake one."""

from __future__ import annotations

import logging
import math
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import Any

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st

import telme.features
from stream import replay as replay_module
from stream.clock import samples_to_ns
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Missing, Pcm, Stalled, VideoFrame
from stream.replay import FileReplay
from telme.clips import read_clip
from telme.data import ClipSource
from telme.errors import SourceError
from tests.stream.recordings import BLUE, RED, TONE_AT_MS, make, tone, write_channels, write_sound

MS = 1_000_000
NO_PICTURES = Missing("not wanted")

# name, sound codec, sound rate, picture codec
SOUND_ONLY = [("a.wav", "pcm_s16le", 44_100), ("a.flac", "flac", 48_000), ("a.mp3", "libmp3lame", 44_100)]
WITH_PICTURES = [
    ("a.mp4", "aac", 48_000, "libx264"),
    ("a.mov", "pcm_s16le", 44_100, "mjpeg"),
    ("a.mkv", "flac", 16_000, "mpeg4"),
]


@dataclass
class FakeClock:
    """Time passes only in `wait`."""

    time_ns: int = 5_000_000_000
    on_wait: Callable[[], None] = lambda: None
    waits: list[float] = field(default_factory=list)

    def now_ns(self) -> int:
        return self.time_ns

    def wait(self, event: Event, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        self.on_wait()
        self.time_ns += math.ceil(timeout_s * 1e9)
        return event.is_set()


def sound_of(source: FileReplay) -> Iterator[AudioBlock]:
    for block in source.blocks():
        assert isinstance(block, AudioBlock)
        yield block


def replay(
    path: Path, pictures: FrameRing | Missing = NO_PICTURES, **options: Any
) -> tuple[FileReplay, list[AudioBlock]]:
    clock = FakeClock()
    with FileReplay(path, True, pictures, clock.now_ns, clock.wait, **options) as source:
        return source, list(sound_of(source))


def join(blocks: list[AudioBlock]) -> Pcm:
    return np.concatenate([block.pcm for block in blocks])


def onset_ms(pcm: Pcm) -> float:
    return float(np.argmax(np.abs(pcm) > 4_000)) * 1000 / SAMPLE_RATE_HZ


def frames_of(ring: FrameRing, times_ns: list[int]) -> list[VideoFrame]:
    found = ring.nearest(times_ns, 1_000_000_000)
    assert isinstance(found, list)
    return found


def is_colour(frame: VideoFrame, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(frame.image.mean((0, 1)) - colour).max() < 20)


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


def sounds_at(starts_ms: list[int]) -> list[av.AudioFrame]:
    """Of 100 ms each."""
    frames = []
    for start_ms in starts_ms:
        frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 1000, np.int16), "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE_HZ, Fraction(1, 1000), start_ms
        frames.append(frame)
    return frames


def serve(monkeypatch: pytest.MonkeyPatch, sounds: list[av.AudioFrame], pictures: Sequence[av.VideoFrame] = ()) -> None:
    """Stamps as a demuxer gives them: no muxer writes one that lies before the last."""

    def frames(reader: Any) -> Iterator[av.AudioFrame | av.VideoFrame]:
        return iter(sounds if reader.stream.type == "audio" else pictures)

    monkeypatch.setattr(replay_module._Reader, "frames", frames)


@pytest.mark.parametrize(
    ("starts_ms", "end_ms", "said"),
    [
        ([0, 100, 150_000, 150_100], 150_200, "149800 ms of sound are missing in the file"),
        ([0, 100, 150_000, 300, 400], 500, "leaps by 149800 ms: it is not believed"),
        ([0, 100, 30_000, 300, 400], 500, "leaps by 29800 ms: it is not believed"),
        ([5000, 5100, 200, 5300, 5400], 500, "leaps by -5000 ms: it is not believed"),
        ([0, 100, 90_000_000, 90_000_100], 400, "leaps by 89999800 ms: the time line of another recording"),
        ([5000, 5100, 200, 300], 400, "leaps by -5000 ms: the time line of another recording"),
        ([0, 100, 150_000], 300, "leaps by 149800 ms: it is not believed"),
        ([0, 100, 30_000], 30_100, "29800 ms of sound are missing in the file"),
    ],
    ids=[
        "a long hole",
        "a broken stamp",
        "a stamp broken by less",
        "a stamp broken backwards",
        "another time line",
        "an earlier time line",
        "nothing follows",
        "nothing follows a shorter hole",
    ],
)
def test_a_leap_of_time_stamps_is_a_hole_where_the_sound_goes_on_behind_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    starts_ms: list[int],
    end_ms: int,
    said: str,
) -> None:
    serve(monkeypatch, sounds_at(starts_ms))
    _, blocks = replay(make(tmp_path / "a.wav", ("pcm_s16le", SAMPLE_RATE_HZ)))
    assert blocks[-1].first_sample + len(blocks[-1].pcm) == end_ms * 16
    assert sum(len(block.pcm) for block in blocks) == len(starts_ms) * 1600
    (message,) = caplog.messages
    assert message.endswith(said)


def test_a_hole_on_a_later_time_line_is_a_hole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serve(monkeypatch, sounds_at([5000, 5100, 1000, 1100, 1500, 1600]))
    _, blocks = replay(make(tmp_path / "a.wav", ("pcm_s16le", SAMPLE_RATE_HZ)))
    assert blocks[-1].first_sample + len(blocks[-1].pcm) == 900 * 16
    assert caplog.messages[1:] == ["300 ms of sound are missing in the file"]


def test_a_paced_replay_says_each_second_that_nothing_comes_in_a_hole(tmp_path: Path) -> None:
    """What was being said before it would be closed, and answered, only when the hole is over."""
    clock = FakeClock()
    path = make(tmp_path / "a.mkv", ("pcm_s16le", 16_000), gap_ms=(200, 2700), duration_ms=4000)
    with FileReplay(path, False, NO_PICTURES, clock.now_ns, clock.wait) as source:
        items = list(source.blocks())
    places = [place for place, item in enumerate(items) if isinstance(item, Stalled)]
    before, after = items[places[0] - 1], items[places[-1] + 1]
    assert isinstance(before, AudioBlock)
    assert isinstance(after, AudioBlock)
    assert places == [places[0], places[0] + 1]
    said_ns = [item.at_ns - before.arrived_ns for item in items if isinstance(item, Stalled)]
    assert said_ns == pytest.approx([1000 * MS, 2000 * MS], abs=MS)
    assert after.arrived_ns == pytest.approx(after.captured_ns + samples_to_ns(len(after.pcm)), abs=MS)


def test_stop_ends_the_wait_in_a_hole(tmp_path: Path) -> None:
    clock = FakeClock()
    path = make(tmp_path / "a.mkv", ("pcm_s16le", 16_000), gap_ms=(200, 9000), duration_ms=10_000)
    with FileReplay(path, False, NO_PICTURES, clock.now_ns, clock.wait) as source:
        items = source.blocks()
        assert any(isinstance(item, Stalled) for item in items)
        clock.on_wait = source.stop
        assert list(items) == []


@pytest.mark.parametrize("lengths_ms", [(1500, 2500), (2500, 1500)])
def test_pictures_of_joined_recordings_stay_with_their_sound(tmp_path: Path, lengths_ms: tuple[int, int]) -> None:
    """`cat a.ts b.ts`: the time stamps begin anew in the middle."""
    first, second = (
        make(tmp_path / f"{length_ms}.ts", ("mp2", 48_000), "libx264", duration_ms=length_ms).read_bytes()
        for length_ms in lengths_ms
    )
    (tmp_path / "joined.ts").write_bytes(first + second)
    ring = FrameRing(fps=25)
    _, blocks = replay(tmp_path / "joined.ts", ring)
    pcm = join(blocks)
    assert len(pcm) == pytest.approx(sum(lengths_ms) * 16, abs=100 * 16)
    assert blocks[-1].first_sample + len(blocks[-1].pcm) == len(pcm)
    for joined_at_ms in (0, lengths_ms[0]):
        # The tone begins with the change of colour.
        colour_ms = joined_at_ms + onset_ms(pcm[joined_at_ms * 16 + 200 * 16 :]) + 200
        times_ns = [blocks[0].captured_ns + round((colour_ms + after_ms) * MS) for after_ms in (-400, -60, 60, 400)]
        red, still_red, blue, still_blue = frames_of(ring, times_ns)
        assert is_colour(red, RED)
        assert is_colour(still_red, RED)
        assert is_colour(blue, BLUE)
        assert is_colour(still_blue, BLUE)


@pytest.mark.parametrize("broken_ms", [0, 30_000, 90_000_000])
def test_one_broken_stamp_of_a_picture_costs_that_picture_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken_ms: int
) -> None:
    stamps_ms = list(range(0, 3000, 100))
    stamps_ms[20] = broken_ms
    pictures = []
    for stamp_ms in stamps_ms:
        picture = av.VideoFrame.from_ndarray(np.zeros((240, 320, 3), np.uint8), "rgb24")
        picture.time_base, picture.pts = Fraction(1, 1000), stamp_ms
        pictures.append(picture)
    serve(monkeypatch, sounds_at(list(range(0, 3000, 100))), pictures)
    ring = FrameRing(fps=10)
    _, blocks = replay(make(tmp_path / "a.mkv", ("pcm_s16le", SAMPLE_RATE_HZ), "mpeg4"), ring)
    times_ns = [blocks[0].captured_ns + stamp_ms * MS for stamp_ms in range(0, 3000, 100)]
    found_ms = [(frame.captured_ns - blocks[0].captured_ns) // MS for frame in frames_of(ring, times_ns)]
    assert sorted(set(found_ms)) == [stamp_ms for stamp_ms in range(0, 3000, 100) if stamp_ms != 2000]


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
