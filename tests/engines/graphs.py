"""Runs exported graphs under ONNX Runtime as they are, for comparison with torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from telme.bundle import Bundle
from telme.config import Part
from telme.fusion import AttentionShiftFusion


def run_plain(path: Path, inputs: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Outputs of a graph by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return dict(zip(names, answers, strict=True))


def run_torch(bundle: Bundle, part: Part, inputs: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """The same of torch's network, each row on its own in the fusion."""
    network = bundle.model.network(part)
    assert network is not None
    with torch.inference_mode():
        if isinstance(network, AttentionShiftFusion):
            rows = len(inputs["text"])
            parts = [network(*(tensor[row : row + 1] for tensor in inputs.values())).logits for row in range(rows)]
            return {"logits": torch.cat(parts).numpy()}
        answer = network(*inputs.values())
    return {"feature": answer.feature.numpy(), "logits": answer.logits.numpy()}
