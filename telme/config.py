"""TelmeConfig: everything about a TelME model that is not a weight."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from telme.errors import BundleError, ConfigError
from telme.labels import LABEL_SETS, LabelSet
from telme.modes import CLEAN, Mode, Student, mode_named

Part = Literal["text", "audio", "video", "fusion"]

FEATURE_DIM = 768
# MELD's published code pads to the longest clip of a batch, and reads none that is longer than this.
MOST_LEFT_PAD_MS = 30_000
# What settings that they cannot take end in, in torch and transformers, which have no exception of their own for that.
UNFIT_SETTINGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class FusionSettings:
    """Shape and strength of the attention-based modality shifting fusion (section 3.3).

    Attributes:
        beta_shift: Largest length of the audio-visual shift, as a fraction of the text feature's length.
        heads: Heads of the attention over the two students' features; a divisor of 1536.
        dropout: Dropout probability after each of the two layer norms.
    """

    beta_shift: float
    heads: int
    dropout: float


# Published code; the paper prints other values for some of them.
PUBLISHED_FUSION = {
    "meld": FusionSettings(beta_shift=0.1, heads=3, dropout=0.2),
    "iemocap": FusionSettings(beta_shift=0.2, heads=4, dropout=0.2),
}


class TelmeConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of a bundle, stored as its config.json; transformers makes a dataclass of it.

    Attributes:
        dataset: Key of `telme.labels.LABEL_SETS`; decides the classes.
        text_config: transformers configuration of the text backbone as a dict with `model_type`.
        audio_config: The same of the audio student's backbone; None in a bundle without one.
        video_config: The same of the video student's backbone; None in a bundle without one.
        fusion: `FusionSettings` as a dict; None in a bundle without a fusion, where the teacher's answer stands.
        mode: Name of the `telme.modes.Mode` that the weights were trained with.
        audio_left_pad_ms: Zeros before every clip's sound; None leaves that to the mode. Published weights were trained
            on batches padded to their longest clip, so that three of four clips began with zeros.
        max_prompt_tokens: Prompt length in tokens, mask included; older tokens are cut (paper: 512).
        max_turns: Turns of context, the current one included.
        calibration_temperature: Logits are divided by it before the softmax; fitted on dev, 1 leaves them as they are.
        logit_offsets: What was added to the text teacher's logits [C] after training, in its weights, so that the
            likeliest class is the best answer by weighted F1 (`telme.decision`); None for nothing.
        turn_starts: Ids of the tokens that begin a turn or the question at the end. Where they are given, a token of
            the prompt sees its own turn and those before it; without them, the whole prompt (paper).
    """

    model_type = "telme"

    dataset: str = "meld"
    text_config: dict[str, Any] | None = None
    audio_config: dict[str, Any] | None = None
    video_config: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    mode: str = CLEAN.name
    audio_left_pad_ms: int | None = None
    max_prompt_tokens: int = 512
    max_turns: int = 24
    calibration_temperature: float = 1.0
    logit_offsets: list[float] | None = None
    turn_starts: list[int] | None = None

    def __post_init__(self, **settings: Any) -> None:
        """Have transformers' own names of the classes be the data set's."""
        if self.dataset in LABEL_SETS:
            names = self.label_set.names
            self.id2label = dict(enumerate(names))
            self.label2id = {name: place for place, name in enumerate(names)}
        super().__post_init__(**settings)  # type: ignore[no-untyped-call]

    @property
    def label_set(self) -> LabelSet:
        """The classes, in the order of the logits.

        Raises:
            BundleError: The data set is not one that TelME knows.
        """
        if self.dataset not in LABEL_SETS:
            raise BundleError(
                f"dataset {self.dataset!r} in config.json", f"one of {', '.join(LABEL_SETS)}", "import the bundle again"
            )
        return LABEL_SETS[self.dataset]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The networks of the bundle, in the order of their files; the text teacher is always there."""
        there: dict[Part, object] = {"audio": self.audio_config, "video": self.video_config, "fusion": self.fusion}
        return ("text", *(part for part, settings in there.items() if settings is not None))

    @property
    def input_mode(self) -> Mode:
        """How inputs are made for these weights.

        Raises:
            BundleError: There is no mode of that name, it belongs to another data set, or the left pad is none.
        """
        try:
            mode = mode_named(self.mode)
        except ConfigError as error:
            raise BundleError(f"{error.seen} in config.json", error.expected, "import the bundle again") from error
        if mode is not CLEAN and not mode.name.endswith(f"-{self.dataset}"):
            raise BundleError(
                f"mode {mode.name!r} with dataset {self.dataset!r} in config.json",
                "a mode of that data set",
                "import the bundle again",
            )
        if (pad_ms := self.audio_left_pad_ms) is None:
            return mode
        if not _is_whole(pad_ms, 0) or pad_ms > MOST_LEFT_PAD_MS:
            raise BundleError(
                f"audio_left_pad_ms {pad_ms!r}", f"0 to {MOST_LEFT_PAD_MS}", "mend it, in config.json if it is there"
            )
        return replace(mode, audio_left_pad=pad_ms * mode.audio_rate_hz // 1000)

    def why_unread(self, student: Student) -> str | None:
        """Why the model's answer cannot depend on a modality; None where it does."""
        if student not in self.parts:
            return f"the bundle has no {student} student"
        return None if "fusion" in self.parts else f"the bundle has no fusion that would read the {student} student"

    @property
    def fusion_settings(self) -> FusionSettings:
        """The fusion's settings: those of the bundle, or the published ones of its data set where it gives none.

        Raises:
            BundleError: `fusion` lacks a setting, has an unknown one or a value that is none, or the data set is
                unknown.
        """
        if self.fusion is None:
            return PUBLISHED_FUSION[self.label_set.dataset]
        try:
            settings = FusionSettings(**self.fusion)
        except TypeError as error:
            raise BundleError(
                f"fusion {self.fusion!r} in config.json", "beta_shift, heads and dropout", "import the bundle again"
            ) from error
        shares = all(_is_number(value) and 0 <= value <= 1 for value in (settings.beta_shift, settings.dropout))
        if not shares or not _is_whole(settings.heads, 1) or 2 * FEATURE_DIM % settings.heads:
            raise BundleError(
                f"fusion {self.fusion!r} in config.json",
                f"beta_shift and dropout from 0 to 1, heads that divide {2 * FEATURE_DIM}",
                "import the bundle again",
            )
        return settings


