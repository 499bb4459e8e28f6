"""Fixtures of the stream tests."""

from tests.stream.links import address, everything_ends, parted, stranger

__all__ = ["address", "everything_ends", "parted", "stranger"]
