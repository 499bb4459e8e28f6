"""Fixtures of the stream tests."""

from tests.stream.hearing import conversation, level_detector
from tests.stream.links import address, everything_ends, parted, stranger
from tests.stream.supervised import interrupts, supervisor

__all__ = [
    "address",
    "conversation",
    "everything_ends",
    "interrupts",
    "level_detector",
    "parted",
    "stranger",
    "supervisor",
]
