"""Label sets, in the order of the published code; the order is that of the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from telme.errors import UsageError

Sentiment = Literal["negative", "neutral", "positive"]


@dataclass(frozen=True)
class LabelSet:
    """The classes of one data set.

    Attributes:
        dataset: Name of the data set, lower case.
        names: Class names in the order of the logits.
        sentiments: Sentiment of each class; None for a class that has no fixed one (surprise).
    """

    dataset: str
    names: tuple[str, ...]
    sentiments: tuple[Sentiment | None, ...]

    def index(self, name: str) -> int:
        """Position of a class name in the logits.

        Raises:
            UsageError: The name is not a class of this set.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise UsageError(
                f"label {name!r}", f"one of {', '.join(self.names)}", f"check that the data is {self.dataset}"
            ) from None

    def sentiment(self, name: str) -> Sentiment | None:
        """Sentiment that a class implies, or None where it implies none."""
        return self.sentiments[self.index(name)]


MELD = LabelSet(
    "meld",
    ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
    ("negative", "negative", "negative", "positive", "neutral", "negative", None),
)
IEMOCAP = LabelSet(
    "iemocap",
    ("ang", "exc", "fru", "hap", "neu", "sad"),
    ("negative", "positive", "negative", "positive", "neutral", "negative"),
)
LABEL_SETS = {labels.dataset: labels for labels in (MELD, IEMOCAP)}
