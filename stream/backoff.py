"""How long to wait before a lost device is opened again. No clock, no thread."""

from __future__ import annotations

UNSTEADY_S = (0.5, 1.0, 2.0, 4.0, 8.0)
STEADY_S = 5.0


class BackOff:
    """Waits before each attempt to open a device again.

    One that is away is asked for each second: it may be plugged in at any time, and asking is cheap. One that comes and
    goes is another matter: each time it is there for a moment is two events that are kept. It waits longer and longer,
    until it has once been steady.

    Args:
        away_s: Waits after a loss and after each attempt that brought nothing; the last one repeats.
        unsteady_s: Waits after each opening that was not steady; the last one repeats.
        steady_s: An opening that gave pictures or sound for so long was steady.
    """

    def __init__(self, away_s: tuple[float, ...], unsteady_s: tuple[float, ...], steady_s: float) -> None:
        self._away_s = away_s
        self._unsteady_s = unsteady_s
        self._steady_s = steady_s
        self._failures = 0
        self._unsteady = 0

    def after(self, given_s: float | None) -> float:
        """The seconds to wait after an opening has ended.

        Args:
            given_s: How long it gave pictures or sound; None: it gave nothing.
        """
        if given_s is None:
            self._failures += 1
            return self._away_s[min(self._failures, len(self._away_s) - 1)]
        self._failures = 0
        if given_s >= self._steady_s:
            self._unsteady = 0
            return self._away_s[0]
        self._unsteady += 1
        return self._unsteady_s[min(self._unsteady, len(self._unsteady_s)) - 1]
