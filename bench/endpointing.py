"""Are utterances found, cut, understood and attributed? `python bench/endpointing.py --json`.

Conversations with exact truth run through the live capture loop (bench/listening.py) and are scored against their truth
(bench/scoring.py). Voices: flite's inside ffmpeg and espeak-ng's, two and three in turn, never two that are one to the
ear (f2 and f5 of espeak-ng); with --audio also the recordings of a folder. Each part names how it runs:

- conditions, on the sample clock: clean, and noise (white, pink, brown, music and keyboard in turn) at 20 and 10 dB.
  Errors of start and end, missed and invented utterances, turns cut in two, first words lost, word error rate, and the
  speaker error of `--speakers cluster` after the first two turns of each voice.
- false alarms, on the sample clock: utterances that pass all gates, and so would be emotion events, in five minutes
  each of silence, white noise, music and keyboard noise, at a faint, a middle and a loud level.
- delay, in real time, clean: from the last audible sample of a turn (the truth's, not the detector's) to its
  transcript, and what the same runs cut in two.
- loop, from those runs: processor time of the capture loop's thread per second of sound. Transcription has its own.
- memory: bench/soak.py, the whole program over a simulated hour of silence and of speech.

One's own conversation: --input SOUND --truth FILE.json, a JSON list of {"speaker", "text", "start_ms", "end_ms"} as
examples/conversation.json; text may be null. Options of the program come from the environment, for instance
TELME_STREAM_SEGMENTER_HANGOVER_MS=400. --out FOLDER keeps the conversations in the same form.

A table; with --json also one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import conversations
from bench.command import measured
from bench.conversations import CLEAN, Conversation, Voice, converse, in_noise, persons
from bench.listening import listen_to
from bench.noises import NOISES, at_rms, to_pcm
from bench.scoring import Score, percentile, score
from bench.soak import soak
from stream.asr import Transcriber
from stream.config import Config, load_config
from stream.items import SAMPLE_RATE_HZ, Pcm

CONDITIONS = (CLEAN, "20", "10")  # dB
TURNS = 12
NO_SPEECH = ("silence", "white", "music", "keyboard")
NO_SPEECH_RMS = (60, 600, 3000)  # each for a third of the time
SILENCE_RMS = 6.0
HANGOVERS: dict[str, dict[str, Any]] = {"fixed": {}, "adaptive": {"adaptive": True}}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    conversations: int
    delay_conversations: int
    no_speech_s: int
    soak_minutes: int


PARTS = ("conditions", "false_alarms", "delay", "memory")
FULL = Plan(conversations=10, delay_conversations=3, no_speech_s=300, soak_minutes=60)
QUICK = Plan(conversations=3, delay_conversations=1, no_speech_s=60, soak_minutes=6)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _parse(arguments)
    return measured("endpointing", lambda: measure(options), options.json)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--conversations", type=int, default=None, help=f"per condition (default: {FULL.conversations})"
    )
    parser.add_argument("--conditions", nargs="*", default=None, help=f"clean, or dB (default: {' '.join(CONDITIONS)})")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--quick", action="store_true", help="a fifth of everything, a tenth of the hour")
    parser.add_argument("--audio", type=Path, default=None, help="folder of recordings, each file one voice")
    parser.add_argument("--input", type=Path, default=None, help="sound of a conversation of one's own")
    parser.add_argument("--truth", type=Path, default=None, help="its truth, JSON")
    parser.add_argument("--out", type=Path, default=None, help="folder to keep the conversations in")
    options = parser.parse_args(arguments)
    if (options.input is None) != (options.truth is None):
        parser.error("--input and --truth go together")
    return options


def measure(options: argparse.Namespace) -> Figures:
    """Run the parts that were asked for.

    Raises:
        TelmeStreamError: A file cannot be read, or the program failed.
    """
    plan = QUICK if options.quick else FULL
    config = load_config(None, os.environ, {"speakers": {"mode": "cluster"}})
    transcriber = Transcriber(config.asr)
    parts = options.only
    clean = _clean(options, options.conversations or plan.conversations)
    figures: Figures = {}
    if "conditions" in parts:
        figures["conditions"] = run_conditions(_with_noise(options, clean), config, transcriber)
    if "false_alarms" in parts and options.input is None:
        figures["false_alarms"] = count_false_alarms(plan.no_speech_s, options.seed, config, transcriber)
    if "delay" in parts:
        count = options.conversations or plan.delay_conversations
        figures["delay"] = {name: time_delay(clean[:count], name, transcriber) for name in HANGOVERS}
    if "memory" in parts and options.input is None:
        figures["memory"] = soak(plan.soak_minutes, options.seed)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {**figures, "seed": options.seed, "asr_model": transcriber.model_name, "machine": machine}


def _clean(options: argparse.Namespace, count: int) -> list[Conversation]:
    if options.input is not None:
        return [conversations.read(options.input, options.truth)]
    voices = conversations.synthetic_voices()
    groups = [voices] if options.audio is None else [voices, conversations.recorded_voices(options.audio)]
    made = [_make(options.seed, number, groups[number % len(groups)]) for number in range(count)]
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for number, conversation in enumerate(made):
            stem = options.out / f"conversation-{number:02}"
            conversations.write(conversation, stem.with_suffix(".wav"), stem.with_suffix(".json"))
    return made


def _make(seed: int, number: int, voices: Sequence[Voice]) -> Conversation:
    rng = np.random.default_rng([seed, number])
    return converse(rng, persons(rng, voices, 2 + number % 2), TURNS)


def _with_noise(options: argparse.Namespace, clean: Sequence[Conversation]) -> Iterator[Conversation]:
    default = [CLEAN] if options.input is not None else CONDITIONS
    for condition in default if options.conditions is None else options.conditions:
        for number, conversation in enumerate(clean):
            kind = list(NOISES)[number % len(NOISES)]
            rng = np.random.default_rng([options.seed, number, 1])
            yield conversation if condition == CLEAN else in_noise(rng, conversation, kind, int(condition))


def run_conditions(every: Iterator[Conversation], config: Config, transcriber: Transcriber) -> Figures:
    """Hear conversations on the sample clock, and score them by condition, kind of noise and number of voices."""
    scores: dict[str, dict[str, Score]] = {}
    print(HEAD)
    for conversation in every:
        found = score(conversation.turns, listen_to(conversation.pcm, config, transcriber, fast=True).heard)
        voices = f"{len({turn.speaker for turn in conversation.turns})} voices"
        for key in ("all", voices, conversation.noise) if conversation.noise else ("all", voices):
            scores.setdefault(conversation.condition, {}).setdefault(key, Score()).add(found)
    for condition, by_key in scores.items():
        for key, total in by_key.items():
            print(_row(condition if key == "all" else f"  {key}", total.figures()))
    return {
        condition: by_key["all"].figures()
        | {"by_noise": {key: total.figures() for key, total in by_key.items() if key in NOISES}}
        | {
            "speaker_error_by_voices": {
                key[0]: total.figures()["speaker_error"] for key, total in by_key.items() if "voices" in key
            }
        }
        for condition, by_key in scores.items()
    }


HEAD = (
    f"{'condition':<12} {'turns':>5} {'start':>12} {'end':>12} {'missed':>7} {'invent':>7} {'cut':>4} {'merged':>6}"
    f" {'1st lost':>8} {'WER':>6} {'speaker':>8}"
)


def _row(name: str, figures: Figures) -> str:
    start = f"{figures['start_error_p50_ms']}/{figures['start_error_p95_ms']}"
    end = f"{figures['end_error_p50_ms']}/{figures['end_error_p95_ms']}"
    return (
        f"{name:<12} {figures['turns']:>5} {start:>12} {end:>12} {figures['missed']:>7} {figures['invented']:>7}"
        f" {figures['cut_in_two']:>4} {figures['merged']:>6} {figures['first_words_lost']:>8}"
        f" {figures['wer']!s:>6} {figures['speaker_error']!s:>8}"
    )


def count_false_alarms(seconds: int, seed: int, config: Config, transcriber: Transcriber) -> Figures:
    """Utterances that pass all gates where nobody speaks, by kind of sound."""
    found: Figures = {}
    for kind in NO_SPEECH:
        heard = listen_to(no_speech(kind, seconds, seed), config, transcriber, fast=True).heard
        passed = [one for one in heard if one.rejected is None]
        found[kind] = len(passed)
        texts = "; ".join(one.text for one in passed[:5])
        print(f"{kind:<12} {seconds:>5} s {len(heard):>4} segments {len(passed):>4} utterances  {texts}")
    return {**found, "seconds_each": seconds}


def no_speech(kind: str, seconds: int, seed: int) -> Pcm:
    """So many seconds of a sound that is no speech, the loudest last."""
    rng = np.random.default_rng([seed, NO_SPEECH.index(kind)])
    if kind == "silence":
        return to_pcm(rng.normal(0, SILENCE_RMS, seconds * SAMPLE_RATE_HZ))
    count = seconds * SAMPLE_RATE_HZ // len(NO_SPEECH_RMS)
    return np.concatenate([to_pcm(at_rms(NOISES[kind](rng, count), rms)) for rms in NO_SPEECH_RMS])


def time_delay(every: Sequence[Conversation], hangover: str, transcriber: Transcriber) -> Figures:
    """Hear conversations in real time."""
    config = load_config(None, os.environ, {"speakers": {"mode": "cluster"}, "segmenter": HANGOVERS[hangover]})
    total, cpu_s, sound_s, asr_ms = Score(), 0.0, 0.0, list[float]()
    for conversation in every:
        listened = listen_to(conversation.pcm, config, transcriber, fast=False)
        total.add(score(conversation.turns, listened.heard))
        cpu_s += listened.loop_cpu_s
        sound_s += len(conversation.pcm) / SAMPLE_RATE_HZ
        asr_ms += listened.asr_ms
    found: Figures = {
        "p50_ms": percentile(total.delays_ms, 50, signed=True),
        "p95_ms": percentile(total.delays_ms, 95, signed=True),
        "asr_p50_ms": percentile(asr_ms, 50),
        "loop_cpu_share": round(cpu_s / sound_s, 4),
        **total.figures(),
    }
    print(f"{hangover} hangover: {found['turns']} turns in real time, last audible sample to transcript")
    print(f"  p50 {found['p50_ms']} ms, p95 {found['p95_ms']} ms; transcription p50 {found['asr_p50_ms']} ms")
    print(f"  cut in two {found['cut_in_two']}; the loop took {found['loop_cpu_share']:.2%} of a core")
    return found


if __name__ == "__main__":
    sys.exit(main())
