"""How long after the last voiced sample the emotion arrives: `python bench/latency.py`.

1. The example conversation is replayed in real time through the real processes and sockets. Per stage and in total,
   from the last voiced sample to the subscriber's receive. The hangover, a wait by design, is a stage of its own.
2. The worker alone: context, features and model, without sockets, on a dialogue that fills the whole context.

A table, then one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from stream.app import run_all
from stream.config import load_config
from stream.items import Session
from stream.processes import set_up_logging
from stream.wire import Emotion, Event
from stream.worker import Model, load_model
from telme.dialogue import DialogueWindow, Turn
from telme.errors import TelmeStreamError

EXAMPLES = Path(__file__).parents[1] / "examples"
WORKER_RUNS = 200
STAGES = ("hangover", "asr_wait", "asr", "link", "compute", "bus", "total")


@dataclass(frozen=True)
class Replayed:
    """Milliseconds of each stage, one row an utterance, and of the start."""

    stages_ms: dict[str, list[float]]
    start_ms: float


class Stopwatch:
    """A sink that notes when each emotion is received."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.first_event_ns = 0

    def __call__(self, event: Event, json: bytes) -> None:
        """Take an event."""
        received = time.time()
        self.first_event_ns = self.first_event_ns or time.monotonic_ns()
        if event.type != "emotion":
            return
        emotion = event.payload()
        assert isinstance(emotion, Emotion)
        stages = emotion.stages_ms
        assert stages.total is not None
        assert stages.link is not None
        bus = 1000 * (received - datetime.fromisoformat(event.time).timestamp())
        self.rows.append(
            {
                "hangover": stages.hangover,
                "asr_wait": stages.asr_wait,
                "asr": stages.asr,
                "link": stages.link,
                "compute": stages.compute,
                "bus": bus,
                "total": stages.total + bus,
            }
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=EXAMPLES / "conversation.mp4", help="what to replay")
    parser.add_argument("--bundle", default=None, help="packaged name or folder (default: compact)")
    options = parser.parse_args(arguments)
    set_up_logging(debug=False)
    try:
        replayed = replay(options.input, options.bundle)
        worker_ms = time_worker(load_model(options.bundle or "compact", 0))
    except TelmeStreamError as error:
        sys.stderr.write(f"latency: error: {error}\n")
        return error.exit_code
    report(replayed, worker_ms)
    return 0


def replay(file: Path, bundle: str | None) -> Replayed:
    """Replay a file in real time.

    Raises:
        TelmeStreamError: What ended the run.
    """
    flags: dict[str, dict[str, Any]] = {"worker": {"bundle": bundle}, "link": {"events": "tcp://127.0.0.1:*"}}
    config = load_config(None, os.environ, flags)
    watch = Stopwatch()
    started_ns = time.monotonic_ns()
    run_all(config, Session(file, fast=False, pictures=True), watch, debug=False)
    columns = {stage: [row[stage] for row in watch.rows] for stage in STAGES}
    return Replayed(columns, (watch.first_event_ns - started_ns) / 1e6)


def time_worker(model: Model) -> list[float]:
    """Milliseconds of context, features and model, for each turn of a dialogue that fills the context."""
    transcript = json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8"))
    window = DialogueWindow(model.max_turns)
    times = []
    for turn in range(WORKER_RUNS):
        line = transcript[turn % len(transcript)]
        before_ns = time.perf_counter_ns()
        window.append(Turn(line["speaker"], line["text"]))
        model.predictor.predict([model.maker.make(window)])
        times.append((time.perf_counter_ns() - before_ns) / 1e6)
    return times[model.max_turns :]


def report(replayed: Replayed, worker_ms: list[float]) -> None:
    """Print the table and the JSON line."""
    print(f"{'stage':<10} {'p50 ms':>9} {'p95 ms':>9}")
    for stage, values in replayed.stages_ms.items():
        print(f"{stage:<10} {percentile(values, 50):9.1f} {percentile(values, 95):9.1f}")
    print(f"{'worker':<10} {percentile(worker_ms, 50):9.1f} {percentile(worker_ms, 95):9.1f}   alone, full context")
    print(f"{'start':<10} {replayed.start_ms:9.0f} {'':>9}   to the first event")
    stages = replayed.stages_ms
    print(
        json.dumps(
            {
                "total_p50_ms": percentile(stages["total"], 50),
                "total_p95_ms": percentile(stages["total"], 95),
                "worker_p50_ms": percentile(worker_ms, 50),
                "worker_p95_ms": percentile(worker_ms, 95),
                "asr_p50_ms": percentile(stages["asr"], 50),
                "hangover_ms": percentile(stages["hangover"], 50),
                "start_ms": round(replayed.start_ms),
                "n": len(stages["total"]),
                "cores": os.cpu_count(),
                "machine": platform.machine(),
            }
        )
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """A percentile, to a tenth of a millisecond."""
    return round(float(np.percentile(values, percent)), 1)


if __name__ == "__main__":
    sys.exit(main())
