"""Waits that pass at once and are counted."""

from __future__ import annotations

from threading import Event


class Waits(Event):
    """In the place of the event that ends a device's waits: counts them and lets none take long."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_s: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked_s.append(timeout)
        return super().wait(0.001)
