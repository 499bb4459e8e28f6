"""Where a backend's time goes: each network alone, and a batch, beside floors. `bench/latency.py --worker-only`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.gpu import time_ms, utterances
from telme.bundle import Bundle
from telme.config import Part
from telme.features import Features
from telme.models import EncoderOutput
from telme.predictor import Networks, Predictor

PERCENTILES = (50, 95, 99)
Answer = TypeVar("Answer")


def networks_overlap() -> bool:
    """Whether networks run beside one another, as on a GPU: to time each of them would then change the total."""
    return torch.cuda.is_available()


class TimedNetworks:
    """Networks that note how long each call took; where they overlap each is waited for, so they no longer do.

    Attributes:
        networks: Those that are timed.
        times_ms: Of each network, one number a call.
        tokens: Of each prompt.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.backend = networks.backend
        self.most_rows = networks.most_rows
        self.times_ms: dict[Part, list[float]] = defaultdict(list)
        self.tokens: list[int] = []

    def text(self, ids: Tensor, mask: Tensor) -> EncoderOutput:
        """See telme.predictor.Networks."""
        self.tokens.append(ids.shape[1])
        return self._timed("text", lambda: self.networks.text(ids, mask))

    def audio(self, values: Tensor) -> Tensor:
        """See telme.predictor.Networks."""
        return self._timed("audio", lambda: self.networks.audio(values))

    def video(self, pixels: Tensor) -> Tensor:
        """See telme.predictor.Networks."""
        return self._timed("video", lambda: self.networks.video(pixels))

    def fusion(self, text: Tensor, audio: Tensor, video: Tensor, present: Tensor) -> Tensor:
        """See telme.predictor.Networks."""
        return self._timed("fusion", lambda: self.networks.fusion(text, audio, video, present))

    def _timed(self, part: Part, call: Callable[[], Answer]) -> Answer:
        started_ns = time.perf_counter_ns()
        answer = call()
        if networks_overlap():
            torch.cuda.synchronize()
        self.times_ms[part].append((time.perf_counter_ns() - started_ns) / 1e6)
        return answer


def how_timed() -> str:
    """How the networks' times were taken, beside those in total."""
    if networks_overlap():
        return "in a pass of their own, which waits for each; in the total's they overlap, so that it may be less"
    return "in the total's own pass, one after another"


def time_alone(predictors: Mapping[str, Predictor], given: Sequence[Features]) -> dict[str, list[float]]:
    """Milliseconds of each utterance, alone; the predictors take turns."""
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for features in given:
        for name, predictor in predictors.items():
            times[name].append(time_ms(predictor, [features]))
    return times


def time_batch(predictor: Predictor, bundle: Bundle, size: int, runs: int) -> dict[str, float]:
    """Utterances a second, and milliseconds of one, when so many of one length are given at once; the median run."""
    batch = utterances(bundle, size, mixed=False)
    batch_ms = float(np.median([time_ms(predictor, batch) for _ in range(runs)]))
    return {"size": size, "per_s": round(1000 * size / batch_ms, 2), "ms_each": round(batch_ms / size, 2)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Of milliseconds, to a hundredth."""
    return {f"p{percent}_ms": round(float(np.percentile(values, percent)), 2) for percent in PERCENTILES}


def print_rows(rows: Mapping[str, Any], floor: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """A table: each backend's total and networks beside the floor of its precision, and its batch."""
    heads = "".join(f"{f'p{percent} ms':>10}" for percent in PERCENTILES)
    print(f"{'backend':<12}{'stage':<8}{heads}{'floor ms':>10}{'times faster':>14}")
    for name, row in rows.items():
        least_ms = floor[name.rpartition("-")[2]]
        for stage, figures in (("total", row), *row["stages"].items()):
            cells = "".join(f"{figures[f'p{percent}_ms']:>10.2f}" for percent in PERCENTILES)
            least = f"{least_ms[stage]['ms']:>10.2f}" if stage in least_ms else f"{'':>10}"
            print(f"{name:<12}{stage:<8}{cells}{least}{figures['times_faster']:>14.2f}")
        if "batch" in row:
            batch = row["batch"]
            print(f"{name:<12}batch of {batch['size']}: {batch['per_s']} utterances/s, {batch['ms_each']} ms each")
    print(f"networks timed {how_timed()}")
