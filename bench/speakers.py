"""Are speakers told apart? `python bench/speakers.py [--audio FOLDER]`.

Conversations of two and three voices are spoken, cut into utterances by the real segmenter and given to
`--speakers cluster`. Voices: flite's inside ffmpeg, espeak-ng's, both together; with --audio also the recordings of a
folder, each file one voice (each channel, where two differ). "unseen": voices that nothing was tuned on.

Speaker error: the share of utterances with a wrong label after the best one-to-one mapping of labels to voices, after
the first two turns of each voice. A table, then one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from stream.config import SegmenterConfig, SpeakersConfig
from stream.items import SAMPLE_RATE_HZ, Pcm, Span
from stream.segmenter import Segmenter
from stream.speakers import SpeakersByVoice
from stream.vad import VoiceDetector
from stream.voice import VoiceEncoder

CONVERSATIONS = 30  # for each group and number of voices
SPEECH_RMS = 2600.0
ROOM_RMS = 6.0
AUDIBLE = 300  # absolute int16 value from which a sample counts as speech
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


FLITE = tuple(SynthVoice("flite", name) for name in ("awb", "kal16", "rms", "slt"))
ESPEAK = tuple(
    SynthVoice("espeak", f"en-us{name}") for name in ("", "+m7", "+f2", "+f4", "+Annie", "+steph", "+klatt2")
)
TUNING_VOICES = (*FLITE, *ESPEAK, SynthVoice("espeak", "en-us+Andrea"))
UNSEEN = tuple(
    SynthVoice("espeak", f"en-us{name}") for name in ("+m2", "+f1", "+f3", "+f5", "+aunty", "+klatt6", "+Gene")
)


class Turn(NamedTuple):
    """Whose it is, and its sound."""

    voice: int
    pcm: Pcm


@dataclass
class Tally:
    """What was counted in one group of conversations."""

    utterances: int = 0
    wrong: int = 0
    uncertain: int = 0
    found: int = 0  # speakers, over all conversations
    conversations: int = 0

    @property
    def error(self) -> float:
        """Share of wrong labels."""
        return round(self.wrong / max(self.utterances, 1), 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, default=None, help="folder of recordings, each file one voice")
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS, help="for each group and number of voices")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=SpeakersConfig().threshold)
    options = parser.parse_args(arguments)
    config = SpeakersConfig(mode="cluster", threshold=options.threshold)
    encoder = VoiceEncoder()
    groups = {"flite": _synthetic(FLITE), "espeak": _synthetic(ESPEAK), "unseen": _synthetic(UNSEEN)}
    groups["mixed"] = [*groups["flite"], *groups["unseen"]]
    if options.audio is not None:
        groups["real"] = recorded(options.audio, options.seed)
    results: dict[str, float] = {}
    print(f"{'group':<8} {'voices':>6} {'utterances':>10} {'error':>7} {'uncertain':>9} {'speakers found':>14}")
    for name, banks in groups.items():
        for voices in (2, 3):
            rng = np.random.default_rng(options.seed)
            tally = Tally()
            for _ in range(options.conversations):
                score(converse(rng, banks, voices), rng, SpeakersByVoice(encoder, config), tally)
            uncertain, found = tally.uncertain / max(tally.utterances, 1), tally.found / tally.conversations
            print(f"{name:<8} {voices:>6} {tally.utterances:>10} {tally.error:7.2%} {uncertain:9.2%} {found:14.2f}")
            results[f"{name}_{voices}"] = tally.error
    cost = {f"encode_{seconds}s_ms": time_encoder(encoder, seconds) for seconds in (1, 3, 10)}
    print(json.dumps({"speaker_error": results, "worst": max(results.values()), **cost, "cores": os.cpu_count()}))
    return 0


def converse(rng: np.random.Generator, banks: Sequence[Sequence[Pcm]], voices: int) -> list[Turn]:
    """12 to 20 turns of so many voices out of these; nobody says the same twice, and few speak twice in a row."""
    chosen = rng.choice(len(banks), voices, replace=False)
    left = [list(rng.permutation(len(banks[bank]))) for bank in chosen]
    turns: list[Turn] = []
    for number in range(int(rng.integers(12, 21))):
        others = [voice for voice in range(voices) if not turns or voice != turns[-1].voice]
        speaker = number if number < voices else int(rng.choice(others if rng.random() < 0.8 else range(voices)))
        if left[speaker]:
            turns.append(Turn(speaker, banks[chosen[speaker]][left[speaker].pop()]))
    return turns


def score(turns: list[Turn], rng: np.random.Generator, speakers: SpeakersByVoice, tally: Tally) -> None:
    """Lay the turns out, listen to them, and count what was labelled wrong after the first two turns of each voice."""
    parts: list[Pcm] = [np.zeros(SAMPLE_RATE_HZ // 2, np.int16)]
    truth: list[tuple[int, int, int]] = []
    at = len(parts[0])
    for turn in turns:
        truth.append((at, at + len(turn.pcm), turn.voice))
        parts += [turn.pcm, np.zeros(int(rng.uniform(0.7, 1.3) * SAMPLE_RATE_HZ), np.int16)]
        at += len(parts[-2]) + len(parts[-1])
    sound = np.concatenate(parts) + rng.normal(0, ROOM_RMS, at)
    pcm = np.clip(np.rint(sound), -32768, 32767).astype(np.int16)
    config = SegmenterConfig()
    segmenter = Segmenter(config, VoiceDetector(config.aggressiveness))
    pairs = []
    for span in [*segmenter.push(0, pcm), *segmenter.flush()]:
        if isinstance(span, Span):
            speaker = speakers.who(pcm[span.voiced_start : span.voiced_end], 0)
            pairs.append((_whose(span, truth), speaker.id))
            tally.uncertain += not speaker.certain
    count_wrong(pairs, tally)


def _whose(span: Span, truth: Sequence[tuple[int, int, int]]) -> int:
    return max((min(span.end, end) - max(span.start, start), voice) for start, end, voice in truth)[1]


def count_wrong(pairs: Sequence[tuple[int, str]], tally: Tally) -> None:
    """Add the errors of one conversation: pairs of the voice and its label, in order."""
    voices = sorted({voice for voice, _ in pairs})
    labels = sorted({label for _, label in pairs})
    padded = [*labels, *("nobody" for _ in range(len(voices) - len(labels)))]
    best = max(
        (dict(zip(voices, chosen, strict=True)) for chosen in permutations(padded, len(voices))),
        key=lambda mapping: sum(mapping[voice] == label for voice, label in pairs),
    )
    turns = dict.fromkeys(voices, 0)
    for voice, label in pairs:
        turns[voice] += 1
        if turns[voice] > 2:
            tally.utterances += 1
            tally.wrong += best[voice] != label
    tally.found += len(labels)
    tally.conversations += 1


def time_encoder(encoder: VoiceEncoder, seconds: int, runs: int = 20) -> float:
    """Median milliseconds of one voice from so much speech, on one thread."""
    pcm = (np.random.default_rng(0).normal(0, SPEECH_RMS, seconds * SAMPLE_RATE_HZ)).astype(np.int16)
    times = []
    for _ in range(runs):
        before_ns = time.perf_counter_ns()
        encoder(pcm)
        times.append((time.perf_counter_ns() - before_ns) / 1e6)
    return round(float(np.median(times)), 1)


def _synthetic(voices: Sequence[SynthVoice]) -> list[list[Pcm]]:
    return [[speak(voice, text) for text in SENTENCES] for voice in voices]


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
    cut = sound[max(audible[0] - 320, 0) : audible[-1] + 320]
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
                voices.append([level(piece) for piece in pieces])
    return voices


def channels(path: Path) -> list[Pcm]:
    """The channels of a recording that differ, each cut to what is audible."""
    resampler = av.AudioResampler("s16p", rate=SAMPLE_RATE_HZ)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    sound = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    alike = len(sound) > 1 and float(np.corrcoef(sound[0], sound[1])[0, 1]) > 0.5
    return [level(channel) for channel in (sound[:1] if alike else sound)]


if __name__ == "__main__":
    sys.exit(main())
