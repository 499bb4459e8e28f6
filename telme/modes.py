"""How sound, pictures and dialogues become tensors: the published way, faults included, and the clean way.

The authors' weights (arXiv 2401.12987) were trained and scored by code with oddities that the paper does not mention.
Such weights need the same oddities at inference, so `published_mode` reproduces each of them; `CLEAN` is what is
trained and served by default. A mode is a description: the functions that read its fields live beside their subject
(`telme.dialogue`, `telme.tokens`, `telme.sound`, `telme.frames`, `telme.pixels`, `telme.fusion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from telme.errors import ConfigError

Student = Literal["audio", "video"]


@dataclass(frozen=True)
class Mode:
    """One way of making inputs.

    Attributes:
        name: `clean`, or `published-` and a data set.
        audio_rate_hz: Rate that sound is resampled to before the audio student, which takes every input for 16 kHz.
            The published code loads at 22,050 Hz, so its network hears 1.378 times as many time frames.
        colour_order: Order of the colour channels that the video student sees; the published frames are BGR.
        frame_rule: How 8 frames are chosen from a clip. `steps`, the published rule and the only one: see
            `telme.frames.frame_indices`.
        long_clip: What a clip of more than 30 s is. The published MELD code feeds `zeros`, the IEMOCAP code has it
            `read` like any other; clean mode says it is `absent`.
        known_bad_clips: Whether clips of a data set that are known to be corrupt, mis-cut or out of sync are `read`
            where they can be, as published, or `absent`.
        audio_left_pad: Zeros before a clip's samples. `batch`: up to the longest clip of the batch, as published,
            which puts padding at the time frame that is read. Otherwise a number of samples, the same for every clip,
            so that a clip's batch changes nothing.
        speaker_numbering: `clean`: by first appearance in the dialogue. `published`: the first line of a dialogue is
            numbered against the previous dialogue's speakers, then numbering restarts at the second line.
        speaker_names: `column`: the annotation's speaker column as it is, which in IEMOCAP is the utterance's own
            name, so that each utterance has a new speaker. `person`: the F or M of such a name.
        apostrophes: `ascii`: Windows-1252 and typographic punctuation becomes ASCII. `written`: text stays as it is.
            `windows1252`: annotations stay as they are, and recognized words get U+0092 for an apostrophe inside a
            word, as MELD's files mostly have it.
        tokenizer_blanks: `strip`: blanks around speaker tokens vanish, as in transformers up to 4.33, with which the
            published weights were trained. `keep`: as later versions do.
        student_order: The two students in the order in which the fusion concatenates them. The published IEMOCAP
            inference swaps the order its training used.
        fusion_across_batch: True: the fusion's attention runs across the utterances of a batch, as published
            (4 consecutive rows of the test file, over dialogue borders and into the future). False: every utterance
            on its own.
    """

    name: str
    audio_rate_hz: int
    colour_order: Literal["rgb", "bgr"]
    frame_rule: Literal["steps"]
    long_clip: Literal["zeros", "read", "absent"]
    known_bad_clips: Literal["read", "absent"]
    audio_left_pad: Literal["batch"] | int
    speaker_numbering: Literal["published", "clean"]
    speaker_names: Literal["column", "person"]
    apostrophes: Literal["ascii", "written", "windows1252"]
    tokenizer_blanks: Literal["strip", "keep"]
    student_order: tuple[Student, Student]
    fusion_across_batch: bool


CLEAN = Mode(
    name="clean",
    audio_rate_hz=16_000,
    colour_order="rgb",
    frame_rule="steps",
    long_clip="absent",
    known_bad_clips="absent",
    audio_left_pad=0,
    speaker_numbering="clean",
    speaker_names="person",
    apostrophes="ascii",
    tokenizer_blanks="keep",
    student_order=("audio", "video"),
    fusion_across_batch=False,
)
PUBLISHED_MELD = Mode(
    name="published-meld",
    audio_rate_hz=22_050,
    colour_order="bgr",
    frame_rule="steps",
    long_clip="zeros",
    known_bad_clips="read",
    audio_left_pad="batch",
    speaker_numbering="published",
    speaker_names="column",
    apostrophes="windows1252",
    tokenizer_blanks="strip",
    student_order=("audio", "video"),
    fusion_across_batch=True,
)
PUBLISHED_IEMOCAP = Mode(
    name="published-iemocap",
    audio_rate_hz=22_050,
    colour_order="bgr",
    frame_rule="steps",
    long_clip="read",
    known_bad_clips="read",
    audio_left_pad="batch",
    speaker_numbering="published",
    speaker_names="column",
    apostrophes="written",
    tokenizer_blanks="strip",
    student_order=("video", "audio"),
    fusion_across_batch=True,
)
MODES = {mode.name: mode for mode in (CLEAN, PUBLISHED_MELD, PUBLISHED_IEMOCAP)}


def mode_named(name: str) -> Mode:
    """The mode of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in MODES:
        raise ConfigError(f"mode {name!r}", f"one of {', '.join(MODES)}", "set `mode` in the bundle's config.json")
    return MODES[name]


def published_mode(dataset: str) -> Mode:
    """The mode that the authors' weights for `dataset` (a key of `telme.labels.LABEL_SETS`) need.

    Raises:
        ConfigError: The authors published none for it.
    """
    return mode_named(f"published-{dataset}")
