"""Fixtures of the stream tests."""

from tests.stream.links import address, everything_ends, parted, stranger
from tests.stream.supervised import interrupts, supervisor

__all__ = ["address", "everything_ends", "interrupts", "parted", "stranger", "supervisor"]
