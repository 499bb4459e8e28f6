"""How the compact bundle is made: `python -m telme.compact --data MELD --init ENCODER --out DIR [--teacher BUNDLE]`.

Two runs. The first, from all-mpnet-base-v2, makes the teacher; the second, with `--teacher`, a small encoder that is
taught by the labels and by the teacher's answers (Hinton et al. 2015). Dialogues are packed (`telme.packing`), so that
an epoch of MELD takes minutes on one core; with `--whole` they are not, and every token sees all. A moving average of
the weights is kept (Polyak and Juditsky 1992); a run chooses nothing on dev but the temperature.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Sampler
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import SAFE_WEIGHTS_NAME

from telme.bundle import Bundle, open_bundle, save_bundle, sha256_of
from telme.card import compact_card
from telme.checkpoints import begin, mark_complete, step_of
from telme.config import TelmeConfig
from telme.data import Row, annotation_file, read_split
from telme.datasets import MELD_DATA, Split
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import INTERRUPTED, DataError, TelmeStreamError, UsageError
from telme.evaluate import score
from telme.features import FeatureMaker
from telme.fitting import fit_temperature, no_room, one_device, usable
from telme.lessons import MAX_TURNS, Lessons, answers, collate, read
from telme.models import TextTeacher, resize_vocabulary
from telme.processor import knows_bfloat16
from telme.recipes import Precision

# More than any dialogue of MELD holds: training packs are never cut.
TRAINING_TOKENS = 512
WEIGHT_DECAY = 0.01
# Share of the steps in which the rates rise; then they fall to 0.
WARMUP = 0.1
SMOOTHING = 0.05
# Share of the logarithm of the classes' frequencies that is taken off the logits (Menon et al. 2021, section 4.1).
PRIOR = 0.3
# Distillation: weight of the teacher's answers, their temperature, how often a dialogue is entered late.
TEACHER_WEIGHT = 0.7
TEACHER_TEMPERATURE = 2.0
LATE_START = 0.3
# Of the bundle in use: what two CPU cores read in real time; on dev, longer prompts bring nothing (bench/LOG.md).
SERVED_TOKENS = 96
# What a teacher says of the training split: logits [rows, C] float32.
ANSWERS_FILE = "train_logits-{}.safetensors"
# Steps between two additions to the moving average of the weights, and its memory in epochs.
AVERAGE_EVERY = 4
AVERAGE_EPOCHS = 0.5
_SPLITS: tuple[Split, Split] = ("train", "dev")


class Pupil(nn.Module):
    """A text teacher in training: a batch of lessons in, the loss out.

    Args:
        teacher: It.
        decay: Of the moving average of its weights, `averaged`, at each `AVERAGE_EVERY` steps.
    """

    def __init__(self, teacher: TextTeacher, decay: float) -> None:
        super().__init__()
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


class _Average(TrainerCallback):
    """Adds to the moving average of the weights, and marks whole checkpoints."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        pupil: Pupil = given["model"]
        if state.global_step % AVERAGE_EVERY == 0 or state.global_step == state.max_steps:
            pupil.averaged.update_parameters(pupil.teacher)


