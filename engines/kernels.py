"""What TensorRT-RTX compiles for the GPU at hand when a plan first runs, kept beside the plan for the next start.

    <plan's folder>/kernels/<name>/     a store of its own: kernels.bin, and a manifest with the GPU and driver

Its own check of what is read is the last word. Whatever goes wrong here costs time, and never an answer.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

import torch

from engines.build import Toolkit, gpu_name
from engines.store import Store, read_manifest
from telme.errors import EngineError

FOLDER = "kernels"
_FILE = "kernels.bin"
_DRIVER = "libcuda.so.1"

_log = logging.getLogger(__name__)


def driver_version() -> str:
    """CUDA's version in the driver, as the driver says it; empty where there is none."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL(_DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return ""
    return str(version.value)


class Kernels:
    """The kernels of one plan; all its execution contexts share them.

    `tensorrt` compiles nothing when a plan runs: its settings have no such cache, and then nothing here does anything.

    Args:
        tensorrt: What runs the plan.
        plan: The plan, in its folder in a store.
        log: The plan's logger.
    """

    def __init__(self, tensorrt: Toolkit, plan: Path, log: Any) -> None:
        self._tensorrt = tensorrt
        self._plan = plan
        self._log = log
        self._store = Store(plan.parent / FOLDER)
        self._cache: Any = None  # must outlive the contexts that use it
        self._kept = b""
        self._refused = False

    def attach(self, settings: Any) -> None:
        """Let a context that is about to be made use what is kept, and add to it; where that fails, say so once.

        Args:
            settings: The context's.
        """
        if self._refused or not hasattr(settings, "create_runtime_cache"):
            return
        try:
            if self._cache is None:
                self._cache = settings.create_runtime_cache()
                self._fill()
            self._refused = not settings.set_runtime_cache(self._cache)
            why = self._log.last()
        except (RuntimeError, TypeError, OSError, EngineError) as error:  # TypeError: of its bindings, for no object
            self._refused, why = True, str(error)
        if self._refused:
            _log.warning("what is compiled for %s on this GPU is not kept: %s", self._plan, why)

    def keep(self) -> None:
        """Write what has been compiled so far, if that is more than what is kept.

        Raises:
            EngineError: It cannot be had or written.
        """
        if self._cache is None or self._refused:
            return
        try:
            content = bytes(memoryview(self._cache.serialize()))
        except (RuntimeError, TypeError) as error:
            raise EngineError(
                f"{self._tensorrt.name} does not give what it compiled for {self._plan}: {error}",
                "its runtime cache",
                "report this",
            ) from error
        if content == self._kept:
            return
        self._store.replace(self._key(), lambda folder: _write(folder / _FILE, content))
        self._kept = content

    def _fill(self) -> None:
        """Take what is kept for this GPU and driver; what does not hold is written anew by `keep`."""
        if self._cache is None:
            raise EngineError(f"no runtime cache: {self._log.last()}", "one", "report this")
        kept = self._store.find(self._key())
        if kept is None:
            return
        content = (kept / _FILE).read_bytes()
        if self._cache.deserialize(content):
            self._kept = content
            return
        _log.warning("%s refuses %s: %s; it is compiled anew", self._tensorrt.name, kept, self._log.last())

    def _key(self) -> dict[str, str]:
        return {
            "plan": read_manifest(self._plan.parent).files[self._plan.name].sha256,
            "gpu": gpu_name(),
            "driver": driver_version(),
            "cuda": str(torch.version.cuda),
        }


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
