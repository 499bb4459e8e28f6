"""The two distillation losses by which a student learns from the frozen text teacher (arXiv 2401.12987, section 3.2).

Shapes: B batch, D feature, C classes.

A student's loss is cross-entropy + `logit_weight` * `logit_loss` + `feature_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Distillation:
    """Settings of a student's loss.

    Attributes:
        temperature: Both sides' logits are divided by it in the logit loss.
        logit_weight: Weight of the logit loss.
    """

    temperature: float
    logit_weight: float


# Published code; the paper prints the two temperatures the other way round.
PUBLISHED_DISTILLATION = {"meld": Distillation(4.0, 1.0), "iemocap": Distillation(2.0, 0.1)}


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Relations between and within the classes that the student should keep; a scalar.

    At softened probabilities, tau^2 * (1 - mean Pearson correlation over the classes of each sample) plus
    tau^2 * (1 - mean Pearson correlation over the samples of each class).

    Args:
        student: [B, C] logits.
        teacher: [B, C] logits; pass them detached.
        temperature: tau, above 0.
    """
    soft = functional.softmax(student / temperature, dim=1)
    target = functional.softmax(teacher / temperature, dim=1)
    per_sample = 1 - _correlation(soft, target).mean()
    per_class = 1 - _correlation(soft.T, target.T).mean()
    return temperature**2 * (per_sample + per_class)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How the student's features lie among the teacher's, against how the teacher's lie among themselves; a scalar.

    The Kullback-Leibler divergence, averaged over the batch, of softmax(T S^t) from softmax(T T^t), with T and S of
    unit length and temperature 1.

    Args:
        student: [B, D] features.
        teacher: [B, D] features; pass them detached.
    """
    student, teacher = functional.normalize(student, dim=1), functional.normalize(teacher, dim=1)
    target = functional.softmax(teacher @ teacher.T, dim=1)  # [B, B]
    answer = functional.log_softmax(teacher @ student.T, dim=1)
    return functional.kl_div(answer, target, reduction="batchmean")


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """Pearson correlation of each row: [N, M] twice -> [N]."""
    left, right = left - left.mean(1, keepdim=True), right - right.mean(1, keepdim=True)
    return functional.cosine_similarity(left, right, dim=1)
