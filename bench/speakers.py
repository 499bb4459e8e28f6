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
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.scoring import count_mislabelled
from bench.voices import ESPEAK, FLITE, SENTENCES, SPEECH_RMS, UNSEEN, SynthVoice, recorded, speak
from stream.config import SegmenterConfig, SpeakersConfig
from stream.items import SAMPLE_RATE_HZ, Pcm, Span
from stream.segmenter import Segmenter
from stream.speakers import SpeakersByVoice
from stream.vad import SpeechDetector
from stream.voice import VoiceEncoder

CONVERSATIONS = 30  # for each group and number of voices
ROOM_RMS = 6.0


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
    segmenter = Segmenter(config, SpeechDetector(config.aggressiveness))
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
    counted, wrong = count_mislabelled([(str(voice), label) for voice, label in pairs])
    tally.utterances += counted
    tally.wrong += wrong
    tally.found += len({label for _, label in pairs})
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


if __name__ == "__main__":
    sys.exit(main())
