"""Files of sound and pictures, opened by PyAV."""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition, Stream


def open_media(path: Path) -> InputContainer:
    """Open a file, and nothing else: a path is never taken for a protocol, nor may a playlist reach out to the network.

    Raises:
        av.FFmpegError, OSError: It cannot be read.
    """
    options = {"protocol_whitelist": "file"}
    return av.open(str(path.resolve()), "r", metadata_errors="replace", container_options=options)


def first_stream(container: InputContainer, kind: str) -> Stream | None:
    """The first stream of a kind ("audio" or "video") that can be decoded and is not a cover picture."""
    for stream in container.streams:
        decodable = stream.codec_context is not None
        if stream.type == kind and decodable and Disposition.attached_pic not in stream.disposition:
            return stream
    return None