class _Coach(Trainer):
    """A Trainer whose batches are of dialogues of like lengths."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return LengthGroupedSampler(self.args.train_batch_size, lengths=self.train_dataset.lengths)  # type: ignore


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m telme.compact", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of MELD with its annotations")
    parser.add_argument("--init", type=Path, required=True, help="folder of the pretrained encoder and its tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the bundle")
    parser.add_argument(
        "--teacher",
        type=Path,
        action="append",
        default=[],
        help="bundle to learn from, as the first run made it, or the file with its answers; several times: their mean",
    )
    parser.add_argument(
        "--whole", action="store_true", help="prompts one by one, in which every token sees all; four times slower"
    )
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--batch", type=int, default=8, help="dialogues of a step; with --whole prompts")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--head-lr", type=float, default=5e-4)
    parser.add_argument("--max-tokens", type=int, default=SERVED_TOKENS, help="prompt length when the bundle is used")
    parser.add_argument(
        "--max-steps", type=int, default=-1, help="stop after so many steps; the rates fall as for all epochs"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    try:
        make(parser.parse_args(arguments))
    except TelmeStreamError as error:
        sys.stderr.write(f"compact: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("compact: interrupted; --resume goes on\n")
        return INTERRUPTED
    return 0


def make(options: argparse.Namespace) -> None:
    """Train, shift the classes' logits, fit the temperature on dev and save a bundle."""
    one_device()
    torch.manual_seed(options.seed)
    rows = {split: read_split(options.data, split) for split in _SPLITS}
    if not options.init.is_dir():
        raise UsageError(f"no folder {options.init}", "a pretrained encoder and its tokenizer", "check --init")
    teacher, tokenizer, config = _start(options)
    answered = [_taught(folder, rows["train"]) for folder in options.teacher]
    taught = torch.stack(answered).mean(0) if answered else None
    late = LATE_START if answered or options.whole else 0.0
    lessons = Lessons(rows["train"], FeatureMaker(tokenizer, config), not options.whole, taught, late)
    teacher = _trained(teacher, lessons, tokenizer, config, options)
    with torch.no_grad():
        teacher.classifier.bias.sub_(PRIOR * _log_frequencies(rows["train"]))
        for parameter in teacher.parameters():
            parameter.copy_(parameter.half())  # as the bundle keeps them: its figures are theirs
    config.logit_prior = PRIOR
    config.max_prompt_tokens = options.max_tokens
    logits = answers(teacher, rows["dev"], tokenizer, config)
    truth = [row.label for row in rows["dev"]]
    config.calibration_temperature = fit_temperature(logits.numpy(), truth)
    report = score((logits.double() / config.calibration_temperature).softmax(1).numpy(), truth, config.label_set)
    save_bundle(
        options.out / "bundle", config, teacher, tokenizer, compact_card(report, _command(options), options.whole)
    )
    print(json.dumps({**vars(report), "temperature": config.calibration_temperature}))  # noqa: T201


def _trained(
    teacher: TextTeacher,
    lessons: Lessons,
    tokenizer: PreTrainedTokenizerBase,
    config: TelmeConfig,
    options: argparse.Namespace,
) -> TextTeacher:
    """Train it; returns the moving average, on the CPU."""
    steps = math.ceil(len(lessons) / options.batch)
    pupil = Pupil(teacher, max(0.0, 1 - AVERAGE_EVERY / (AVERAGE_EPOCHS * steps)))
    speakers = [tokenizer.get_vocab()[token] for token in SPEAKER_TOKENS]
    optimizer = torch.optim.AdamW(_parameter_groups(teacher, speakers, options), fused=True)
    planned = math.ceil(options.epochs * steps)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(WARMUP * planned), planned)  # type: ignore[no-untyped-call]
    precision = usable("bfloat16")
    trainer = _Coach(
        model=pupil,
        args=_arguments(options, precision),
        data_collator=lambda some: collate(some, tokenizer, config),
        train_dataset=lessons,
        optimizers=(optimizer, schedule),
        callbacks=[_Average()],
    )
    checkpoint = begin(options.out, {**_settings(options), "precision": precision}, options.resume)
    if checkpoint is not None and step_of(checkpoint) >= (options.max_steps if options.max_steps > 0 else planned):
        # It ended before its bundle was written. The Trainer would take a step before it looks how many it has taken.
        load_model(pupil, checkpoint / SAFE_WEIGHTS_NAME)
    else:
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except torch.OutOfMemoryError as error:
            raise no_room(error, options.batch, "") from error
    return pupil.average.cpu().eval()


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What decides a run's outcome, as values of JSON."""
    # Where the data lies decides nothing; what is in its files does.
    free = ("out", "resume", "max_steps", "data")
    return {
        **{name: value for name, value in vars(options).items() if name not in free},
        **{split: sha256_of(annotation_file(options.data, split)) for split in _SPLITS},
        "init": str(options.init),
        "teacher": [_digest(teacher) for teacher in options.teacher],
    }


def _digest(teacher: Path) -> str:
    """Of a file with a teacher's answers, or of a bundle's weights.

    Raises:
        BundleError: There is no such bundle.
    """
    return sha256_of(teacher) if teacher.is_file() else open_bundle(str(teacher)).weights


