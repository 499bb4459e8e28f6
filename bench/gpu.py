"""Every backend of a CUDA machine on the published size, with random weights: `bash bench/gpu.sh`.

Each backend runs in a process of its own, so that one that dies or eats the memory spoils no other's figures. Torch
eager in float32, one utterance at a time, is the baseline and the reference of the answers. One utterance is 128
tokens, 3.6 s of sound and 8 pictures; `mixed` is a batch of as many lengths as utterances. A table, then a JSON file,
which is written after each backend, with what is known so far. `--only` takes some of them, beside the baseline.

`--cpu-check` runs all of it that needs no GPU, on small networks: it shows that the script works, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # it has no other public name

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.floor import ceilings_of, floors
from bench.random_bundle import make_random_bundle
from engines.build import cached_plan, gpu_name, installed, toolkit
from engines.cuda import torch_networks
from engines.onnx import onnx_networks
from engines.parity import compare as parity_of
from engines.parity import logits
from engines.spec import BuildSettings, Precision, RunSettings, default_profiles, graph_spec
from engines.store import Store, read_manifest
from engines.tensorrt import tensorrt_networks
from telme.bundle import Bundle, load_bundle
from telme.errors import EngineError, TelmeStreamError
from telme.features import Features
from telme.flags import above
from telme.predictor import NetworkPredictor, Networks, Predictor, TorchNetworks

RESULTS = Path(__file__).parent / "results"
BASELINE = "torch-eager-fp32"
TOKENS, SOUND_S, BATCH, UTTERANCES = 128, 3.6, 16, 64
_RUN, _LAUNCHED = RunSettings(), RunSettings(cuda_graphs=False)
Make = Callable[[Bundle, Store], Networks]


def _torch(precision: Precision, run: RunSettings = _RUN) -> Make:
    return lambda bundle, store: torch_networks(bundle, precision, run)


def _tensorrt(precision: Precision, run: RunSettings = _RUN) -> Make:
    return lambda bundle, store: tensorrt_networks(bundle, precision, run, store)


CASES: Mapping[str, Make] = {
    BASELINE: lambda bundle, store: TorchNetworks(bundle.model),
    "torch-cuda-fp16": _torch("fp16"),
    "torch-cuda-fp16-no-graphs": _torch("fp16", _LAUNCHED),
    "torch-cuda-bf16": _torch("bf16"),
    "tensorrt-fp16": _tensorrt("fp16"),
    "tensorrt-fp16-no-graphs": _tensorrt("fp16", _LAUNCHED),
    "tensorrt-bf16": _tensorrt("bf16"),
    "onnx-fp32": lambda bundle, store: onnx_networks(bundle, "fp32", _RUN, store),
}
PLANS, FLOOR = "tensorrt-plans", "floor"
NAMES = (*CASES, PLANS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-check", action="store_true", help="small networks, no GPU: does the script work?")
    parser.add_argument(
        "--runs", type=above(0, int), help="utterances alone that are timed (default: 200; 2 with --cpu-check)"
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="CASE", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--timeout-s", type=float, default=900, help="for each case, its start included (default: 900)")
    parser.add_argument("--out", type=Path, help="JSON file (default: bench/results/gpu-NAME-DAY.json)")
    parser.add_argument("--case", choices=[*NAMES, FLOOR], help=argparse.SUPPRESS)  # one of them, in its own process
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.runs is None:
        options.runs = 2 if options.cpu_check else 200
    if options.case:
        run_case(options.case, options.work, options.runs)
        return 0
    if not options.cpu_check and not torch.cuda.is_available():
        sys.stderr.write("gpu: error: torch sees no GPU; expected one; try bash bench/gpu.sh --cpu-check\n")
        return 1
    report = {"machine": machine(), "cpu_check": options.cpu_check}
    out = options.out or RESULTS / f"gpu-{report['machine']['gpu'].replace(' ', '-')}-{datetime.now(UTC):%Y-%m-%d}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for rows in measured(Path(folder), options):
            report |= {"floor": rows[0], "rows": rows[1:]}
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_table(report)
    print(f"written: {out}")
    return 1 if any("error" in row for row in (report["floor"], *report["rows"])) else 0


def measured(work: Path, options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The floor and the rows so far: one more at a time, each from a process of its own."""
    make_random_bundle(work / "bundle", "small" if options.cpu_check else "published")
    # The published size on a processor is bench/latency.py's.
    kinds = ("onnx",) if options.cpu_check else ("torch-cuda", *(["tensorrt"] if installed() else []))
    names = [name for name in CASES if name.startswith(kinds)]
    if options.cpu_check and installed():
        names.append(PLANS)
    names = [name for name in options.only or names if name != BASELINE]
    rows: list[dict[str, Any]] = []
    for name in (FLOOR, BASELINE, *names):
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "bench.gpu", "--case", name, "--work", str(work), "--runs", str(options.runs)]
        rows.append(in_process(name, command, options.timeout_s))
        yield rows


