"""Which frames are kept, and that they become what VideoMAE's processor makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from telme.errors import FeatureError
from telme.frames import frame_indices
from telme.modes import CLEAN, PUBLISHED_MELD
from telme.pixels import pixel_values

GOLDEN = Path(__file__).parents[1] / "golden" / "telme_reference.npz"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def pictures(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (8, height, width, 3), dtype=np.uint8)


def test_frame_rule_of_the_published_code() -> None:
    with np.load(GOLDEN) as stored:
        table = stored["frames"]
    assert [list(frame_indices(count)) for count in range(1, 301)] == table.tolist()


@pytest.mark.parametrize("count", [0, -1])
def test_no_frame_is_an_error(count: int) -> None:
    with pytest.raises(FeatureError, match="absent"):
        frame_indices(count)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (240, 320), (721, 300), (100, 90)])
def test_pixels_are_resized_cropped_and_normalised(height: int, width: int) -> None:
    frames = pictures(height, width)
    wide, high = (int(side * 224 / min(height, width)) for side in (width, height))
    resized = [np.asarray(Image.fromarray(frame).resize((wide, high), Image.Resampling.BILINEAR)) for frame in frames]
    top, left = (high - 224) // 2, (wide - 224) // 2
    expected = (np.stack(resized)[:, top : top + 224, left : left + 224] / 255 - MEAN) / STD
    made = pixel_values(frames, CLEAN)
    assert (made.shape, made.dtype) == ((1, 8, 3, 224, 224), torch.float32)
    np.testing.assert_allclose(made[0].permute(0, 2, 3, 1), expected, rtol=0, atol=1e-5)


def test_colour_order_is_turned_before_the_means() -> None:
    red = np.zeros((8, 224, 224, 3), dtype=np.uint8)
    red[..., 0] = 255
    clean, published = (pixel_values(red, mode)[0, 0, :, 0, 0] for mode in (CLEAN, PUBLISHED_MELD))
    torch.testing.assert_close(clean, torch.tensor((np.array([1, 0, 0]) - MEAN) / STD, dtype=torch.float32))
    torch.testing.assert_close(published, torch.tensor((np.array([0, 0, 1]) - MEAN) / STD, dtype=torch.float32))


@pytest.mark.parametrize(
    "frames", [pictures(32, 32)[:7], pictures(32, 32)[..., :1], pictures(32, 32).astype(np.float32)]
)
def test_other_pictures_are_refused(frames: NDArray[np.uint8]) -> None:
    with pytest.raises(FeatureError, match=r"uint8 \[8, height, width, 3\]"):
        pixel_values(frames, CLEAN)