def _start(options: argparse.Namespace) -> tuple[TextTeacher, PreTrainedTokenizerBase, TelmeConfig]:
    tokenizer = AutoTokenizer.from_pretrained(options.init, local_files_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPEAKER_TOKENS)})
    backbone = AutoConfig.from_pretrained(options.init, local_files_only=True)
    # A dropped attention weight costs a random number for each pair of tokens: half of the time of a step.
    backbone.attention_probs_dropout_prob = 0.0
    starts = [*map(tokenizer.get_vocab().__getitem__, SPEAKER_TOKENS), tokenizer.sep_token_id]
    config = TelmeConfig(
        text_config={**backbone.to_diff_dict(), "model_type": backbone.model_type},
        max_prompt_tokens=options.max_tokens if options.whole else TRAINING_TOKENS,
        max_turns=MAX_TURNS,
        turn_starts=None if options.whole else starts,
    )
    teacher = TextTeacher(config)
    teacher.text_model = AutoModel.from_pretrained(
        options.init, local_files_only=True, add_pooling_layer=False, dtype=torch.float32, config=backbone
    )
    resize_vocabulary(teacher, len(tokenizer), options.seed)
    assert config.text_config is not None
    config.text_config["vocab_size"] = len(tokenizer)
    return teacher, tokenizer, config


def _taught(teacher: Path, rows: Sequence[Row]) -> Tensor:
    """The teacher's logits of the training split as it learnt them [rows, C], kept beside the teacher.

    Raises:
        BundleError: There is no such bundle.
        UsageError: Its classes are others.
        DataError: Those that were kept are of other rows or classes.
    """
    path = teacher if teacher.is_file() else _answered(teacher, rows)
    kept: Tensor = load_file(path)["logits"]
    shape = [len(rows), len(MELD_DATA.labels.names)]
    if list(kept.shape) != shape:
        raise DataError(
            f"{path} with {len(kept)} answers, logits {list(kept.shape)}",
            f"{shape}, one a row of the training split and its classes",
            "remove it, or name another --teacher",
        )
    return kept


def _answered(teacher: Path, rows: Sequence[Row]) -> Path:
    """The file with a bundle's answers, which are made if they are not there."""
    bundle = open_bundle(str(teacher))
    labels = bundle.config.label_set
    if labels != MELD_DATA.labels:
        raise UsageError(
            f"--teacher {teacher} with the classes of {labels.dataset}",
            f"those of {MELD_DATA.name}: {', '.join(MELD_DATA.labels.names)}",
            "name a teacher of that data set",
        )
    path = teacher.parent / _answers_name(bundle, rows)
    if not path.is_file():
        network, config = bundle.model.text, bundle.config
        if config.turn_starts is not None:
            config.max_prompt_tokens = TRAINING_TOKENS
        taken_off = config.logit_prior * _log_frequencies(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=knows_bfloat16()):
            logits = answers(network, rows, bundle.tokenizer, config)
        save_file({"logits": logits + taken_off}, path)
    return path


def _answers_name(bundle: Bundle, rows: Sequence[Row]) -> str:
    """Of the file with a bundle's answers; other weights, another share of the prior or other rows have another one."""
    key = hashlib.sha256(f"{bundle.weights} {bundle.config.logit_prior} {list(rows)}".encode())
    return ANSWERS_FILE.format(key.hexdigest()[:12])


def _parameter_groups(
    teacher: TextTeacher, speakers: Sequence[int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Of the embeddings only the speaker tokens' and the layer norm are trained; vectors do not decay."""
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
    groups = ((body, options.lr, WEIGHT_DECAY), ([words], options.head_lr, 0.0), (heads, options.head_lr, WEIGHT_DECAY))
    return [
        {"params": chosen, "lr": rate, "weight_decay": decay if matrices else 0.0}
        for parameters, rate, decay in groups
        for matrices in (True, False)
        if (chosen := [parameter for parameter in parameters if (parameter.dim() > 1) == matrices])
    ]


def _arguments(options: argparse.Namespace, precision: Precision) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(options.out),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch,
        remove_unused_columns=False,
        label_names=["labels"],
        max_grad_norm=1.0,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="no",
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=50,
        report_to=[],
        seed=options.seed,
    )


def _log_frequencies(rows: Sequence[Row]) -> Tensor:
    """Logarithms of the classes' frequencies [C]."""
    counts = torch.bincount(torch.tensor([row.label for row in rows]), minlength=len(MELD_DATA.labels.names))
    # A class that is not in the rows counts as one utterance.
    return (counts.clamp(min=1) / counts.sum()).log()


def _command(options: argparse.Namespace) -> str:
    """What the card tells of the flags: all that decides what comes out, but the data."""
    teachers = "".join(f" --teacher {teacher.name}" for teacher in options.teacher) + " --whole" * options.whole
    return (
        f"--init {options.init.name}{teachers} --epochs {options.epochs:g}\n  --batch {options.batch}"
        f" --lr {options.lr:g} --head-lr {options.head_lr:g} --seed {options.seed}"
    )


if __name__ == "__main__":
    sys.exit(main())
