"""In-process values of the capture side.

Time has two forms. Samples: integers at 16 kHz, counted from the first sample of the session. Nanoseconds: the
machine's monotonic clock (CLOCK_MONOTONIC, the same in every process of the machine), named `*_ns`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
FRAME_SIDE_PX = 224
FRAMES_PER_UTTERANCE = 8

Pcm = NDArray[np.int16]
Image = NDArray[np.uint8]
Change: TypeAlias = Literal["lost", "found"]  # what becomes of a live device


@dataclass(frozen=True)
class Chosen:
    """The microphone that an index meant, as it is known again: indices change when devices come and go.

    Attributes:
        name: Its name.
        host_api: What lists it for PortAudio; the same name in another list may be another device.
        place: Which one of that name, from 0, in PortAudio's order.
        among: How many of that name there were.
    """

    name: str
    host_api: str
    place: int
    among: int


@dataclass(frozen=True)
class Session:
    """What a capture process captures.

    Attributes:
        file: What to replay; None means live devices.
        fast: Replay as fast as it goes, not at the recording's pace.
        pictures: False switches camera or pictures off.
        resumed: The capture process died and is started again: a live device that is away now was there before, and is
            waited for.
        microphone: The one that the process before had opened by index; None: as the configuration says.
    """

    file: Path | None
    fast: bool
    pictures: bool
    resumed: bool = False
    microphone: Chosen | None = None


@dataclass(frozen=True)
class AudioBlock:
    """Consecutive samples of one channel, as a source hands them over.

    Attributes:
        first_sample: Index of the first sample in the session.
        pcm: int16 [S], 16 kHz.
        captured_ns: When the first sample was in the air: the converter's time for a microphone, the file's own
            clock (start of the replay + position) for a file, at whatever pace it is replayed.
        arrived_ns: When the source handed the block over.
        channel: Which channel of the source, from 0; channel 0 comes first of those with the same samples.
    """

    first_sample: int
    pcm: Pcm
    captured_ns: int
    arrived_ns: int
    channel: int = 0


@dataclass(frozen=True)
class Stalled:
    """A live source gives no sound. Said a second after its last block, and each second until the next one.

    Attributes:
        at_ns: When it was said, on the clock of `AudioBlock.arrived_ns`.
    """

    at_ns: int


@dataclass(frozen=True)
class VideoFrame:
    """One picture: RGB uint8 [224, 224, 3], stamped on the clock of `AudioBlock.captured_ns`."""

    captured_ns: int
    image: Image


@dataclass(frozen=True)
class Span:
    """One utterance as samples of the session.

    Attributes:
        start, end: First sample and one past the last, pre-roll and tail included.
        voiced_start, voiced_end: The same without pre-roll and tail.
        forced: True when the maximum length cut it, not a silence.
    """

    start: int
    end: int
    voiced_start: int
    voiced_end: int
    forced: bool


@dataclass(frozen=True)
class Missing:
    """A modality that an utterance does not have, and why. Never replaced by zeros."""

    reason: str


@dataclass(frozen=True)
class Utterance:
    """A span with its sound and pictures, before transcription.

    Attributes:
        seq: Number of the utterance in its session, from 0.
        channel: The channel of the source it was heard on, from 0.
        span: Where it lies in the session.
        start_ns, end_ns: Session time of its speech, without pre-roll and tail, by the system's clock.
        pcm: int16 [S], the span's samples.
        frames: RGB uint8 [8, 224, 224, 3], or why there are none.
        heard_ns: When the last voiced sample reached this program; latency is counted from here.
        decided_ns: When the end of the utterance was decided (the hangover lies between the two).
        started_wall_ns: Wall clock at the session's first sample, ns since 1970, as the wall clock stands now.
        slept_ns: How long the machine had slept by then; session time stands still meanwhile.
    """

    seq: int
    channel: int
    span: Span
    start_ns: int
    end_ns: int
    pcm: Pcm
    frames: NDArray[np.uint8] | Missing
    heard_ns: int
    decided_ns: int
    started_wall_ns: int
    slept_ns: int


@dataclass(frozen=True)
class Draft:
    """An utterance as it would be if the silence that has begun were its end; speech may still go on.

    Attributes:
        channel: The channel of the source it is heard on, from 0.
        span: Where it would lie in the session.
        pcm: int16 [S], the span's samples.
    """

    channel: int
    span: Span
    pcm: Pcm


@dataclass(frozen=True)
class Interim:
    """An utterance that is not over, as far as it was heard.

    Attributes:
        so_far: Its sound from the pre-roll to now, without pictures; `heard_ns` and `decided_ns` are of now.
    """

    so_far: Utterance