def in_process(name: str, command: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """One case's figures, and why some are missing.

    Args:
        name: Of the case.
        command: Prints its figures so far as lines of JSON; the last one counts.
        timeout_s: Until it is killed.
    """
    why = ""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=timeout_s)
        said = done.stdout
        if done.returncode:
            why = f"its process ended with {done.returncode}; what it said is above"
    except subprocess.TimeoutExpired as error:
        said, why = error.stdout or b"", f"it was not done in {timeout_s:g} s"
    row: dict[str, Any] = {"backend": name}
    for line in said.decode(errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):
            row = json.loads(line)
    if not why and len(row) == 1:
        why = "its process printed no figures"
    return row | ({"error": why} if why else {})


def run_case(name: str, work: Path, runs: int) -> None:
    """Measure one case and print its figures as a line of JSON, anew whenever there are more."""
    bundle, store = load_bundle(str(work / "bundle")), Store(work / "engines")
    row: dict[str, Any] = {"backend": name}
    try:
        for figures in figures_of(name, bundle, store, work, runs):
            row |= figures
            print(json.dumps(row), flush=True)
    except TelmeStreamError as error:
        print(json.dumps(row | {"error": str(error)}))


def figures_of(name: str, bundle: Bundle, store: Store, work: Path, runs: int) -> Iterator[dict[str, Any]]:
    """One case's figures, a few at a time.

    Raises:
        TelmeStreamError: The backend cannot run, or fails.
    """
    if name == FLOOR:
        yield floor(bundle)
        return
    if name == PLANS:
        yield compile_plans(bundle, store)
        return
    started_s = time.perf_counter()
    predictor = NetworkPredictor(bundle, CASES[name](bundle, store))
    yield {"named": predictor.backend, "ready_s": round(time.perf_counter() - started_s, 1)}
    yield compare(predictor, bundle, work / "reference.npy", name == BASELINE)
    yield clock(predictor, bundle, runs)
    if torch.cuda.is_available():
        yield profiled(predictor, bundle)


def compile_plans(bundle: Bundle, store: Store) -> dict[str, Any]:
    """Without a GPU: compile the plans, and note what keeps them from running.

    Raises:
        TelmeStreamError: They cannot be compiled.
    """
    tensorrt = toolkit()
    row: dict[str, Any] = {"backend": f"{tensorrt.name}-fp16"}
    for part in bundle.config.parts:
        settings = BuildSettings("fp16", default_profiles(graph_spec(bundle.config, part)))
        plan = cached_plan(store, tensorrt, bundle, part, settings)
        row |= {f"{part}_built_s": read_manifest(plan.parent).build_s, f"{part}_bytes": plan.stat().st_size}
    try:
        tensorrt_networks(bundle, "fp16", _RUN, store)
    except EngineError as error:
        row["not_run"] = str(error)
    return row


