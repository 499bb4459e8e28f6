"""Makes examples/conversation.mp4 and its expected transcript, examples/conversation.json.

Run by hand, when the conversation is to change: `python examples/make_conversation.py [--out FOLDER]`.
Needs numpy and an ffmpeg built with flite, x264 and AAC, as Debian and Ubuntu ship it: `apt-get install ffmpeg`.

Legend: S samples, mono int16 at 16 kHz.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import wave
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
LEAD_MS = 800
TAIL_MS = 1200
EDGE_MS = 20  # kept on both sides of the voiced part of a clip
AUDIBLE = 300  # absolute int16 value from which a sample counts as speech
SPEECH_RMS = 2600.0
ROOM_RMS = 6.0  # a faint room, so that pauses are quiet and not digital zero

# flite's voices inside ffmpeg; of those and espeak-ng's, these two are what Whisper tiny.en understands best.
VOICES = {"Anna": "slt", "Ben": "awb"}


class Turn(NamedTuple):
    """One utterance of the script, and the pause after it."""

    speaker: str
    text: str
    pause_ms: int


TURNS = (
    Turn("Anna", "Hello, did the letter from the university come today?", 1000),
    Turn("Ben", "Yes, and they said yes! I am so happy, this is wonderful!", 950),
    Turn("Anna", "Oh my God, really? I can't believe it!", 1100),
    Turn("Ben", "The course starts in September, and it takes two years.", 1050),
    Turn("Anna", "I'm so sad that you have to leave.", 1200),
    Turn("Ben", "I'm scared too. What if I can't find any friends there?", 1000),
    Turn("Anna", "Why didn't you tell me sooner? I am really angry with you!", 900),
    Turn("Ben", "I'm so sorry, I never wanted to hurt you.", 1150),
    Turn("Anna", "Come on, let's go out and celebrate tonight!", 950),
    Turn("Ben", "That is a great idea. Thank you so much.", TAIL_MS),
)


@dataclass(frozen=True)
class Line:
    """One utterance of the expected transcript; times are those of its voice in the file."""

    speaker: str
    text: str
    start_ms: int
    end_ms: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample conversation and its transcript.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    out: Path = parser.parse_args().out
    ffmpeg = find_ffmpeg()
    with tempfile.TemporaryDirectory() as scratch:
        clips = [speak(ffmpeg, turn, Path(scratch)) for turn in TURNS]
        sound, lines = lay_out(clips)
        sound_path = Path(scratch, "conversation.wav")
        write_wav(sound_path, sound)
        out.mkdir(parents=True, exist_ok=True)
        encode(ffmpeg, sound_path, lines, out / "conversation.mp4")
    transcript = json.dumps([asdict(line) for line in lines], indent=2)
    (out / "conversation.json").write_text(transcript + "\n", encoding="utf-8")
    size_bytes = (out / "conversation.mp4").stat().st_size
    print(f"{out / 'conversation.mp4'}: {len(lines)} utterances, {len(sound) / RATE_HZ:.1f} s, {size_bytes:,} bytes")


def find_ffmpeg() -> str:
    """The path of an ffmpeg that can speak; leaves the program with the remedy when there is none."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        sys.exit("no ffmpeg on the PATH; expected one built with flite; run: apt-get install ffmpeg")
    filters = subprocess.run([ffmpeg, "-hide_banner", "-filters"], capture_output=True, text=True, check=True).stdout
    if " flite " not in filters:
        sys.exit(f"{ffmpeg} lacks the filter flite; expected a build that has it; run: apt-get install ffmpeg")
    return ffmpeg


def speak(ffmpeg: str, turn: Turn, scratch: Path) -> NDArray[np.int16]:
    """The turn in its speaker's voice, cut to its voiced part. (S,)"""
    (scratch / "turn.txt").write_text(turn.text, encoding="utf-8")
    source = f"flite=textfile=turn.txt:voice={VOICES[turn.speaker]}"
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, "-ar", str(RATE_HZ), "-ac", "1", "-f", "s16le", "-"]
    raw = subprocess.run(command, cwd=scratch, stdout=subprocess.PIPE, check=True).stdout
    pcm = np.frombuffer(raw, np.int16).astype(np.float64)
    pcm *= SPEECH_RMS / np.sqrt(np.mean(pcm**2))
    voiced = np.flatnonzero(np.abs(pcm) >= AUDIBLE)
    edge = EDGE_MS * RATE_HZ // 1000
    cut = pcm[max(0, voiced[0] - edge) : voiced[-1] + edge]
    return np.clip(np.rint(cut), -32768, 32767).astype(np.int16)


