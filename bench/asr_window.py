"""How much window Whisper needs beyond the utterance: `python bench/asr_window.py`.

Word error rate, time, fallbacks to the full window and rejections, by margin (and by threads). Spoken by: the example
conversation, flite's voices (in ffmpeg) and espeak-ng's where installed, and the recordings of --audio folders. A
recording NAME.wav is scored against NAME.txt beside it, or else against what the full window hears in it.

Each utterance goes through all variants in turn, so that a busy machine is as busy for each: read the ratios.
A table, then one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from faster_whisper import decode_audio
from faster_whisper.vad import VadOptions, get_speech_timestamps

from stream.asr import Transcriber, Transcription
from stream.config import AsrConfig
from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.whisper import WINDOW_MS
from telme.errors import MissingDependency, TelmeStreamError

EXAMPLES = Path(__file__).parents[1] / "examples"
MARGINS_MS = (0, 500, 1000, 2000, 3000, 4000, 6000, 8000, WINDOW_MS)
PRE_ROLL_MS = 300
TAIL_MS = 200
SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
AUDIBLE = 300  # absolute int16 value from which a synthesised sample counts as speech
SPEECH_RMS = (600.0, 1500.0, 3000.0)
ROOM_RMS = 8.0
VOICES = (
    *(f"flite:{name}" for name in ("slt", "awb", "kal", "rms")),
    *(f"espeak-ng:{name}" for name in ("en-us", "en-gb", "en-us+f3", "en-us+m3", "en-gb-scotland", "en-gb-x-rp+f2")),
)
SENTENCES = (
    "Hello, did you sleep well last night?",
    "No, I could not stop thinking about the accident.",
    "Are you kidding me? That was my favorite jacket!",
    "I have never been so happy in my whole life.",
    "Please do not go in there, it is dangerous.",
    "Well, what do you want me to say?",
    "Oh my God, you really scared me!",
    "My grandmother made the best chocolate cake in the world.",
    "I am so sorry about what happened to your father.",
    "Nobody told me that the meeting was moved to Friday.",
    "That is disgusting, there is a hair in my soup.",
    "You promised you would be here, and you were not.",
    "We should go to the beach when the weather gets better.",
    "I think she likes you, but she is too shy to say it.",
    "Thank you very much, this means a lot to me.",
    "Wait, where are my keys? I had them a minute ago.",
    "She left this morning, and when I came back from work there was only a letter on the kitchen table.",
    "Yes, of course.",
    "Come on, let us dance!",
)


@dataclass(frozen=True)
class Recording:
    """What was said in `pieces`, one after another; None where nobody wrote it down."""

    corpus: str
    reference: str | None
    pieces: list[Pcm]


@dataclass
class Variant:
    """One setting of the recognizer, and what came out: for each recording its pieces."""

    margin_ms: int
    threads: int
    transcriber: Transcriber
    heard: list[list[Transcription]] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def text(self, index: int) -> str:
        """What was understood of a recording."""
        return " ".join(said.text for said in self.heard[index] if said.rejected is None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, action="append", default=[], help="folder of recordings; may be repeated")
    parser.add_argument("--asr-model", default="offline", help="as of telme-stream (default: offline)")
    parser.add_argument("--margins-ms", type=int, nargs="+", default=list(MARGINS_MS), help=f"default: {MARGINS_MS}")
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="default: 0, chosen")
    parser.add_argument("--sentences", type=int, default=len(SENTENCES), help="synthesised ones per voice")
    options = parser.parse_args(arguments)
    try:
        recordings = [*example(), *synthesised(options.sentences), *(clip for a in options.audio for clip in folder(a))]
        # The full window is the reference of recordings without a transcript, and the ratio's 1.
        settings = [(margin, threads) for threads in options.threads for margin in {*options.margins_ms, WINDOW_MS}]
        variants = [
            Variant(margin, threads, Transcriber(config(options.asr_model, margin, threads)))
            for margin, threads in sorted(settings, key=lambda setting: (setting[1], setting[0]))
        ]
        for recording in recordings:
            hear(recording, variants)
    except TelmeStreamError as error:
        sys.stderr.write(f"asr_window: error: {error}\n")
        return error.exit_code
    report(recordings, variants)
    return 0


def config(model: str, margin_ms: int, threads: int) -> AsrConfig:
    """The section with these three set."""
    return AsrConfig(model=model, window_margin_ms=margin_ms, threads=threads)


def hear(recording: Recording, variants: Sequence[Variant]) -> None:
    """Transcribe each piece by each variant in turn."""
    for variant in variants:
        variant.heard.append([])
    for pcm in recording.pieces:
        for variant in variants:
            before_ns = time.perf_counter_ns()
            variant.heard[-1].append(variant.transcriber.transcribe(pcm))
            variant.ms.append((time.perf_counter_ns() - before_ns) / 1e6)


def example() -> Iterator[Recording]:
    """The example conversation, cut by its transcript as the segmenter would."""
    pcm = read(EXAMPLES / "conversation.mp4")
    for line in json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8")):
        first, last = line["start_ms"] - PRE_ROLL_MS, line["end_ms"] + TAIL_MS
        yield Recording("example", line["text"], [pcm[max(0, first) * SAMPLES_PER_MS : last * SAMPLES_PER_MS]])


def folder(path: Path) -> Iterator[Recording]:
    """The recordings of a folder, cut at their pauses by Silero's detector."""
    options = VadOptions(min_silence_duration_ms=400, speech_pad_ms=250, max_speech_duration_s=15)
    for file in sorted(path.iterdir()):
        if file.suffix in {".flac", ".wav", ".mp3", ".ogg", ".m4a"}:
            pcm = read(file)
            spans = get_speech_timestamps(pcm.astype(np.float32) / 32768, options)
            text = file.with_suffix(".txt")
            reference = text.read_text(encoding="utf-8") if text.is_file() else None
            yield Recording(path.name, reference, [pcm[span["start"] : span["end"]] for span in spans])


