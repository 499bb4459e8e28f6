"""The rolling dialogue context and the prompt that TelME's text teacher reads.

Prompt (paper section 3.1, published code): `<s1> text <s2> text ... </s> Now <sK> feels` and a mask token, where K is
the number of the last turn. In clean mode numbers are given in order of appearance and stay with their speaker. The
published code numbers the first line of a dialogue against the speakers of the dialogue before, then starts again at
the second line, so that one speaker may carry two numbers and two speakers one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from telme.errors import FeatureError
from telme.modes import CLEAN, Mode

MAX_SPEAKERS = 9
SPEAKER_TOKENS = tuple(f"<s{number}>" for number in range(1, MAX_SPEAKERS + 1))

# Windows-1252 characters that MELD's files carry as C1 controls (in 27 % of the rows), beside their Unicode forms.
_ASCII = str.maketrans(
    {
        "\x85": "...",
        "\x91": "'",
        "\x92": "'",
        "\x93": '"',
        "\x94": '"',
        "\x96": "-",
        "\x97": "-",
        "\u2013": "-",
        "\u2014": "-",
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2026": "...",
    }
)
# A transcript must not be able to write a speaker, separator or mask token, of RoBERTa's kind or of BERT's. MELD's
# files hold no angle brackets, so that published prompts stay what they were; square ones mean nothing to RoBERTa.
_ANGLES = str.maketrans({"<": " ", ">": " "})
_SQUARES = str.maketrans({"[": "(", "]": ")"})
_SPACES = re.compile(r"\s+")
_UTTERANCE_NAME = re.compile(r"Ses\d+[FM]_\w+_(?P<actor>[FM])\w*\d+")
_INNER_APOSTROPHE = re.compile(r"(?<=\w)['\u2019](?=\w)")


def clean_text(text: str) -> str:
    """One utterance as the clean mode reads it: ASCII punctuation, single blanks, no marker characters."""
    return _SPACES.sub(" ", text.translate(_ASCII).translate(_ANGLES).translate(_SQUARES)).strip()


def heard_text(text: str, mode: Mode = CLEAN) -> str:
    """A speech recognizer's words, written as the mode's training data were.

    MELD's files write U+0092 for most apostrophes inside words and recognizers write ASCII, so for weights that were
    trained on the files as they are (`apostrophes == "windows1252"`) those are changed. Annotations are never passed
    through here: they are what the mode's weights have read.
    """
    return _INNER_APOSTROPHE.sub("\x92", text) if mode.apostrophes == "windows1252" else text


def speaker_of(column: str, mode: Mode = CLEAN) -> str:
    """Who speaks, from the speaker column of an annotation file.

    IEMOCAP's column is the utterance's own name, such as `Ses01F_impro01_M003`: the published code takes each for a
    new speaker, and clean mode takes the letter of the last part, which is the actor. Other names stay as they are.
    """
    named = _UTTERANCE_NAME.fullmatch(column)
    return named["actor"] if named and mode.speaker_names == "person" else column


@dataclass(frozen=True)
class Turn:
    """One utterance of a dialogue.

    Attributes:
        speaker: Name or id of who spoke; equal names are one speaker.
        text: What was said; not empty.
    """

    speaker: str
    text: str


class DialogueWindow:
    """The last turns of one dialogue, with their speakers' numbers.

    In clean mode at most `max_turns` turns and nine distinct speakers are kept, older turns are evicted, and a tenth
    speaker takes the number of one whose turns have all been evicted. Published numbering knows no such limit: past
    nine, `<s10>` is plain text to the tokenizer, and only `max_turns` evicts.

    Args:
        max_turns: Turns kept, the current one included; at least 1. MELD has hardly taught more than 24.
        mode: Gives the numbering and the apostrophes.
    """

    def __init__(self, max_turns: int = 24, mode: Mode = CLEAN) -> None:
        if max_turns < 1:
            raise FeatureError(f"max_turns {max_turns}", "at least 1", "set dialogue.max_turns")
        self._max_turns = max_turns
        self._mode = mode
        self._turns: list[Turn] = []
        self._turn_numbers: list[int] = []
        self._numbers: dict[str, int] = {}
        # Published numbering: the next turn is the first after another dialogue, whose speakers still count for it.
        self._restart = False

    @classmethod
    def of(cls, turns: Iterable[Turn], max_turns: int = 24, mode: Mode = CLEAN) -> DialogueWindow:
        """A window that has heard `turns`, in order."""
        window = cls(max_turns, mode)
        for turn in turns:
            window.append(turn)
        return window

    def next_dialogue(self) -> DialogueWindow:
        """An empty window for the dialogue that follows this one.

        Published numbering carries this dialogue's speakers over; in clean mode nothing is carried.
        """
        window = DialogueWindow(self._max_turns, self._mode)
        if self._mode.speaker_numbering == "published":
            window._numbers = dict(self._numbers)
            window._restart = self._restart or bool(self._turns)
        return window

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns in the window, oldest first, with their text as the prompt has it."""
        return tuple(self._turns)

    def append(self, turn: Turn) -> None:
        """Add the newest turn and evict what no longer fits.

        Raises:
            FeatureError: The text is empty once cleaned.
        """
        text = clean_text(turn.text) if self._mode.apostrophes == "ascii" else turn.text.translate(_ANGLES)
        if not text.strip():
            raise FeatureError(
                f"a turn of {turn.speaker!r} with text {turn.text!r}", "words", "reject it before the dialogue"
            )
        self._turns.append(Turn(turn.speaker, text))
        del self._turns[: -self._max_turns]
        if self._mode.speaker_numbering == "published":
            number = self._published_number(turn.speaker)
        else:
            number = self._clean_number(turn.speaker)
        self._turn_numbers.append(number)
        del self._turn_numbers[: -len(self._turns)]

    def _clean_number(self, speaker: str) -> int:
        while len({kept.speaker for kept in self._turns}) > MAX_SPEAKERS:
            del self._turns[0]
        if speaker not in self._numbers:
            self._numbers[speaker] = self._free_number()
        return self._numbers[speaker]

    def _free_number(self) -> int:
        if len(self._numbers) < MAX_SPEAKERS:
            return len(self._numbers) + 1
        present = {turn.speaker for turn in self._turns}
        gone = next(speaker for speaker in self._numbers if speaker not in present)
        return self._numbers.pop(gone)

    def _published_number(self, speaker: str) -> int:
        number = self._numbers.setdefault(speaker, len(self._numbers) + 1)
        if self._restart:
            self._numbers.clear()
            self._restart = False
        return number

    def prompt(self, separator: str) -> str:
        """The prompt without its mask token.

        Args:
            separator: The tokenizer's separator token, `</s>` for RoBERTa.

        Raises:
            FeatureError: The window is empty.
        """
        if not self._turns:
            raise FeatureError(
                "an empty dialogue", "at least one turn", "append the utterance before the prompt is made"
            )
        numbered = zip(self._turn_numbers, self._turns, strict=True)
        heard = " ".join(f"<s{number}> {turn.text}" for number, turn in numbered)
        return f"{heard} {separator} Now <s{self._turn_numbers[-1]}> feels"