def lay_out(clips: list[NDArray[np.int16]]) -> tuple[NDArray[np.int16], list[Line]]:
    """The clips one after the other with their pauses, over the sound of a room: the sound (S,) and its transcript."""
    parts = [np.zeros(LEAD_MS * RATE_HZ // 1000, np.int16)]
    lines = []
    at = len(parts[0])
    for turn, clip in zip(TURNS, clips, strict=True):
        end = at + len(clip)
        lines.append(Line(turn.speaker, turn.text, at * 1000 // RATE_HZ, end * 1000 // RATE_HZ))
        pause = np.zeros(turn.pause_ms * RATE_HZ // 1000, np.int16)
        parts += [clip, pause]
        at = end + len(pause)
    speech = np.concatenate(parts).astype(np.float64)
    room = np.random.default_rng(0).normal(0.0, ROOM_RMS, len(speech))
    return np.clip(np.rint(speech + room), -32768, 32767).astype(np.int16), lines


def write_wav(path: Path, pcm: NDArray[np.int16]) -> None:
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(RATE_HZ)
        wav.writeframes(pcm.tobytes())


def encode(ffmpeg: str, sound: Path, lines: list[Line], out: Path) -> None:
    """Draw the pictures and put them and the sound into one MP4."""
    seconds = (lines[-1].end_ms + TAIL_MS) / 1000
    command = [ffmpeg, "-v", "error", "-y", "-i", str(sound)]
    command += ["-filter_complex", draw(lines), "-map", "[v]", "-map", "0:a"]
    command += ["-c:v", "libx264", "-preset", "slow", "-crf", "30", "-pix_fmt", "yuv420p", "-g", "30"]
    command += ["-c:a", "aac", "-b:a", "64k", "-t", f"{seconds:.3f}", "-movflags", "+faststart"]
    command += ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact"]
    subprocess.run([*command, str(out)], check=True)


def draw(lines: list[Line]) -> str:
    """The filter graph: two heads, of which the one that speaks nods and opens its mouth."""
    anna, ben = (speaking(lines, name) for name in VOICES)
    return ";".join(
        (
            "color=c=0xdfe7ee:s=320x240:r=15[room]",
            f"{head('0xe8b89a', '0x7a4a2a', anna)}[anna]",
            f"{head('0xd9a27c', '0x2b2b33', ben)}[ben]",
            f"[room][anna]overlay=x=40:y='70+8*sin(7*t)*({anna})'[half]",
            f"[half][ben]overlay=x=190:y='70+8*sin(7*t)*({ben})',format=yuv420p[v]",
        )
    )


def speaking(lines: list[Line], speaker: str) -> str:
    """An ffmpeg expression of the time t: 1 while the speaker's voice is heard, else 0."""
    turns = (line for line in lines if line.speaker == speaker)
    return "+".join(f"between(t,{line.start_ms / 1000},{line.end_ms / 1000})" for line in turns)


def head(skin: str, hair: str, active: str) -> str:
    """A head of 90 x 110 pixels, drawn with boxes: skin, hair, two eyes, and a mouth that moves while `active` is 1."""
    boxes = [
        f"x=0:y=0:w=90:h=24:color={hair}",
        "x=20:y=42:w=12:h=10:color=white",
        "x=58:y=42:w=12:h=10:color=white",
        "x=25:y=44:w=5:h=7:color=black",
        "x=62:y=44:w=5:h=7:color=black",
        "x=28:y=84:w=34:h=4:color=0x9c3b3b",
        f"x=30:y=78:w=30:h=18:color=0x6b1f1f:enable='({active})*lt(mod(t,0.3),0.16)'",
    ]
    return f"color=c={skin}:s=90x110:r=15," + ",".join(f"drawbox={box}:t=fill" for box in boxes)


if __name__ == "__main__":
    main()
