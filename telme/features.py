"""From turns to tensors: the only such path, used by training, evaluation and the live worker alike.

Shapes: B batch, T tokens. Pcm and frames join here with the students.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from telme.config import TelmeConfig
from telme.dialogue import SPEAKER_TOKENS, DialogueWindow
from telme.errors import FeatureError

MODALITIES = ("text", "audio", "video")


@dataclass(frozen=True)
class Features:
    """One utterance, ready for a Predictor.

    Attributes:
        prompt_ids: Token ids of the prompt, the mask token last.
        context_turns: Turns in the prompt, the current one included.
    """

    prompt_ids: tuple[int, ...]
    context_turns: int


class FeatureMaker:
    """Makes `Features` from a dialogue window.

    Args:
        tokenizer: The bundle's tokenizer, with `<s1>`..`<s9>`, a separator and a mask token.
        config: Gives the prompt's length.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TelmeConfig) -> None:
        known = tokenizer.get_vocab()
        lacking = [token for token in SPEAKER_TOKENS if token not in known]
        if lacking or tokenizer.mask_token_id is None or tokenizer.sep_token is None or tokenizer.pad_token_id is None:
            raise FeatureError(
                f"a tokenizer without {', '.join(lacking) or 'mask, separator or pad token'}",
                "<s1>..<s9>, mask, separator and pad tokens",
                "use the tokenizer that was saved with the bundle",
            )
        self._tokenizer = tokenizer
        self._separator: str = tokenizer.sep_token
        self._mask_id: int = tokenizer.mask_token_id
        self._pad_id: int = tokenizer.pad_token_id
        self._keep = config.max_prompt_tokens - 1

    def make(self, window: DialogueWindow) -> Features:
        """Features of the window's last turn."""
        prompt = window.prompt(self._separator)
        ids = self._tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return Features((*ids[-self._keep :], self._mask_id), len(window))

    def collate(self, batch: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Left-padded ids [B, T] and mask [B, T], both int64."""
        return collate_prompts([features.prompt_ids for features in batch], self._pad_id)


def collate_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-pad prompts to the longest of them: ids [B, T] and mask [B, T], both int64."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, width - len(prompt) :] = 1
    return ids, mask
