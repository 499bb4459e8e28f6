"""What frozen encoders say of a split, computed once and kept: the teacher's answers and the students' features.

Shapes: N utterances, D = 768 feature, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from telme.cache import MediaCache
from telme.checkpoints import write_json
from telme.config import FEATURE_DIM
from telme.data import ClipSource
from telme.errors import DataError
from telme.features import FeatureMaker, Missing, collate_prompts
from telme.learners import sounds
from telme.modes import Student
from telme.predictor import TorchNetworks

_PROMPTS = 16


def kept_tensors(path: Path, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from a file, or made and written there where it holds none made under this key.

    Args:
        path: The file; its key lies beside it as JSON.
        key: All that they depend on, as values of JSON.
        make: Makes them.

    Raises:
        DataError: The file cannot be written.
    """
    said = repr(sorted(key.items()))
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") == said:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError):
        pass  # not there, or not whole
    made = make()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    write_json(path.with_suffix(".json"), dict(key))
    try:
        save_file(made, unfinished, metadata={"key": said})
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error}", "a folder with room", "free some space") from error
    return made


@torch.inference_mode()
def teacher_answers(
    networks: TorchNetworks, prompts: Sequence[tuple[int, ...]], pad_id: int, what: str
) -> dict[str, Tensor]:
    """The teacher's `feature` [N, D] and `logits` [N, C]."""
    # Like lengths together, which saves padding and changes nothing: it is masked.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = [
        networks.text(*collate_prompts([prompts[row] for row in order[start : start + _PROMPTS]], pad_id))
        for start in tqdm(range(0, len(order), _PROMPTS), desc=f"teacher on {what}", unit="batch")
    ]
    back = torch.tensor(order).argsort()
    return {
        "feature": torch.cat([answer.feature.cpu() for answer in answers])[back],
        "logits": torch.cat([answer.logits.cpu() for answer in answers])[back],
    }


@torch.inference_mode()
def student_features(
    networks: TorchNetworks,
    cache: MediaCache,
    maker: FeatureMaker,
    student: Student,
    sources: Sequence[ClipSource],
    group: int,
    workers: int,
) -> dict[str, Tensor]:
    """A student's `feature` [N, D] and whether there is one, `present` [N]; zeros where there is none.

    Args:
        networks: The bundle's.
        cache: Of the clips.
        maker: In the bundle's mode.
        student: Which.
        sources: The clips, in file order.
        group: In a mode that pads sounds to the longest of a batch, so many consecutive clips are a batch. (The
            published stage 3 makes features anew each epoch, in other batches each time; its evaluation makes them so.)
        workers: Processes that read clips.
    """
    feature = torch.zeros((len(sources), FEATURE_DIM))
    present = torch.zeros(len(sources), dtype=torch.bool)
    inputs = _Inputs(cache, maker, student, sources)
    loader: DataLoader[Any] = DataLoader(inputs, group, collate_fn=list, num_workers=workers)  # type: ignore[arg-type]
    first = 0
    for given in tqdm(loader, desc=f"{student} student", unit="batch"):
        held = [row for row, item in enumerate(given) if not isinstance(item, Missing)]
        clips = [given[row] for row in held]
        if held:
            made = (
                [networks.audio(batch) for batch in sounds(clips, maker.mode)]
                if student == "audio"
                else [networks.video(torch.cat(clips))]
            )
            rows = torch.tensor(held) + first
            feature[rows], present[rows] = torch.cat(made).cpu(), True
        first += len(given)
    return {"feature": feature, "present": present}


class _Inputs:
    """A student's inputs, or why there are none."""

    def __init__(self, cache: MediaCache, maker: FeatureMaker, student: Student, sources: Sequence[ClipSource]) -> None:
        self._cache = cache
        self._maker = maker
        self._student = student
        self._sources = sources

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Any:
        media = self._cache.media(self._sources[index])
        return media.sound if self._student == "audio" else self._maker.pixels(media)
