"""How the compact bundle is made: `python -m telme.compact --data MELD --init ENCODER --out DIR [--teacher BUNDLE]`.

Two runs. The first, from all-mpnet-base-v2, makes the teacher; the second, with `--teacher`, a small encoder that is
taught by the labels and by the teacher's answers (Hinton et al. 2015). Dialogues are packed (`telme.packing`), so that
an epoch of MELD takes minutes on one core; with `--whole` they are not, and every token sees all. A moving average of
the weights is kept (Polyak and Juditsky 1992); a run chooses nothing on dev but the temperature and, from what it says
there without the labels, the rule by which rare classes are answered (`telme.decision`).
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

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments, get_linear_schedule_with_warmup
from transformers.utils import SAFE_WEIGHTS_NAME

from telme import flags
from telme.bundle import Bundle, open_bundle, save_bundle, sha256_of
from telme.card import compact_card
from telme.checkpoints import begin, step_of
from telme.config import TelmeConfig
from telme.data import Row, annotation_file, read_split
from telme.datasets import MELD_DATA, Split
from telme.decision import offsets_for_f1
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import INTERRUPTED, DataError, TelmeStreamError, UsageError
from telme.evaluate import Report
from telme.features import FeatureMaker
from telme.fitting import finite, fit_temperature, one_device, report_of, usable
from telme.lessons import MAX_TURNS, Lessons, answers, collate
from telme.models import TextTeacher, resize_vocabulary
from telme.pretrained import check_positions, pretrained_config, pretrained_encoder, pretrained_tokenizer
from telme.processor import knows_bfloat16
from telme.pupil import SMOOTHING, WEIGHT_DECAY, Average, Coach, Pupil, parameter_groups
from telme.recipes import StageRecipe
from telme.record import Record, Training
from telme.steps import run_trainer

# More than any dialogue of MELD holds: training packs are never cut.
TRAINING_TOKENS = 512
LARGEST_NORM = 1.0
# Share of the steps in which the rates rise; then they fall to 0.
WARMUP = 0.1
# How often a dialogue is entered late, in distillation.
LATE_START = 0.3
# Of the bundle in use: what two CPU cores read in real time; on dev, longer prompts bring nothing (bench/LOG.md).
SERVED_TOKENS = 96
# What a teacher says of the training split: logits [rows, C] float32.
ANSWERS_FILE = "train_logits-{}.safetensors"
_SPLITS: tuple[Split, Split] = ("train", "dev")


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
    parser.add_argument("--epochs", type=flags.above(0, float), default=6)
    parser.add_argument(
        "--batch", type=flags.above(0, int), default=8, help="dialogues of a step; with --whole prompts"
    )
    parser.add_argument("--lr", type=flags.above(0, float), default=2e-4)
    parser.add_argument("--head-lr", type=flags.above(0, float), default=5e-4)
    parser.add_argument(
        "--max-tokens",
        type=flags.above(flags.LEAST_TOKENS - 1, int),
        default=SERVED_TOKENS,
        help="prompt length when the bundle is used",
    )
    parser.add_argument(
        "--max-steps",
        type=flags.above(0, int),
        default=-1,
        help="stop after so many steps; the rates fall as for all epochs",
    )
    parser.add_argument("--seed", type=flags.seed, default=1)
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
    options.precision = usable("bfloat16")  # decides the outcome as the flags do
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
        for parameter in teacher.parameters():
            parameter.copy_(parameter.half())  # as the bundle keeps them: its figures are theirs
    config.max_prompt_tokens = options.max_tokens
    report = _ruled(teacher, config, tokenizer, rows["dev"])
    card = compact_card(report, _command(options), options.whole)
    record: Record = {"text": _record(options, _planned(options, lessons), report)}
    save_bundle(options.out / "bundle", config, teacher, tokenizer, card, record=record)
    print(json.dumps({**vars(report), "temperature": config.calibration_temperature}))  # noqa: T201


def _ruled(
    teacher: TextTeacher, config: TelmeConfig, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> Report:
    """Shift the classes' logits to the best expected F1 and fit the temperature, both on dev; returns the scores.

    Raises:
        DataError: The answers are no numbers any more.
    """
    truth = [row.label for row in rows]
    logits = torch.from_numpy(finite(answers(teacher, rows, tokenizer, config).numpy()))
    temperature = fit_temperature(logits.numpy(), truth)
    offsets = temperature * offsets_for_f1((logits.double() / temperature).softmax(1).numpy())
    bias = teacher.classifier.bias
    shifted = (bias.detach() + torch.from_numpy(offsets)).half()  # as the bundle keeps it
    config.logit_offsets = (shifted - bias.detach()).tolist()
    with torch.no_grad():
        bias.copy_(shifted)
    logits += torch.tensor(config.logit_offsets)
    config.calibration_temperature = fit_temperature(logits.numpy(), truth)
    return report_of(logits.numpy(), np.asarray(truth), config.label_set, config.calibration_temperature)


def _trained(
    teacher: TextTeacher,
    lessons: Lessons,
    tokenizer: PreTrainedTokenizerBase,
    config: TelmeConfig,
    options: argparse.Namespace,
) -> TextTeacher:
    """Train it; returns the moving average, on the CPU."""
    pupil = Pupil(teacher, math.ceil(len(lessons) / options.batch))
    speakers = [tokenizer.get_vocab()[token] for token in SPEAKER_TOKENS]
    optimizer = torch.optim.AdamW(parameter_groups(teacher, speakers, options.lr, options.head_lr), fused=True)
    planned = _planned(options, lessons)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(WARMUP * planned), planned)  # type: ignore[no-untyped-call]
    trainer = Coach(
        model=pupil,
        args=_arguments(options),
        data_collator=lambda some: collate(some, tokenizer, config),
        train_dataset=lessons,
        optimizers=(optimizer, schedule),
        callbacks=[Average()],
    )
    checkpoint = begin(options.out, _settings(options), options.resume)
    if checkpoint is not None and step_of(checkpoint) >= (options.max_steps if options.max_steps > 0 else planned):
        # It ended before its bundle was written. The Trainer would take a step before it looks how many it has taken.
        load_model(pupil, checkpoint / SAFE_WEIGHTS_NAME)
    else:
        run_trainer(trainer, options.out, checkpoint, options.batch, "")
    return pupil.average.cpu().eval()


def _planned(options: argparse.Namespace, lessons: Lessons) -> int:
    """Steps of the optimizer of all epochs."""
    planned: int = math.ceil(options.epochs * math.ceil(len(lessons) / options.batch))
    return planned


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
    name = str(options.init)
    tokenizer = pretrained_tokenizer(name)
    # A dropped attention weight costs a random number for each pair of tokens: half of the time of a step.
    backbone = pretrained_config(name, attention_probs_dropout_prob=0.0)
    starts = [*map(tokenizer.get_vocab().__getitem__, SPEAKER_TOKENS), tokenizer.sep_token_id]
    config = TelmeConfig(
        text_config=backbone,
        max_prompt_tokens=options.max_tokens if options.whole else TRAINING_TOKENS,
        max_turns=MAX_TURNS,
        turn_starts=None if options.whole else starts,
    )
    teacher = TextTeacher(config)
    teacher.text_model = pretrained_encoder(name, backbone, add_pooling_layer=False)
    check_positions(teacher, name, options.max_tokens)
    resize_vocabulary(teacher, len(tokenizer), options.seed)
    backbone["vocab_size"] = len(tokenizer)
    return teacher, tokenizer, config


def _taught(teacher: Path, rows: Sequence[Row]) -> Tensor:
    """The teacher's logits of the training split as it learnt them [rows, C], kept beside the teacher.

    Raises:
        BundleError: There is no such bundle, or it does not tell what to take off.
        UsageError: Its classes are others.
        DataError: Those that were kept are of other rows or classes.
    """
    path = teacher if teacher.is_file() else _answered(teacher, rows)
    try:
        kept: Tensor = load_file(path)["logits"]
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(
            f"{path} without a teacher's answers: {error}",
            "a bundle, or what this command keeps of one",
            "check --teacher",
        ) from error
    shape = [len(rows), len(MELD_DATA.labels.names)]
    if list(kept.shape) != shape:
        raise DataError(
            f"{path} with {len(kept)} answers, logits {list(kept.shape)}",
            f"{shape}, one a row of the training split and its classes",
            "remove it, or name another --teacher",
        )
    return kept


def _answered(teacher: Path, rows: Sequence[Row]) -> Path:
    """The file with a bundle's answers, which are made if they are not there.

    Raises:
        BundleError, UsageError, DataError: As `_taught`; or the file cannot be written.
    """
    bundle = open_bundle(str(teacher))
    labels = bundle.config.label_set
    if labels != MELD_DATA.labels:
        raise UsageError(
            f"--teacher {teacher} with the classes of {labels.dataset}",
            f"those of {MELD_DATA.name}: {', '.join(MELD_DATA.labels.names)}",
            "name a teacher of that data set",
        )
    offsets = torch.tensor(bundle.logit_offsets)
    path = teacher.parent / _answers_name(bundle, rows)
    if not path.is_file():
        network, config = bundle.model.text, bundle.config
        if config.turn_starts is not None:
            config.max_prompt_tokens = TRAINING_TOKENS
        with torch.autocast("cpu", torch.bfloat16, enabled=knows_bfloat16()):
            logits = answers(network, rows, bundle.tokenizer, config)
        try:
            save_file({"logits": logits - offsets}, path)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path} with the teacher's answers cannot be written: {error}",
                "room beside the teacher's bundle",
                "free some space, or copy the bundle to a folder of yours",
            ) from error
    return path


def _answers_name(bundle: Bundle, rows: Sequence[Row]) -> str:
    """Of the file with a bundle's answers; other weights, other offsets or other rows have another one."""
    key = hashlib.sha256(f"{bundle.weights} {bundle.config.logit_offsets} {list(rows)}".encode())
    return ANSWERS_FILE.format(key.hexdigest()[:12])


