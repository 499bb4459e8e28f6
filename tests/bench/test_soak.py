"""The slope that says whether memory grows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bench.soak import resident_bytes, slope

SECONDS = np.arange(0, 60, 0.25)


def test_a_leak_is_a_slope_and_a_filled_cache_is_none() -> None:
    leak = 1_000.0 + 5 * SECONDS
    assert slope(SECONDS.tolist(), leak.tolist()) == pytest.approx(5 * 59.75)
    cache = np.minimum(SECONDS, 9.0) * 100
    assert slope(SECONDS.tolist(), cache.tolist()) == pytest.approx(0)


def test_what_waits_at_the_end_hides_no_leak() -> None:
    leak = 1_000.0 + 5 * SECONDS
    worked_off = leak - 500 * (SECONDS > 58)
    assert slope(SECONDS.tolist(), worked_off.tolist()) == pytest.approx(5 * 59.75)


def test_what_is_given_back_is_none_and_hides_no_leak() -> None:
    peaks = np.where(np.arange(len(SECONDS)) % 7 == 0, 10_000.0, 0.0) * (SECONDS > 40)
    assert slope(SECONDS.tolist(), (1_000.0 + peaks).tolist()) == pytest.approx(0)
    leak = 1_000.0 + 5 * SECONDS
    assert slope(SECONDS.tolist(), (leak + peaks).tolist()) == pytest.approx(5 * 59.75, rel=0.05)


def test_the_memory_of_a_process_is_what_the_system_says() -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    said_kib = [
        sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(names))
        for names in (("VmRSS",), ("RssFile", "RssShmem"))
    ]
    assert resident_bytes(os.getpid()) == pytest.approx([kib * 1024 for kib in said_kib], rel=0.1)
