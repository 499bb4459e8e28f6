"""The steps of transformers' Trainer, and what ends them before their time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.integrations.integration_utils import TensorBoardCallback

from telme.errors import DataError, OutOfMemory

# Of the exception that torch.save raises when it cannot write.
_TORCH_WRITER = "PytorchStreamWriter"


def run_trainer(trainer: Trainer, folder: Path, checkpoint: Path | None, batch: int, accumulate: str) -> None:
    """Train, from a checkpoint if one is given; `accumulate` is the flag that makes up for a smaller batch.

    Raises:
        DataError: The folder cannot be written.
        OutOfMemory: The GPU has no room for a batch.
    """
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except torch.OutOfMemoryError as error:
        raise _no_room(error, batch, accumulate) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch says a full disk as a RuntimeError of its writer.
        if isinstance(error, RuntimeError) and _TORCH_WRITER not in str(error):
            raise
        raise DataError(
            f"{folder} cannot be written: {error}", "room for two checkpoints", "free some space; --resume goes on"
        ) from error
    finally:
        # What was logged last waits to be written, and after an error or an interrupt nobody else has it done. A disk
        # that is full is said already.
        with suppress(OSError):
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, TensorBoardCallback):
                    callback.on_train_end(trainer.args, trainer.state, trainer.control)  # type: ignore[no-untyped-call]


def _no_room(error: torch.OutOfMemoryError, batch: int, accumulate: str) -> OutOfMemory:
    """The error for a batch that the GPU has no room for; `accumulate` is the flag that makes up for a smaller one."""
    fewer = f"begin another --out with --batch {batch // 2}{accumulate}, or " if batch > 1 else ""
    return OutOfMemory(
        f"no room on the GPU for a batch of {batch}: {error}",
        "memory for a step of the training",
        f"{fewer}stop what else uses that memory",
    )
