"""Media files for the tests of the replay, made here: a tone and a change of colour at one known time."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

from stream.items import SAMPLE_RATE_HZ, Pcm

TONE_AT_MS = 600  # silence and red before, 440 Hz and blue after
RED, BLUE = (255, 0, 0), (0, 0, 255)


def tone(rate_hz: int, duration_ms: int) -> Pcm:
    """Silence, then 440 Hz from TONE_AT_MS on: int16 [S]."""
    at = np.arange(rate_hz * duration_ms // 1000) / rate_hz
    return np.where(at >= TONE_AT_MS / 1000, np.sin(2 * np.pi * 440 * at) * 12_000, 0).astype(np.int16)


def write_sound(
    container: OutputContainer, stream: AudioStream, duration_ms: int, gap_ms: tuple[int, int] = (0, 0)
) -> None:
    """Mux the tone. Frames whose start lies in `gap_ms` are left out, their time is not."""
    layout = av.AudioResampler(stream.format, stream.layout, stream.rate, stream.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(tone(stream.rate, duration_ms)[None], "s16", "mono")
    frame.sample_rate = stream.rate
    frame.time_base, frame.pts = Fraction(1, stream.rate), 0
    at = 0
    for part in [*layout.resample(frame), *layout.resample(None)]:
        part.time_base, part.pts = Fraction(1, stream.rate), at
        at += part.samples
        if not gap_ms[0] <= part.pts * 1000 // stream.rate < gap_ms[1]:
            container.mux(stream.encode(part))
    container.mux(stream.encode(None))


def write_channels(path: Path, last: Pcm, channels: int) -> Path:
    """A WAV file whose channels have no names; all but the last are silent."""
    sound = np.zeros((len(last), channels), np.int16)
    sound[:, -1] = last
    with wave.open(str(path), "wb") as wav:
        wav.setparams((channels, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
        wav.writeframes(sound.tobytes())
    return path


def write_pictures(container: OutputContainer, stream: VideoStream, fps: int, duration_ms: int, offset_ms: int) -> None:
    """Mux red pictures, then blue ones from TONE_AT_MS on; the first stands at `offset_ms`."""
    stream.width, stream.height = 320, 240
    stream.pix_fmt = "yuvj420p" if stream.name == "mjpeg" else "yuv420p"
    stream.codec_context.time_base = Fraction(1, 1000)
    for number in range(fps * (duration_ms - offset_ms) // 1000):
        at_ms = offset_ms + number * 1000 // fps
        colour = BLUE if at_ms >= TONE_AT_MS else RED
        frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), colour, np.uint8), "rgb24")
        frame.time_base, frame.pts = Fraction(1, 1000), at_ms
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def make(
    path: Path,
    sound: tuple[str, int] | None,
    pictures: str | None = None,
    *,
    offset_ms: int = 0,
    duration_ms: int = 1500,
    gap_ms: tuple[int, int] = (0, 0),
) -> Path:
    """A media file: `sound` codec and rate, `pictures` codec. All pictures are muxed before all sound."""
    with av.open(str(path), "w") as container:
        audio = None
        if sound is not None:
            audio = container.add_stream(sound[0], rate=sound[1], layout="mono")
        if pictures is not None:
            video = container.add_stream(pictures, rate=25)
            assert isinstance(video, VideoStream)
            write_pictures(container, video, 25, duration_ms, offset_ms)
        if audio is not None:
            assert isinstance(audio, AudioStream)
            write_sound(container, audio, duration_ms, gap_ms)
    return path
