"""A clip's sound and its 8 pictures, decoded once (PyAV).

What cannot be decoded is a missing modality with a reason, never silence or black pictures. What the system refuses
(files, rights, a disk or a share that fails) is an error: it says nothing of the clip.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.stream import Stream
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from telme.data import ClipSource
from telme.errors import DataError
from telme.features import NOT_GIVEN, Missing
from telme.frames import frame_indices
from telme.media import channels_of, first_stream, open_media

_Read = TypeVar("_Read")
# What FFmpeg says of a file's content besides codes of its own, which are none of the system's. ENOMEM: damaged headers
# ask for more memory than there is.
_OF_CONTENT = {errno.EINVAL, errno.ENOMEM, errno.ENOSYS, errno.EPERM, errno.ERANGE, errno.EDOM}


@dataclass(frozen=True, eq=False)
class Clip:
    """What `FeatureMaker.make` takes of a clip.

    Attributes:
        sound: [samples] float32, mono (the mean of the channels), at the file's own rate, or why there is none.
        sound_rate_hz: Its rate; 0 without sound.
        frames: [8, height, width, 3] uint8 RGB, or why there are none.
    """

    sound: NDArray[np.float32] | Missing
    sound_rate_hz: int
    frames: NDArray[np.uint8] | Missing


class _Unreadable(Exception):
    """A modality of a file that cannot be had; its text is the reason. Never leaves this module."""


def read_clip(source: ClipSource, audio: bool = True, video: bool = True) -> Clip:
    """Decode a clip.

    Args:
        source: Where it is.
        audio: Whether its sound is wanted.
        video: Whether its pictures are wanted.

    Raises:
        DataError: The system does not let it be read.
    """
    heard = _read(source.sound, _sound) if audio else NOT_GIVEN
    seen = _read(source.pictures, lambda path: _pictures(path, source.span_s)) if video else NOT_GIVEN
    if isinstance(heard, Missing):
        return Clip(heard, 0, seen)
    return Clip(*heard, seen)


def _read(path: Path | Missing, read: Callable[[Path], _Read]) -> _Read | Missing:
    if isinstance(path, Missing):
        return path
    try:
        return read(path)
    except _Unreadable as error:
        return Missing(f"its file {error}")
    except (av.FFmpegError, OSError) as error:
        if error.errno in errno.errorcode and error.errno not in _OF_CONTENT:
            raise DataError(
                f"{path} cannot be read: {error.strerror}",
                "a clip that the system lets be read",
                "mend that and run again; should it be this clip alone each time, it is damaged: take it away",
            ) from error
        return Missing(f"its file is damaged or holds no media: {error.strerror}")


def _sound(path: Path) -> tuple[NDArray[np.float32], int]:
    with _opened(path, "audio") as (container, stream):
        if stream is None:
            raise _Unreadable("has no sound")
        resampler = av.AudioResampler("flt")  # keeps rate and channels
        pieces: list[NDArray[np.float32]] = []
        forms: set[tuple[int, str, str]] = set()
        for frame in _frames(container, stream):
            if not isinstance(frame, AudioFrame):
                continue
            forms.add((frame.sample_rate, frame.layout.name, frame.format.name))
            if len(forms) > 1:
                raise _Unreadable("changes its sample rate or its channels")
            pieces += [channels_of(made).mean(0) for made in resampler.resample(frame)]
        if not sum(map(len, pieces)):
            raise _Unreadable("has sound of zero length")
        return np.concatenate(pieces).astype(np.float32, copy=False), forms.pop()[0]


def _pictures(path: Path, span_s: tuple[float, float] | None) -> NDArray[np.uint8]:
    if span_s is not None:
        return _span_pictures(path, span_s)
    # Packets are counted without decoding. Where a decoder gives another number of pictures, that number counts.
    with _opened(path, "video") as (container, stream):
        if stream is None:
            raise _Unreadable("has no pictures")
        count = sum(1 for packet in container.demux(stream) if packet.size)
    while True:
        if count < 1:
            raise _Unreadable("has pictures of zero length")
        wanted = frame_indices(count)
        kept: dict[int, NDArray[np.uint8]] = {}
        decoded = 0
        with _opened(path, "video") as (container, stream):
            for frame in _video_frames(container, stream):
                if decoded in wanted:
                    kept[decoded] = _rgb(frame)
                decoded += 1
        if decoded == count or (decoded > 0 and frame_indices(decoded) == wanted):
            return _stacked([kept[index] for index in wanted])
        count = decoded


def _span_pictures(path: Path, span_s: tuple[float, float]) -> NDArray[np.uint8]:
    """Of the recording's pictures between two times; past its end the last one chosen stands in, as published."""
    start_s, end_s = span_s
    with _opened(path, "video") as (container, stream):
        if stream is None or stream.time_base is None:
            raise _Unreadable("has no pictures")
        rate = float(getattr(stream, "average_rate", None) or 0)
        if not rate:
            raise _Unreadable("does not say how many pictures a second it has")
        # Published code: pictures are numbered from 1; those from rate * start to rate * end are in the span.
        first = max(math.ceil(rate * start_s), 1)
        wanted = [first + index for index in frame_indices(max(math.floor(rate * (end_s - start_s)), 1))]
        container.seek(int(start_s / stream.time_base), stream=stream)
        chosen: dict[int, NDArray[np.uint8]] = {}
        for frame in _video_frames(container, stream):
            if frame.time is None:
                raise _Unreadable("has pictures without a time")
            number = round(frame.time * rate) + 1
            if number in wanted:
                chosen[number] = _rgb(frame)
            if number >= wanted[-1]:
                break
    if not chosen:
        raise _Unreadable(f"ends before {start_s:.1f} s")
    pictures = [chosen[number] for number in sorted(chosen)]
    return _stacked((pictures + [pictures[-1]] * len(wanted))[: len(wanted)])


def _rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    return picture


def _stacked(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if len({picture.shape for picture in pictures}) > 1:
        raise _Unreadable("changes the size of its pictures")
    return np.stack(pictures)


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[InputContainer, Stream | None]]:
    with open_media(path) as container:
        yield container, first_stream(container, kind)


def _video_frames(container: InputContainer, stream: Stream | None) -> Iterator[VideoFrame]:
    for frame in _frames(container, stream):
        if isinstance(frame, VideoFrame):
            yield frame


def _frames(container: InputContainer, stream: Stream | None) -> Iterator[AudioFrame | VideoFrame]:
    assert stream is not None
    for packet in container.demux(stream):
        for frame in packet.decode():
            if not isinstance(frame, AudioFrame | VideoFrame):
                continue
            if frame.is_corrupt:
                raise _Unreadable("is damaged: a frame is corrupt")
            yield frame
