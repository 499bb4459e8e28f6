"""How long after the last voiced sample the emotion arrives: `python bench/latency.py`.

1. The example conversation is replayed in real time through the real processes and sockets. Per stage and in total,
   from the last voiced sample to the subscriber's receive. The hangover, a wait by design, is a stage of its own.
2. The worker alone: context, features and model, without sockets, on a dialogue that fills the whole context. With
   `--worker-only` on several backends: each network's share, the ratio to torch eager in float32, one utterance at a
   time, in the same run, and the floor: operations and bytes over what this processor does at its best in that
   precision, measured before and after. On a GPU, where networks overlap, each network's share is taken in a second
   pass, which waits for each, and the total in one that does not. A backend that cannot run here is a row with the
   reason, and the exit code is 1 where none can. `--tokens` sets the length of the prompts.
3. `--worker-only ... --full-size`: networks of the published size with random weights, made for the run and removed
   after it; 128 tokens, 3.6 s of sound and 8 pictures. It takes minutes and several GB there.

A table, then one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.floor import Ceilings, ceilings_of, floors
from bench.gpu import machine, utterances
from bench.random_bundle import SIZES, make_random_bundle
from bench.stages import TimedNetworks, how_timed, networks_overlap, percentiles, print_rows, time_alone, time_batch
from engines.predictor import Choice, choices, networks_of
from engines.spec import RunSettings
from engines.store import Store, default_root
from stream.app import run_all
from stream.bus import Emotion, Event
from stream.config import WorkerConfig, load_config
from stream.items import Session
from stream.processes import set_up_logging
from stream.recognise import Model, load_model
from telme.bundle import Bundle, open_bundle
from telme.dialogue import DialogueWindow, Turn
from telme.errors import TelmeStreamError
from telme.features import FeatureMaker
from telme.flags import above
from telme.predictor import NetworkPredictor
from telme.pretrained import check_positions

EXAMPLES = Path(__file__).parents[1] / "examples"
WORKER_RUNS = 200
BASELINE = "torch-fp32"
_LEAST_TURN_TOKENS = 5
STAGES = ("hangover", "asr_hidden", "asr_wait", "asr", "link", "compute", "bus", "total")


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
                "asr_hidden": stages.asr_hidden,  # within the hangover, not one more stage
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
    parser.add_argument(
        "--worker-only",
        nargs="+",
        metavar="BACKEND-PRECISION",
        help="the worker alone on each of these, for instance onnx-int8, against torch eager in float32 in this run",
    )
    parser.add_argument("--batch", type=above(0, int), help="with --worker-only: so many utterances at once as well")
    parser.add_argument(
        "--full-size",
        nargs="?",
        choices=SIZES,
        const="published",
        help="with --worker-only: random weights of that size (default: published) in the bundle's place",
    )
    parser.add_argument(
        "--tokens", type=above(1, int), help="with --worker-only: prompts of so many (default: the bundle's most)"
    )
    parser.add_argument(
        "--runs", type=above(0, int), default=3, help="with --full-size and --batch: how many are timed"
    )
    parser.add_argument(
        "--threads", type=above(-1, int), default=0, help="with --worker-only (default: half of the cores)"
    )
    options = parser.parse_args(arguments)
    if options.tokens and options.full_size:
        parser.error("--tokens goes with a bundle, not with --full-size")
    set_up_logging(debug=False)
    try:
        if options.worker_only:
            return compare(options)
        replayed = replay(options.input, options.bundle)
        worker_ms = time_workers({"worker": load_model(WorkerConfig(options.bundle or "compact"))})["worker"]
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


def time_workers(models: Mapping[str, Model]) -> dict[str, list[float]]:
    """Milliseconds of context, features and model, for each turn of a dialogue that fills the context.

    The models take turns, so that what else the machine does meanwhile hits all alike.
    """
    transcript = json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8"))
    windows = {name: DialogueWindow(model.max_turns) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(WORKER_RUNS):
        line = transcript[number % len(transcript)]
        for name, model in models.items():
            before_ns = time.perf_counter_ns()
            windows[name].append(Turn(line["speaker"], line["text"]))
            model.predictor.predict([model.maker.make(windows[name])])
            times[name].append((time.perf_counter_ns() - before_ns) / 1e6)
    return {name: times[name][model.max_turns :] for name, model in models.items()}


def compare(options: argparse.Namespace) -> int:
    """Print what each backend takes, and how many times faster than torch eager it is; returns the exit code.

    A backend that cannot run here is a row with the reason; where that is so of all that were asked for, none is timed.

    Raises:
        TelmeStreamError: torch eager cannot run, or a backend fails while it is timed.
    """
    threads = options.threads or max((os.cpu_count() or 1) // 2, 1)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.full_size:
            bundle = open_bundle(str(make_random_bundle(Path(folder) / "random", options.full_size)))
            store = Store(Path(folder) / "engines")
        else:
            bundle = open_bundle(options.bundle or "compact")
            # Graphs for prompts of another length are of no use to any worker.
            store = Store(Path(folder) / "engines" if options.tokens else default_root())
        if options.tokens:
            check_positions(bundle.model.text, bundle.model_id, options.tokens, "--tokens")
            bundle.config.max_prompt_tokens = options.tokens
            bundle.config.max_turns = max(bundle.config.max_turns, options.tokens // _LEAST_TURN_TOKENS)
        baseline, *asked = [choices(*name.split("-", 1))[0] for name in (BASELINE, *options.worker_only)]
        networks, cannot_run = ready(bundle, [baseline, *asked], RunSettings(threads=threads), store)
        if not any(choice.name in networks for choice in asked):
            print_missing(cannot_run, sys.stderr)
            return 1
        rows, floor, ceilings = measure(networks, bundle, options)
    print_rows(rows, floor)
    print_missing(cannot_run, sys.stdout)
    about = {"bundle": bundle.model_id, "threads": threads, "machine": machine(), "tokens": options.tokens}
    about["networks_timed"] = how_timed()
    about["ceilings"] = {precision: ceiling.figures() for precision, ceiling in ceilings.items()}
    print(json.dumps({**about, "floor": floor, "worker": rows, "cannot_run": cannot_run}))
    return 0


def ready(
    bundle: Bundle, wanted: Sequence[Choice], run: RunSettings, store: Store
) -> tuple[dict[str, TimedNetworks], dict[str, str]]:
    """Each backend's networks, after an answer that pays for the start; and why others cannot run here.

    Args:
        bundle: The networks.
        wanted: The baseline first.
        run: Threads.
        store: Where graphs are kept.

    Raises:
        TelmeStreamError: The baseline cannot run.
    """
    networks: dict[str, TimedNetworks] = {}
    cannot_run: dict[str, str] = {}
    for choice in wanted:
        try:
            timed = TimedNetworks(networks_of(bundle, choice, run, store))
            NetworkPredictor(bundle, timed).predict(utterances(bundle, 1, mixed=False))
        except TelmeStreamError as error:
            if not networks:
                raise
            cannot_run[choice.name] = str(error)
            continue
        timed.times_ms.clear()
        networks[choice.name] = timed
    return networks, cannot_run


def print_missing(cannot_run: Mapping[str, str], file: TextIO) -> None:
    """A row for each backend that cannot run."""
    for name, reason in cannot_run.items():
        print(f"{name} cannot run: {reason}", file=file)


def measure(
    networks: Mapping[str, TimedNetworks], bundle: Bundle, options: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, dict[str, float]]], dict[str, Ceilings]]:
    """Each backend's figures, and the floor and ceilings of each precision.

    Raises:
        TelmeStreamError: One fails.
    """
    precisions = {name.rpartition("-")[2] for name in networks}
    before = ceilings_of(precisions)
    rows = time_backends(networks, bundle, options)
    compare_with(rows[BASELINE], rows)
    ceilings = {precision: after.best(before[precision]) for precision, after in ceilings_of(precisions).items()}
    (one,) = utterances(bundle, 1, mixed=False)
    if options.tokens:
        one = replace(one, prompt_ids=one.prompt_ids[:1] * options.tokens)
    return rows, floors(bundle, one, ceilings), ceilings


def time_backends(
    networks: Mapping[str, TimedNetworks], bundle: Bundle, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Percentiles in total and of each network, on each BACKEND-PRECISION.

    Raises:
        TelmeStreamError: One fails.
    """
    predictors = {name: NetworkPredictor(bundle, timed) for name, timed in networks.items()}
    if networks_overlap():  # to time each network waits for it; elsewhere one pass has both
        time_answers(predictors, bundle, options)
        predictors = {name: NetworkPredictor(bundle, timed.networks) for name, timed in networks.items()}
    totals_ms = time_answers(predictors, bundle, options)
    rows: dict[str, dict[str, Any]] = {}
    for name, timed in networks.items():
        n = len(totals_ms[name])  # without the turns before the context is full
        stages = {part: percentiles(times_ms[-n:]) for part, times_ms in timed.times_ms.items()}
        tokens = round(float(np.median(timed.tokens[-n:])))
        rows[name] = {"n": n, "tokens": tokens, **percentiles(totals_ms[name]), "stages": stages}
        if options.batch:
            rows[name]["batch"] = time_batch(predictors[name], bundle, options.batch, options.runs)
    return rows


def time_answers(
    predictors: Mapping[str, NetworkPredictor], bundle: Bundle, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Milliseconds of each answer, by each predictor: made-up utterances, or turns that fill the context.

    Raises:
        TelmeStreamError: One fails.
    """
    if options.full_size:
        return time_alone(predictors, utterances(bundle, options.runs, mixed=False))
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    return time_workers(
        {name: Model(maker, predictor, bundle.config.max_turns) for name, predictor in predictors.items()}
    )


def compare_with(baseline: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    """Add to each backend's figures how many times faster than the baseline its median is."""
    for row in rows.values():
        row["times_faster"] = round(baseline["p50_ms"] / row["p50_ms"], 2)
        for part, stage in row["stages"].items():
            stage["times_faster"] = round(baseline["stages"][part]["p50_ms"] / stage["p50_ms"], 2)


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
