"""Facts of this machine and names for what runs on it."""

from __future__ import annotations

import ctypes
import os
import secrets
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

from telme.errors import JournalError

# Of glibc; other C libraries lack them, or do nothing.
_LIBC = ctypes.CDLL(None) if os.name == "posix" else None
_MALLOC_TRIM = getattr(_LIBC, "malloc_trim", None)
_MALLOPT = getattr(_LIBC, "mallopt", None)
_M_ARENA_MAX = -8  # malloc.h
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def clock_id() -> str:
    """Names the monotonic clock: equal in two processes exactly when their monotonic times can be compared."""
    if _BOOT_ID.is_file():
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return f"node-{uuid.getnode():x}"


def wall_ahead_ns() -> int:
    """How far the wall clock is ahead of the monotonic one now: it may be set, and goes on while the machine sleeps."""
    return time.time_ns() - time.monotonic_ns()


def slept_ns() -> int:
    """How long the machine has slept since it was started, while its monotonic clock stood still; 0 where unknown."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def runs_folder() -> str:
    """Where a run's private folder is made: the user's runtime folder, or where temporary files go."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return runtime if runtime and os.access(runtime, os.W_OK) else tempfile.gettempdir()


def journal_folder(name: str) -> Path:
    """The folder that --journal names.

    Raises:
        JournalError: Its home is nobody's, or its name is no UTF-8, which the addresses of sockets in it are.
    """
    try:
        folder = Path(name).expanduser()
        str(folder).encode()
    except (RuntimeError, UnicodeEncodeError) as error:
        raise JournalError(
            f"folder {name!r}: {error}", "the home of a user that there is, and a name in UTF-8", "check --journal"
        ) from error
    return folder


def stop_telemetry() -> None:
    """Keep ONNX Runtime from reporting to its makers; before its first import.

    Its release builds send events over HTTPS unless this variable is set (Privacy.md in its wheel). What listens to
    conversations sends nothing that it was not asked to send.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def keep_no_caches() -> None:
    """Let oneDNN keep 16 prepared kernels instead of 1024 and MKL no buffers; before their first use in this process.

    Whisper's decoder asks oneDNN for another kernel with each word and each length of window, and MKL keeps for each
    thread a buffer of the largest product so far, so that the recognizer's memory grew for hours. Doing without costs
    no time that can be measured (bench/LOG.md).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")


def keep_one_heap() -> None:
    """Let all threads share glibc's first heap; before any of them is started. Elsewhere this does nothing.

    Otherwise each has its own, and of such `give_back_memory` cannot give back what is free at the end: up to 20 MB of
    the recognizer's, now more and now less. One heap for all costs no time that can be measured (bench/LOG.md).
    """
    if _MALLOPT is not None:
        _MALLOPT(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Give freed memory back to the system, where the C library is glibc; elsewhere this does nothing.

    glibc keeps what is freed between blocks that are still used, and each thread's apart. Recognizers free a great deal
    in pieces of all sizes, so what is kept creeps up for hours. Takes 1 ms, and 3 ms of the next transcription
    (bench/LOG.md).
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


def new_session_id() -> str:
    """Names one run of a capture process; for instance 20261122-134455-1f2e.

    A process that is started again counts utterances and samples anew, so it is another session.
    """
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
