"""One network fitted to one split by transformers' Trainer, in a way that a kill at any instant does not change.

Evaluation and saving fall on the same steps, evaluation first, so that a checkpoint knows every score before it. The
loss is logged wherever is saved, so that its means cover the same steps with and without a kill.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device  # type: ignore[import-untyped]
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments, get_linear_schedule_with_warmup
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from telme.checkpoints import METRICS_FILE, begin, best, best_weights, keep_best, mark_complete, step_of, write_json
from telme.errors import DataError, UsageError
from telme.evaluate import Report, score
from telme.labels import LabelSet
from telme.processor import knows_bfloat16
from telme.recipes import Precision, StageRecipe
from telme.steps import run_trainer

_LOG = logging.getLogger(__name__)
_LOG_EVERY = 50
# Of the Trainer's log; they differ from run to run.
_TIMES = ("runtime", "per_second", "flos")
# Parameter names of the pretrained encoders; all others are heads.
_ENCODERS = ("text_model.", "model.")

Batch = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """How a stage is run.

    Attributes:
        seed: Of weights, dropout and the order of the data.
        max_steps: Stop after so many steps of the optimizer, for trials; -1 for all epochs. The schedule stays that
            of all epochs.
        save_every: Steps between checkpoints; each epoch ends with one too.
        resume: Go on with what is in the folder.
        workers: Processes that make batches; 0 does it between the steps.
    """

    seed: int = 42
    max_steps: int = -1
    save_every: int = 500
    resume: bool = False
    workers: int = 0


@dataclass(frozen=True)
class Task:
    """What is fitted.

    Attributes:
        network: The network, whose weights are kept.
        learner: Holds the network and turns a batch into `loss` and `logits` [B, C].
        train, dev: Examples.
        collate: Examples -> the learner's arguments, `labels` [B] first.
        described: What decides the outcome besides recipe and seed, as values of JSON.
    """

    network: nn.Module
    learner: nn.Module
    train: Dataset[Any]
    dev: Dataset[Any]
    collate: Callable[[list[Any]], Batch]
    described: Mapping[str, Any]


@dataclass(frozen=True)
class Fitted:
    """What came out; the network has the best weights, rounded to the float16 in which bundles keep them.

    Attributes:
        report: Scores on dev at `temperature`, of those weights in float32: those of the bundle in use.
        temperature: Fitted on the same answers.
        recipe: The numbers, in the precision that was used.
        steps: Steps of the optimizer that were taken.
        best_step: The one whose weights were kept.
    """

    report: Report
    temperature: float
    recipe: StageRecipe
    steps: int
    best_step: int


def fit(task: Task, folder: Path, recipe: StageRecipe, run: Run, labels: LabelSet) -> Fitted:
    """Train, keep the best evaluation's weights, and write metrics.json.

    Args:
        task: What.
        folder: The run's.
        recipe: The numbers.
        run: Seed, steps, checkpoints.
        labels: The classes.

    Raises:
        UsageError: Another run is in the folder, or one that is not to be gone on with; or there are several GPUs.
        DataError: The folder cannot be written, or the answers are no numbers any more.
        OutOfMemory: The GPU has no room for a batch.
    """
    one_device()
    recipe = replace(recipe, precision=usable(recipe.precision))
    settings = {**asdict(recipe), **task.described, "seed": run.seed, "save_every": run.save_every}
    checkpoint = begin(folder, settings, run.resume)
    trainer = _trainer(task, folder, recipe, run, labels)
    planned = _planned(task, recipe, run)
    done = _steps_done(folder)
    is_finished = done >= planned
    if not is_finished and checkpoint is not None and step_of(checkpoint) >= planned:
        _check_evaluated(folder, step_of(checkpoint))
        # It ended before it could say so. The Trainer would take a step before it looks how many it has taken.
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    elif not is_finished:
        run_trainer(trainer, folder, checkpoint, recipe.batch, f" --accumulate {2 * recipe.accumulate}")
    kept = best_weights(folder)
    rounded = {name: value.half().float() if value.is_floating_point() else value for name, value in kept.items()}
    task.network.load_state_dict(rounded)
    logits, truth = _answers(trainer, task, recipe, run)
    temperature = fit_temperature(logits, truth)
    found = best(folder)
    assert found is not None
    steps = done if is_finished else trainer.state.global_step
    fitted = Fitted(report_of(logits, truth, labels, temperature), temperature, recipe, steps, found[1])
    if not is_finished:
        write_json(folder / METRICS_FILE, _metrics(trainer, fitted))
    return fitted


def one_device() -> None:
    """Check that no more than one GPU is seen: transformers' Trainer would share each batch among all of them.

    Raises:
        UsageError: There are several.
    """
    if torch.cuda.device_count() > 1:
        raise UsageError(
            f"{torch.cuda.device_count()} GPUs", "one, which the recipes' batches are for", "CUDA_VISIBLE_DEVICES=0"
        )


def usable(precision: Precision) -> Precision:
    """That precision where this machine multiplies in it, with a warning the nearest other one where it does not."""
    has_cuda = torch.cuda.is_available()
    if precision == "float16" and not has_cuda:
        _LOG.warning("float16 needs CUDA: this run is in float32")
        return "float32"
    if precision != "bfloat16":
        return precision
    if has_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        _LOG.warning("this GPU has no bfloat16: this run is in float16")
        return "float16"
    if not has_cuda and not knows_bfloat16():
        _LOG.warning("bfloat16 needs AVX-512 or a GPU: this run is in float32")
        return "float32"
    return precision


def _steps_done(folder: Path) -> int:
    """What metrics.json covers, a trial's few steps perhaps; 0 where there is none yet, or one that does not say it."""
    path = folder / METRICS_FILE
    return int(json.loads(path.read_text(encoding="utf-8")).get("steps", 0)) if path.is_file() else 0


