"""Steps, rates and clips of a run, as the recipes say them (traps 12 and 13 of the published code)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from telme.checkpoints import best_weights
from telme.errors import DataError, OutOfMemory, UsageError
from telme.fitting import Run, Task, _trainer, fit, fit_temperature, report_of, usable
from telme.labels import MELD
from telme.recipes import Precision, StageRecipe, recipe_named

PUBLISHED, CLEAN = (recipe_named(name, "meld").teacher for name in ("published", "clean"))
SMALL = StageRecipe(epochs=2, batch=4, lr=0.1, head_lr=0.1, clip=1.0, precision="float32")


class Learner(nn.Module):
    """A linear layer that tells classes by one-hot inputs."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.network = nn.Linear(7, 7)
        self._scale = scale

    def forward(self, labels: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        logits = self.network(inputs)
        return {"loss": self._scale * functional.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index % 7


def collate(batch: list[int]) -> dict[str, Any]:
    labels = torch.tensor(batch)
    return {"labels": labels, "inputs": functional.one_hot(labels, 7).float()}


def task(rows: int = 40, scale: float = 1.0) -> Task:
    torch.manual_seed(0)
    learner = Learner(scale)
    return Task(learner.network, learner, Rows(rows), Rows(14), collate, {})


def rates(recipe: StageRecipe, folder: Path, rows: int, steps: int) -> list[float]:
    """The learning rate, as a share of its highest, at each step of the optimizer."""
    trainer = _trainer(task(rows), folder, recipe, Run(), MELD)
    assert trainer.optimizer is not None
    assert trainer.lr_scheduler is not None
    found = []
    for _ in range(steps):
        found.append(trainer.optimizer.param_groups[0]["lr"] / recipe.lr)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


def test_the_published_schedule_warms_up_for_four_epochs_and_ends_at_83_per_cent(tmp_path: Path) -> None:
    seen = rates(PUBLISHED, tmp_path, rows=40, steps=100)  # ten epochs of ten steps
    assert seen.index(max(seen)) == 40
    assert seen[-1] == pytest.approx(0.83, abs=0.01)


def test_the_clean_schedule_warms_up_for_one_epoch_and_ends_at_nothing(tmp_path: Path) -> None:
    seen = rates(CLEAN, tmp_path, rows=40, steps=100)
    assert seen.index(max(seen)) == 10
    assert seen[-1] == pytest.approx(1 / 90)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    seen = rates(replace(CLEAN, accumulate=2), tmp_path, rows=40, steps=50)
    assert seen.index(max(seen)) == 5
    assert seen[-1] == pytest.approx(1 / 45)


def test_accumulating_four_batches_of_one_is_a_batch_of_four(tmp_path: Path) -> None:
    figures = []
    for number, (batch, accumulate) in enumerate(((4, 1), (1, 4))):
        made = task()
        fit(made, tmp_path / str(number), replace(SMALL, batch=batch, accumulate=accumulate), Run(), MELD)
        figures.append(made.network.state_dict()["weight"])
    torch.testing.assert_close(*figures)


@pytest.mark.parametrize("clip", [1.0, 1e-3])
def test_gradients_are_clipped_at_the_recipes_norm(tmp_path: Path, clip: float) -> None:
    trainer = _trainer(task(scale=1e4), tmp_path, replace(SMALL, clip=clip), Run(max_steps=1), MELD)
    assert trainer.optimizer is not None
    seen = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        held = [parameter.grad.norm() for group in optimizer.param_groups for parameter in group["params"]]
        seen.append(torch.stack(held).norm().item())

    trainer.optimizer.register_step_pre_hook(look)
    trainer.train()
    assert seen == [pytest.approx(clip, rel=1e-3)]


def test_encoders_and_heads_have_their_own_rates(tmp_path: Path) -> None:
    learner = Learner()
    learner.network = nn.ModuleDict({"text_model": nn.Linear(7, 7), "W": nn.Linear(7, 7)})  # type: ignore[assignment]
    made = replace(task(), network=learner.network)
    trainer = _trainer(made, tmp_path, replace(SMALL, lr=1e-3, head_lr=1e-2), Run(), MELD)
    assert trainer.optimizer is not None
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [1e-3, 1e-2]


def test_a_disk_that_fills_up_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DataError, match=r"cannot be written.*--resume goes on"):
        fit(task(), tmp_path, SMALL, Run(), MELD)


@pytest.mark.parametrize(
    ("batch", "remedy"),
    [(4, "begin another --out with --batch 2 --accumulate 6, or stop what else"), (1, "step of the training; stop")],
)
def test_a_gpu_without_room_names_the_flags_that_halve_the_batch(tmp_path: Path, batch: int, remedy: str) -> None:
    def full(_: list[int]) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(OutOfMemory, match=rf"a batch of {batch}: CUDA out of memory.*{remedy}"):
        fit(replace(task(), collate=full), tmp_path, replace(SMALL, batch=batch, accumulate=3), Run(), MELD)


def test_other_failures_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    broken = replace(task(), collate=lambda batch: {**collate(batch), "inputs": torch.zeros(len(batch), 6)})
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(broken, tmp_path, SMALL, Run(), MELD)


def test_a_trial_is_gone_on_with_to_the_end(tmp_path: Path) -> None:
    whole = fit(task(), tmp_path / "whole", SMALL, Run(), MELD)
    fit(task(), tmp_path / "trial", SMALL, Run(max_steps=3), MELD)
    assert json.loads((tmp_path / "trial" / "metrics.json").read_text(encoding="utf-8"))["steps"] == 3
    gone_on = fit(task(), tmp_path / "trial", SMALL, Run(resume=True), MELD)
    assert gone_on == whole
    found = [json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")) for name in ("whole", "trial")]
    assert [one["steps"] for one in found] == [20, 20]
    again = fit(task(), tmp_path / "trial", SMALL, Run(max_steps=3, resume=True), MELD)  # it has come further
    assert again == whole


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"), [(2.0, 3, 3), (1.25, -1, 13), (2.0, -1, 20)], ids=["trial", "part", "whole"]
)
def test_a_run_that_was_killed_at_its_very_end_takes_no_further_step(
    tmp_path: Path, epochs: float, max_steps: int, steps: int
) -> None:
    recipe, run = replace(SMALL, epochs=epochs), Run(max_steps=max_steps)
    whole = fit(task(), tmp_path, recipe, run, MELD)
    said = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert said["steps"] == steps
    (tmp_path / "metrics.json").unlink()
    assert fit(task(), tmp_path, recipe, replace(run, resume=True), MELD) == whole
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == said
    assert not (tmp_path / f"checkpoint-{steps + 1}").exists()


def test_a_run_that_has_come_further_without_an_evaluation_is_not_ended_there(tmp_path: Path) -> None:
    given: list[list[int]] = []

    def killed(batch: list[int]) -> dict[str, Any]:
        given.append(batch)
        if len(given) > 6:
            raise KeyboardInterrupt
        return collate(batch)

    with pytest.raises(KeyboardInterrupt):
        fit(replace(task(), collate=killed), tmp_path, SMALL, Run(save_every=3), MELD)
    (kept,) = tmp_path.glob("checkpoint-*")
    assert kept.name == "checkpoint-3"
    (events,) = tmp_path.glob("runs/*/events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()
    with pytest.raises(UsageError, match=r"at step 3 that was not evaluated yet; expected --max-steps above 3"):
        fit(task(), tmp_path, SMALL, Run(save_every=3, max_steps=2, resume=True), MELD)
    assert fit(task(), tmp_path, SMALL, Run(save_every=3, max_steps=4, resume=True), MELD).steps == 4


def test_a_run_that_ended_before_it_said_its_steps_stays_as_it_is(tmp_path: Path) -> None:
    whole = fit(task(), tmp_path, SMALL, Run(), MELD)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    older = {name: value for name, value in metrics.items() if name != "steps"}
    (tmp_path / "metrics.json").write_text(json.dumps(older), encoding="utf-8")
    assert fit(task(), tmp_path, SMALL, Run(resume=True), MELD) == whole
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["steps"] == metrics["steps"]


def test_figures_are_those_of_the_weights_in_float32_and_not_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    recipe = replace(SMALL, precision="bfloat16")
    made = task()
    fitted = fit(made, tmp_path, recipe, Run(), MELD)
    kept = {name: value.half().float() for name, value in best_weights(tmp_path).items()}
    batch = collate([row % 7 for row in range(14)])
    logits = functional.linear(batch["inputs"], kept["weight"], kept["bias"]).numpy()
    truth = batch["labels"].numpy()
    temperature = fit_temperature(logits, truth)
    assert (fitted.temperature, fitted.report) == (temperature, report_of(logits, truth, MELD, temperature))
    told = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (told["temperature"], told["dev"]) == (temperature, json.loads(json.dumps(asdict(fitted.report))))
    assert fit(task(), tmp_path, recipe, Run(resume=True), MELD) == fitted


def test_answers_that_are_no_numbers_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"answers on dev that are no numbers.* a lower --lr"):
        fit(task(scale=float("inf")), tmp_path, SMALL, Run(), MELD)


def test_several_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"2 GPUs.*CUDA_VISIBLE_DEVICES=0"):
        fit(task(), tmp_path, SMALL, Run(), MELD)


@pytest.mark.parametrize(
    ("capability", "precision", "accelerated"), [("AVX512", "bfloat16", "bf16"), ("AVX2", "float32", "no")]
)
def test_a_run_keeps_to_the_precision_that_its_processor_had(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: str,
    precision: str,
    accelerated: str,
) -> None:
    asked = replace(SMALL, precision="bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    fit(task(), tmp_path, asked, Run(max_steps=1), MELD)
    assert AcceleratorState().mixed_precision == accelerated
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["precision"] == precision
    warned = ["bfloat16 needs AVX-512 or a GPU: this run is in float32"]
    assert caplog.messages == (warned if precision == "float32" else [])
    other = "AVX2" if capability == "AVX512" else "AVX512"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: other)
    with pytest.raises(UsageError, match=rf"another run .* precision .* \(was '{precision}'\)"):
        fit(task(), tmp_path, asked, Run(max_steps=1, resume=True), MELD)


@pytest.mark.parametrize(("native", "precision"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_that_would_emulate_bfloat16_gets_float16(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: Precision
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert usable("bfloat16") == precision
    assert [usable(kept) for kept in ("float16", "float32")] == ["float16", "float32"]


def test_float16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [usable(asked) for asked in ("float16", "float32")] == ["float32", "float32"]
