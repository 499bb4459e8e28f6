"""The compact bundle's network in training: its loss, the moving average of its weights, its batches and rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from telme.checkpoints import mark_complete
from telme.lessons import read
from telme.models import TextTeacher

WEIGHT_DECAY = 0.01
# Of the labels, where no teacher softens them.
SMOOTHING = 0.05
# Distillation: weight of the teacher's answers, and their temperature.
TEACHER_WEIGHT = 0.7
TEACHER_TEMPERATURE = 2.0
# Steps between two additions to the moving average of the weights, and its memory in epochs.
AVERAGE_EVERY = 4
AVERAGE_EPOCHS = 0.5


class Pupil(nn.Module):
    """A text teacher in training: a batch of lessons in, the loss out.

    Args:
        teacher: It.
        epoch_steps: Steps of an epoch; they decide what the moving average of its weights, `averaged`, remembers.
    """

    def __init__(self, teacher: TextTeacher, epoch_steps: int) -> None:
        super().__init__()
        decay = max(0.0, 1 - AVERAGE_EVERY / (AVERAGE_EPOCHS * epoch_steps))
        self.teacher = teacher
        # A part of the module, so that the Trainer's checkpoints hold it.
        self.averaged = AveragedModel(teacher, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        self.averaged.requires_grad_(False)

    @property
    def average(self) -> TextTeacher:
        """The teacher with the moving average of its weights."""
        module = self.averaged.module
        assert isinstance(module, TextTeacher)
        return module

    def forward(self, batch: dict[str, Tensor], labels: Tensor, taught: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy, and where a teacher's logits are given the divergence from them."""
        logits = read(self.teacher, batch)
        if taught is None:
            return {"loss": functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)}
        divergence = functional.kl_div(
            functional.log_softmax(logits / TEACHER_TEMPERATURE, 1),
            functional.softmax(taught / TEACHER_TEMPERATURE, 1),
            reduction="batchmean",
        )
        alone = functional.cross_entropy(logits, labels)
        return {"loss": TEACHER_WEIGHT * TEACHER_TEMPERATURE**2 * divergence + (1 - TEACHER_WEIGHT) * alone}


class Average(TrainerCallback):
    """Adds to the moving average of the weights, and marks whole checkpoints."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        pupil: Pupil = given["model"]
        if state.global_step % AVERAGE_EVERY == 0 or state.global_step == state.max_steps:
            pupil.averaged.update_parameters(pupil.teacher)


class Coach(Trainer):
    """A Trainer whose batches are of dialogues of like lengths."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return LengthGroupedSampler(self.args.train_batch_size, lengths=self.train_dataset.lengths)  # type: ignore


def parameter_groups(teacher: TextTeacher, speakers: Sequence[int], lr: float, head_lr: float) -> list[dict[str, Any]]:
    """For AdamW: of the embeddings only the speaker tokens' and the layer norm are trained, and vectors do not decay.

    Args:
        teacher: Whose parameters.
        speakers: Ids of the speaker tokens.
        lr: Highest learning rate of the encoder.
        head_lr: The same of the heads and the speaker tokens.
    """
    for name, parameter in teacher.text_model.named_parameters():
        parameter.requires_grad_(not name.startswith("embeddings.") or "LayerNorm" in name)
    words = teacher.text_model.get_input_embeddings().weight
    assert isinstance(words, nn.Parameter)
    is_speaker = torch.zeros(len(words), 1)
    is_speaker[list(speakers)] = 1
    words.requires_grad_(True)
    words.register_hook(lambda gradient: gradient * is_speaker.to(gradient.device))  # type: ignore[no-untyped-call]
    body = [p for p in teacher.text_model.parameters() if p.requires_grad and p is not words]
    heads = [*teacher.W.parameters(), *teacher.classifier.parameters()]
    groups = ((body, lr, WEIGHT_DECAY), ([words], head_lr, 0.0), (heads, head_lr, WEIGHT_DECAY))
    return [
        {"params": chosen, "lr": rate, "weight_decay": decay if matrices else 0.0}
        for parameters, rate, decay in groups
        for matrices in (True, False)
        if (chosen := [parameter for parameter in parameters if (parameter.dim() > 1) == matrices])
    ]
