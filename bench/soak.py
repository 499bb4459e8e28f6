"""Does memory grow? `python bench/soak.py [--minutes 60] [--json]`.

The whole program, capture and worker with their sockets and journals, replays a recording of that length as fast as it
goes: once silence, once conversations without end (bench/conversations.py). The resident memory of both processes is
read all the while. What counts is the slope of a line through it, in MB per hour of sound; the first sixth, in which
caches fill, is left out, and the last twentieth, in which the recognizer works off what waits. The line goes through
the least figure of each of ten pieces: a transcription takes tens of MB for an instant and gives them back, and a line
through such peaks says where they fell by chance. "of files": the slope of what is mapped from files alone, a part of
the other. A row of weights that stands for a word is read when the word is first said.

A table; with --json also one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.command import measured
from bench.conversations import ROOM_RMS, converse, synthetic_voices, write_wav
from bench.noises import to_pcm
from stream.app import run_all
from stream.bus import Device, Emotion, Event
from stream.config import load_config
from stream.items import SAMPLE_RATE_HZ, Pcm, Session
from stream.processes import set_up_logging

ROLES = ("capture", "worker")
PERIOD_S = 0.01  # the instants between two transcriptions are rare
WARM_UP = 1 / 6
WIND_DOWN = 1 / 20
PIECES = 10  # of what is left
CHAPTER_S = 300  # of conversation, said again and again
TURNS = 12
_MB = 1_000_000


@dataclass
class Memory:
    """Resident bytes of each process over the wall clock, and those of files, while the recording is replayed."""

    seconds: list[float] = field(default_factory=list)
    resident: dict[str, list[int]] = field(default_factory=lambda: {role: [] for role in ROLES})
    of_files: dict[str, list[int]] = field(default_factory=lambda: {role: [] for role in ROLES})
    emotions: int = 0

    def slope_mb(self, values: Sequence[float], hours: float) -> float:
        """MB per hour of sound, which was fed at an even pace over so many hours."""
        return slope(self.seconds, values) / hours / _MB


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """How much a line through the least values of the pieces rises from the first to the last time.

    Args:
        times: Of the values, rising.
        values: At least two between WARM_UP and WIND_DOWN.
    """
    x, y = np.asarray(times, float), np.asarray(values, float)
    share = (x - x[0]) / (x[-1] - x[0])
    settled = (share >= WARM_UP) & (share <= 1 - WIND_DOWN)
    pieces = np.array_split(np.flatnonzero(settled), min(PIECES, int(settled.sum())))
    least = [piece[np.argmin(y[piece])] for piece in pieces]
    per_second, _ = np.polyfit(x[least], y[least], 1)
    return float(per_second * (x[-1] - x[0]))


class Watcher:
    """A sink that reads the memory of this process's children from the file's opening to its end."""

    def __init__(self) -> None:
        self.memory = Memory()
        self._running = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __call__(self, event: Event, json: bytes) -> None:
        """Take an event."""
        data = event.payload()
        self.memory.emotions += isinstance(data, Emotion)
        if isinstance(data, Device) and data.state == "opened":
            self._thread.start()
        elif isinstance(data, Device) and data.state == "ended":
            self._ended.set()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD_S):
            pids = {child.name: child.pid for child in multiprocessing.active_children()}
            if not set(ROLES) <= set(pids):
                continue
            self.memory.seconds.append(time.monotonic())
            for role in ROLES:
                resident, of_files = resident_bytes(pids[role] or 0)
                self.memory.resident[role].append(resident)
                self.memory.of_files[role].append(of_files)


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and how much of it are pages of files (Linux)."""
    _, resident, of_files, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    page = os.sysconf("SC_PAGE_SIZE")
    return resident * page, of_files * page


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60, help="of sound (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(arguments)
    set_up_logging(debug=False)
    return measured("soak", lambda: soak(options.minutes, options.seed), options.json)


def soak(minutes: int, seed: int) -> dict[str, float]:
    """Both recordings; MB per hour of sound for each and each process, and what is there at the end.

    Raises:
        TelmeStreamError: What ended a run.
    """
    figures: dict[str, float] = {"minutes": minutes}
    sounds: dict[str, Callable[[int, int], Pcm]] = {"silence": silence, "speech": speech}
    print("sound    process  MB at the end MB an hour of files emotions    took")
    for name, make in sounds.items():
        memory = run(make(minutes, seed))
        took_s = memory.seconds[-1] - memory.seconds[0]
        for role in ROLES:
            last = memory.resident[role][-1] / _MB
            per_hour, of_files = (
                memory.slope_mb(values[role], minutes / 60) for values in (memory.resident, memory.of_files)
            )
            slopes = f"{per_hour:>10.2f} {of_files:>8.2f}"
            print(f"{name:<8} {role:<8} {last:>13.1f} {slopes} {memory.emotions:>8} {took_s:>6.0f}s")
            figures |= {
                f"{name}_{role}_mb_per_hour": round(per_hour, 3),
                f"{name}_{role}_of_files_mb_per_hour": round(of_files, 3),
                f"{name}_{role}_mb": round(last, 1),
            }
    return figures


def run(pcm: Pcm) -> Memory:
    """Replay a sound through the whole program."""
    watcher = Watcher()
    flags = {"link": {"events": "tcp://127.0.0.1:*"}, "speakers": {"mode": "cluster"}}
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "hour.wav")
        write_wav(sound, pcm)
        run_all(load_config(None, os.environ, flags), Session(sound, fast=True, pictures=False), watcher, debug=False)
    watcher.stop()
    return watcher.memory


def silence(minutes: int, seed: int) -> Pcm:
    """A faint room."""
    minute = to_pcm(np.random.default_rng(seed).normal(0, ROOM_RMS, 60 * SAMPLE_RATE_HZ))
    return np.tile(minute, minutes)


def speech(minutes: int, seed: int) -> Pcm:
    """Some minutes of conversation, again and again."""
    rng = np.random.default_rng(seed)
    voices = synthetic_voices()
    parts: list[Pcm] = []
    while sum(map(len, parts)) < CHAPTER_S * SAMPLE_RATE_HZ:
        chosen = rng.choice(len(voices), 3, replace=False)
        parts.append(converse(rng, [voices[index] for index in chosen], TURNS).pcm)
    return np.resize(np.concatenate(parts), minutes * 60 * SAMPLE_RATE_HZ)


if __name__ == "__main__":
    sys.exit(main())
