"""Several channels that are copies of one: then one is heard, or everything would be said twice."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from stream.items import SAMPLE_RATE_HZ, Pcm

_LOG = logging.getLogger(__name__)
# Of the loudest channel. Lossy codecs make copies differ: AAC at 64 kbit/s by up to 0.29 over 300 ms, in single quiet
# blocks by 0.69, others by less than 0.07.
_DIFFERENT = 0.5
_MEMORY_SAMPLES = 300 * SAMPLE_RATE_HZ // 1000
# So much must have been heard before it is settled: 30 ms of -45 dBFS, 300 ms of -55 dBFS.
_ENOUGH = (32_768 * 10 ** (-45 / 20)) ** 2 * 30 * SAMPLE_RATE_HZ / 1000


class Channels:
    """Passes on the channels that are to be heard: all, or the first where the others are copies of it.

    A sound server makes two channels of one, and recorders do. Which it is shows with the first audible sound and is
    settled by the first that is loud enough; what is quieter, which may be speech, goes by how it looks. Channels that
    once differed are heard apart from there on.

    Args:
        source: Whose channels they are, for messages.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._are_copies = False
        self._is_settled = False
        # Energies of late: of the loudest channel, and of what is not as in the first.
        self._sound = self._difference = 0.0

    def heard(self, pcm: Pcm) -> Pcm:
        """The channels of [channels, S] that are to be heard, in order."""
        if len(pcm) > 1 and (self._are_copies or not self._is_settled):
            self._compare(pcm.astype(np.float32))
        return pcm[:1] if self._are_copies else pcm

    def _compare(self, sound: NDArray[np.float32]) -> None:
        kept = math.exp(-sound.shape[1] / _MEMORY_SAMPLES)
        self._sound = kept * self._sound + _most_energy(sound)
        self._difference = kept * self._difference + _most_energy(sound - sound[0])
        are_copies = self._difference < _DIFFERENT**2 * self._sound
        if self._sound < _ENOUGH:
            self._are_copies = self._are_copies if self._is_settled else are_copies
            return
        if are_copies and not self._is_settled:
            _LOG.warning("%s gives the same sound on all channels; one is heard", self._source)
        elif self._is_settled and not are_copies:
            _LOG.warning("the channels of %s differ by now; each is heard", self._source)
        self._are_copies, self._is_settled = are_copies, True


def _most_energy(sound: NDArray[np.float32]) -> float:
    """Of [channels, S], that of the channel with most."""
    return float(np.square(sound).sum(axis=1).max())
