"""A whole dialogue in one pass: its text once, and after it one question for each of its turns.

For weights with `TelmeConfig.turn_starts`, a token sees its own turn and those before it. So the states of a turn are
the same whatever follows, and the prompts of a dialogue differ only by their questions, `</s> Now <sK> feels <mask>`.
Packed, each question sees the turns up to its own and itself, at the positions that it has in its own prompt: the
logits are those of the prompts one by one, at a quarter of the tokens (MELD: 17 an utterance instead of 97).

Shapes: B packs, T tokens of the longest, N questions of all packs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import MPNetModel

from telme.models import EncoderOutput, TextTeacher, additive_mask

_Ids = tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """The text of the longest prompt, and the questions of all.

    Attributes:
        text: Token ids of the turns.
        questions: For each prompt, in order: how many tokens of the text it sees, and the ids of its question.
    """

    text: _Ids
    questions: tuple[tuple[int, _Ids], ...]


class PackedBatch(NamedTuple):
    """Tensors of some packs: ids, positions from 0 and turns [B, T], `seen` [B, T, T] bool, places of the masks [N]."""

    ids: Tensor
    positions: Tensor
    seen: Tensor
    masks: Tensor


def packs(prompts: Iterable[_Ids], separator: int) -> list[Pack]:
    """Pack prompts; one whose text does not go on where the one before ended begins a new pack.

    Args:
        prompts: Token ids, the mask token last, in the order of the dialogue.
        separator: Id of the token that begins the question.
    """
    made: list[Pack] = []
    for prompt in prompts:
        end = len(prompt) - 1 - prompt[::-1].index(separator)
        text, question = prompt[:end], (end, prompt[end:])
        if made and text[: len(made[-1].text)] == made[-1].text:
            made[-1] = Pack(text, (*made[-1].questions, question))
        else:
            made.append(Pack(text, (question,)))
    return made


def collate_packs(items: Sequence[Pack], starts: Sequence[int], pad_id: int) -> PackedBatch:
    """Pad packs on the right and say who sees whom.

    Args:
        items: The packs.
        starts: `TelmeConfig.turn_starts`.
        pad_id: Id of the padding token.
    """
    rows = [_columns(item, frozenset(starts)) for item in items]
    width = max(len(row) for row in rows)
    padding = (pad_id, 0, -1, -1, -1)
    table = torch.tensor([row + [padding] * (width - len(row)) for row in rows])  # [B, T, 5]
    ids, positions, turn, owner, end = table.unbind(2)
    # Text sees text of its turn and before it; a question sees the text it follows, and of itself as text does.
    text = owner < 0
    key_text = (text & (turn >= 0))[:, None, :]
    ordered = turn[:, None, :] <= turn[:, :, None]
    sees_text = key_text & torch.where(text[:, :, None], ordered, positions[:, None, :] < end[:, :, None])
    sees_own = ~text[:, :, None] & (owner[:, None, :] == owner[:, :, None]) & ordered
    places = [
        row * width + column
        for row, cells in enumerate(rows)
        for column, cell in enumerate(cells)
        if cell[3] >= 0 and (column + 1 == len(cells) or cells[column + 1][3] != cell[3])
    ]
    return PackedBatch(ids, positions, sees_text | sees_own, torch.tensor(places))


def _columns(item: Pack, starts: frozenset[int]) -> list[tuple[int, int, int, int, int]]:
    """For each token: its id, position, turn, question (-1: text) and, in a question, the end of the text it sees."""
    cells: list[tuple[int, int, int, int, int]] = []
    turn = 0
    for position, token in enumerate(item.text):
        turn += token in starts
        cells.append((token, position, turn, -1, -1))
    for owner, (end, question) in enumerate(item.questions):
        turn = 0
        for offset, token in enumerate(question):
            turn += token in starts
            cells.append((token, end + offset, turn, owner, end))
    return cells


def read_packs(teacher: TextTeacher, batch: PackedBatch) -> EncoderOutput:
    """Feature and logits of all questions, pack after pack, in the order of their prompts."""
    model = teacher.text_model
    mask = additive_mask(batch.seen, teacher.W.weight.dtype)
    if isinstance(model, MPNetModel):
        mask = mask + _bias_moved(model.encoder, batch.positions)
    hidden = model(
        input_ids=batch.ids, attention_mask=mask, position_ids=batch.positions + teacher.first_position
    ).last_hidden_state  # [B, T, H]
    return teacher.read(hidden.flatten(0, 1)[batch.masks])


def _bias_moved(encoder: Any, positions: Tensor) -> Tensor:
    """What turns MPNet's relative bias, which counts columns, into that of the positions: [B, heads, T, T].

    The bias itself is not trained through it.
    """
    columns = torch.arange(positions.shape[1], device=positions.device)
    with torch.no_grad():
        right, wrong = (
            encoder.relative_attention_bias(encoder.relative_position_bucket(of[:, None, :] - of[:, :, None]))
            for of in (positions, columns[None])
        )
        moved: Tensor = (right - wrong).permute(0, 3, 1, 2)
    return moved
