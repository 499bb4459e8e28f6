"""Silero's network (MIT, the ONNX file inside faster-whisper): how likely each 32 ms of sound hold speech.

It is recurrent: the state at the end of one chunk is an input of the next. The same samples give the same figures,
whether they come one chunk at a time or all at once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from faster_whisper.vad import get_vad_model
from numpy.typing import NDArray

from stream.items import Pcm
from stream.machine import stop_telemetry
from telme.errors import TranscriptionError

CHUNK_SAMPLES = 512
_CONTEXT_SAMPLES = 64  # of the chunk before, seen again
_STATE = (1, 1, 128)
_FULL_SCALE = 32768.0


class SileroStream:
    """Listens to one stream of sound.

    Raises:
        TranscriptionError: The network cannot be loaded.
    """

    def __init__(self) -> None:
        self._session = load()
        self._rest: NDArray[np.float32] = np.zeros(_CONTEXT_SAMPLES, np.float32)  # context, then what waits
        self._hidden = np.zeros(_STATE, np.float32)
        self._cell = np.zeros(_STATE, np.float32)
        self._newest = 0.0

    def __call__(self, pcm: Pcm) -> float:
        """Take the next samples.

        Args:
            pcm: int16 [S], 16 kHz.

        Returns:
            Probability of speech in the newest whole chunk, 0..1; 0 before there is one.
        """
        self._rest = np.concatenate((self._rest, pcm.astype(np.float32) / _FULL_SCALE))
        width = _CONTEXT_SAMPLES + CHUNK_SAMPLES
        while len(self._rest) >= width:
            probability, self._hidden, self._cell = self._session.run(
                None, {"input": self._rest[None, :width], "h": self._hidden, "c": self._cell}
            )
            self._newest = float(probability.reshape(-1)[0])
            self._rest = self._rest[CHUNK_SAMPLES:]
        return self._newest


def speech_probabilities(pcm: Pcm) -> NDArray[np.float32]:
    """Probability of speech in each whole chunk of a stretch of sound.

    Args:
        pcm: int16 [S], 16 kHz.

    Returns:
        float32 [S // 512], 0..1.

    Raises:
        TranscriptionError: The network cannot be loaded.
    """
    whole = len(pcm) - len(pcm) % CHUNK_SAMPLES
    if not whole:
        return np.zeros(0, np.float32)
    load()
    # A copy: faster-whisper blanks the last chunk's end in place.
    found: NDArray[np.float32] = get_vad_model()(pcm[:whole].astype(np.float32) / _FULL_SCALE).reshape(-1)
    return found


@cache
def load() -> Any:
    """The network as a session of ONNX Runtime, safe to run from any thread.

    Raises:
        TranscriptionError: It cannot be loaded.
    """
    stop_telemetry()
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile

    remedy = "install the pinned versions: pip install -c constraints.txt '.[capture]'"
    try:
        session = get_vad_model().session
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise TranscriptionError(
            f"Silero's network cannot be loaded: {str(error)[:200]}", "the file in faster-whisper", remedy
        ) from error
    if (inputs := [each.name for each in session.get_inputs()]) != ["input", "h", "c"]:
        raise TranscriptionError(
            f"Silero's network takes {', '.join(inputs)}", "input, h, c (faster-whisper 1.2)", remedy
        )
    return session
