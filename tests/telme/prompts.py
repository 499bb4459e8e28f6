"""Made-up published prompts, and MELD's where its files are at hand."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from telme.data import Row, read_rows
from telme.dialogue import DialogueWindow, Turn
from telme.modes import PUBLISHED_MELD, Mode

REPOSITORY = Path(__file__).parents[2]
MELD_DIR = Path(os.environ.get("TELME_MELD", REPOSITORY.parent / "shared" / "meld"))
GPT2_DIR = Path(os.environ.get("TELME_GPT2", REPOSITORY.parent / "shared" / "tokenizer" / "gpt2"))
MELD_DEV = MELD_DIR / "dev_meld_emo.csv"
NO_MELD = f"MELD's annotations are not at {MELD_DIR}; name their folder in TELME_MELD"
NO_GPT2 = f"GPT-2's vocab.json and merges.txt are not at {GPT2_DIR}; name their folder in TELME_GPT2"

ALL_TURNS = 10_000
_NAMES = [f"person {number}" for number in range(12)]
_WORDS = [
    "well",
    "you",
    "know",
    "i",
    "really",
    "think",
    "that",
    "we",
    "should",
    "not",
    "go",
    "there",
    "again",
    "tomorrow",
    "because",
    "it\x92s",
    "raining",
    "outside",
    "don't\ndoin\x92",
    "Oh",
    "What?!",
    "No!",
    "hey,",
    "...",
    "café",
    "naïve",
    "3:30",
    "$5",
    "co-worker",
    "\x91em",
    "wait\x97what",
    "uhh\x85",
    "—",
    "yeah\x85",
    '"fine"',
    "(laughs)",
    "O.K.",
    "日本\ni’m",  # noqa: RUF001 - such characters are the point
    "[noise]",
    "😀",
    "a\xa0b",
    "<s10>",
    "&amp;",
    "feels",
    "Now",
]


def speaker_numbers(window: DialogueWindow) -> tuple[int, ...]:
    """The speaker number of each turn in the prompt, without the last, which is asked about."""
    return tuple(int(number) for number in re.findall(r"<s(\d+)>", window.prompt("</s>"))[:-1])


def prompts_of(rows: Iterable[tuple[str, Turn]], mode: Mode = PUBLISHED_MELD) -> list[str]:
    """The prompt of every (dialogue, turn) in file order."""
    window = DialogueWindow(ALL_TURNS, mode)
    made = []
    for _, dialogue in groupby(rows, key=lambda row: row[0]):
        window = window.next_dialogue()
        for _, turn in dialogue:
            window.append(turn)
            made.append(window.prompt("</s>"))
    return made


def meld_dev_prompts() -> list[str]:
    """Published prompts of all rows of MELD's dev split."""
    rows: list[Row] = read_rows(MELD_DEV)
    return prompts_of((row.dialogue, row.turn) for row in rows)


def made_up_prompts(count: int = 1000) -> list[str]:
    """Published prompts of dialogues of random words, with every kind of blank and punctuation; always the same."""
    chance = random.Random(4272)
    rows: list[tuple[str, Turn]] = []
    while len(rows) < count:
        cast = chance.sample(_NAMES, chance.randint(1, 12))
        dialogue = str(len(rows))
        rows += [(dialogue, Turn(chance.choice(cast), _sentence(chance))) for _ in range(chance.randint(1, 24))]
    return prompts_of(rows[:count])


def _sentence(chance: random.Random) -> str:
    words = chance.choices(_WORDS, k=chance.randint(1, 14))
    return chance.choice(["", "", " ", "\x85"]) + chance.choice([" ", " ", "  "]).join(words) + chance.choice(["", " "])
