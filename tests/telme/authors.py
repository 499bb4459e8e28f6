"""The authors' checkpoints at toy size, and what it takes to import them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from telme.backbones import Backbones
from telme.errors import BundleError
from telme.importer import import_published
from tests.telme.checkpoints import make_checkpoint, toy_backbones, toy_tokenizer_files


class Shelf:
    """Toy checkpoints of both data sets, and a tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = folder / "tokenizer"
        self.backbones: Backbones = toy_backbones(toy_tokenizer_files(self.tokenizer))
        self.authors = {dataset: folder / dataset for dataset in ("meld", "iemocap")}
        for dataset, place in self.authors.items():
            make_checkpoint(place, dataset, self.backbones)

    def imported(self, source: Path, out: Path, dataset: str = "meld") -> Path:
        import_published(source, dataset, out, self.tokenizer, backbones=self.backbones)
        return out


def put(path: Path, content: object, zipped: bool = True) -> None:
    """Save in the place of a link."""
    path.unlink()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def put_bytes(path: Path, content: bytes) -> None:
    """Write in the place of a link."""
    path.unlink()
    path.write_bytes(content)


def refused(shelf: Shelf, source: Path, tmp_path: Path, says: str) -> None:
    """It is refused in one line, and leaves nothing behind."""
    out = tmp_path / "made" / "bundle"
    with pytest.raises(BundleError, match=says) as caught:
        shelf.imported(source, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(out.parent.iterdir()) if out.parent.exists() else True
