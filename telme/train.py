"""Training: `python -m telme.train teacher|students|fusion --data DIR --out DIR`, one stage after another.

Each stage writes OUT/STAGE/bundle, which the next one takes up and which `telme-stream --bundle` runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from telme import flags
from telme.bundle import TEXT_FILE, sha256_of
from telme.datasets import DATASETS
from telme.errors import INTERRUPTED, TelmeStreamError, UsageError
from telme.fitting import Run, usable
from telme.job import Job
from telme.modes import Student
from telme.recipes import RECIPES, STAGES, Recipe, differences, recipe_named
from telme.stages import train_fusion, train_students, train_teacher

_STUDENTS: tuple[Student, Student] = ("audio", "video")


_NUMBERS: dict[str, Any] = {
    "epochs": flags.above(0, float),
    "batch": flags.above(0, int),
    "accumulate": flags.above(0, int),
    "lr": flags.above(0, float),
    "head_lr": flags.above(0, float),
}
_CONTEXT = {"max_prompt_tokens": "--max-tokens", "max_turns": "--max-turns"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code. The last line of standard output is the scores as JSON."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        scores = _train(options)
    except TelmeStreamError as error:
        sys.stderr.write(f"train: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("train: interrupted; --resume goes on\n")
        return INTERRUPTED
    sys.stdout.write(json.dumps(scores) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m telme.train", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    teacher = stages.add_parser("teacher", help="stage 1: the text teacher; needs the annotations alone")
    students = stages.add_parser("students", help="stage 2: the audio and video students, against the teacher")
    fusion = stages.add_parser("fusion", help="stage 3: the fusion, all encoders frozen")
    for stage in (teacher, students, fusion):
        _add_common(stage)
    teacher.add_argument("--init", dest="text_init", help="text encoder to start from: a folder or hub id")
    for name, flag in _CONTEXT.items():
        least = flags.LEAST_TOKENS - 1 if name == "max_prompt_tokens" else 0
        teacher.add_argument(flag, dest=name, type=flags.above(least, int), help="instead of the recipe's")
    students.add_argument("--only", choices=_STUDENTS, help="train this student alone")
    for name in _STUDENTS:
        students.add_argument(f"--{name}-init", help=f"{name} encoder to start from: a folder or hub id")
    students.add_argument(
        "--from",
        dest="start",
        help="bundle with the teacher (default: OUT/teacher/bundle; with --only OUT/students/bundle if there)",
    )
    fusion.add_argument("--from", dest="start", help="bundle with the encoders (default: OUT/students/bundle)")
    for stage in (students, fusion):
        stage.add_argument("--cache", type=Path, help="folder of cached clips (default: OUT/cache)")
    return parser


def _add_common(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--data", type=Path, required=True, help="the data set's folder")
    stage.add_argument("--out", type=Path, required=True, help="folder for all stages; each makes its own in it")
    stage.add_argument("--dataset", choices=list(DATASETS), default="meld")
    stage.add_argument("--recipe", choices=list(RECIPES), default="clean", help="default: clean")
    stage.add_argument("--resume", action="store_true", help="go on with the run in --out")
    stage.add_argument("--seed", type=flags.seed, default=Run.seed)
    stage.add_argument(
        "--max-steps", type=flags.above(0, int), default=Run.max_steps, help="stop after so many steps, for trials"
    )
    stage.add_argument(
        "--save-every", type=flags.above(0, int), default=Run.save_every, help="steps between checkpoints"
    )
    stage.add_argument(
        "--workers", type=flags.above(-1, int), default=2, help="processes that read clips and make batches"
    )
    for name, kind in _NUMBERS.items():
        stage.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of the recipe's")


def _train(options: argparse.Namespace) -> dict[str, Any]:
    recipe = _recipe(options)
    for line in differences(recipe, options.dataset, STAGES[options.stage]):
        sys.stderr.write(f"{line}\n")
    run = Run(options.seed, options.max_steps, options.save_every, options.resume, options.workers)
    job = Job(DATASETS[options.dataset], options.data, options.out / options.stage, recipe, run)
    if options.stage == "teacher":
        # Prompts are made beforehand; processes would only hand them on.
        return asdict(train_teacher(replace(job, run=replace(run, workers=0))))
    cache = options.cache or options.out / "cache"
    if options.stage == "students":
        chosen = (options.only,) if options.only else _STUDENTS
        # The other student, where it was trained before, stays in the bundle.
        begun = options.only is not None and job.bundle.is_dir()
        start = options.start or (_taught_students(options.out) if begun else _before(options.out, "teacher"))
        return {name: asdict(report) for name, report in train_students(job, start, cache, chosen).items()}
    start = options.start or _taught_students(options.out)
    return asdict(train_fusion(job, start, cache))


def _before(out: Path, stage: str) -> str:
    """The bundle that the stage before has left."""
    bundle = out / stage / "bundle"
    if not bundle.is_dir():
        raise UsageError(
            f"no {bundle}", f"the bundle of the stage before, {stage}", "run that first, or name a bundle with --from"
        )
    return str(bundle)


def _taught_students(out: Path) -> str:
    """The bundle of the students, with the teacher that taught them.

    Raises:
        UsageError: There is none, or the teacher has been trained again since.
    """
    students = _before(out, "students")
    then, now = Path(students) / TEXT_FILE, out / "teacher" / "bundle" / TEXT_FILE
    if then.is_file() and now.is_file() and sha256_of(then) != sha256_of(now):
        raise UsageError(
            f"another teacher in {students} than in {now.parent}",
            "students of the teacher that is there now",
            f"train both students again in another --out, or keep the one that taught them with --from {students}",
        )
    return students


def _recipe(options: argparse.Namespace) -> Recipe:
    """The named recipe with what the flags change."""
    recipe = recipe_named(options.recipe, options.dataset)
    asked = {name: value for name in _NUMBERS if (value := getattr(options, name)) is not None}
    if "lr" in asked:
        asked = {"head_lr": asked["lr"], **asked}  # one rate for all, unless both are given
    stages: dict[str, Any] = {}
    changes = dict(recipe.changes)
    for name in STAGES[options.stage]:
        wanted = recipe.stage(name).precision
        stages[name] = replace(recipe.stage(name), precision=usable(wanted), **asked)
        if stages[name].precision != wanted:
            changes[f"{name}.precision"] = f"this machine has no {wanted}"
    names = (*_CONTEXT, "text_init", "audio_init", "video_init")
    others = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    return replace(recipe, **stages, **others, changes=changes)


if __name__ == "__main__":
    sys.exit(main())
