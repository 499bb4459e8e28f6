"""Checkpoints with the authors' file names, parameter names and shapes, and random weights.

python -m tests.telme.checkpoints --dataset meld --out FOLDER     full size: 2.3 GB, FOLDER/tokenizer and
                                                                  FOLDER/processors
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from telme.backbones import PUBLISHED_BACKBONES, Backbones, published_config
from telme.config import Part
from telme.modeling import TelmeModel
from telme.published import PARTS, differences, published_names
from tests.telme import tiny

BPE = Path(__file__).parents[1] / "golden" / "bpe"
SPEAKERS = 9
# The students' processors as their repositories have them.
PROCESSORS: Mapping[str, Mapping[str, object]] = {
    "data2vec-audio-base-960h": {
        "do_normalize": True,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16_000,
    },
    "videomae-base": {
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "VideoMAEFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "size": 224,
    },
}
ROBERTA_TOKENS = 50_265


def load_published(part: Part, weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Load a published checkpoint, of any floating type, into the network that it is of."""
    assert not differences(part, weights, module)
    names = published_names(part, weights, module.state_dict())
    module.load_state_dict({ours: weights[name].float() for name, ours in names.items()})


def toy_tokenizer_files(folder: Path, size: int = 0) -> int:
    """Write a tokenizer laid out as RoBERTa's, with a small vocabulary; returns its size without speakers.

    Args:
        folder: Where; made if need be.
        size: Fill it up to so many tokens.
    """
    known = json.loads((BPE / "vocab.json").read_text(encoding="utf-8"))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(known, key=known.__getitem__)]
    tokens += [*(f"madeupword{number}" for number in range(size - len(tokens) - 1)), "<mask>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_bytes((BPE / "merges.txt").read_bytes())
    return len(vocabulary)


def processor_files(folder: Path) -> Path:
    """Write the students' processors, each in a folder named as its repository, and return their folder."""
    for name, settings in PROCESSORS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def toy_backbones(tokens: int) -> Backbones:
    """Two or fewer layers each; the students' features must be 768 wide for the fusion.

    Args:
        tokens: Size of the vocabulary without speakers.
    """
    text = {**tiny.TEXT_FAMILIES["roberta"], "vocab_size": tokens + SPEAKERS, "max_position_embeddings": 514}
    return Backbones(
        text, {**tiny.AUDIO, "hidden_size": 768, "mask_time_prob": 0.0}, {**tiny.VIDEO, "hidden_size": 768}
    )


def make_checkpoint(folder: Path, dataset: str, backbones: Backbones = PUBLISHED_BACKBONES) -> None:
    """Write the four files."""
    torch.manual_seed(1)
    model = TelmeModel(published_config(dataset, backbones))
    for part, published in PARTS.items():
        network = model.network(part)
        assert network is not None
        path = folder / published.file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**network.state_dict(), **unused(part, network, backbones)}, path)


def unused(part: Part, network: nn.Module, backbones: Backbones) -> Mapping[str, Tensor]:
    """What the authors' files hold besides, which nothing reads."""
    if part == "text":
        width = backbones.text["hidden_size"]
        return {
            "text_model.embeddings.position_ids": torch.arange(backbones.text["max_position_embeddings"])[None],
            "text_model.pooler.dense.weight": torch.zeros(width, width),
            "text_model.pooler.dense.bias": torch.zeros(width),
        }
    return {"model.masked_spec_embed": torch.zeros(backbones.audio["hidden_size"])} if part == "audio" else {}


def pack(folder: Path, archive: Path, prefix: str = "TelME") -> None:
    """The folder as a gzipped tar archive."""
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        tar.add(folder, prefix)


def main() -> None:
    """Write a checkpoint at full size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="meld")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    make_checkpoint(options.out, options.dataset)
    toy_tokenizer_files(options.out / "tokenizer", ROBERTA_TOKENS)
    processor_files(options.out / "processors")


if __name__ == "__main__":
    main()
