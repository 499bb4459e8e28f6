"""MELD and IEMOCAP in miniature: made-up dialogues with tiny clips that are drawn and sounded here.

Words, the pitch of the sound and the colour of the pictures each give the emotion away, so that every stage has
something to learn. Nothing of the real data sets is in it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

FPS = 12
WIDTH, HEIGHT = 48, 32


@dataclass(frozen=True)
class Look:
    """What gives an emotion away: its words, its pitch and its colour."""

    words: str
    pitch_hz: float
    colour: tuple[int, int, int]


LOOKS = {
    "joy": Look("i am so happy !", 880.0, (230, 200, 30)),
    "sadness": Look("i am so sad .", 220.0, (30, 40, 180)),
    "surprise": Look("what is it ?", 1760.0, (220, 60, 220)),
    "neutral": Look("hello there", 440.0, (120, 120, 120)),
}
_IEMOCAP_NAMES = {"hap": "joy", "sad": "sadness", "exc": "surprise", "neu": "neutral"}
_MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete"}
_MELD_HEADER = ("Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
_IEMOCAP_HEADER = ("Dialogue_ID", "Speaker", "Utterance", "Emotion", "Wav_Path", "Video_Path", "Start_Time", "End_Time")


def make_meld(root: Path, train: int = 12, dev: int = 4, clips: bool = True) -> Path:
    """Write so many dialogues of four utterances each; returns the folder."""
    chance = np.random.default_rng(11)
    for split, dialogues in (("train", train), ("dev", dev)):
        rows = []
        for dialogue in range(dialogues):
            for turn, emotion in enumerate(_shuffled(tuple(LOOKS), chance)):
                rows.append(("1", LOOKS[emotion].words, "ab"[turn % 2], emotion, "neutral", str(dialogue), str(turn)))
                if clips:
                    path = root / _MELD_FOLDERS[split] / f"dia{dialogue}_utt{turn}.mp4"
                    write_clip(
                        path, tone(LOOKS[emotion], 0.5, 16_000, chance), pictures([LOOKS[emotion]], 0.75, chance)
                    )
        _write_csv(root / f"{split}_meld_emo.csv", _MELD_HEADER, rows)
    return root


def make_iemocap(root: Path, train: int = 8, dev: int = 3) -> Path:
    """The same as two actors' recordings: one film a dialogue, one WAV an utterance, the speaker in its name."""
    chance = np.random.default_rng(12)
    for split, session, dialogues in (("train", 1, train), ("dev", 2, dev)):
        rows = []
        for dialogue in range(dialogues):
            recording = f"Ses0{session}F_impro{dialogue:02}"
            emotions = _shuffled(tuple(_IEMOCAP_NAMES), chance)
            looks = [LOOKS[_IEMOCAP_NAMES[emotion]] for emotion in emotions]
            film = Path(f"Session{session}/dialog/avi/DivX/{recording}.avi")
            # The film is cut a second wider at each end than the utterance.
            write_clip(root / film, None, pictures(looks, 3.0, chance))
            for turn, (emotion, look) in enumerate(zip(emotions, looks, strict=True)):
                name = f"{recording}_{'FM'[turn % 2]}{turn:03}"
                wav = Path(f"Session{session}/sentences/wav/{recording}/{name}.wav")
                write_clip(root / wav, tone(look, 0.5, 16_000, chance), None)
                start_s = 3.0 * turn + 1.0
                rows.append(
                    (recording, name, look.words, emotion, f"./{wav}", f"./{film}", str(start_s), str(start_s + 1.0))
                )
        _write_csv(root / f"IEMOCAP_{split}.csv", _IEMOCAP_HEADER, rows)
    return root


def _shuffled(emotions: tuple[str, ...], chance: np.random.Generator) -> list[str]:
    return [emotions[index] for index in chance.permutation(len(emotions))]


def tone(look: Look, seconds: float, rate_hz: int, chance: np.random.Generator) -> NDArray[np.int16]:
    """A buzz at the emotion's pitch with a little noise: [samples] int16."""
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    buzz = sum(np.sin(2 * np.pi * look.pitch_hz * harmonic * time_s) / harmonic for harmonic in (1, 2, 3))
    return ((0.3 * buzz + 0.02 * chance.normal(size=len(time_s))) * 16_000).astype(np.int16)


def pictures(looks: Sequence[Look], seconds_each: float, chance: np.random.Generator) -> NDArray[np.uint8]:
    """Plain pictures in the emotions' colours, one after another: [F, height, width, 3] uint8 RGB."""
    each = int(seconds_each * FPS)
    made = np.concatenate([np.tile(np.array(look.colour), (each, HEIGHT, WIDTH, 1)) for look in looks])
    return (made + chance.integers(-15, 16, (len(made), 1, 1, 1))).clip(0, 255).astype(np.uint8)


def write_clip(
    path: Path,
    sound: NDArray[np.int16] | None,
    frames: NDArray[np.uint8] | None,
    rate_hz: int = 16_000,
    exact: bool = False,
) -> Path:
    """Write a media file of the kind that its suffix names.

    Args:
        path: Where; folders are made.
        sound: [samples] or [samples, channels] int16, or None.
        frames: [F, height, width, 3] uint8 RGB at `FPS`, or None.
        rate_hz: Of the sound.
        exact: Write Matroska with codecs that lose nothing, whatever the suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pcm = exact or path.suffix == ".wav"
    with av.open(str(path), "w", format="matroska" if exact else None) as container:
        seen = _video_stream(container, frames, exact) if frames is not None else None
        heard = _audio_stream(container, pcm, sound, rate_hz) if sound is not None else None
        for position, picture in enumerate(frames if frames is not None else ()):
            assert seen is not None
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = position
            container.mux(seen.encode(frame))
        if heard is not None and sound is not None:
            packed = np.ascontiguousarray(sound.reshape(1, -1))  # [1, samples * channels]
            audio = AudioFrame.from_ndarray(packed, "s16", "stereo" if sound.ndim == 2 else "mono")
            audio.sample_rate, audio.pts = rate_hz, 0
            container.mux(heard.encode(audio))
        for stream in (seen, heard):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


def _video_stream(container: OutputContainer, frames: NDArray[np.uint8], exact: bool) -> VideoStream:
    stream = container.add_stream("ffv1" if exact else "mpeg4", rate=FPS)
    stream.height, stream.width, stream.bit_rate = *frames.shape[1:3], 800_000
    stream.pix_fmt = "bgr0" if exact else "yuv420p"
    stream.codec_context.time_base = Fraction(1, FPS)
    return stream


def _audio_stream(container: OutputContainer, pcm: bool, sound: NDArray[np.int16], rate_hz: int) -> AudioStream:
    stream = container.add_stream(
        "pcm_s16le" if pcm else "aac", rate=rate_hz, layout="stereo" if sound.ndim == 2 else "mono"
    )
    assert isinstance(stream, AudioStream)
    return stream


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
