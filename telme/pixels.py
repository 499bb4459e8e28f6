"""From chosen frames to the video student's input.

Shapes: F = 8 chosen frames; heights, widths and edges in pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from telme.errors import FeatureError
from telme.frames import FRAMES
from telme.modes import Mode

# ImageNet's channel statistics as VideoMAE's processor has them; the published code uses that one, not TimeSformer's.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def pixel_values(frames: NDArray[np.uint8], mode: Mode, edge: int = 224) -> Tensor:
    """Input of the video student, [1, 8, 3, edge, edge] float32, from the 8 chosen frames.

    As VideoMAE's processor does it: shortest side to `edge` (bilinear), centre crop, 1/255, ImageNet's mean and
    standard deviation, which are applied in channel order even where the mode's channels are BGR.

    Args:
        frames: [8, height, width, 3] uint8, RGB.
        mode: Gives the colour order.
        edge: Side of the square picture in pixels.

    Raises:
        FeatureError: The array has another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[::3] != (FRAMES, 3) or not frames.size:
        raise FeatureError(
            f"frames {frames.dtype} {frames.shape}",
            f"uint8 [{FRAMES}, height, width, 3]",
            "choose them by frame_indices",
        )
    ordered = frames[..., ::-1] if mode.colour_order == "bgr" else frames
    made = _processor(edge).preprocess([list(ordered)], return_tensors="np", input_data_format="channels_last")
    return torch.from_numpy(np.asarray(made["pixel_values"], dtype=np.float32))


@cache
def _processor(edge: int) -> VideoMAEImageProcessorPil:
    return VideoMAEImageProcessorPil(
        size={"shortest_edge": edge},
        crop_size={"height": edge, "width": edge},
        image_mean=list(_MEAN),
        image_std=list(_STD),
    )