def synthesised(sentences: int) -> Iterator[Recording]:
    """Sentences in each voice at three levels, in a faint room.

    Raises:
        MissingDependency: ffmpeg with flite, or espeak-ng, is not installed.
    """
    random = np.random.default_rng(1)
    for voice in VOICES:
        for text in SENTENCES[:sentences]:
            speech = speak(voice, text).astype(np.float64)
            audible = np.flatnonzero(np.abs(speech) > AUDIBLE)
            speech = speech[audible[0] : audible[-1]]
            speech *= random.choice(SPEECH_RMS) / np.sqrt(np.mean(speech**2))
            speech = np.pad(speech, (PRE_ROLL_MS * SAMPLES_PER_MS, TAIL_MS * SAMPLES_PER_MS))
            speech += random.normal(0, ROOM_RMS, len(speech))
            yield Recording(voice.partition(":")[0], text, [np.clip(speech, -32768, 32767).astype(np.int16)])


def speak(voice: str, text: str) -> Pcm:
    """A sentence in a voice "engine:name", int16 [S]."""
    engine, _, name = voice.partition(":")
    with tempfile.TemporaryDirectory() as scratch:
        script, wave = Path(scratch, "text.txt"), Path(scratch, "voice.wav")
        script.write_text(text, encoding="utf-8")
        if engine == "espeak-ng":
            call("espeak-ng", "-v", name, "-s", "150", "-f", str(script), "-w", str(wave))
        else:
            call("ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"flite=textfile={script}:voice={name}", str(wave))
        return read(wave)


def call(*command: str) -> None:
    """Run a synthesiser."""
    remedy = "run: apt-get install ffmpeg espeak-ng"
    if shutil.which(command[0]) is None:
        raise MissingDependency(f"{command[0]} is not installed", "ffmpeg with flite, and espeak-ng", remedy)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingDependency(f"{command[0]}: {done.stderr.strip()}", "ffmpeg with flite, and espeak-ng", remedy)


def read(file: Path) -> Pcm:
    """A file's sound, int16 [S] at 16 kHz."""
    sound = np.asarray(decode_audio(str(file), SAMPLE_RATE_HZ), np.float32)
    return np.clip(sound * 32768, -32768, 32767).astype(np.int16)


def plain(text: str) -> str:
    """Lower-case words without punctuation."""
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower()).split())


def report(recordings: Sequence[Recording], variants: Sequence[Variant]) -> None:
    """Print the table and the JSON line."""
    rows = [row(recordings, variant, variants) for variant in variants]
    corpora = sorted({recording.corpus for recording in recordings})
    print(f"{'threads':>7} {'margin':>7} {'ms':>7} {'ratio':>6} {'fell back':>9} {'rejected':>8}  WER: all", *corpora)
    for entry in rows:
        figures = " ".join(f"{entry['wer'][name]:.3f}" for name in ("all", *corpora))
        print(
            f"{entry['threads']:>7} {entry['margin_ms']:>7} {entry['p50_ms']:>7.1f} {entry['ratio']:>6.3f}"
            f" {entry['fallbacks']:>9} {entry['rejected']:>8}  {figures}"
        )
    utterances = sum(len(recording.pieces) for recording in recordings)
    print(json.dumps({"rows": rows, "utterances": utterances, "cores": os.cpu_count()}))


def row(recordings: Sequence[Recording], variant: Variant, variants: Sequence[Variant]) -> dict[str, Any]:
    """One variant's figures; its ratio is to the full window of the same number of threads."""
    full = next(other for other in variants if (other.margin_ms, other.threads) == (WINDOW_MS, variant.threads))
    pairs: dict[str, list[tuple[str, str]]] = {"all": []}
    for index, recording in enumerate(recordings):
        reference = full.text(index) if recording.reference is None else recording.reference
        pair = plain(reference), plain(variant.text(index))
        if pair[0]:
            pairs.setdefault(recording.corpus, []).append(pair)
            pairs["all"].append(pair)
    p50_ms = float(np.median(variant.ms))
    return {
        "threads": variant.threads,
        "margin_ms": variant.margin_ms,
        "p50_ms": round(p50_ms, 1),
        "ratio": round(p50_ms / float(np.median(full.ms)), 3),
        "fallbacks": variant.transcriber.fallbacks,
        "rejected": sum(said.rejected is not None for pieces in variant.heard for said in pieces),
        "wer": {name: round(jiwer.wer([a for a, _ in of], [b for _, b in of]), 4) for name, of in pairs.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
