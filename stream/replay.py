"""A media file as if it were heard and seen now: any container and codec that ffmpeg's libraries read (PyAV).

Sound and pictures are demuxed by two readers of the same file. The sound leads; before a block of it is handed over,
the picture reader is drawn along to the block's end. So every picture up to an audio time is in the ring first, and
memory stays bounded however badly the file is interleaved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.stream import Stream
from av.video.frame import VideoFrame as Picture

from stream.channels import Channels
from stream.clock import samples_to_ns
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Missing, Pcm, Stalled, VideoFrame
from telme.errors import SourceError
from telme.media import channels_of, first_stream, open_media

_LOG = logging.getLogger(__name__)
_NS_PER_S = 1_000_000_000
_BLOCK_SAMPLES = 480  # 30 ms
_PTS_SLACK_SAMPLES = 640  # 40 ms: containers round time stamps, some to whole milliseconds
_MAX_CHANNELS = 9  # TelME knows nine speakers
# A larger jump of the time stamps is lost sound only when the next frame follows it; one by itself is a broken stamp. A
# smaller one is broken when the next frame's goes back.
_SURE_GAP_SAMPLES = 60 * SAMPLE_RATE_HZ
# A larger jump is another time line, as of joined recordings, and so is one back by a second.
_MAX_GAP_S = 3600
_LEAP_S = 1
_STALL_S = 1.0  # in a hole as long as this a paced replay says that nothing comes


class FileReplay:
    """A file replayed at its own pace or as fast as it is read: a context manager like the live sources.

    Sound that is missing in the file (damage, a hole between time stamps) is skipped in the numbering of samples, as
    a microphone's losses are. Where time stamps begin anew, as in recordings that were joined byte by byte, sound goes
    on without a hole, and its pictures with it.

    Args:
        path: The file.
        fast: Hand blocks over as fast as they are taken; otherwise none before its end on the clock.
        pictures: The ring to fill, or why no pictures are wanted.
        now_ns: The clock.
        wait: Waits for an event so many seconds; True when it is set.
        splits: Hand over each channel of the sound by itself, not their mean; of copies one.

    Attributes:
        pictures: The ring, or why there is none: as given, or because the file has no pictures.
        overflows: Always 0: a file waits for its reader.
        damaged: Packets and frames that could not be decoded.

    Raises:
        SourceError: On entering: no such file, not a media file, no sound in it, or not several channels to split.
    """

    def __init__(
        self,
        path: Path,
        fast: bool,
        pictures: FrameRing | Missing,
        now_ns: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[Event, float], bool] = Event.wait,
        splits: bool = False,
    ) -> None:
        self._path = path
        self._fast = fast
        self._splits = splits
        self._now_ns = now_ns
        self._wait = wait
        self._stopping = Event()
        self._readers: list[_Reader] = []
        self.pictures = pictures
        self.overflows = 0

    def __enter__(self) -> Self:
        sound = _Reader(self._path, "audio")
        self._readers.append(sound)
        if sound.stream is None:
            sound.close()
            raise SourceError(f"{self._path} has no sound", "a file with speech", "give another file")
        if self._splits:
            _check_channels(self._path, sound)
        if isinstance(self.pictures, FrameRing):
            self._readers.append(_Reader(self._path, "video"))
            if self._readers[1].stream is None:
                self.pictures = Missing("the file has no pictures")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for reader in self._readers:
            reader.close()

    @property
    def damaged(self) -> int:
        return sum(reader.damaged for reader in self._readers)

    def stop(self) -> None:
        """End `blocks`, at once even while it waits. From any thread, any number of times."""
        self._stopping.set()

    def blocks(self) -> Iterator[AudioBlock | Stalled]:
        """Yield the file's sound in blocks of 30 ms (shorter at its end and before a gap), until the end or `stop`.

        In a hole of the file a paced replay yields `Stalled` each second, as a microphone does.
        """
        start_ns = self._now_ns()
        sound, told_apart = _Sound(self._splits), Channels(str(self._path))
        pictures: _Pictures | None = None
        for first_sample, channels in sound.blocks(self._readers[0]):
            if pictures is None and isinstance(self.pictures, FrameRing):
                pictures = _Pictures(self._readers[1], self.pictures, start_ns, sound.origins_s or [Fraction(0)])
            captured_ns = start_ns + samples_to_ns(first_sample)
            end_ns = captured_ns + samples_to_ns(channels.shape[1])
            if pictures is not None:
                pictures.advance(end_ns, self._stopping)
            if not self._fast:
                yield from self._wait_until(end_ns)
            if self._stopping.is_set():
                return
            arrived_ns = self._now_ns()
            for channel, pcm in enumerate(told_apart.heard(channels)):
                yield AudioBlock(first_sample, pcm, captured_ns, arrived_ns, channel)
        if self.damaged:
            _LOG.warning("%s: %d damaged packets or frames were left out", self._path, self.damaged)

    def _wait_until(self, end_ns: int) -> Iterator[Stalled]:
        while not self._stopping.is_set() and (left_ns := end_ns - self._now_ns()) > 0:
            left_s = left_ns / _NS_PER_S
            if not self._wait(self._stopping, min(left_s, _STALL_S)) and left_s > _STALL_S:
                yield Stalled(self._now_ns())


class _Reader:
    """The frames of one stream of a file, in order; what is damaged is counted and left out."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._container = _open(path)
        self.stream = _find_stream(self._container, kind)
        self.damaged = 0

    def close(self) -> None:
        self._container.close()

    def frames(self) -> Iterator[AudioFrame | Picture]:
        packets = self._container.demux(self.stream) if self.stream is not None else iter(())
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
            except av.FFmpegError as error:
                self._count(error)  # the container is cut or broken from here on
                return
            try:
                decoded = packet.decode()
            except av.FFmpegError as error:
                self._count(error)
                continue
            for frame in decoded:
                if not isinstance(frame, AudioFrame | Picture):
                    continue
                if frame.is_corrupt:
                    self._count("a corrupt frame")
                    continue
                yield frame

    def _count(self, what: object) -> None:
        if not self.damaged:
            _LOG.warning("%s is damaged: %s", self._path, what)
        self.damaged += 1


