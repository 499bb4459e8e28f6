"""The paper's three stages (section 3): teacher, students, fusion. Each ends in a bundle that the next begins with.

What a stage needs of frozen networks is computed once and kept: the teacher's answers for the students, and all three
encoders' features for the fusion, whose epochs then cost seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telme.bundle import TEXT_FILE, Bundle, load_bundle, save_bundle
from telme.card import model_card
from telme.config import Part, TelmeConfig
from telme.data import Row, read_split
from telme.datasets import Split
from telme.encodings import kept_tensors, student_features, teacher_answers
from telme.errors import UsageError
from telme.evaluate import Report
from telme.features import FeatureMaker
from telme.fitting import Fitted, Task, fit, fit_temperature
from telme.footage import Clips, clip_examples
from telme.fusion import AttentionShiftFusion
from telme.job import SPLITS, Job, digest_of_file, prompts_of
from telme.learners import (
    ClipCollator,
    FeatureExamples,
    FusionLearner,
    PromptCollator,
    PromptExamples,
    StudentLearner,
    TextLearner,
    stack_features,
)
from telme.models import TextTeacher, resize_vocabulary
from telme.modes import Student
from telme.predictor import TorchNetworks
from telme.pretrained import (
    check_positions,
    new_student,
    pretrained_config,
    pretrained_encoder,
    pretrained_tokenizer,
    student_config,
)
from telme.recipes import Network, Recipe, differences, stage_of
from telme.record import Training, read_record

_STUDENTS: tuple[Student, Student] = ("audio", "video")


def train_teacher(job: Job) -> Report:
    """Stage 1: the text teacher; no clip is read.

    Raises:
        TelmeStreamError: Data, encoder or folder are not what they must be.
    """
    recipe, seed = job.recipe, job.run.seed
    rows = {split: read_split(job.root, split, job.data) for split in SPLITS}
    tokenizer = pretrained_tokenizer(recipe.text_init)
    settings = pretrained_config(recipe.text_init)
    config = TelmeConfig(
        dataset=job.data.name,
        text_config=settings,
        mode=recipe.mode,
        max_prompt_tokens=recipe.max_prompt_tokens,
        max_turns=recipe.max_turns,
    )
    torch.manual_seed(seed)
    teacher = TextTeacher(config)
    teacher.text_model = pretrained_encoder(recipe.text_init, settings, add_pooling_layer=False)
    check_positions(teacher, recipe.text_init, recipe.max_prompt_tokens)
    resize_vocabulary(teacher, len(tokenizer), seed)
    settings["vocab_size"] = len(tokenizer)
    maker = FeatureMaker(tokenizer, config)
    task = Task(
        network=teacher,
        learner=TextLearner(teacher, recipe.teacher.label_smoothing),
        train=PromptExamples(prompts_of(rows["train"], maker, config), _labels(rows["train"])),
        dev=PromptExamples(prompts_of(rows["dev"], maker, config), _labels(rows["dev"])),
        collate=PromptCollator(int(tokenizer.pad_token_id)),
        described={**job.described, "init": recipe.text_init, **_context(recipe)},
    )
    fitted = fit(task, job.out, recipe.teacher, job.run, job.data.labels)
    config.calibration_temperature = fitted.temperature
    record: dict[Part, Training] = {"text": _training(job, "teacher", fitted, recipe.text_init)}
    card = model_card(config, "teacher", {"teacher": fitted.report}, record)
    save_bundle(job.bundle, config, teacher.cpu(), tokenizer, card, record=record)
    return fitted.report


def train_students(job: Job, start: str, cache: Path, students: Sequence[Student]) -> dict[str, Report]:
    """Stage 2: students against the frozen teacher.

    Args:
        job: What and how.
        start: The bundle with the teacher; other students in it are kept.
        cache: Folder of cached clips.
        students: Which to train.

    Raises:
        TelmeStreamError: Data, clips, encoders or folder are not what they must be.
    """
    bundle = _opened(job, start)
    offsets = torch.tensor(bundle.logit_offsets)  # asked for early: what is wrong with it is said at once
    config = copy.deepcopy(bundle.config)
    config.fusion = None  # it would know other students
    record = read_record(bundle.folder)
    record.pop("fusion", None)
    networks = _students(bundle)
    for student in students:
        setattr(config, f"{student}_config", student_config(job.recipe, student))
    clips = Clips(job, bundle, config, cache)
    teacher = TorchNetworks(bundle.model)
    said = {split: _teacher_answers(job, bundle, clips, teacher, split) for split in SPLITS}
    del teacher  # on a GPU it is a copy, which would take room from the training
    if bundle.config.fusion is not None:  # whose temperature is not the teacher's
        truth = _labels(clips.rows["dev"])
        config.calibration_temperature = fit_temperature(said["dev"]["logits"].float().numpy(), truth)
    # Before the first is trained, so that what the second lacks is said at once.
    examples = {student: clip_examples(clips, student, said, offsets) for student in students}
    reports: dict[str, Report] = {}
    for student in students:
        torch.manual_seed(job.run.seed)
        network = new_student(job.recipe, config, student)
        task = Task(
            network=network,
            learner=StudentLearner(network, job.recipe.distillation),
            train=examples[student]["train"],
            dev=examples[student]["dev"],
            collate=ClipCollator(student, clips.maker.mode),
            described=_described(job, bundle, clips, student),
        )
        fitted = fit(task, job.out / student, job.recipe.stage(student), job.run, job.data.labels)
        networks[student] = network.cpu()
        reports[student] = fitted.report
        record[student] = _training(job, student, fitted, getattr(job.recipe, f"{student}_init"))
    card = model_card(config, "students", reports, record)
    save_bundle(job.bundle, config, bundle.model.text.cpu(), bundle.tokenizer, card, networks, record)
    return reports


def _described(job: Job, bundle: Bundle, clips: Clips, student: Student) -> dict[str, Any]:
    """What decides the outcome of a student's training, for `Task`."""
    offsets = bundle.logit_offsets
    return {
        **job.described,
        "init": getattr(job.recipe, f"{student}_init"),
        "teacher": digest_of_file(bundle.folder / TEXT_FILE),
        **({"logit_offsets": offsets} if any(offsets) else {}),
        "clips": clips.digests(student),
        **asdict(job.recipe.distillation),
    }


