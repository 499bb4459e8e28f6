"""Which frames of a clip the video student sees. No torch here: the capture side chooses frames too."""

from __future__ import annotations

from telme.errors import FeatureError

FRAMES = 8


def frame_indices(count: int) -> tuple[int, ...]:
    """Indices of the 8 frames kept of `count` decoded ones, counted from 0 (published code, rule `steps`).

    With step = count // 8 these are the frames step, 2 * step ... 8 * step counted from 1. Fewer than 8 frames are
    all kept, the last one repeated.

    Raises:
        FeatureError: There is no frame; the modality is absent then.
    """
    if count < 1:
        raise FeatureError(f"a clip with {count} frames", "at least one frame", "treat the video as absent")
    step = max(count // FRAMES, 1)
    return tuple(min(position * step, count) - 1 for position in range(1, FRAMES + 1))
