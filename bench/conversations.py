"""Conversations with exact truth: who says what, and from which sample to which.

Turns of synthetic voices or of recordings are laid out with pauses, over the sound of a room or over noise at a given
ratio to the speech. Some turns hesitate in the middle. The truth of a turn is its first and last audible sample, taken
before any noise is added.

The form on disk, as of examples/conversation.json: a list of {"speaker", "text", "start_ms", "end_ms"}, where text may
be null.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from faster_whisper import decode_audio
from faster_whisper.vad import VadOptions, get_speech_timestamps
from msgspec import Struct

from bench.noises import NOISES, Wave, at_rms, to_pcm, white
from bench.scoring import Turn
from bench.voices import EDGE_SAMPLES, ESPEAK, FLITE, SENTENCES, UNSEEN, SynthVoice, channels, level, speak
from stream.items import SAMPLE_RATE_HZ, Pcm
from telme.errors import DataError

ROOM_RMS = 6.0
CLEAN = "clean"
PAUSE_S = (0.8, 2.0)
HESITATION_S = (0.25, 0.4)
HESITATES = 0.15  # share of the turns
LEVELS_DB = (-6.0, 3.0)  # how loud a turn is, against the usual

# Two halves of a turn; who hesitates does it between them.
HALVES = (
    ("I wanted to call you last night,", "but then I fell asleep on the sofa."),
    ("If you really think that this is fair,", "then we have nothing left to talk about."),
    ("She opened the door very slowly,", "and there was nobody in the room."),
    ("I thought you would be happy,", "but you look like you have seen a ghost."),
    ("When we were children,", "we used to swim in the river every summer."),
    ("Well, to be honest with you,", "I never liked that restaurant very much."),
)


class TruthLine(Struct, frozen=True):
    """A turn on disk. `text` null: nobody wrote it down."""

    speaker: str
    text: str | None
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Line:
    """Something said: its words, where they are known, and its sound with EDGE_SAMPLES around what is audible."""

    text: str | None
    pcm: Pcm


@dataclass(frozen=True)
class Conversation:
    """Sound, int16 [S] at 16 kHz, and its truth. `condition`: clean, or the ratio of speech to `noise`."""

    pcm: Pcm
    turns: tuple[Turn, ...]
    condition: str = CLEAN
    noise: str = ""


class Voice(Protocol):
    """Somebody who can speak."""

    @property
    def name(self) -> str:
        """Which voice."""
        ...

    @property
    def person(self) -> str:
        """Who, to the ear; two voices of one person are not told apart, nor need they be."""
        ...

    def lines(self, rng: np.random.Generator, count: int) -> list[Line]:
        """So many things to say, or as many as there are; nothing twice."""
        ...


@dataclass(frozen=True)
class Synthetic:
    """A synthetic voice."""

    voice: SynthVoice

    @property
    def name(self) -> str:
        """Synthesizer and voice."""
        return f"{self.voice.engine} {self.voice.name}"

    @property
    def person(self) -> str:
        """Synthesizer, and voice without its number."""
        return self.voice.person

    def lines(self, rng: np.random.Generator, count: int) -> list[Line]:
        """Sentences, some with a hesitation."""
        plain = [Line(text, speak(self.voice, text)) for text in rng.permutation(SENTENCES)[:count]]
        halves = list(rng.permutation(HALVES))
        return [self._hesitate(rng, halves.pop(0)) if halves and rng.random() < HESITATES else line for line in plain]

    def _hesitate(self, rng: np.random.Generator, halves: Sequence[str]) -> Line:
        pause = np.zeros(int(rng.uniform(*HESITATION_S) * SAMPLE_RATE_HZ), np.int16)
        first, second = (speak(self.voice, half) for half in halves)
        return Line(" ".join(halves), np.concatenate((first, pause, second)))


@dataclass(frozen=True)
class Recorded:
    """Somebody in a recording: its pieces between pauses, of 0.8 to 12 s."""

    name: str
    pieces: list[Pcm]

    @property
    def person(self) -> str:
        """As many as there are voices."""
        return self.name

    def lines(self, rng: np.random.Generator, count: int) -> list[Line]:
        """Pieces; nobody wrote down what is said in them."""
        return [Line(None, self.pieces[number]) for number in rng.permutation(len(self.pieces))[:count]]


def synthetic_voices() -> list[Voice]:
    """All synthetic voices."""
    return [Synthetic(voice) for voice in (*FLITE, *ESPEAK, *UNSEEN)]


def recorded_voices(folder: Path) -> list[Voice]:
    """The voices of a folder's recordings, each file one (each channel, where two differ), cut by Silero's detector."""
    options = VadOptions(min_silence_duration_ms=400, speech_pad_ms=200, max_speech_duration_s=12)
    voices: list[Voice] = []
    for path in sorted(folder.iterdir()):
        if path.suffix in {".wav", ".flac", ".ogg", ".mp3"}:
            for number, channel in enumerate(channels(path)):
                spans = get_speech_timestamps(channel.astype(np.float32) / 32768, options)
                pieces = [level(channel[span["start"] : span["end"]]) for span in spans]
                long = [piece for piece in pieces if len(piece) >= 0.8 * SAMPLE_RATE_HZ]
                voices.append(Recorded(f"{path.name} {number}", long))
    return [voice for voice in voices if isinstance(voice, Recorded) and voice.pieces]


def persons(rng: np.random.Generator, voices: Sequence[Voice], count: int) -> list[Voice]:
    """Voices of so many persons, or of as many as there are, drawn by person."""
    by_person: dict[str, list[Voice]] = {}
    for voice in voices:
        by_person.setdefault(voice.person, []).append(voice)
    drawn = rng.permutation(sorted(by_person))[:count]
    return [of[rng.integers(len(of))] for of in (by_person[person] for person in drawn)]


def converse(rng: np.random.Generator, voices: Sequence[Voice], turns: int) -> Conversation:
    """A clean conversation: nobody says anything twice, and few speak twice in a row."""
    left = {voice.name: voice.lines(rng, turns) for voice in voices}
    parts: list[Pcm] = [np.zeros(SAMPLE_RATE_HZ, np.int16)]
    truth: list[Turn] = []
    at = len(parts[0])
    for number in range(turns):
        speaker = voices[_who(rng, number, len(voices), truth, [voice.name for voice in voices])].name
        if not left[speaker]:
            continue
        line = left[speaker].pop()
        gain = float(10 ** (rng.uniform(*LEVELS_DB) / 20))
        truth.append(Turn(speaker, line.text, at + EDGE_SAMPLES, at + len(line.pcm) - EDGE_SAMPLES))
        parts += [
            to_pcm(line.pcm.astype(np.float64) * gain),
            np.zeros(int(rng.uniform(*PAUSE_S) * SAMPLE_RATE_HZ), np.int16),
        ]
        at += len(parts[-2]) + len(parts[-1])
    return over(Conversation(np.concatenate(parts), tuple(truth)), at_rms(white(rng, at), ROOM_RMS))


def _who(rng: np.random.Generator, number: int, voices: int, truth: Sequence[Turn], names: Sequence[str]) -> int:
    if number < voices:
        return number
    others = [voice for voice in range(voices) if names[voice] != truth[-1].speaker]
    return int(rng.choice(others if rng.random() < 0.8 else range(voices)))


def in_noise(rng: np.random.Generator, clean: Conversation, kind: str, snr_db: int) -> Conversation:
    """The conversation with noise so many dB below the mean power of its turns."""
    speech = np.concatenate([clean.pcm[turn.start : turn.end] for turn in clean.turns]).astype(np.float64)
    rms = float(np.sqrt(np.mean(np.square(speech)))) * 10 ** (-snr_db / 20)
    noisy = over(clean, at_rms(NOISES[kind](rng, len(clean.pcm)), rms))
    return replace(noisy, condition=f"{snr_db} dB", noise=kind)


def over(conversation: Conversation, noise: Wave) -> Conversation:
    """The conversation with a sound of the same length added."""
    return replace(conversation, pcm=to_pcm(conversation.pcm + noise))


def write(conversation: Conversation, sound: Path, truth: Path) -> None:
    """Write a WAV file and its truth."""
    write_wav(sound, conversation.pcm)
    ms = SAMPLE_RATE_HZ / 1000
    lines = [TruthLine(turn.speaker, turn.text, turn.start / ms, turn.end / ms) for turn in conversation.turns]
    truth.write_bytes(msgspec.json.format(msgspec.json.encode(lines), indent=2) + b"\n")


def write_wav(path: Path, pcm: Pcm) -> None:
    """int16 [S] at 16 kHz as a WAV file."""
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
        wav.writeframes(pcm.tobytes())


def read(sound: Path, truth: Path) -> Conversation:
    """Read a conversation of one's own: any sound file, and its truth.

    Raises:
        DataError: A file is missing or does not hold what it must.
    """
    try:
        lines = msgspec.json.decode(truth.read_bytes(), type=list[TruthLine])
        samples = np.asarray(decode_audio(str(sound), SAMPLE_RATE_HZ), np.float64)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise DataError(
            f"{sound}, {truth}: {error}",
            'a sound file and a JSON list of {"speaker", "text", "start_ms", "end_ms"}',
            "see examples/conversation.json",
        ) from error
    turns = [Turn(line.speaker, line.text, _sample(line.start_ms), _sample(line.end_ms)) for line in lines]
    return Conversation(to_pcm(samples * 32768), tuple(sorted(turns, key=lambda turn: turn.start)), "as given")


def _sample(at_ms: float) -> int:
    return round(at_ms * SAMPLE_RATE_HZ / 1000)
