"""What runs a bundle on a machine with a GPU, without one."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch

from engines import predictor
from engines.predictor import Choice, built_ahead, check_can_run, choices, networks_of
from engines.spec import Precision, RunSettings
from engines.store import Store
from telme.bundle import Bundle
from telme.errors import UsageError

NO_BUNDLE = cast(Bundle, None)
RUN = RunSettings()


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # Which a processor beside a GPU may do as well.
    monkeypatch.setattr(predictor, "multiplies_bfloat16", lambda: True)


def test_tensorrt_goes_before_torch_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "installed", lambda: ["tensorrt-rtx"])
    assert choices() == [
        Choice("tensorrt", "fp16", "a GPU and TensorRT are there"),
        Choice("torch", "fp16", "TensorRT cannot run here"),
    ]
    assert [one.precision for one in choices("auto", "bf16")] == ["bf16", "bf16"]
    monkeypatch.setattr(predictor, "installed", list)
    assert choices() == [Choice("torch", "fp16", "a GPU without TensorRT")]


def test_what_is_asked_for_is_what_there_is() -> None:
    assert choices("torch") == [Choice("torch", "fp16", "as asked")]
    assert choices("onnx") == [Choice("onnx", "fp32", "as asked")]
    assert choices("tensorrt", "bf16") == [Choice("tensorrt", "bf16", "as asked")]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_torch_in_half_precision_runs_on_the_gpu_and_has_nothing_to_build(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the processor's flat graphs."""
    monkeypatch.setattr(predictor, "torch_networks", lambda *given: given)
    choice = Choice("torch", precision, "-")
    assert cast(object, networks_of(NO_BUNDLE, choice, RUN, Store(tmp_path))) == (NO_BUNDLE, precision, RUN)
    assert built_ahead(NO_BUNDLE, "text", choice, Store(tmp_path)) is None


def test_tensorrt_has_no_int8(tmp_path: Path) -> None:
    choice = Choice("tensorrt", "int8", "-")
    for ask in (
        lambda: networks_of(NO_BUNDLE, choice, RUN, Store(tmp_path)),
        lambda: built_ahead(NO_BUNDLE, "text", choice, Store(tmp_path)),
        lambda: check_can_run(choice),
    ):
        with pytest.raises(UsageError, match=r"precision int8 on TensorRT; expected one of fp32, fp16, bf16"):
            ask()


def test_torch_has_no_int8_on_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"torch in int8 on a GPU; expected fp32 or fp16 or bf16"):
        networks_of(NO_BUNDLE, Choice("torch", "int8", "-"), RUN, Store(tmp_path))
