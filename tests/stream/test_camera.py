"""Shrinking, the ring, and the camera's threads against a fake driver. No device, no waiting for time to pass."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.camera import Camera, CameraInfo, Capture, Patience, list_cameras, open_capture
from stream.config import CameraConfig
from stream.frames import FrameRing, shrink
from stream.items import Image, Missing, VideoFrame
from telme.errors import MissingDependency, SourceError

MS = 1_000_000
DEADLINE_S = 10.0
BLACK = np.zeros((224, 224, 3), np.uint8)
QUICK = Patience(first_picture_s=DEADLINE_S, stall_s=DEADLINE_S, back_off_s=(0.001,), join_s=DEADLINE_S)


def frame(at_ms: int) -> VideoFrame:
    return VideoFrame(at_ms * MS, BLACK)


def ring_of(times_ms: list[int], fps: int = 10, keep_ms: int = 25_000) -> FrameRing:
    ring = FrameRing(fps, keep_ms)
    for at_ms in times_ms:
        ring.put(frame(at_ms))
    return ring


def times_ms(ring: FrameRing) -> list[int]:
    """What is in the ring, asked from outside."""
    found = {ring.nearest([at_ms * MS], 0) for at_ms in ()} or ring
    return [at_ms for at_ms in range(200_000) if not isinstance(found.nearest([at_ms * MS], 0), Missing)]


@settings(max_examples=40, deadline=None)
@given(height=st.integers(30, 700), width=st.integers(30, 700), seed=st.integers(0, 9))
def test_shrink_is_videomaes_image_processor(height: int, width: int, seed: int) -> None:
    processing = pytest.importorskip("transformers.models.videomae.image_processing_pil_videomae")
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    processor = processing.VideoMAEImageProcessorPil(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, do_rescale=False, do_normalize=False
    )
    expected = np.asarray(processor([image], return_tensors="np")["pixel_values"]).reshape(3, 224, 224)
    np.testing.assert_array_equal(shrink(image), expected.transpose(1, 2, 0))
