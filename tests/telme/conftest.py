"""Fixtures for the tests of the model and its training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


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
