"""Recipes: every number of the three training stages, each recipe one description.

`published` has the values of the authors' code for a data set, faults included; `clean`, the default, mends what is
wrong in them and leaves the rest. `changes` says which values differ from the published ones, and why. (The packaged
bundle is made by `telme.compact`.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from telme.config import PUBLISHED_FUSION, FusionSettings
from telme.distill import PUBLISHED_DISTILLATION, Distillation
from telme.errors import UsageError
from telme.labels import LABEL_SETS
from telme.modes import CLEAN, published_mode

Precision = Literal["float32", "bfloat16", "float16"]
Network = Literal["teacher", "audio", "video", "fusion"]
NETWORKS: tuple[Network, ...] = get_args(Network)
# The stages, in their order, and the networks that each trains.
STAGES: Mapping[str, tuple[Network, ...]] = {
    "teacher": ("teacher",),
    "students": ("audio", "video"),
    "fusion": ("fusion",),
}


@dataclass(frozen=True)
class StageRecipe:
    """How one network is trained: AdamW, a linear schedule, and the epoch with the best dev weighted F1 is kept.

    Attributes:
        epochs: Passes over the training split.
        batch: Utterances a forward pass.
        accumulate: Forward passes a step of the optimizer.
        lr: Highest learning rate.
        head_lr: The same of the linear layers on top of the encoder.
        weight_decay: AdamW's.
        clip: Largest norm of the gradients, after any loss scale is taken off.
        warmup_epochs: Length of the warm-up.
        schedule_counts: What the schedule takes for a step: the optimizer's `steps`, or `samples`, as the published
            code does, so that in batches of 4 a warm-up of one epoch lasts four, and the rate never comes near 0.
        label_smoothing: Of the cross-entropy.
        precision: Of the forward pass, where the machine has it (`telme.fitting.usable`); weights and optimizer are
            float32.
    """

    epochs: float
    batch: int
    lr: float
    head_lr: float
    clip: float
    accumulate: int = 1
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    schedule_counts: Literal["steps", "samples"] = "steps"
    label_smoothing: float = 0.0
    precision: Precision = "bfloat16"


@dataclass(frozen=True)
class Recipe:
    """All stages.

    Attributes:
        name: `published` or `clean`.
        mode: Name of the mode in which inputs are made.
        teacher, audio, video, fusion: How each network is trained.
        distillation: Settings of the students' losses.
        fusion_settings: Shape and strength of the fusion.
        text_init, audio_init, video_init: Hub ids of the encoders to start from.
        audio_mask_frames: data2vec-audio hides spans of so many time frames in training.
        max_prompt_tokens: Prompt length, mask included.
        max_turns: Turns of context.
        changes: Field, with dots -> why it differs from the published recipe; nothing else does.
    """

    name: str
    mode: str
    teacher: StageRecipe
    audio: StageRecipe
    video: StageRecipe
    fusion: StageRecipe
    distillation: Distillation
    fusion_settings: FusionSettings
    text_init: str = "roberta-large"
    audio_init: str = "facebook/data2vec-audio-base-960h"
    video_init: str = "facebook/timesformer-base-finetuned-k400"
    audio_mask_frames: int = 3
    max_prompt_tokens: int = 512
    max_turns: int = 110
    changes: Mapping[str, str] = field(default_factory=dict)

    def stage(self, network: Network) -> StageRecipe:
        """How that network is trained."""
        found: StageRecipe = getattr(self, network)
        return found


# The published students and fusion are trained with a loss scale that is not taken off before clipping at 10. The
# scale starts at 65,536 (torch's GradScaler), so the clip that works is 1.5e-4 there; it doubles every 2,000 steps.
_SCALED_CLIP = 10 / 65_536


def _published(dataset: str, teacher_lr: float, fusion_epochs: float) -> Recipe:
    teacher = StageRecipe(
        epochs=10, batch=4, lr=teacher_lr, head_lr=teacher_lr, clip=10.0, schedule_counts="samples", precision="float32"
    )
    student = replace(teacher, lr=1e-5, head_lr=1e-5, clip=_SCALED_CLIP, precision="float16")
    return Recipe(
        name="published",
        mode=published_mode(dataset).name,
        teacher=teacher,
        audio=student,
        video=student,
        fusion=replace(student, epochs=fusion_epochs),
        distillation=PUBLISHED_DISTILLATION[dataset],
        fusion_settings=PUBLISHED_FUSION[dataset],
    )


_PUBLISHED = {
    "meld": _published("meld", teacher_lr=1e-6, fusion_epochs=10),
    "iemocap": _published("iemocap", teacher_lr=1e-5, fusion_epochs=8),
}

_CLEAN_MAX_TURNS = {"meld": 24}
_STEPS = "the schedule counts steps of the optimizer: the rate warms up for one epoch and ends at 0"
_CLIP = "gradients are clipped without a loss scale, at the 10 that the code names"
_BFLOAT16 = "bfloat16 needs no loss scale and runs on CPUs with AVX-512 too"


def _clean(published: Recipe, dataset: str) -> Recipe:
    student = replace(published.audio, clip=10.0, schedule_counts="steps", precision="bfloat16")
    changes = {
        "mode": "inputs are made the right way; telme.modes says what that is",
        "teacher.schedule_counts": _STEPS,
        "teacher.precision": _BFLOAT16,
    }
    for network in ("audio", "video", "fusion"):
        changes |= {
            f"{network}.schedule_counts": _STEPS,
            f"{network}.clip": _CLIP,
            f"{network}.precision": _BFLOAT16,
        }
    max_turns = _CLEAN_MAX_TURNS.get(dataset, published.max_turns)
    if max_turns != published.max_turns:
        changes["max_turns"] = "its dialogues have no more, so nothing longer is learnt, and live ones go on for ever"
    return replace(
        published,
        name="clean",
        mode=CLEAN.name,
        max_turns=max_turns,
        teacher=replace(published.teacher, schedule_counts="steps", precision="bfloat16"),
        audio=student,
        video=student,
        fusion=replace(student, epochs=published.fusion.epochs),
        changes=changes,
    )


RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    "published": _PUBLISHED,
    "clean": {dataset: _clean(recipe, dataset) for dataset, recipe in _PUBLISHED.items()},
}


def recipe_named(name: str, dataset: str) -> Recipe:
    """The recipe of that name for a data set, a key of `telme.labels.LABEL_SETS`.

    Raises:
        UsageError: There is none.
    """
    if name not in RECIPES or dataset not in LABEL_SETS:
        raise UsageError(
            f"recipe {name!r} for {dataset!r}",
            f"one of {', '.join(RECIPES)}, and one of {', '.join(LABEL_SETS)}",
            "check --recipe and --dataset",
        )
    return RECIPES[name][dataset]


def stage_of(network: Network) -> str:
    """The stage that trains a network."""
    return next(stage for stage, networks in STAGES.items() if network in networks)


# The networks that a value concerns, by the first word of its name; one that is not here concerns all.
_CONCERNED: Mapping[str, tuple[Network, ...]] = {
    "teacher": ("teacher",),
    "text_init": ("teacher",),
    "max_prompt_tokens": ("teacher",),
    "max_turns": ("teacher",),
    "audio": ("audio",),
    "audio_init": ("audio",),
    "audio_mask_frames": ("audio",),
    "video": ("video",),
    "video_init": ("video",),
    "distillation": ("audio", "video"),
    "fusion": ("fusion",),
    "fusion_settings": ("fusion",),
}


def differences(recipe: Recipe, dataset: str, networks: Collection[Network] = NETWORKS) -> list[str]:
    """One line for each value that differs from the published recipe: both values, and why.

    Args:
        recipe: The recipe.
        dataset: Key of `telme.labels.LABEL_SETS`.
        networks: Those that are trained; a value that concerns none of them is left out.
    """
    published, own = flat(asdict(_PUBLISHED[dataset])), flat(asdict(recipe))
    return [
        f"{name}: {own[name]} (published {value}): {recipe.changes.get(name, 'asked for')}"
        for name, value in published.items()
        if own[name] != value
        and name != "name"
        and not set(networks).isdisjoint(_CONCERNED.get(name.partition(".")[0], NETWORKS))
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in its keys; `changes` is left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "changes":
            continue
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
