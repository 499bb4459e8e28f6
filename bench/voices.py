"""Speech for the benches: synthetic voices (flite inside ffmpeg, espeak-ng) and recordings; 16 kHz mono int16 [S]."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from stream.items import SAMPLE_RATE_HZ, Pcm

SPEECH_RMS = 2600.0
AUDIBLE = 300  # absolute int16 value from which a sample counts as speech
EDGE_SAMPLES = 320  # kept on both sides of what is audible
PIECES = 10  # of each recording, of 1.0 to 3.5 s; those of a short one overlap

SENTENCES = (
    "Hello, did the letter from the university come today?",
    "Yes, and they said yes! I am so happy, this is wonderful!",
    "Oh my God, really? I can't believe it!",
    "The course starts in September, and it takes two years.",
    "I'm so sad that you have to leave.",
    "I'm scared too. What if I can't find any friends there?",
    "Why didn't you tell me sooner? I am really angry with you!",
    "I'm so sorry, I never wanted to hurt you.",
    "Come on, let's go out and celebrate tonight!",
    "That is a great idea. Thank you so much.",
    "Okay.",
    "No way!",
    "What are you doing here?",
    "Well, maybe we should ask her before we decide anything about the house.",
    "I told him twice.",
    "He never listens to anybody.",
    "Sure, see you tomorrow.",
    "Do you remember the summer when we all went to the lake and it rained for nine days?",
)


class SynthVoice(NamedTuple):
    """A synthesizer, `flite` or `espeak`, and the name of its voice."""

    engine: str
    name: str

    @property
    def person(self) -> str:
        """Who speaks, to the ear: espeak-ng's variants that differ in their number alone, as f2 and f5, are one."""
        return f"{self.engine} {self.name.rstrip('0123456789')}"


FLITE = tuple(SynthVoice("flite", name) for name in ("awb", "kal16", "rms", "slt"))
ESPEAK = tuple(
    SynthVoice("espeak", f"en-us{name}") for name in ("", "+m7", "+f2", "+f4", "+Annie", "+steph", "+klatt2")
)
TUNING_VOICES = (*FLITE, *ESPEAK, SynthVoice("espeak", "en-us+Andrea"))
UNSEEN = tuple(
    SynthVoice("espeak", f"en-us{name}") for name in ("+m2", "+f1", "+f3", "+f5", "+aunty", "+klatt6", "+Gene")
)


@cache
def speak(voice: SynthVoice, text: str) -> Pcm:
    """A sentence in a voice at the usual level, cut to what is audible: int16 [S], 16 kHz."""
    raw = ["-ar", str(SAMPLE_RATE_HZ), "-ac", "1", "-f", "s16le", "-"]
    if voice.engine == "flite":
        quoted = text.replace("\\", "").replace("'", "\u2019").replace(":", "").replace(",", r"\,")
        source = ["-f", "lavfi", "-i", f"flite=text='{quoted}':voice={voice.name}"]
        sound = _run(["ffmpeg", "-v", "error", *source, *raw])
    else:
        wav = _run(["espeak-ng", "-v", voice.name, "--stdout", text])
        sound = _run(["ffmpeg", "-v", "error", "-i", "-", *raw], wav)
    return level(np.frombuffer(sound, np.int16))


def _run(command: list[str], stdin: bytes = b"") -> bytes:
    try:
        return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{error}; expected ffmpeg with flite, and espeak-ng; apt-get install ffmpeg espeak-ng")


def level(pcm: Pcm) -> Pcm:
    """The sound at the usual level, cut to what is audible."""
    sound = pcm.astype(np.float64)
    sound *= SPEECH_RMS / np.sqrt(np.mean(np.square(sound)))
    audible = np.flatnonzero(np.abs(sound) >= AUDIBLE)
    cut = sound[max(audible[0] - EDGE_SAMPLES, 0) : audible[-1] + EDGE_SAMPLES]
    return np.clip(np.rint(cut), -32768, 32767).astype(np.int16)


def recorded(folder: Path, seed: int) -> list[list[Pcm]]:
    """Pieces of the recordings in a folder, one list a voice."""
    rng = np.random.default_rng(seed)
    voices = []
    for path in sorted(folder.iterdir()):
        if path.suffix in {".wav", ".flac", ".ogg", ".mp3"}:
            for channel in channels(path):
                starts = rng.uniform(0, 1, PIECES)
                lengths = [min(int(rng.uniform(1.0, 3.5) * SAMPLE_RATE_HZ), len(channel)) for _ in starts]
                pieces = [
                    channel[(at := int(start * (len(channel) - length))) : at + length]
                    for start, length in zip(starts, lengths, strict=True)
                ]
                voices.append([level(piece) for piece in pieces if piece.any()])
    return voices


def channels(path: Path) -> list[Pcm]:
    """The channels of a recording that differ and hold a sound, each cut to what is audible."""
    resampler = av.AudioResampler("s16p", rate=SAMPLE_RATE_HZ)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    sound = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    sound = sound[sound.any(axis=1)]
    alike = len(sound) > 1 and float(np.corrcoef(sound[0], sound[1])[0, 1]) > 0.5
    return [level(channel) for channel in (sound[:1] if alike else sound)]
