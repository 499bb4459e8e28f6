"""An hour, simulated: what is kept in memory does not grow with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from av.container import InputContainer

from bench.conversations import write_wav
from stream import replay
from stream.align import PcmRing
from stream.clock import SampleClock, samples_to_ns
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Missing, VideoFrame
from telme.media import open_media

MS = 1_000_000
BLOCK = 480
BLOCKS = 3600 * 1000 // 30
SILENCE = np.zeros(BLOCK, np.int16)
PICTURE = np.zeros((224, 224, 3), np.uint8)
KEEP_SAMPLES = 20 * 16_000


def block(number: int) -> AudioBlock:
    at_ns = number * 30 * MS
    return AudioBlock(number * BLOCK, SILENCE, at_ns, at_ns + 30 * MS)


def test_an_hour_of_pictures_leaves_the_last_ones() -> None:
    ring = FrameRing(fps=10, keep_ms=25_000)
    for number in range(3600 * 25):
        at_ns = number * 40 * MS
        if ring.due(at_ns):
            ring.put(VideoFrame(at_ns, PICTURE))
    assert len(ring) <= 10 * 25 + 1
    assert ring.drops == 0


def test_an_hour_of_sound_leaves_the_last_seconds() -> None:
    ring, clock = PcmRing(KEEP_SAMPLES), SampleClock(KEEP_SAMPLES)
    for number in range(BLOCKS):
        ring.append(number * BLOCK, SILENCE)
        clock.observe(block(number))
    most = KEEP_SAMPLES // BLOCK + 2
    assert len(ring) <= most
    assert len(clock) <= most


def test_an_hour_of_losses_leaves_the_last_seconds_too() -> None:
    ring, clock = PcmRing(KEEP_SAMPLES), SampleClock(KEEP_SAMPLES)
    for number in range(BLOCKS):
        here = block(number + number // 1_000 * 200)  # each half minute six seconds are lost
        ring.append(here.first_sample, SILENCE)
        clock.observe(here)
    most = KEEP_SAMPLES // BLOCK + 2
    assert len(ring) <= most
    assert len(clock) <= most
    assert clock.session_ns(here.first_sample) == samples_to_ns(here.first_sample)


def test_an_hour_of_a_file_leaves_no_list_of_its_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg notes where each lies: 1 MiB in an hour, of which a few minutes show what is kept."""
    opened: list[InputContainer] = []
    entries = 0

    def open_and_keep(path: Path, once_through: bool = False) -> InputContainer:
        opened.append(open_media(path, once_through))
        return opened[-1]

    monkeypatch.setattr(replay, "open_media", open_and_keep)
    write_wav(tmp_path / "a.wav", np.zeros(200 * SAMPLE_RATE_HZ, np.int16))
    with replay.FileReplay(tmp_path / "a.wav", True, Missing("not wanted")) as source:
        for heard in source.blocks():
            assert isinstance(heard, AudioBlock)
            entries = max(entries, *(len(container.streams[0].index_entries) for container in opened))
    assert 0 < entries < 1_000  # of over 3,000 packets
