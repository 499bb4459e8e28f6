"""Memory that a device lacks: torch says so in several ways, the exception tree in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from telme.errors import OutOfMemory

# Of torch's CPU allocator, of CUDA's own calls, of cuBLAS and cuDNN: all of them come as another kind of RuntimeError.
_NO_ROOM = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that there is no room."""
    if isinstance(error, OutOfMemory | MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _NO_ROOM)


@contextmanager
def memory_needed(what: str, place: torch.device) -> Iterator[None]:
    """Within it, an error that says that a device has no room becomes the tree's; others stay as they are.

    Args:
        what: What needs the room.
        place: The device.

    Raises:
        OutOfMemory: There was no room.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise OutOfMemory(
            f"no room on {place} for {what}: {error}", f"free memory on {place}", f"stop what else uses {place}"
        ) from error
