"""Replay of files whose time stamps have holes, leap or are broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stream import replay as replay_module
from stream.clock import samples_to_ns
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Stalled
from stream.replay import FileReplay
from tests.stream.recordings import BLUE, RED, make
from tests.stream.replays import MS, NO_PICTURES, FakeClock, frames_of, is_colour, join, onset_ms, replay


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