def utterances(bundle: Bundle, count: int, mixed: bool) -> list[Features]:
    """Made-up utterances, the same every time: of one length, or evenly from none to twice that."""
    random = np.random.default_rng(3)
    rate_hz, edge = (
        bundle.config.input_mode.audio_rate_hz,
        int((bundle.config.video_config or {}).get("image_size", 224)),
    )
    tokens = min(TOKENS, bundle.config.max_prompt_tokens // (2 if mixed else 1))
    made = []
    for number in range(count):
        share = 2 * (number + 1) / count if mixed else 1.0
        prompt = random.integers(5, 100, max(int(tokens * share), 8))
        sound = random.standard_normal(int(SOUND_S * rate_hz * share), np.float32)
        pixels = torch.from_numpy(random.standard_normal((1, 8, 3, edge, edge), np.float32))
        made.append(Features(tuple(prompt.tolist()), context_turns=5, sound=sound, pixels=pixels))
    return made


def compare(predictor: NetworkPredictor, bundle: Bundle, file: Path, is_reference: bool) -> dict[str, Any]:
    """How far the answers are from float32's, where the baseline gave some."""
    given = utterances(bundle, UTTERANCES if torch.cuda.is_available() else 4, mixed=True)
    found = logits(predictor, given, bundle.config.calibration_temperature)
    if is_reference:
        np.save(file, found)
        return {}
    if not file.exists():
        return {"parity_error": f"{BASELINE} gave no answers"}
    parity = parity_of(predictor.backend, found, np.load(file))
    return {
        "logits_max_difference": parity.largest,
        "logits_mean_difference": parity.mean,
        "least_cosine": parity.cosine,
        "same_labels": parity.labels_equal,
    }


def clock(predictor: NetworkPredictor, bundle: Bundle, runs: int) -> dict[str, Any]:
    """Milliseconds alone; utterances a second in batches of one length and of many."""
    (alone,) = utterances(bundle, 1, mixed=False)
    times_ms = [time_ms(predictor, [alone]) for _ in range(runs + 5)][5:]
    rates = {}
    for kind, mixed in (("batched", False), ("mixed", True)):
        batch = utterances(bundle, BATCH, mixed)
        best_ms = min(time_ms(predictor, batch) for _ in range(max(runs // 10, 2)))
        rates[f"{kind}_per_s"] = round(1000 * BATCH / best_ms, 1)
    alone_ms = {f"alone_p{p}_ms": round(float(np.percentile(times_ms, p)), 3) for p in (50, 95, 99)}
    if not torch.cuda.is_available():
        return alone_ms | rates
    memory = {"gpu_memory_mb": round((torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0]) / 1e6)}
    return alone_ms | rates | memory


def profiled(predictor: Predictor, bundle: Bundle) -> dict[str, Any]:
    """The slowest kernels, or why torch's profiler gave none: it needs rights that not every machine gives."""
    (alone,) = utterances(bundle, 1, mixed=False)
    try:
        return {"kernels_ms": kernels(predictor, alone)}
    except (RuntimeError, OSError, AttributeError) as error:
        return {"kernels_error": f"{type(error).__name__}: {error}"}


def kernels(predictor: Predictor, utterance: Features) -> dict[str, float]:
    """The ten kernels that take most of the GPU's time for one utterance: what stands between it and the floor."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(10):
            predictor.predict([utterance])
    return slowest(profile.key_averages(), 10, runs=10)


def slowest(events: Iterable[Any], count: int, runs: int) -> dict[str, float]:
    """Of a profile's averaged events the kernels that took longest, in milliseconds a run."""
    # Not torch's operators: theirs is the time of the kernels that they launched, which are listed themselves.
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda event: event.self_device_time_total, reverse=True)
    return {event.key[:80]: round(event.self_device_time_total / 1000 / runs, 4) for event in kernels[:count]}


def time_ms(predictor: Predictor, batch: Sequence[Features]) -> float:
    """Milliseconds of one call."""
    started_s = time.perf_counter()
    predictor.predict(batch)  # its answers are on the CPU when it returns
    return 1000 * (time.perf_counter() - started_s)


def floor(bundle: Bundle) -> dict[str, float]:
    """The least milliseconds of one utterance, in half precision on a GPU."""
    (one,) = utterances(bundle, 1, mixed=False)
    precision = "fp16" if torch.cuda.is_available() else "fp32"
    found = ceilings_of([precision])
    ceilings, work = found[precision], floors(bundle, one, found)[precision]["total"]
    return {
        "flops": work["flops"],
        "weights_bytes": work["bytes"],
        **ceilings.figures(),
        "alone_ms": round(ceilings.floor_ms(work["flops"], work["bytes"]), 3),
        "batched_per_s": round(ceilings.flops_per_s / work["flops"], 1),
    }


def machine() -> dict[str, str]:
    """What it ran on."""
    versions = {name: version(name) for name in ("torch", "transformers", "onnx", "onnxscript")}
    return {
        "gpu": gpu_name(),
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "tensorrt": ", ".join(installed()) or "none",
        **versions,
    }


def print_table(report: Mapping[str, Any]) -> None:
    """The rows, with their ratio to the baseline."""
    rows = report["rows"]
    columns = ("alone_p50_ms", "alone_p95_ms", "batched_per_s", "mixed_per_s", "logits_max_difference", "same_labels")
    print(f"{'backend':<24}" + "".join(f"{name:>22}" for name in columns) + f"{'times faster alone':>22}")
    baseline_ms = rows[0].get("alone_p50_ms")
    for row in rows:
        if "alone_p50_ms" in row:
            cells = "".join(f"{row[name]:>22.5g}" if name in row else f"{'':>22}" for name in columns)
            faster = f"{baseline_ms / row['alone_p50_ms']:>22.2f}" if baseline_ms else ""
            print(f"{row['backend']:<24}{cells}{faster}")
        if why := row.get("error") or row.get("not_run"):
            print(f"{row['backend']:<24}  {why}")
    least = report["floor"]
    if "error" in least:
        print(f"{FLOOR:<24}  {least['error']}")
        return
    print(f"{FLOOR:<24}{least['alone_ms']:>22.5g}{'':>22}{least['batched_per_s']:>22.5g}")


if __name__ == "__main__":
    sys.exit(main())
