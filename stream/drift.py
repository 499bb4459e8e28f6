"""How fast a sound card's clock runs against the system's: a regression over the last minutes. Integers only."""

from __future__ import annotations

from collections import deque

from stream.items import SAMPLE_RATE_HZ

_POINTS = 300  # one a second
_UNSETTLED_S = 12  # the first seconds of a device are forgotten: its latency is not known yet
_LEAST_POINTS_TO_FOLLOW = 10
_LEAST_POINTS_TO_REPORT = 60
# Nanoseconds of lateness per sample at 16 kHz -> parts per million.
_PPM_PER_NS = 16


class DriftMeter:
    """Fits how late samples are, against a card that keeps 16 kHz exactly, as a line over the sample's number.

    A stamp is taken when the system gets to it: late by milliseconds, or more on a busy machine, and never early. So
    each second becomes one point, its least late stamp.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[int, int]] = deque(maxlen=_POINTS)  # sample, lateness in ns
        self.restart()

    def restart(self) -> None:
        """Forget: another device, or the same one opened anew."""
        self._points.clear()
        self._least: tuple[int, int] | None = None  # of the second that runs
        self._second_sample = 0
        self._unsettled_s = _UNSETTLED_S
        self._centre = (0, 0)
        self._slope = (0, 1)  # ns per sample, as a fraction

    def observe(self, sample: int, late_ns: int) -> int:
        """Take one block's lateness; return the line's there, in ns.

        Args:
            sample: The block's first sample.
            late_ns: Its stamp against that of a card without drift.
        """
        if self._least is None or late_ns < self._least[1]:
            self._least = (sample, late_ns)
        if not self._points:
            self._centre = self._least
        if sample - self._second_sample >= SAMPLE_RATE_HZ:
            self._end_second(sample)
        rise, run = self._slope
        return self._centre[1] + rise * (sample - self._centre[0]) // run

    @property
    def fast_ppm(self) -> int | None:
        """How much faster than the system's clock the card runs, in parts per million; None before a minute is over."""
        if len(self._points) < _LEAST_POINTS_TO_REPORT:
            return None
        rise, run = self._slope
        return -round(rise * _PPM_PER_NS / run)

    def _end_second(self, sample: int) -> None:
        if self._unsettled_s:
            self._unsettled_s -= 1
            self._points.clear()
        if self._least is not None:
            self._points.append(self._least)
        self._least, self._second_sample = None, sample
        self._fit()

    def _fit(self) -> None:
        count = len(self._points)
        self._centre = (x0, y0) = (sum(x for x, _ in self._points) // count, sum(y for _, y in self._points) // count)
        if count >= _LEAST_POINTS_TO_FOLLOW:
            rise = sum((x - x0) * (y - y0) for x, y in self._points)
            self._slope = (rise, sum((x - x0) ** 2 for x, _ in self._points))
