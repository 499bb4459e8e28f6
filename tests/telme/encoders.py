"""Small encoders with random weights in folders, as `--init` and its kin take them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from tests.bundles import tiny_config, tiny_tokenizer
from tests.telme import tiny


def make_encoders(folder: Path) -> Path:
    """Write `text`, `audio` and `video` and return the folder."""
    torch.manual_seed(5)
    tokenizer = tiny_tokenizer()
    settings = dict(tiny_config(len(tokenizer)).text_config or {})
    settings.pop("model_type")
    BertModel(BertConfig(**settings)).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    for name, given in (("audio", tiny.AUDIO), ("video", tiny.VIDEO)):
        rest = {**given, "hidden_size": 768}
        config = AutoConfig.for_model(rest.pop("model_type"), **rest)
        AutoModel.from_config(config).save_pretrained(folder / name)  # type: ignore[no-untyped-call]
    return folder