class _Sound:
    """Decoded frames -> numbered blocks of 16 kHz, int16 [channels, S].

    Args:
        splits: Keep the channels apart; otherwise there is one, their mean, as in training (`telme.clips`).

    Attributes:
        origins_s: The media time of sample 0 in seconds, on each of the file's time lines so far.
    """

    def __init__(self, splits: bool) -> None:
        self._splits = splits
        self._layout: str | None = None  # of what is kept: the first frame tells it
        self.origins_s: list[Fraction] = []
        self._format: tuple[int, str, str] | None = None
        self._resampler: av.AudioResampler | None = None
        self._pending: list[Pcm] = []
        self._pending_length = 0
        self._first_sample = 0  # of what is pending
        self._expected = Fraction(0)  # where the next frame should start, in samples at 16 kHz
        self._stamped_end_s = Fraction(0)  # of the last frame, by its own stamp where that is believed
        self._told = False  # that a time stamp leaps

    def blocks(self, reader: _Reader) -> Iterator[tuple[int, Pcm]]:
        sounds = (frame for frame in reader.frames() if isinstance(frame, AudioFrame))
        for frame, following in pairwise(chain(sounds, (None,))):
            assert frame is not None
            gap = self._gap(frame, following)
            form = (frame.sample_rate, frame.layout.name, frame.format.name)
            if gap or form != self._format:
                self._flush_resampler()
                self._layout = self._layout or frame.layout.name
                self._resampler, self._format = av.AudioResampler("s16", self._layout, SAMPLE_RATE_HZ), form
            if gap:
                yield from self._cut(everything=True)
                self._first_sample = round(self._expected)
            self._expected += Fraction(frame.samples * SAMPLE_RATE_HZ, frame.sample_rate)
            if self._resampler is not None:
                self._keep(self._resampler.resample(frame))
            yield from self._cut(everything=False)
        self._flush_resampler()
        yield from self._cut(everything=True)

    def _gap(self, frame: AudioFrame, following: AudioFrame | None) -> bool:
        """Whether sound is missing before this frame; then `_expected` is moved behind the gap."""
        at_s, length_s = _time_s(frame), Fraction(frame.samples, frame.sample_rate)
        if at_s is None:
            return False
        if not self.origins_s:
            self.origins_s.append(at_s)
            self._stamped_end_s = at_s
        missing = (at_s - self.origins_s[-1]) * SAMPLE_RATE_HZ - self._expected
        leap_s = at_s - self._stamped_end_s
        is_other_line = missing > _MAX_GAP_S * SAMPLE_RATE_HZ or leap_s < -_LEAP_S
        next_s = None if following is None else _time_s(following)
        if is_other_line or missing >= _SURE_GAP_SAMPLES:
            away_s = None if next_s is None else abs(next_s - at_s - length_s)
            is_believed = away_s is not None and away_s * SAMPLE_RATE_HZ <= _PTS_SLACK_SAMPLES
        else:
            is_believed = missing <= _PTS_SLACK_SAMPLES or next_s is None or next_s >= at_s
        self._stamped_end_s = (at_s if is_believed else self._stamped_end_s) + length_s
        if is_other_line or not is_believed:
            self._tell_leap(leap_s, is_believed)
            if is_believed:  # sound goes on where it was
                self.origins_s.append(at_s - self._expected / SAMPLE_RATE_HZ)
            return False
        if missing <= _PTS_SLACK_SAMPLES:
            return False
        _LOG.warning("%d ms of sound are missing in the file", missing * 1000 // SAMPLE_RATE_HZ)
        self._expected += missing
        return True

    def _tell_leap(self, leap_s: Fraction, is_believed: bool) -> None:
        """Once for a file, which may be joined of many."""
        if not self._told:
            meaning = "the time line of another recording" if is_believed else "it is not believed"
            _LOG.warning("a time stamp of the sound leaps by %d ms: %s", int(leap_s * 1000), meaning)
        self._told = True

    def _flush_resampler(self) -> None:
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))

    def _keep(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            pcm = channels_of(frame).astype(np.int16, copy=False)
            if len(pcm) > 1 and not self._splits:
                pcm = np.rint(pcm.mean(axis=0, keepdims=True)).astype(np.int16)
            self._pending.append(pcm)
            self._pending_length += pcm.shape[1]

    def _cut(self, everything: bool) -> Iterator[tuple[int, Pcm]]:
        if self._pending_length < _BLOCK_SAMPLES and not everything:
            return
        if not self._pending:
            return
        samples = np.concatenate(self._pending, axis=1)
        length = samples.shape[1]
        end = length if everything else length - length % _BLOCK_SAMPLES
        first = self._first_sample
        self._pending = [samples[:, end:]]
        self._pending_length = length - end
        self._first_sample += end
        for at in range(0, end, _BLOCK_SAMPLES):
            yield first + at, samples[:, at : min(at + _BLOCK_SAMPLES, end)]


@dataclass
class _Pictures:
    """Puts a file's pictures into a ring, up to a time."""

    reader: _Reader
    ring: FrameRing
    start_ns: int
    origins_s: list[Fraction]  # of the sound, which grows with each time line

    def __post_init__(self) -> None:
        self._stamped = self._stamp()
        self._next = next(self._stamped, None)

    def advance(self, until_ns: int, stopping: Event) -> None:
        """Put every picture shown before or at `until_ns` that is not in the ring yet.

        Those of another time line wait until the sound has come to it.
        """
        while self._next is not None and not stopping.is_set():
            line, at_s, picture = self._next
            if line >= len(self.origins_s):
                return
            captured_ns = self.start_ns + round((at_s - self.origins_s[line]) * _NS_PER_S)
            if captured_ns > until_ns:
                return
            if self.ring.due(captured_ns):
                image = np.rot90(picture.to_ndarray(format="rgb24"), picture.rotation // 90)
                self.ring.put(VideoFrame(captured_ns, self.ring.prepare(np.ascontiguousarray(image))))
            self._next = next(self._stamped, None)

    def _stamp(self) -> Iterator[tuple[int, Fraction, Picture]]:
        """Pictures with the number of their time line and their time on it; one with a broken stamp is left out."""
        line, before_s = 0, None
        for picture, following in pairwise(chain(self._timed(), (None,))):
            assert picture is not None
            at_s, shown = picture
            leap_s = Fraction(0) if before_s is None else at_s - before_s
            if before_s is not None and abs(leap_s) > _LEAP_S:
                if following is not None and abs(following[0] - at_s) > abs(following[0] - before_s):
                    continue
                line += leap_s < 0 or leap_s > _MAX_GAP_S
            before_s = at_s
            yield line, at_s, shown

    def _timed(self) -> Iterator[tuple[Fraction, Picture]]:
        for frame in self.reader.frames():
            if isinstance(frame, Picture) and (at_s := _time_s(frame)) is not None:
                yield at_s, frame


def _time_s(frame: AudioFrame | Picture) -> Fraction | None:
    """The media time of a frame, where it has one."""
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


def _check_channels(path: Path, sound: _Reader) -> None:
    codec = sound.stream.codec_context if sound.stream is not None else None
    channels = codec.layout.nb_channels if isinstance(codec, AudioCodecContext) else 0
    if not 2 <= channels <= _MAX_CHANNELS:
        raise SourceError(
            f"{path} with {channels} channel{'s' * (channels != 1)}",
            f"2 to {_MAX_CHANNELS} for --speakers channel",
            "use --speakers cluster to tell voices of one channel apart",
        )


def _open(path: Path) -> InputContainer:
    if not path.exists():
        raise SourceError(f"no file {path}", "a sound or video file", "check the path")
    if not path.is_file():
        raise SourceError(f"{path} is not a file", "a sound or video file", "check the path")
    try:
        return open_media(path, once_through=True)
    except (av.FFmpegError, OSError) as error:
        raise SourceError(
            f"{path} cannot be read as media ({error})", "a sound or video file", "see whether `ffprobe` reads it"
        ) from error


def _find_stream(container: InputContainer, kind: str) -> Stream | None:
    """The stream to read; the others are not read."""
    found = first_stream(container, kind)
    for stream in container.streams:
        if stream is not found:
            stream.discard = av.stream.Discard.all
    return found
