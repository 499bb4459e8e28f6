"""Configuration: one TOML file + environment + flags -> frozen, validated sections. Unknown keys are refused.

Order, later wins: defaults, the file given with --config, variables `TELME_STREAM_<SECTION>_<KEY>`, flags.
Each part of the program gets its own section and nothing else.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.inspect import LiteralType, Metadata, type_info

from telme.errors import ConfigError

ENVIRONMENT_PREFIX = "TELME_STREAM_"

Crop: TypeAlias = Literal["none", "face"]
SpeakersMode: TypeAlias = Literal["single", "channel", "cluster"]
Backend: TypeAlias = Literal["auto", "tensorrt", "onnx", "torch"]
Precision: TypeAlias = Literal["auto", "fp32", "fp16", "bf16", "int8"]
Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
_RING_SLACK_MS = 5_000


class MicConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The microphone.

    `device`: name, part of a name or index; None is the default one. `fallback`: take the default one when that one is
    away, until it is lost in its turn. `channels`: how many of its inputs are heard apart; 1 is one of them, or the
    mean of all it has.
    """

    device: str | int | None = None
    fallback: bool = False
    channels: Annotated[int, Meta(ge=1, le=9)] = 1
    queue_blocks: Positive = 256


class CameraConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The camera.

    `source`: index, path or URL; None is no camera. `size` (WIDTHxHEIGHT in pixels) and `fps`: what to ask the camera
    for; None is its own choice. `backend`: which of OpenCV's. `ring_fps`: pictures kept per second. `crop`: "face" cuts
    the largest face out; a picture without one stays whole.
    """

    source: str | int | None = None
    size: Annotated[str, Meta(pattern=r"^[1-9]\d{1,4}x[1-9]\d{1,4}\Z", description="WIDTHxHEIGHT")] | None = None
    fps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    backend: Literal["auto", "v4l2", "ffmpeg", "gstreamer"] = "auto"
    ring_fps: Annotated[int, Meta(ge=1, le=60)] = 10
    stale_ms: Positive = 1000
    crop: Crop = "none"


class SegmenterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where an utterance begins and ends; webrtcvad's `aggressiveness` 0..3.

    `speculate_ms`: silence after which transcription begins on trial. `adaptive`: when those words end a sentence, the
    utterance ends after `hangover_min_ms`, when they do not, after `hangover_max_ms`; otherwise after `hangover_ms`.
    """

    aggressiveness: Annotated[int, Meta(ge=0, le=3)] = 2
    pre_roll_ms: Natural = 300
    min_speech_ms: Positive = 250
    hangover_ms: Annotated[int, Meta(ge=100)] = 500
    adaptive: bool = False
    hangover_min_ms: Annotated[int, Meta(ge=100)] = 420
    hangover_max_ms: Annotated[int, Meta(ge=100)] = 800
    tail_ms: Natural = 120
    speculate_ms: Natural = 120
    max_ms: Annotated[int, Meta(ge=1000)] = 15_000

    @property
    def kept_ms(self) -> int:
        """What the rings of sound and pictures hold: the longest utterance, what is around it, and some slack."""
        return self.max_ms + self.pre_roll_ms + max(self.hangover_ms, self.hangover_max_ms) + _RING_SLACK_MS

    def __post_init__(self) -> None:
        """Refuse a maximum that leaves no speech between its pre-roll and its forced cut, and bounds out of order."""
        least = self.pre_roll_ms + self.min_speech_ms + 500
        if self.max_ms < least:
            raise ValueError(f"max_ms {self.max_ms} is below pre_roll_ms + min_speech_ms + 500, which is {least}")
        if self.adaptive and not self.hangover_min_ms <= self.hangover_ms <= self.hangover_max_ms:
            raise ValueError(
                f"hangover_ms {self.hangover_ms} is not within hangover_min_ms {self.hangover_min_ms}"
                f" and hangover_max_ms {self.hangover_max_ms}"
            )
        draft_ms = max(self.speculate_ms, self.tail_ms)
        if self.adaptive and draft_ms >= self.hangover_ms:
            raise ValueError(
                f"adaptive needs words before hangover_ms {self.hangover_ms} is over, and with speculate_ms"
                f" {self.speculate_ms} and tail_ms {self.tail_ms} they are asked for after {draft_ms}"
            )


class AsrConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The speech recognizer.

    `model`: "offline", a name, a folder or a hub id. `threads` 0: half of the cores, at most 4. `interim`: guess each
    second at what is being said. `window_margin_ms`: what Whisper sees beyond the utterance, then made whole seconds;
    30000 is its own full window. `beam_size`: of the first try; an unsure text is asked again with 5 at least.
    `min_level_dbfs`: an utterance whose loudest 300 ms stay below is not transcribed.
    """

    model: str = "offline"
    device: str = "auto"
    language: str = "en"
    beam_size: Positive = 1
    threads: Natural = 0
    queue_utterances: Positive = 32
    interim: bool = False
    window_margin_ms: Annotated[int, Meta(ge=0, le=30_000)] = 4_000
    min_level_dbfs: Annotated[float, Meta(le=0)] = -60.0


class SpeakersConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Who spoke.

    `mode`: one speaker for all, one a channel of the file or microphone, or voices told apart. `dialogue_gap_s`: a
    silence so long begins a new dialogue; 0 is never. `threshold`: cosine from which two voices are one, lower joins
    more. `most`: speakers told apart at most.
    """

    mode: SpeakersMode = "single"
    dialogue_gap_s: Natural = 120
    threshold: Annotated[float, Meta(ge=-1, le=1)] = 0.7
    most: Annotated[int, Meta(ge=1, le=9)] = 9


class LinkConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses. `utterances` None is a private ipc socket of this run."""

    utterances: str | None = None
    events: str = "tcp://127.0.0.1:5556"
    max_message_bytes: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 16_777_216


class WorkerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The worker.

    `bundle`: packaged name or folder; `threads` 0 takes half of the cores. `backend` and `precision`: what runs the
    networks; auto chooses what is fastest here.
    """

    bundle: str = "compact"
    threads: Natural = 0
    backend: Backend = "auto"
    precision: Precision = "auto"


class JournalConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where utterances not yet answered and all events are kept. None: a private folder, removed at the end."""

    # Empty, as of a variable that is not set, it would be the working directory.
    folder: Annotated[str, Meta(min_length=1, description="the name of a folder")] | None = None


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """All sections."""

    mic: MicConfig = MicConfig()
    camera: CameraConfig = CameraConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    asr: AsrConfig = AsrConfig()
    speakers: SpeakersConfig = SpeakersConfig()
    link: LinkConfig = LinkConfig()
    worker: WorkerConfig = WorkerConfig()
    journal: JournalConfig = JournalConfig()


def load_config(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Mapping[str, Any]]) -> Config:
    """Merge the three sources over the defaults.

    Args:
        file: TOML file or None.
        environment: For instance os.environ; only names with the prefix are read.
        flags: Section -> key -> value; a value of None means that the flag was not given.

    Raises:
        ConfigError: The file is missing or is not TOML, or a key or value does not hold.
    """
    merged: dict[str, dict[str, Any]] = {}
    for origin, sections in (
        (str(file), _read_file(file)),
        ("the environment", _read_environment(environment)),
        ("the flags", flags),
    ):
        for section, keys in sections.items():
            if not isinstance(keys, Mapping):
                raise ConfigError(
                    f"{section!r} in {origin} is not a section", "keys in [sections]", "see README, Configuration"
                )
            merged.setdefault(section, {}).update({key: value for key, value in keys.items() if value is not None})
        try:
            config = msgspec.convert(merged, Config, strict=False)
        except msgspec.ValidationError as error:
            remedy = "mend or remove it; see README, Configuration"
            raise ConfigError(f"{origin}: {error}", _expected(str(error)), remedy) from error
    return config


def _expected(complaint: str) -> str:
    """What may stand at the place that msgspec's complaint names."""
    place = re.search(r" - at `\$\.(\w+)(?:\.(\w+))?`$", complaint)
    kind: Any = type_info(Config)
    for name in filter(None, place.groups() if place else ()):
        kind = next(field.type for field in kind.fields if field.encode_name == name)
    if "unknown field" in complaint:
        return f"one of {', '.join(field.encode_name for field in kind.fields)}"
    for one in getattr(kind, "types", (kind,)):
        match one:
            case LiteralType(values):
                return f"one of {', '.join(map(str, values))}"
            case Metadata(extra_json_schema={"description": description}):
                return str(description)
    return "a value that its section allows"


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}", "a readable TOML file", "check --config") from error


def _read_environment(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    for name, value in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
            sections.setdefault(section, {})[key] = value
    return sections
