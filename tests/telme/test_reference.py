"""The networks and losses against figures that the authors' own modules gave, to 1e-5.

`TELME_REFERENCE=FILE.npz` names another reference file; its .json lies beside it. Weights and inputs are made again
from its salt (tests/golden/README.md), so that loading by published parameter name is checked along the way.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from telme.config import Part, TelmeConfig
from telme.distill import PUBLISHED_DISTILLATION, feature_loss, logit_loss
from telme.frames import frame_indices
from telme.fusion import AttentionShiftFusion, FusionOutput
from telme.models import AudioStudent, EncoderOutput, TextTeacher, VideoStudent
from telme.modes import PUBLISHED_MELD
from tests.telme.checkpoints import load_published

TOLERANCE = 1e-5
ROWS = 4
REFERENCE = Path(os.environ.get("TELME_REFERENCE", Path(__file__).parents[1] / "golden" / "telme_reference.npz"))
with np.load(REFERENCE, allow_pickle=False) as stored:
    FIGURES: dict[str, Any] = dict(stored)
SETTINGS: dict[str, Any] = json.loads(REFERENCE.with_suffix(".json").read_text(encoding="utf-8"))
# The reference calls the fusion with (text, visual, acoustic) under the names of its forward: visual comes first.
FORWARD_ORDER = replace(PUBLISHED_MELD, student_order=("video", "audio"))


def det(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    """The tensor of that name."""
    seed = torch.Generator().manual_seed(zlib.crc32(f"{SETTINGS['salt']}:{name}".encode()))
    return torch.randn(*shape, generator=seed) * scale


def loaded(part: Part, key: str, module: nn.Module) -> nn.Module:
    """The module with the reference's parameters under their published names."""
    shapes = SETTINGS["parameters"][key]
    load_published(part, {name: det(name, tuple(shape), 0.05) for name, shape in shapes.items()}, module)
    return module.eval()


@cache
def fused(dataset: str, how: str) -> FusionOutput:
    """The fusion's answer to the reference's rows: all at once, one at a time, or with zeros for both students."""
    mode = replace(FORWARD_ORDER, fusion_across_batch=how != "batch1")
    fusion = loaded("fusion", f"asf.{dataset}", AttentionShiftFusion(TelmeConfig(dataset=dataset), mode))
    text, visual, acoustic = (det(f"{dataset}.{name}", (ROWS, 768), 1.0) for name in ("text", "visual", "acoustic"))
    if how == "zero_av":
        visual, acoustic = torch.zeros_like(visual), torch.zeros_like(acoustic)
    with torch.inference_mode():
        return cast(FusionOutput, fusion(text, audio=acoustic, video=visual))


def distilled(dataset: str, which: str) -> Tensor:
    """One of the two losses."""
    if which == "feature":
        return feature_loss(det(f"{dataset}.hs", (ROWS, 768), 1.0), det(f"{dataset}.ht", (ROWS, 768), 1.0))
    shape = (ROWS, len(TelmeConfig(dataset=dataset).label_set.names))
    student, teacher = det(f"{dataset}.zs", shape, 2.0), det(f"{dataset}.zt", shape, 2.0)
    return logit_loss(student, teacher, PUBLISHED_DISTILLATION[dataset].temperature)


@cache
def encoded(part: Part) -> EncoderOutput:
    """An encoder's answer to the reference's input."""
    with torch.inference_mode():
        if part == "text":
            config = TelmeConfig(text_config={"model_type": "roberta", **SETTINGS["roberta"]})
            ids, mask = (torch.from_numpy(FIGURES[f"teacher.{name}"]) for name in ("ids", "mask"))
            return cast(EncoderOutput, loaded(part, "teacher", TextTeacher(config))(ids, mask))
        if part == "audio":
            config = TelmeConfig(audio_config={"model_type": "data2vec-audio", **SETTINGS["data2vec"]})
            return cast(EncoderOutput, loaded(part, part, AudioStudent(config))(det("audio.in", (2, 12000), 1.0)))
        settings = SETTINGS["timesformer"]
        config = TelmeConfig(video_config={"model_type": "timesformer", **settings})
        edge, frames = settings["image_size"], settings["num_frames"]
        pictures = det("video.in", (2, frames, settings["num_channels"], edge, edge), 1.0)
        return cast(EncoderOutput, loaded(part, part, VideoStudent(config))(pictures))


def all_frames() -> Tensor:
    """The frame rule for every row of the stored table."""
    return torch.tensor([frame_indices(count) for count in range(1, len(FIGURES["frames"]) + 1)])


CHECKS: dict[str, Callable[[], Tensor]] = {"frames": all_frames}
for _name, _part in (("teacher", "text"), ("audio", "audio"), ("video", "video")):
    CHECKS[f"{_name}.hidden"] = lambda part=_part: encoded(part).feature  # type: ignore[misc]
    CHECKS[f"{_name}.logits"] = lambda part=_part: encoded(part).logits  # type: ignore[misc]
for _dataset in ("meld", "iemocap"):
    for _how in ("batch4", "batch1", "zero_av"):
        CHECKS[f"asf.{_dataset}.{_how}"] = lambda dataset=_dataset, how=_how: fused(dataset, how).logits  # type: ignore[misc]
    for _which in ("logit", "feature"):
        CHECKS[f"kd.{_dataset}.{_which}"] = lambda dataset=_dataset, which=_which: distilled(dataset, which)  # type: ignore[misc]
INPUTS = {"teacher.ids", "teacher.mask"}


@pytest.mark.parametrize("key", sorted(FIGURES))
def test_every_figure_of_the_reference_file(key: str) -> None:
    if key in INPUTS:
        assert FIGURES[key].dtype == np.int64
        return
    assert key in CHECKS, f"{REFERENCE} holds {key}, which nothing here knows how to check"
    answer = CHECKS[key]().numpy()
    assert answer.shape == FIGURES[key].shape
    np.testing.assert_allclose(answer, FIGURES[key], rtol=0, atol=TOLERANCE)


def test_the_reference_file_lacks_nothing() -> None:
    assert set(FIGURES) == CHECKS.keys() | INPUTS


def test_the_reference_lists_no_network_that_is_not_checked() -> None:
    assert set(SETTINGS["parameters"]) == {"asf.meld", "asf.iemocap", "teacher", "audio", "video"}


@pytest.mark.parametrize("dataset", ["meld", "iemocap"])
def test_one_row_at_a_time_equals_a_batch_of_one_across_the_batch(dataset: str) -> None:
    fusion = loaded("fusion", f"asf.{dataset}", AttentionShiftFusion(TelmeConfig(dataset=dataset), FORWARD_ORDER))
    text, visual, acoustic = (det(f"{dataset}.{name}", (ROWS, 768), 1.0) for name in ("text", "visual", "acoustic"))
    with torch.inference_mode():
        rows = [
            fusion(text[row : row + 1], audio=acoustic[row : row + 1], video=visual[row : row + 1]).logits
            for row in range(ROWS)
        ]
    np.testing.assert_allclose(torch.cat(rows), FIGURES[f"asf.{dataset}.batch1"], rtol=0, atol=TOLERANCE)
