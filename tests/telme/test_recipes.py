"""The recipes' values, and what is told of how they differ from the published ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from telme import fitting
from telme.recipes import NETWORKS, RECIPES, Network, differences, flat, recipe_named
from telme.train import _parser, _recipe


def test_a_difference_is_told_of_the_networks_that_it_concerns() -> None:
    recipe = replace(
        recipe_named("clean", "meld"),
        **{name: "another" for name in ("text_init", "audio_init", "video_init")},  # type: ignore[arg-type]
        audio_mask_frames=5,
        max_prompt_tokens=96,
        distillation=replace(recipe_named("clean", "meld").distillation, temperature=1.0),
        fusion_settings=replace(recipe_named("clean", "meld").fusion_settings, heads=1),
    )

    def names(networks: Collection[Network]) -> set[str]:
        return {line.partition(":")[0] for line in differences(recipe, "meld", networks)}

    of = {network: names([network]) for network in NETWORKS}
    assert of["teacher"] - {"mode"} == {
        *("teacher.schedule_counts", "teacher.precision", "text_init", "max_prompt_tokens", "max_turns"),
    }
    assert "mode" in set.intersection(*of.values())
    assert {"audio_init", "audio_mask_frames"} <= of["audio"] - of["video"]
    assert "video_init" in of["video"] - of["audio"]
    assert {"distillation.temperature"} == of["audio"] & of["video"] - {"mode"}
    assert "fusion_settings.heads" in of["fusion"]
    assert set.union(*of.values()) == names(NETWORKS)
    assert len(names(NETWORKS)) > 15


@pytest.mark.parametrize("dataset", ["meld", "iemocap"])
@pytest.mark.parametrize("name", list(RECIPES))
def test_every_difference_from_the_published_recipe_has_its_reason(name: str, dataset: str) -> None:
    lines = differences(recipe_named(name, dataset), dataset)
    assert (name == "published") == (lines == [])
    assert not [line for line in lines if line.endswith("asked for")]


def test_published_recipes_are_those_of_the_authors_code() -> None:
    meld, iemocap = (recipe_named("published", name) for name in ("meld", "iemocap"))
    assert (meld.teacher.lr, iemocap.teacher.lr, meld.audio.lr, iemocap.fusion.lr) == (1e-6, 1e-5, 1e-5, 1e-5)
    assert (meld.fusion.epochs, iemocap.fusion.epochs, meld.video.epochs) == (10, 8, 10)
    assert (meld.distillation.temperature, meld.distillation.logit_weight) == (4, 1)
    assert (iemocap.distillation.temperature, iemocap.distillation.logit_weight) == (2, 0.1)
    assert (meld.max_turns, iemocap.max_turns) == (110, 110)
    assert [recipe_named("clean", name).max_turns for name in ("meld", "iemocap")] == [24, 110]
    assert (meld.teacher.clip, meld.audio.clip) == (10, 10 / 65_536)
    shared = {"batch": 4, "weight_decay": 0.01, "schedule_counts": "samples", "warmup_epochs": 1.0}
    for recipe in (meld, iemocap):
        for network in ("teacher", "audio", "video", "fusion"):
            values = flat(vars(recipe.stage(network)))
            assert {name: values[name] for name in shared} == shared


def test_a_precision_that_the_machine_lacks_is_a_named_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the card too: float16 and bfloat16 were wanted, and the runs are in float32."""

    def precisions(stage: str, recipe: str) -> list[str]:
        given = [stage, "--data", "meld", "--out", "new", "--recipe", recipe]
        found = differences(_recipe(_parser().parse_args(given)), "meld")
        names = ("teacher.precision", "audio.precision", "video.precision")
        return [line for line in found if line.startswith(names)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(fitting, "knows_bfloat16", lambda: False)
    lacking = [f"{name}.precision: float32 (published float16): this machine has no " for name in ("audio", "video")]
    assert precisions("students", "published") == [f"{line}float16" for line in lacking]
    assert precisions("students", "clean")[-2:] == [f"{line}bfloat16" for line in lacking]
    assert not any(line.startswith("teacher.") for line in precisions("teacher", "clean"))
