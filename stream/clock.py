"""Samples <-> nanoseconds. Integers only: float seconds never accumulate."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

from stream.items import SAMPLE_RATE_HZ, AudioBlock
from telme.errors import SourceError

_NS_PER_S = 1_000_000_000


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

    Every block brings its own stamp, so that a sound card whose clock drifts against the system's is followed.

    Args:
        keep_samples: How far back to remember.
    """

    def __init__(self, keep_samples: int) -> None:
        self._keep = keep_samples
        self._blocks: deque[tuple[int, int, int, int]] = deque()  # first sample, end, captured_ns, arrived_ns

    def observe(self, block: AudioBlock) -> None:
        """Remember a block's stamps and forget those too old."""
        end = block.first_sample + len(block.pcm)
        self._blocks.append((block.first_sample, end, block.captured_ns, block.arrived_ns))
        while self._blocks[0][1] < end - self._keep:
            self._blocks.popleft()

    def captured_ns(self, sample: int) -> int:
        """When a sample was in the air. One past the newest sample is allowed."""
        first, _, captured, _ = self._find(sample)
        return captured + samples_to_ns(sample - first)

    def heard_ns(self, end: int) -> int:
        """When the sample before `end` could first be known here.

        That is the end of its capture, or its arrival where a replay outruns the clock.
        """
        first, _, captured, arrived = self._find(end - 1)
        return min(captured + samples_to_ns(end - first), arrived)

    def _find(self, sample: int) -> tuple[int, int, int, int]:
        for block in reversed(self._blocks):
            if block[0] <= sample <= block[1]:
                return block
        raise SourceError(
            f"sample {sample} is not among those of the last {self._keep}", "a recent sample", "report this as a bug"
        )