def _steps_an_epoch(task: Task, recipe: StageRecipe) -> int:
    return math.ceil(math.ceil(len(task.train) / recipe.batch) / recipe.accumulate)  # type: ignore[arg-type]


def _check_evaluated(folder: Path, step: int) -> None:
    """Check that there are weights to end with.

    Raises:
        UsageError: The run has come further than it is asked to now, and to no evaluation yet.
    """
    if best(folder) is None:
        raise UsageError(
            f"a run in {folder} at step {step} that was not evaluated yet",
            f"--max-steps above {step}",
            "give more, or leave it out",
        )


def _planned(task: Task, recipe: StageRecipe, run: Run) -> int:
    return run.max_steps if run.max_steps > 0 else math.ceil(recipe.epochs * _steps_an_epoch(task, recipe))


def _trainer(task: Task, folder: Path, recipe: StageRecipe, run: Run, labels: LabelSet) -> Trainer:
    examples = len(task.train)  # type: ignore[arg-type]
    steps = _steps_an_epoch(task, recipe)
    optimizer = torch.optim.AdamW(_groups(task.network, recipe))
    unit = steps if recipe.schedule_counts == "steps" else examples
    schedule = get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
        optimizer, round(unit * recipe.warmup_epochs), max(round(unit * recipe.epochs), 1)
    )
    trainer = Trainer(
        model=task.learner,
        args=_arguments(folder, recipe, run),
        data_collator=task.collate,
        train_dataset=task.train,
        eval_dataset=task.dev,
        compute_metrics=lambda answers: _evaluated(_one(answers.predictions), _one(answers.label_ids), labels),
        optimizers=(optimizer, schedule),
        callbacks=[_Cadence(folder, task.network, steps, run.save_every), _Bar()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _groups(network: nn.Module, recipe: StageRecipe) -> list[dict[str, Any]]:
    body: list[nn.Parameter] = []
    heads: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (body if name.startswith(_ENCODERS) else heads).append(parameter)
    groups = ((body, recipe.lr), (heads, recipe.head_lr))
    return [{"params": held, "lr": rate, "weight_decay": recipe.weight_decay} for held, rate in groups if held]


def _arguments(folder: Path, recipe: StageRecipe, run: Run) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        max_steps=run.max_steps,
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        max_grad_norm=recipe.clip,
        bf16=recipe.precision == "bfloat16",
        fp16=recipe.precision == "float16",
        use_cpu=not cuda,
        eval_strategy="no",  # _Cadence says when
        save_strategy="no",
        logging_strategy="no",
        save_total_limit=2,
        dataloader_num_workers=run.workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=["tensorboard"],
        disable_tqdm=True,  # _Bar stands in for the Trainer's own
        seed=run.seed,
        data_seed=run.seed,
    )


class _Cadence(TrainerCallback):
    """When to log, evaluate and save, and what is kept then."""

    def __init__(self, folder: Path, network: nn.Module, steps_an_epoch: int, save_every: int) -> None:
        self._folder = folder
        self._network = network
        self._epoch = steps_an_epoch
        self._save = save_every
        self._log = math.gcd(_LOG_EVERY, save_every)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step = state.global_step
        ends = step % self._epoch == 0 or step == state.max_steps
        control.should_evaluate = ends
        control.should_save = ends or step % self._save == 0
        control.should_log = ends or step % self._log == 0
        return control

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        keep_best(self._folder, self._network, given["metrics"]["eval_weighted_f1"], state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        mark_complete(self._folder / f"checkpoint-{state.global_step}")


class _Bar(ProgressCallback):
    """The progress bar, with the log as lines of JSON on standard error."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        tqdm.write(json.dumps({"step": state.global_step, **_untimed(logs or {})}), file=sys.stderr)


def _untimed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if not name.endswith(_TIMES)}


def _metrics(trainer: Trainer, fitted: Fitted) -> dict[str, Any]:
    # The Trainer's closing entry counts only what was trained since the last start.
    log = [_untimed(entry) for entry in trainer.state.log_history if "train_runtime" not in entry]
    return {
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "dev": asdict(fitted.report),
        "temperature": fitted.temperature,
        "log": [entry for entry in log if set(entry) - {"step", "epoch"}],
    }


@torch.inference_mode()
def _answers(trainer: Trainer, task: Task, recipe: StageRecipe, run: Run) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits [N, C] and class indices [N] of dev, without the autocast that the Trainer puts around its network."""
    learner = trainer.accelerator.unwrap_model(task.learner, keep_fp32_wrapper=False).eval()
    loader: DataLoader[Any] = DataLoader(task.dev, recipe.batch, collate_fn=task.collate, num_workers=run.workers)
    logits: list[Tensor] = []
    truth: list[Tensor] = []
    for batch in loader:
        logits.append(learner(**send_to_device(batch, trainer.args.device))["logits"].cpu())
        truth.append(batch["labels"])
    return finite(torch.cat(logits).numpy()), torch.cat(truth).numpy()


def _one(answers: Any) -> NDArray[Any]:
    return np.asarray(answers[0] if isinstance(answers, tuple) else answers)


def _evaluated(logits: NDArray[Any], truth: NDArray[Any], labels: LabelSet) -> dict[str, float]:
    return {"weighted_f1": report_of(finite(logits), truth, labels).weighted_f1}


def finite(logits: NDArray[Any]) -> NDArray[Any]:
    """The logits as they are.

    Raises:
        DataError: Some are no numbers.
    """
    if not np.isfinite(logits).all():
        raise DataError("answers on dev that are no numbers", "a loss that falls", "train with a lower --lr")
    return logits


def report_of(logits: NDArray[Any], truth: NDArray[Any], labels: LabelSet, temperature: float = 1.0) -> Report:
    """Scores of logits [N, C] against class indices [N]."""
    return score((torch.tensor(logits, dtype=torch.float64) / temperature).softmax(1).numpy(), truth.tolist(), labels)


def fit_temperature(logits: NDArray[Any], truth: Sequence[int] | NDArray[Any]) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, section 4.2)."""
    answers, target = torch.tensor(logits, dtype=torch.float64), torch.tensor(truth)
    fitted = minimize_scalar(
        lambda value: functional.cross_entropy(answers / value, target).item(), bounds=(0.2, 5.0), method="bounded"
    )
    return float(fitted.x)