def _is_number(value: object) -> bool:
    """Whether it is a finite number; JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= sys.maxsize


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_dict_if_any(value: object) -> bool:
    return value is None or isinstance(value, dict)


def _is_list_if_any(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or (isinstance(value, list) and all(of(item) for item in value))


# Field -> whether it may hold a value, and what is expected of it. What is divided by or cut with is looked at closely:
# a temperature below 0 would answer with the least likely class.
_DICT = (_is_dict_if_any, "an object with its settings, or null")
_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "dataset": (_is_text, "the name of a data set"),
    "text_config": _DICT,
    "audio_config": _DICT,
    "video_config": _DICT,
    "fusion": _DICT,
    "mode": (_is_text, "the name of a mode"),
    "max_prompt_tokens": (lambda value: _is_whole(value, 2), "a whole number from 2 on"),
    "max_turns": (lambda value: _is_whole(value, 1), "a whole number from 1 on"),
    "calibration_temperature": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "logit_offsets": (_is_list_if_any(_is_number), "a number for each class, or null"),
    "turn_starts": (_is_list_if_any(lambda item: _is_whole(item, 0)), "the ids of tokens, or null"),
}


def check_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Check that each field of a configuration file holds what it can; those of transformers are its own affair.

    Raises:
        BundleError: One does not; names the file, the field and the value.
    """
    for name, (holds, expected) in _FIELDS.items():
        if name in settings and not holds(settings[name]):
            raise BundleError(f"{path} with {name} {settings[name]!r}", expected, "mend it")


# So that transformers' Auto classes know a bundle's config.json.
AutoConfig.register(TelmeConfig.model_type, TelmeConfig, exist_ok=True)
