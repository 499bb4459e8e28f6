"""The shapes that networks are run at on a device: few, so that the work of each can be captured.

Rows are rounded up to 1, 2, 4, 8 or 16 and prompts to steps of 64 tokens, padded at the left, where the mask hides it.
A sound's length is an open set: the student has no mask that would hide padding.
"""

from __future__ import annotations

from collections.abc import Mapping

from engines.spec import Profile, TensorSpec

BATCHES = (1, 2, 4, 8, 16)
TOKENS_STEP = 64
OPEN = "samples"

# Dynamic dimension -> its size.
Sizes = Mapping[str, int]


def bucket(sizes: Sizes, limits: Profile) -> dict[str, int]:
    """The shape that a network is run at for inputs of these sizes, each at least as large."""
    rounded = dict(sizes)
    rounded["batch"] = next(rows for rows in BATCHES if rows >= sizes["batch"])
    if "tokens" in sizes:
        rounded["tokens"] = min(-(-sizes["tokens"] // TOKENS_STEP) * TOKENS_STEP, limits["tokens"].most)
    return rounded


def common_shapes(limits: Profile) -> list[dict[str, int]]:
    """The shapes of one utterance alone, made ready before the first comes; none where they are an open set."""
    if OPEN in limits:
        return []
    if "tokens" not in limits:
        return [{"batch": 1}]
    most = limits["tokens"].most
    return [{"batch": 1, "tokens": min(tokens, most)} for tokens in range(TOKENS_STEP, most + TOKENS_STEP, TOKENS_STEP)]


def corner(tensor: TensorSpec, sizes: Sizes) -> tuple[slice, ...]:
    """Where an input of these sizes lies in a larger buffer: its rows first, its tokens last."""
    places = {"batch": slice(0, sizes["batch"]), "tokens": slice(-sizes.get("tokens", 1), None)}
    return tuple(places[name] if isinstance(name, str) else slice(None) for name in tensor.shape)


def extent(tensor: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """A tensor's shape at these sizes."""
    return tuple(sizes[name] if isinstance(name, str) else name for name in tensor.shape)
