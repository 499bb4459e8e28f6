"""Whisper on a window shorter than 30 s. The one file that goes below faster-whisper's `transcribe`.

Whisper was trained on windows of 30 s (Radford et al. 2022, section 2.2), and faster-whisper pads every call to that,
so that a sentence of 2 s costs what one of 20 s costs. CTranslate2's encoder takes shorter windows: here it gets the
utterance and a margin. That departs from the paper; too small a margin makes Whisper repeat itself or invent, so the
caller looks at the figures of `Decoded` and, in doubt, asks for the full window.

The margin is filled as faster-whisper fills it: with zeros in the log-Mel features, not with silent samples. On short
windows this is what keeps Whisper from inventing (bench/LOG.md has both).

Legend: S samples at 16 kHz, M mel bins, F feature frames of 10 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_compression_ratio, get_suppressed_tokens
from numpy.typing import NDArray

from stream.items import SAMPLE_RATE_HZ

WINDOW_MS = 30_000
FRAME_MS = 10
# oneDNN, inside CTranslate2, keeps some 0.6 MB for each length it has seen (bench/LOG.md), so there are only 30.
_STEP_FRAMES = 1000 // FRAME_MS
_WINDOW_SAMPLES = WINDOW_MS * SAMPLE_RATE_HZ // 1000
# Nobody says more than this; a decoder that loops would otherwise run on to the end of Whisper's context.
MAX_TOKENS_PER_S = 10
_MAX_TOKENS_BASE = 16
_MAX_TOKENS = 224  # half of Whisper's context of 448

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Decoded:
    """One greedy or beam decode, with the figures that tell whether to believe it.

    Attributes:
        text: What Whisper wrote.
        avg_logprob: Mean log-probability of the tokens, natural logarithm.
        no_speech_prob: Probability of the no-speech token, 0..1.
        compression_ratio: Bytes of the text over its bytes under zlib; a loop compresses well.
        repeated: The most words in a row that only say again what comes right before them.
        overran: It was stopped at the most tokens that speech of this length can hold.
        window_ms: How much the encoder saw.
    """

    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    repeated: int
    overran: bool
    window_ms: int


class WindowedWhisper:
    """Decodes one stretch of up to 30 s. Not thread-safe; nothing is kept between calls.

    Args:
        model: A loaded model.
        language: Two-letter code; an English-only model takes "en" alone.

    Raises:
        ValueError: The model does not know the language.
    """

    def __init__(self, model: WhisperModel, language: str) -> None:
        multilingual = model.model.is_multilingual
        if not multilingual and language != "en":
            raise ValueError(f"language {language!r} was asked of a model that knows English only")
        self._model = model
        self._tokenizer = Tokenizer(model.hf_tokenizer, multilingual, task="transcribe", language=language)
        self._prompt: list[int] = model.get_prompt(self._tokenizer, [], without_timestamps=True)
        self._suppressed = get_suppressed_tokens(self._tokenizer, [-1])

    def decode(self, samples: Samples, margin_ms: int, beam_size: int = 1) -> Decoded:
        """Transcribe [S], -1..1, on a window of its own length and a margin, in whole seconds, 30 at most.

        A beam of 1 is greedy.

        Raises:
            ValueError: More than 30 s, or nothing.
            RuntimeError: CTranslate2 failed.
        """
        if not 0 < len(samples) <= _WINDOW_SAMPLES:
            raise ValueError(f"{len(samples)} samples; expected 1 to {_WINDOW_SAMPLES}")
        features = self._features(samples, margin_ms)
        limit = min(_MAX_TOKENS_BASE + MAX_TOKENS_PER_S * len(samples) // SAMPLE_RATE_HZ, _MAX_TOKENS)
        result = self._generate(features, limit, beam_size)
        tokens = result.sequences_ids[0]
        text = self._tokenizer.decode(tokens).strip()
        return Decoded(
            text=text,
            # CTranslate2 gives the mean over the tokens; Whisper's own mean counts the end of text as well.
            avg_logprob=result.scores[0] * len(tokens) / (len(tokens) + 1),
            no_speech_prob=result.no_speech_prob,
            compression_ratio=get_compression_ratio(text),
            repeated=count_repeated(text),
            overran=len(tokens) >= limit,
            window_ms=features.shape[-1] * FRAME_MS,
        )

    def _features(self, samples: Samples, margin_ms: int) -> NDArray[np.float32]:
        """Log-Mel [M, F] of the samples, then zeros for the margin and up to a whole second."""
        extractor = self._model.feature_extractor
        spoken = extractor(samples)[:, :-1]  # the last frame lies in the extractor's own padding
        needed = spoken.shape[1] + margin_ms // FRAME_MS
        frames = min(math.ceil(needed / _STEP_FRAMES) * _STEP_FRAMES, extractor.nb_max_frames)
        features = np.zeros((spoken.shape[0], frames), np.float32)
        features[:, : spoken.shape[1]] = spoken[:, :frames]
        return features

    def _generate(self, features: NDArray[np.float32], limit: int, beam_size: int) -> Any:
        """Encode [M, F] and decode at most so many tokens, as faster-whisper does at temperature 0."""
        return self._model.model.generate(
            self._model.encode(features),
            [self._prompt],
            beam_size=beam_size,
            max_length=2 * limit,  # CTranslate2 writes half of it: Whisper's own rule for its context
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=self._suppressed,
        )[0]


def count_repeated(text: str) -> int:
    """The most words in a row that only say again what comes right before them.

    "No, no, no!" has 2; "it is fine it is fine it" has 4: a phrase of three words, then three more and one.
    """
    words = ["".join(letter for letter in word if letter.isalnum()) for word in text.lower().split()]
    most = 0
    for size in range(1, len(words) // 2 + 1):  # of the phrase, in words
        again = 0
        for index in range(size, len(words)):
            again = again + 1 if words[index] == words[index - size] else 0
            if again >= size:
                most = max(most, again)
    return most
