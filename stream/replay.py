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
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Missing, Pcm, VideoFrame
from telme.errors import SourceError
from telme.media import channels_of, first_stream, open_media

_LOG = logging.getLogger(__name__)
_NS_PER_S = 1_000_000_000
_BLOCK_SAMPLES = 480  # 30 ms
_PTS_SLACK_SAMPLES = 640  # 40 ms: containers round time stamps, some to whole milliseconds
_MAX_CHANNELS = 9  # TelME knows nine speakers
# A larger jump of the time stamps is lost sound only when the next frame follows it; one by itself is a broken stamp.
_SURE_GAP_SAMPLES = 60 * SAMPLE_RATE_HZ
_MAX_GAP_SAMPLES = 3600 * SAMPLE_RATE_HZ  # a larger jump is another time line, as of joined recordings


class FileReplay:
    """A file replayed at its own pace or as fast as it is read: a context manager like the live sources.

    Sound that is missing in the file (damage, a hole between time stamps) is skipped in the numbering of samples, as
    a microphone's losses are.

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

    def blocks(self) -> Iterator[AudioBlock]:
        """Yield the file's sound in blocks of 30 ms (shorter at its end and before a gap), until the end or `stop`."""
        start_ns = self._now_ns()
        sound, told_apart = _Sound(self._splits), Channels(str(self._path))
        pictures: _Pictures | None = None
        for first_sample, channels in sound.blocks(self._readers[0]):
            if pictures is None and isinstance(self.pictures, FrameRing):
                origin = sound.origin or Fraction(0)
                pictures = _Pictures(self._readers[1], self.pictures, start_ns, origin)
            captured_ns = start_ns + samples_to_ns(first_sample)
            end_ns = captured_ns + samples_to_ns(channels.shape[1])
            if pictures is not None:
                pictures.advance(end_ns, self._stopping)
            left_ns = end_ns - self._now_ns()
            if not self._fast and left_ns > 0:
                self._wait(self._stopping, left_ns / _NS_PER_S)
            if self._stopping.is_set():
                return
            arrived_ns = self._now_ns()
            for channel, pcm in enumerate(told_apart.heard(channels)):
                yield AudioBlock(first_sample, pcm, captured_ns, arrived_ns, channel)
        if self.damaged:
            _LOG.warning("%s: %d damaged packets or frames were left out", self._path, self.damaged)


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
        origin: The media time of the first sample in seconds, known with the first block.
    """

    def __init__(self, splits: bool) -> None:
        self._splits = splits
        self._layout: str | None = None  # of what is kept: the first frame tells it
        self.origin: Fraction | None = None
        self._format: tuple[int, str, str] | None = None
        self._resampler: av.AudioResampler | None = None
        self._pending: list[Pcm] = []
        self._pending_length = 0
        self._first_sample = 0  # of what is pending
        self._expected = Fraction(0)  # where the next frame should start, in samples at 16 kHz
        self._told = False  # that a time stamp is not believed

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
        position = self._position(frame)
        if position is None or (missing := position - self._expected) <= _PTS_SLACK_SAMPLES:
            return False
        missing_ms = missing * 1000 // SAMPLE_RATE_HZ
        if missing >= _SURE_GAP_SAMPLES:
            next_position = None if following is None else self._position(following)
            end = position + Fraction(frame.samples * SAMPLE_RATE_HZ, frame.sample_rate)
            if next_position is None or abs(next_position - end) > _PTS_SLACK_SAMPLES or missing > _MAX_GAP_SAMPLES:
                if not self._told:
                    _LOG.warning("a time stamp of the sound leaps by %d ms and is not believed", missing_ms)
                self._told = True
                return False
        _LOG.warning("%d ms of sound are missing in the file", missing_ms)
        self._expected = position
        return True

    def _position(self, frame: AudioFrame) -> Fraction | None:
        """Samples at 16 kHz from the first frame's time stamp to this one's, where it has one."""
        if frame.pts is None or frame.time_base is None:
            return None
        at = frame.pts * frame.time_base
        if self.origin is None:
            self.origin = at
        return (at - self.origin) * SAMPLE_RATE_HZ

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
    origin: Fraction  # media time of the first audio sample, in seconds

    def __post_init__(self) -> None:
        self._stamped = self._stamp()
        self._next = next(self._stamped, None)

    def advance(self, until_ns: int, stopping: Event) -> None:
        """Put every picture shown before or at `until_ns` that is not in the ring yet."""
        while self._next is not None and self._next[0] <= until_ns and not stopping.is_set():
            captured_ns, picture = self._next
            if self.ring.due(captured_ns):
                image = np.rot90(picture.to_ndarray(format="rgb24"), picture.rotation // 90)
                self.ring.put(VideoFrame(captured_ns, self.ring.prepare(np.ascontiguousarray(image))))
            self._next = next(self._stamped, None)

    def _stamp(self) -> Iterator[tuple[int, Picture]]:
        for frame in self.reader.frames():
            if isinstance(frame, Picture) and frame.pts is not None and frame.time_base is not None:
                position_s = frame.pts * frame.time_base - self.origin
                yield self.start_ns + round(position_s * _NS_PER_S), frame


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
        return open_media(path)
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
