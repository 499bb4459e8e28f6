"""Several channels that are copies of one: then one is heard, or everything would be said twice."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from stream.items import Pcm

_LOG = logging.getLogger(__name__)
_AUDIBLE = 32_768 / 1000  # RMS: -60 dBFS
# Of the loudest channel. Lossy codecs make copies differ: AAC at 64 kbit/s by up to 0.25, others by less than 0.07.
_DIFFERENT = 0.5


class Channels:
    """Passes on the channels that are to be heard: all, or the first where the others are copies of it.

    A sound server makes two channels of one, and recorders do. Which it is shows with the first audible sound; until
    then the first is heard, since a channel that is given up could leave an utterance open. Channels that once differed
    are heard apart from there on.

    Args:
        source: Whose channels they are, for messages.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._are_copies: bool | None = None  # None before there is any audible sound

    def heard(self, pcm: Pcm) -> Pcm:
        """The channels of [channels, S] that are to be heard, in order."""
        if len(pcm) > 1 and self._are_copies is not False:
            self._compare(pcm.astype(np.float32))
        return pcm if self._are_copies is False else pcm[:1]

    def _compare(self, sound: NDArray[np.float32]) -> None:
        level = _loudest(sound)
        if level < _AUDIBLE:
            return
        are_copies = _loudest(sound - sound[0]) < _DIFFERENT * level
        if are_copies and self._are_copies is None:
            _LOG.warning("%s gives the same sound on all channels; one is heard", self._source)
        elif self._are_copies and not are_copies:
            _LOG.warning("the channels of %s differ by now; each is heard", self._source)
        self._are_copies = are_copies


def _loudest(sound: NDArray[np.float32]) -> float:
    """RMS of the loudest channel."""
    return float(np.sqrt(np.square(sound).mean(axis=1)).max())
