"""Fixtures for the tests of the backends."""

from __future__ import annotations

import pytest

from engines.store import Store
from telme.bundle import Bundle, load_bundle
from tests.bundles import make_full_bundle


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Shared, so that each graph is made once."""
    return Store(tmp_path_factory.mktemp("cache") / "engines")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Text, audio, video and fusion, tiny; in a published mode, whose fusion must be turned to rows."""
    return load_bundle(str(make_full_bundle(tmp_path_factory.mktemp("bundle"), mode="published-meld")))
