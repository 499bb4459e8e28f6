"""What the live recognizer writes for the clips of a data set, kept on disk, and how many words are wrong.

A clip is cut already, so the segmenter has no part in this; who spoke stays as annotated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import jiwer
import numpy as np
import soxr
from msgspec import structs
from numpy.typing import NDArray
from tqdm import tqdm

from bench.outputs import code_digest
from bench.scoring import plain
from stream.asr import Transcriber
from stream.config import AsrConfig
from stream.items import SAMPLE_RATE_HZ, Pcm
from telme.cache import digest_of, unwritable
from telme.clips import read_clip
from telme.data import ClipSource
from telme.dialogue import clean_text
from telme.features import Missing

_LIBRARIES = ("av", "ctranslate2", "faster-whisper", "soxr")
_FULL_SCALE = 32_767
# Instead of a transcript: why there is none. (`missing`, as it was called, was also said where the system had failed.)
_UNHEARD = "unheard"


@dataclass(frozen=True)
class Said:
    """A transcript, or why it is not believed: the live worker would not answer then."""

    text: str
    rejected: str | None


class Transcripts:
    """Transcripts of clips.

    Args:
        folder: Where they are kept: one file for each setting of the recognizer, a line a clip.
        config: The recognizer's settings.

    Raises:
        DataError: The folder cannot be written.
        TranscriptionError: The recognizer's model cannot be had.
    """

    def __init__(self, folder: Path, config: AsrConfig) -> None:
        self._config = config
        settings = {
            **structs.asdict(config),
            **{name: version(name) for name in _LIBRARIES},
            "code": code_digest("stream"),
        }
        self._path = folder / f"transcripts-{digest_of(settings)}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error

    def of(self, sources: Sequence[ClipSource], quiet: bool = False) -> list[Said | Missing]:
        """What was said in each clip, or why it has no sound.

        Raises:
            DataError: The folder cannot be written, or the system does not let a clip be read.
            TranscriptionError: The recognizer failed.
        """
        kept = dict(_read(self._path))
        keys = [_key(source) for source in sources]
        if any(key is not None and key not in kept for key in keys):
            transcriber = Transcriber(self._config)
            for key, source in zip(
                tqdm(keys, "transcripts", unit="clip", disable=quiet, file=sys.stderr), sources, strict=True
            ):
                if key is not None and key not in kept:
                    kept[key] = _transcribed(transcriber, source)
                    self._keep(key, kept[key])
        return [
            source.sound if isinstance(source.sound, Missing) else kept[key or ""]
            for key, source in zip(keys, sources, strict=True)
        ]

    def _keep(self, key: str, said: Said | Missing) -> None:
        line = {"clip": key, **({_UNHEARD: said.reason} if isinstance(said, Missing) else asdict(said))}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise unwritable(self._path, error) from error


def _read(path: Path) -> Iterator[tuple[str, Said | Missing]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            held = json.loads(line)
            key = held["clip"]
            yield key, Missing(held[_UNHEARD]) if _UNHEARD in held else Said(held["text"], held["rejected"])
        except (ValueError, KeyError, TypeError):
            continue  # cut short when the run was killed, or of another form: that clip is transcribed again


def _key(source: ClipSource) -> str | None:
    if isinstance(source.sound, Missing):
        return None
    found = source.sound.stat()
    return digest_of([str(source.sound.resolve()), found.st_size, found.st_mtime_ns])


def _transcribed(transcriber: Transcriber, source: ClipSource) -> Said | Missing:
    clip = read_clip(source, video=False)
    if isinstance(clip.sound, Missing):
        return clip.sound
    heard = transcriber.transcribe(as_captured(clip.sound, clip.sound_rate_hz))
    return Said(heard.text, heard.rejected)


def as_captured(sound: NDArray[np.float32], rate_hz: int) -> Pcm:
    """Sound of a file as the capture side hands it on: int16 [S] at 16 kHz."""
    heard = sound if rate_hz == SAMPLE_RATE_HZ else soxr.resample(sound, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    pcm: Pcm = np.rint(heard.clip(-1, 1) * _FULL_SCALE).astype(np.int16)
    return pcm


def word_error_rate(spoken: Sequence[str], written: Sequence[str]) -> float:
    """Wrong words per word spoken, case and punctuation aside. A rejected utterance has nothing written."""
    pairs = [(plain(clean_text(one)), plain(clean_text(other))) for one, other in zip(spoken, written, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    return float(jiwer.wer([one for one, _ in pairs], [other for _, other in pairs])) if pairs else 0.0
