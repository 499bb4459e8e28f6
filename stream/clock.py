"""Samples <-> nanoseconds. Integers only: float seconds never accumulate."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

from stream.drift import DriftMeter
from stream.items import SAMPLE_RATE_HZ, AudioBlock
from telme.errors import SourceError

_NS_PER_S = 1_000_000_000
_REOPENED_SAMPLES = SAMPLE_RATE_HZ  # a gap of a second or more: the device may be another one
_HALT_NS = 500_000_000  # stamps that jump so far ahead are believed at once
_SLEW = 20  # otherwise a block moves against the one before it by at most a 20th of its length


def samples_to_ns(samples: int) -> int:
    """Length of so many samples at 16 kHz; exact, since 1e9 / 16000 is an integer."""
    return samples * (_NS_PER_S // SAMPLE_RATE_HZ)


def ms_to_samples(duration_ms: int) -> int:
    """Samples at 16 kHz in so many milliseconds."""
    return duration_ms * SAMPLE_RATE_HZ // 1000


def iso_utc(wall_ns: int) -> str:
    """Wall-clock nanoseconds since 1970 as ISO 8601 in UTC with microseconds."""
    seconds, rest = divmod(wall_ns, _NS_PER_S)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class SampleClock:
    """When each recent sample was captured, from the stamps of the blocks that carried them.

    A sound card's clock drifts against the system's by up to a few hundred parts per million, most of a second in an
    hour, and single stamps jitter. So the stamps are not believed one by one: session time follows a line through
    those of the last minutes, and never runs backwards. Pictures are stamped by the system's clock; `captured_ns` and
    `session_ns` are of the same time, so that sound and pictures stay together.

    Args:
        keep_samples: How far back to remember.
    """

    def __init__(self, keep_samples: int) -> None:
        self._keep = keep_samples
        self._blocks: deque[tuple[int, int, int, int]] = deque()  # first sample, end, session_ns, arrived_ns
        self._drift = DriftMeter()
        self._origin_ns: int | None = None  # when sample 0 was captured, or would have been
        self._late_ns = 0  # of the newest block, against a card that keeps 16 kHz exactly

    def observe(self, block: AudioBlock) -> None:
        """Remember a block's stamps and forget those too old."""
        nominal_ns = samples_to_ns(block.first_sample)
        end = block.first_sample + len(block.pcm)
        if self._origin_ns is None:
            self._origin_ns = block.captured_ns - nominal_ns
        elif block.first_sample - self._blocks[-1][1] > _REOPENED_SAMPLES:
            self._drift.restart()
        self._late_ns = self._follow(block, block.captured_ns - self._origin_ns - nominal_ns)
        self._blocks.append((block.first_sample, end, nominal_ns + self._late_ns, block.arrived_ns))
        while self._blocks[0][1] < end - self._keep:
            self._blocks.popleft()

    def __len__(self) -> int:
        """Blocks remembered."""
        return len(self._blocks)

    @property
    def fast_ppm(self) -> int | None:
        """How much faster than the system's clock the sound card runs; None before it is known."""
        return self._drift.fast_ppm

    @property
    def started_ns(self) -> int:
        """When sample 0 was captured, or would have been."""
        return self._origin()

    def session_ns(self, sample: int) -> int:
        """Nanoseconds by the system's clock from sample 0 to this one. One past the newest sample is allowed."""
        first, _, session, _ = self._find(sample)
        return session + samples_to_ns(sample - first)

    def captured_ns(self, sample: int) -> int:
        """When a sample was in the air. One past the newest sample is allowed."""
        return self._origin() + self.session_ns(sample)

    def heard_ns(self, end: int) -> int:
        """When the sample before `end` could first be known here.

        That is the end of its capture, or its arrival where a replay outruns the clock.
        """
        first, _, session, arrived = self._find(end - 1)
        return min(self._origin() + session + samples_to_ns(end - first), arrived)

    def _follow(self, block: AudioBlock, late_ns: int) -> int:
        if late_ns - self._late_ns > _HALT_NS:
            self._drift.restart()
            return self._drift.observe(block.first_sample, late_ns)
        wanted_ns = self._drift.observe(block.first_sample, late_ns) - self._late_ns
        limit_ns = samples_to_ns(len(block.pcm)) // _SLEW
        return self._late_ns + min(max(wanted_ns, -limit_ns), limit_ns)

    def _origin(self) -> int:
        return self._origin_ns or 0

    def _find(self, sample: int) -> tuple[int, int, int, int]:
        for block in reversed(self._blocks):
            if block[0] <= sample <= block[1]:
                return block
        raise SourceError(
            f"sample {sample} is not among those of the last {self._keep}", "a recent sample", "report this as a bug"
        )
