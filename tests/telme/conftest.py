"""Fixtures for the tests of the model and its training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.telme.authors import Shelf
from tests.telme.trainings import trained

__all__ = ["trained"]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Training on one thread of torch.

    Sums depend on the number of threads in their last digits, and other tests change it in this process. Networks this
    small take many times as long on two threads where the cores are busy: each waits for the other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("authors"))


@pytest.fixture
def authors(shelf: Shelf, tmp_path: Path) -> Path:
    """MELD's files in a folder of links; a file must be removed before another is written in its place."""
    return Path(shutil.copytree(shelf.authors["meld"], tmp_path / "authors", copy_function=os.link))
