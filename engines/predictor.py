"""Which backend runs a bundle on this machine, and the predictor that runs it there."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from engines.build import Progress, cached_plan, installed, toolkit
from engines.cuda import CudaNetworks, need_gpu, torch_networks
from engines.onednn import AS_IT_IS, FLAT, cached_flat, need_products, onednn_networks
from engines.onnx import PRECISIONS as ONNX_PRECISIONS
from engines.onnx import cached_graph, check_onnx, onnx_networks
from engines.spec import BuildSettings, Precision, RunSettings, default_profiles, graph_spec
from engines.store import Store
from engines.tensorrt import check_precision, check_runs_here, load_carried, tensorrt_networks
from telme.bundle import Bundle
from telme.config import Part
from telme.errors import TelmeStreamError, UsageError
from telme.predictor import NetworkPredictor, Networks, TorchNetworks
from telme.processor import multiplies_bfloat16, multiplies_int8

_log = logging.getLogger(__name__)

Backend = Literal["tensorrt", "onnx", "torch"]
BACKENDS = ("auto", *get_args(Backend))
PRECISIONS = ("auto", *get_args(Precision))


@dataclass(frozen=True)
class Choice:
    """A backend and precision, and why."""

    backend: Backend
    precision: Precision
    why: str

    @property
    def name(self) -> str:
        """BACKEND-PRECISION, as the benches take it."""
        return f"{self.backend}-{self.precision}"


def choices(backend: str = "auto", precision: str = "auto") -> list[Choice]:
    """What to run networks on, best first; more than one only where the program may choose.

    Args:
        backend: One of BACKENDS.
        precision: One of PRECISIONS.

    Raises:
        UsageError: There is no such backend or precision.
    """
    if backend not in BACKENDS or precision not in PRECISIONS:
        raise UsageError(
            f"backend {backend!r} in {precision!r}",
            f"one of {', '.join(BACKENDS)} in {', '.join(PRECISIONS)}",
            "check --backend and --precision",
        )
    gpu = torch.cuda.is_available()
    usual: dict[Backend, Precision] = {"tensorrt": "fp16", "onnx": "fp32", "torch": "fp16" if gpu else "fp32"}
    asked: Precision | None = next((one for one in get_args(Precision) if one == precision), None)
    if backend != "auto":
        return [Choice(one, asked or usual[one], "as asked") for one in usual if one == backend]
    if not gpu:
        return _on_processor(asked)
    ranked = [Choice("tensorrt", asked or "fp16", "a GPU and TensorRT are there")] if installed() else []
    why = "TensorRT cannot run here" if ranked else "a GPU without TensorRT"
    return [*ranked, Choice("torch", asked or "fp16", why)]


def _on_processor(asked: Precision | None) -> list[Choice]:
    """Where there is no GPU; nothing twice, since what cannot run once cannot run later."""
    ranked: list[Choice] = []
    if asked in (None, "bf16") and multiplies_bfloat16():
        ranked.append(Choice("torch", "bf16", "no GPU, but a processor with products in bfloat16"))
    if asked == "int8" and multiplies_int8():
        ranked.append(Choice("torch", "int8", "no GPU, but a processor with products of bytes"))
    if asked is None or asked in ONNX_PRECISIONS:
        ranked.append(Choice("onnx", asked or "fp32", "no GPU" if asked else "no GPU; int8 changes some labels"))
    last = Choice("torch", asked or "fp32", "ONNX Runtime cannot run here" if ranked else "no GPU")
    return ranked if any(one.name == last.name for one in ranked) else [*ranked, last]


class EnginePredictor(NetworkPredictor):
    """A bundle on the best backend that works here.

    Args:
        bundle: Its torch networks are loaded only where the backend needs them.
        ranked: From `choices`. Where the program may choose, one that cannot run gives way to the next, and says so.
        run: Threads and device.
        store: Where graphs and plans are kept.

    Raises:
        TelmeStreamError: The last of the choices cannot run either.
    """

    def __init__(self, bundle: Bundle, ranked: list[Choice], run: RunSettings, store: Store) -> None:
        networks, self.choice = _first_that_runs(bundle, ranked, run, store)
        super().__init__(bundle, networks)
        self._networks_on_gpu = networks if isinstance(networks, CudaNetworks) else None

    def keep(self) -> None:
        """Keep what the backend has compiled while it ran, so that the next start need not."""
        if self._networks_on_gpu is not None:
            self._networks_on_gpu.keep()


def _first_that_runs(bundle: Bundle, ranked: list[Choice], run: RunSettings, store: Store) -> tuple[Networks, Choice]:
    for choice in ranked[:-1]:
        try:
            return networks_of(bundle, choice, run, store), choice
        except TelmeStreamError as error:
            # As text: a record that is kept would keep the error, and with it what it was raised within.
            _log.warning("%s in %s cannot run here: %s", choice.backend, choice.precision, str(error))
        # What was made of it lies in cycles. The next one needs its memory, and may record a CUDA graph, in which
        # nothing can be freed.
        gc.collect()
    return networks_of(bundle, ranked[-1], run, store), ranked[-1]


def networks_of(bundle: Bundle, choice: Choice, run: RunSettings, store: Store) -> Networks:
    """The networks of a bundle on one backend.

    Raises:
        UsageError: The backend has no such precision here.
        MissingDependency: A package that it needs is not installed.
        EngineError: Its engines cannot be built, stored or loaded.
        OutOfMemory: The device has no room for it.
    """
    match choice.backend:
        case "onnx":
            return onnx_networks(bundle, choice.precision, run, store)
        case "tensorrt":
            return tensorrt_networks(bundle, choice.precision, run, store)
        case "torch":
            if _is_flat(choice.precision):
                return onednn_networks(bundle, choice.precision, store)
            if choice.precision == "fp32":
                return TorchNetworks(bundle.model)
            return torch_networks(bundle, choice.precision, run)


def check_can_run(choice: Choice) -> None:
    """Check that a backend can run here, as far as that shows before anything is built.

    Raises:
        UsageError: The backend has no such precision here.
        MissingDependency: A package that it needs is not installed.
        EngineError: It cannot run on this processor or GPU.
    """
    match choice.backend:
        case "onnx":
            check_onnx(choice.precision)
        case "tensorrt":
            check_precision(choice.precision)
            need_gpu()
            check_runs_here(toolkit())
        case "torch":
            if _is_flat(choice.precision):
                need_products(choice.precision)


def built_ahead(
    bundle: Bundle, part: Part, choice: Choice, store: Store, progress: Progress = lambda share: None
) -> Path | None:
    """The folder of what a backend needs of one part, from the cache or built now.

    Args:
        bundle: The networks.
        part: Which.
        choice: The backend and precision.
        store: The cache.
        progress: Called with the share of a compilation that is done.

    Returns:
        None where torch reads the weights themselves.

    Raises:
        UsageError: The backend has no such precision here.
        MissingDependency: A package that it needs is not installed.
        EngineError: It cannot be built or stored, or could not run on this processor.
    """
    match choice.backend:
        case "onnx":
            return cached_graph(bundle, part, choice.precision, store).parent
        case "tensorrt":
            check_precision(choice.precision)
            settings = BuildSettings(choice.precision, default_profiles(graph_spec(bundle.config, part)))
            tensorrt = toolkit()
            carried = load_carried(store, tensorrt, bundle, part, settings)
            if carried is not None:
                return carried.file.parent
            return cached_plan(store, tensorrt, bundle, part, settings, progress).parent
        case "torch":
            if not _is_flat(choice.precision) or part == AS_IT_IS:
                return None
            need_products(choice.precision)
            return cached_flat(bundle, part, store).parent


def _is_flat(precision: Precision) -> bool:
    """Whether torch runs graphs made for it, as on the CPU in bfloat16 or int8, and not the bundle's networks.

    Raises:
        UsageError: torch has no such precision here.
    """
    gpu = torch.cuda.is_available()
    known: tuple[Precision, ...] = ("fp32", "fp16", "bf16") if gpu else ("fp32", *FLAT)
    if precision not in known:
        place = "a GPU" if gpu else "the CPU"
        raise UsageError(f"torch in {precision} on {place}", " or ".join(known), "choose one of them")
    return precision in FLAT and not gpu
