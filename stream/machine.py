"""Facts of this machine."""

from __future__ import annotations

import uuid
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def clock_id() -> str:
    """Names the monotonic clock: equal in two processes exactly when their monotonic times can be compared."""
    if _BOOT_ID.is_file():
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return f"node-{uuid.getnode():x}"