def train_fusion(job: Job, start: str, cache: Path) -> Report:
    """Stage 3: the fusion on features of the frozen encoders.

    Args:
        job: What and how.
        start: The bundle with the teacher and one or both students.
        cache: Folder of cached clips.

    Raises:
        TelmeStreamError: Data, clips, bundle or folder are not what they must be.
    """
    bundle = _opened(job, start)
    if not {"audio", "video"} & set(bundle.config.parts):
        raise UsageError(f"bundle {start} without students", "a bundle of stage 2", "run `students` first")
    config = copy.deepcopy(bundle.config)
    config.fusion = asdict(job.recipe.fusion_settings)
    record = read_record(bundle.folder)
    clips = Clips(job, bundle, config, cache)
    networks = TorchNetworks(bundle.model)
    examples = {split: FeatureExamples(_features(job, bundle, clips, networks, split)) for split in SPLITS}
    del networks  # copies as well
    torch.manual_seed(job.run.seed)
    fusion = AttentionShiftFusion(config, config.input_mode)
    task = Task(
        network=fusion,
        learner=FusionLearner(fusion),
        train=examples["train"],
        dev=examples["dev"],
        collate=stack_features,
        described={
            **job.described,
            "encoders": bundle.weights,
            "clips": {name: clips.digests(name) for name in _STUDENTS if name in bundle.config.parts},
            **asdict(job.recipe.fusion_settings),
        },
    )
    fitted = fit(task, job.out, job.recipe.fusion, job.run, job.data.labels)
    config.calibration_temperature = fitted.temperature
    record["fusion"] = _training(job, "fusion", fitted, None)
    card = model_card(config, "fusion", {"fusion": fitted.report}, record)
    others = {**_students(bundle), "fusion": fusion.cpu()}
    save_bundle(job.bundle, config, bundle.model.cpu().text, bundle.tokenizer, card, others, record)
    return fitted.report


def _opened(job: Job, start: str) -> Bundle:
    bundle = load_bundle(start)
    if (bundle.config.dataset, bundle.config.mode) != (job.data.name, job.recipe.mode):
        raise UsageError(
            f"bundle {start} of {bundle.config.dataset} in mode {bundle.config.mode}",
            f"{job.data.name} in mode {job.recipe.mode}",
            "give the --dataset and --recipe that the bundle was trained with",
        )
    return bundle


def _students(bundle: Bundle) -> dict[Part, nn.Module]:
    return {name: network for name in _STUDENTS if (network := bundle.model.network(name)) is not None}


def _training(job: Job, network: Network, fitted: Fitted, init: str | None) -> Training:
    """The record of a network that this run has trained."""
    return Training(
        stage=stage_of(network),
        dataset=job.data.name,
        recipe=job.recipe.name,
        how=fitted.recipe,
        changes=tuple(differences(job.recipe, job.data.name, [network])),
        seed=job.run.seed,
        init=init,
        steps=fitted.steps,
        best_step=fitted.best_step,
        dev_weighted_f1=fitted.report.weighted_f1,
    )


def _teacher_answers(
    job: Job, bundle: Bundle, clips: Clips, networks: TorchNetworks, split: Split
) -> dict[str, Tensor]:
    pad_id = int(bundle.tokenizer.pad_token_id)
    return kept_tensors(
        job.out / f"teacher-{split}.safetensors",
        {**job.described, "weights": digest_of_file(bundle.folder / TEXT_FILE), "split": split},
        lambda: teacher_answers(networks, clips.prompts[split], pad_id, split),
    )


def _features(job: Job, bundle: Bundle, clips: Clips, networks: TorchNetworks, split: Split) -> dict[str, Tensor]:
    """Columns of `FeatureExamples`: labels, text, audio, video and present [N, 2]."""
    rows = len(clips.rows[split])
    columns = {"text": _teacher_answers(job, bundle, clips, networks, split)["feature"]}
    present = torch.zeros((rows, 2), dtype=torch.bool)
    for column, student in enumerate(_STUDENTS):
        columns[student] = torch.zeros_like(columns["text"])
        if student not in bundle.config.parts:
            continue
        said = kept_tensors(
            job.out / f"{student}-{split}.safetensors",
            {
                **job.described,
                "weights": bundle.weights,
                "split": split,
                "clips": clips.digests(student)[split],
                **({"group": job.recipe.fusion.batch} if clips.maker.mode.audio_left_pad == "batch" else {}),
            },
            lambda student=student: student_features(  # type: ignore[misc]
                networks,
                clips.cache,
                clips.maker,
                student,
                clips.sources[split],
                job.recipe.fusion.batch,
                job.run.workers,
            ),
        )
        columns[student], present[:, column] = said["feature"], said["present"]
    return {"labels": torch.tensor(_labels(clips.rows[split])), **columns, "present": present}


def _labels(rows: Sequence[Row]) -> list[int]:
    return [row.label for row in rows]


def _context(recipe: Recipe) -> dict[str, int]:
    return {"max_prompt_tokens": recipe.max_prompt_tokens, "max_turns": recipe.max_turns}
