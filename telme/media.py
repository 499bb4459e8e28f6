"""Files of sound and pictures, opened by PyAV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.stream import Disposition, Stream
from numpy.typing import NDArray

# FFmpeg notes where the packets lie that it has read, to find them again: up to 1 MiB a stream, filled in an hour.
_LEAST_INDEX = {"indexmem": "16384"}


def open_media(path: Path, once_through: bool = False) -> InputContainer:
    """Open a file, and nothing else: a path is never taken for a protocol, nor may a playlist reach out to the network.

    Args:
        path: The file.
        once_through: It is read from the beginning to the end; seeking back in it takes longer.

    Raises:
        av.FFmpegError, OSError: It cannot be read.
    """
    options = {"protocol_whitelist": "file", **(_LEAST_INDEX if once_through else {})}
    return av.open(str(path.resolve()), "r", metadata_errors="replace", container_options=options)


def first_stream(container: InputContainer, kind: str) -> Stream | None:
    """The first stream of a kind ("audio" or "video") that can be decoded and is not a cover picture."""
    for stream in container.streams:
        decodable = stream.codec_context is not None
        if stream.type == kind and decodable and Disposition.attached_pic not in stream.disposition:
            return stream
    return None


def channels_of(frame: AudioFrame) -> NDArray[Any]:
    """Sound in a packed format, as `flt` or `s16`, as [channels, samples].

    Packed: of planar sound PyAV counts too many planes where there are eight channels and more, and reads wild memory.
    """
    packed: NDArray[Any] = frame.to_ndarray()  # [1, samples * channels]
    return packed.reshape(-1, frame.layout.nb_channels).T
