"""Blanks around speaker tokens, as old and new tokenizers treat them.

Up to transformers 4.33 the Python tokenizer of RoBERTa strips the blanks on both sides of a token that was added as a
plain string, such as `<s2>`, and keeps those around `</s>`. So "<s2> feels" was read as `<s2>`, `fe`, `els`, and the
published weights were trained on that. Later versions keep all blanks.
"""

from __future__ import annotations

import re

from telme.dialogue import SPEAKER_TOKENS
from telme.modes import Mode

_SPEAKER = re.compile("(" + "|".join(map(re.escape, SPEAKER_TOKENS)) + ")")


def prompt_for_tokenizer(prompt: str, mode: Mode) -> str:
    """The prompt to hand to a present-day tokenizer so that it gives the token ids of the mode.

    Args:
        prompt: As `DialogueWindow.prompt` renders it.
        mode: Gives `tokenizer_blanks`.
    """
    if mode.tokenizer_blanks == "keep":
        return prompt
    # Odd pieces are speaker tokens, and every even piece but the outer two touches one on each side.
    pieces = _SPEAKER.split(prompt)
    last = len(pieces) - 1
    for index in range(0, len(pieces), 2):
        if index > 0:
            pieces[index] = pieces[index].lstrip()
        if index < last:
            pieces[index] = pieces[index].rstrip()
    return "".join(pieces)
