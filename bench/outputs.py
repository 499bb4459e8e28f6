"""Encoder outputs kept on disk, so that another protocol or step costs seconds."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from telme.bundle import Bundle
from telme.cache import digest_of, unwritable, write_whole
from telme.ladder import Outputs

_LIBRARIES = ("numpy", "torch", "transformers")


class OutputCache:
    """Outputs by what they are made of: the bundle, the backend, the inputs, the libraries and this program's own code.

    Args:
        folder: Where files are kept; None keeps nothing.
        bundle: Whose outputs.
        backend: What runs the networks.
    """

    def __init__(self, folder: Path | None, bundle: Bundle, backend: str) -> None:
        self._folder = folder
        self._key = {
            "model": bundle.model_id,
            "config": bundle.config.to_json_string(),
            "backend": backend,
            "libraries": {name: version(name) for name in _LIBRARIES},
            "machine": platform.machine(),
            "code": [code_digest(package) for package in ("telme", "engines")],
        }

    def outputs(self, inputs: Mapping[str, Any], make: Callable[[], Outputs]) -> Outputs:
        """Outputs from disk, or made now and kept.

        Args:
            inputs: Of what they are made, as values of JSON.
            make: Makes them.

        Raises:
            DataError: They cannot be written.
        """
        if self._folder is None:
            return make()
        path = self._folder / f"outputs-{digest_of({**self._key, **inputs})}.safetensors"
        try:
            held = load(path.read_bytes())
            return Outputs(tuple(held["rows"].tolist()), held["feature"], held["logits"])
        except (OSError, SafetensorError, KeyError):
            made = make()
        tensors = {
            "rows": torch.from_numpy(np.array(made.rows, np.int64)),
            "feature": made.feature,
            "logits": made.logits,
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        except OSError as error:
            raise unwritable(path, error) from error
        return made


def code_digest(package: str) -> str:
    """SHA-256 of a package's modules."""
    digest = hashlib.sha256()
    for path in sorted(Path(str(files(package))).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
