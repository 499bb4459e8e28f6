"""The distillation losses against their definitions, written out slowly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from telme.distill import PUBLISHED_DISTILLATION, Distillation, feature_loss, logit_loss
from tests.telme import tiny

STUDENT, TEACHER = tiny.noise(5, 7, seed=1), tiny.noise(5, 7, seed=2)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logit_loss_is_two_pearson_distances(temperature: float) -> None:
    soft, target = ((logits / temperature).double().softmax(1).numpy() for logits in (STUDENT, TEACHER))
    samples = np.mean([1 - np.corrcoef(*rows)[0, 1] for rows in zip(soft, target, strict=True)])
    classes = np.mean([1 - np.corrcoef(*rows)[0, 1] for rows in zip(soft.T, target.T, strict=True)])
    expected = temperature**2 * (samples + classes)
    assert logit_loss(STUDENT, TEACHER, temperature).item() == pytest.approx(expected, abs=1e-5)


def test_logit_loss_of_the_teacher_itself_is_zero() -> None:
    assert logit_loss(TEACHER, TEACHER, 4.0).item() == pytest.approx(0, abs=1e-5)


def test_feature_loss_is_a_divergence_over_the_batch() -> None:
    student, teacher = (tiny.noise(4, 16, seed=seed).double() for seed in (3, 4))
    unit_student, unit_teacher = (rows / rows.norm(dim=1, keepdim=True) for rows in (student, teacher))
    target = (unit_teacher @ unit_teacher.T).softmax(1)
    answer = (unit_teacher @ unit_student.T).softmax(1)
    expected = sum(
        target[row, column].item() * math.log(target[row, column].item() / answer[row, column].item())
        for row in range(4)
        for column in range(4)
    )
    assert feature_loss(student, teacher).item() == pytest.approx(expected / 4, abs=1e-12)
    assert feature_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)


def test_losses_teach_the_student() -> None:
    logits, features = tiny.noise(4, 7, seed=5).requires_grad_(), tiny.noise(4, 16, seed=6).requires_grad_()
    target = tiny.noise(4, 16, seed=7)
    optimizer = torch.optim.SGD([logits, features], lr=0.5)
    course = []
    for _ in range(30):
        loss = logit_loss(logits, TEACHER[:4], 2.0) + feature_loss(features, target)
        course.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert course[-1] < 0.5 * course[0]


def test_published_settings() -> None:
    assert PUBLISHED_DISTILLATION["meld"] == Distillation(temperature=4.0, logit_weight=1.0)
    assert PUBLISHED_DISTILLATION["iemocap"] == Distillation(temperature=2.0, logit_weight=0.1)
