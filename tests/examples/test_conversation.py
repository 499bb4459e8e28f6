"""The example is small, opens with sound and pictures, holds one utterance per turn, and can be made again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import webrtcvad
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parents[2] / "examples"
MEDIA = EXAMPLES / "conversation.mp4"
TRANSCRIPT = EXAMPLES / "conversation.json"

RATE_HZ = 16_000
STEP_MS = 30
HANGOVER_MS = 500
# webrtcvad goes on saying "speech" for about 100 ms after the last sound, and works in steps.
TOLERANCE_MS = 150


def read_transcript(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return lines


def read_sound(path: Path) -> NDArray[np.int16]:
    """The sound of a file, mono at 16 kHz. (S,)"""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    with av.open(path) as container:
        blocks = [block.to_ndarray()[0] for frame in container.decode(audio=0) for block in resampler.resample(frame)]
    return np.concatenate(blocks)


def speech_spans_ms(pcm: NDArray[np.int16]) -> list[tuple[int, int]]:
    """Start and end of each stretch of speech that no silence as long as the hangover interrupts."""
    vad = webrtcvad.Vad(2)
    step = STEP_MS * RATE_HZ // 1000
    voiced = [i for i in range(len(pcm) // step) if vad.is_speech(pcm[i * step : (i + 1) * step].tobytes(), RATE_HZ)]
    breaks = [n for n, (a, b) in enumerate(pairwise(voiced)) if (b - a - 1) * STEP_MS >= HANGOVER_MS]
    starts = [0, *(n + 1 for n in breaks)]
    ends = [*breaks, len(voiced) - 1]
    return [(voiced[a] * STEP_MS, (voiced[b] + 1) * STEP_MS) for a, b in zip(starts, ends, strict=True)]


def describe(path: Path) -> list[tuple[str, str]]:
    with av.open(path) as container:
        return [(stream.type, stream.codec_context.name) for stream in container.streams]


def test_media_and_transcript_are_at_most_one_megabyte() -> None:
    assert MEDIA.stat().st_size + TRANSCRIPT.stat().st_size <= 1_000_000


def test_pictures_move_as_long_as_the_sound_lasts() -> None:
    duration_s = len(read_sound(MEDIA)) / RATE_HZ
    with av.open(MEDIA) as container:
        frames = [(frame.time, frame.to_ndarray(format="gray").astype(int)) for frame in container.decode(video=0)]
    assert 30 <= duration_s <= 45
    times_s = [time for time, _ in frames if time is not None]
    assert len(times_s) == len(frames)
    assert times_s[-1] == pytest.approx(duration_s, abs=0.2)
    changed = sum(bool(np.abs(after - before).max() > 16) for (_, before), (_, after) in pairwise(frames))
    assert changed > len(frames) // 2


def test_transcript_takes_turns_within_the_file() -> None:
    lines = read_transcript(TRANSCRIPT)
    duration_ms = len(read_sound(MEDIA)) * 1000 // RATE_HZ
    assert len(lines) >= 6
    assert {line["speaker"] for line in lines} == {"Anna", "Ben"}
    for line in lines:
        assert line["text"]
        assert 0 <= line["start_ms"] < line["end_ms"] <= duration_ms
    for before, after in pairwise(lines):
        assert before["speaker"] != after["speaker"]
        assert 900 <= after["start_ms"] - before["end_ms"] <= 1200


def test_each_turn_is_one_stretch_of_speech() -> None:
    spans = speech_spans_ms(read_sound(MEDIA))
    lines = read_transcript(TRANSCRIPT)
    assert len(spans) == len(lines)
    for (start_ms, end_ms), line in zip(spans, lines, strict=True):
        assert start_ms == pytest.approx(line["start_ms"], abs=TOLERANCE_MS)
        assert end_ms == pytest.approx(line["end_ms"], abs=TOLERANCE_MS)


def can_speak() -> bool:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        return False
    filters = subprocess.run([ffmpeg, "-hide_banner", "-filters"], capture_output=True, text=True, check=True).stdout
    return " flite " in filters


@pytest.mark.skipif(not can_speak(), reason="no ffmpeg with the filter flite; apt-get install ffmpeg")
def test_the_script_makes_the_same_conversation(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(EXAMPLES / "make_conversation.py"), "--out", str(tmp_path)], check=True)
    made, kept = read_transcript(tmp_path / "conversation.json"), read_transcript(TRANSCRIPT)
    assert [(line["speaker"], line["text"]) for line in made] == [(line["speaker"], line["text"]) for line in kept]
    for a, b in zip(made, kept, strict=True):  # another release of flite may speak a little faster or slower
        assert a["end_ms"] - a["start_ms"] == pytest.approx(b["end_ms"] - b["start_ms"], rel=0.2)
    assert describe(tmp_path / "conversation.mp4") == describe(MEDIA)
    assert len(speech_spans_ms(read_sound(tmp_path / "conversation.mp4"))) == len(made)


def test_without_ffmpeg_the_script_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    command = [sys.executable, str(EXAMPLES / "make_conversation.py"), "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "apt-get install ffmpeg" in run.stderr
    assert not list(tmp_path.iterdir())