def _arguments(options: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(options.out),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch,
        remove_unused_columns=False,
        label_names=["labels"],
        max_grad_norm=LARGEST_NORM,
        bf16=options.precision == "bfloat16",
        fp16=options.precision == "float16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="no",
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=50,
        report_to=[],
        seed=options.seed,
    )


def _record(options: argparse.Namespace, planned: int, report: Report) -> Training:
    """What the bundle tells of the run; the weights that are kept are the average at its end."""
    steps = options.max_steps if options.max_steps > 0 else planned
    how = StageRecipe(
        epochs=options.epochs,
        batch=options.batch,
        lr=options.lr,
        head_lr=options.head_lr,
        clip=LARGEST_NORM,
        weight_decay=WEIGHT_DECAY,
        warmup_epochs=WARMUP * options.epochs,
        label_smoothing=0.0 if options.teacher else SMOOTHING,
        precision=options.precision,
    )
    changes = (f"the whole recipe is another one: telme.compact {' '.join(_command(options).split())}",)
    return Training(
        stage="teacher",
        dataset=MELD_DATA.name,
        recipe="compact",
        how=how,
        changes=changes,
        seed=options.seed,
        init=options.init.name,
        steps=steps,
        best_step=steps,
        dev_weighted_f1=report.weighted_f1,
    )


def _command(options: argparse.Namespace) -> str:
    """What the card tells of the flags: all that decides what comes out, but the data."""
    teachers = "".join(f" --teacher {teacher.name}" for teacher in options.teacher) + " --whole" * options.whole
    trial = f" --max-steps {options.max_steps}" if options.max_steps > 0 else ""
    return (
        f"--init {options.init.name}{teachers} --epochs {options.epochs:g}\n  --batch {options.batch}"
        f" --lr {options.lr:g} --head-lr {options.head_lr:g} --max-tokens {options.max_tokens}{trial}"
        f" --seed {options.seed}"
    )


if __name__ == "__main__":
    sys.exit(main())
