"""Facts of this machine and names for what runs on it."""

from __future__ import annotations

import os
import secrets
import uuid
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def clock_id() -> str:
    """Names the monotonic clock: equal in two processes exactly when their monotonic times can be compared."""
    if _BOOT_ID.is_file():
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return f"node-{uuid.getnode():x}"


def stop_telemetry() -> None:
    """Keep ONNX Runtime from reporting to its makers; before its first import.

    Its release builds send events over HTTPS unless this variable is set (Privacy.md in its wheel). What listens to
    conversations sends nothing that it was not asked to send.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def new_session_id() -> str:
    """Names one run of a capture process; for instance 20261122-134455-1f2e.

    A process that is started again counts utterances and samples anew, so it is another session.
    """
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
