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
    return normalised(cropped(frames, edge), mode)


def cropped(frames: NDArray[np.uint8], edge: int = 224) -> NDArray[np.uint8]:
    """The first half of `pixel_values`, whose result is small enough to keep: uint8 [8, edge, edge, 3], RGB.

    Raises:
        FeatureError: The array has another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[::3] != (FRAMES, 3) or not frames.size:
        raise FeatureError(
            f"frames {frames.dtype} {frames.shape}",
            f"uint8 [{FRAMES}, height, width, 3]",
            "choose them by frame_indices",
        )
    made = image_processor(edge).preprocess(
        [list(frames)], do_rescale=False, do_normalize=False, return_tensors="np", input_data_format="channels_last"
    )
    # [8, 3, edge, edge]; the processor hands back whole numbers.
    return np.ascontiguousarray(np.asarray(made["pixel_values"])[0].transpose(0, 2, 3, 1).astype(np.uint8))


def normalised(pictures: NDArray[np.uint8], mode: Mode) -> Tensor:
    """The second half of `pixel_values`: [1, 8, 3, edge, edge] float32 from uint8 [8, edge, edge, 3], RGB."""
    ordered = pictures[..., ::-1] if mode.colour_order == "bgr" else pictures
    made = image_processor(pictures.shape[1]).preprocess(
        [list(ordered)], do_resize=False, do_center_crop=False, return_tensors="np", input_data_format="channels_last"
    )
    return torch.from_numpy(np.asarray(made["pixel_values"], dtype=np.float32))


@cache
def image_processor(edge: int) -> VideoMAEImageProcessorPil:
    """VideoMAE's processor for square pictures with sides of `edge` pixels."""
    return VideoMAEImageProcessorPil(
        size={"shortest_edge": edge},
        crop_size={"height": edge, "width": edge},
        image_mean=list(_MEAN),
        image_std=list(_STD),
    )
