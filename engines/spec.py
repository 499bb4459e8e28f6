"""What a compiled graph takes and gives, how it is built and how it is run.

Each network of a bundle becomes one graph. Names of the dynamic dimensions: `batch` B utterances, `tokens` T of a
prompt, `samples` S of a sound. Fixed ones: F video frames, `edge` pixels, D = 768 feature, C classes.

    text    input_ids, attention_mask int64 [B, T]          -> feature [B, D], logits [B, C]
    audio   input_values float32 [B, S]                     -> feature [B, D], logits [B, C]
    video   pixel_values float32 [B, F, 3, edge, edge]      -> feature [B, D], logits [B, C]
    fusion  text, audio, video float32 [B, D], present bool [B, 2] -> logits [B, C]

Inputs and outputs have these types in every precision: a half-precision graph casts inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from numpy.typing import NDArray
from torch import Tensor

from telme.config import FEATURE_DIM, Part, TelmeConfig
from telme.errors import PredictorError
from telme.frames import FRAMES
from telme.sound import MAX_SAMPLES, MIN_SAMPLES

Precision = Literal["fp32", "fp16", "bf16", "int8"]
DType = Literal["int64", "float32", "bool"]
Array = NDArray[Any]

MOST_BATCH = 16
_LEAST_TOKENS = 2
_RATE_HZ = 16_000


@dataclass(frozen=True)
class Range:
    """Sizes of a dynamic dimension; `typical` is the one to be fastest at."""

    least: int
    typical: int
    most: int


# Dynamic dimension -> its sizes. A plan may have several profiles, each fast in its own ranges.
Profile = Mapping[str, Range]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, type, and shape with the names of dynamic dimensions."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """A graph's interface.

    Attributes:
        part: The network.
        inputs: In the order of the exported network's arguments.
        outputs: In order.
        limits: Sizes that a bundle's utterances can have, for each dynamic dimension.
    """

    part: Part
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: Profile

    def sizes(self, arrays: Mapping[str, Array | Tensor]) -> dict[str, int]:
        """Check inputs, and say what size each dynamic dimension has.

        Raises:
            PredictorError: An input is missing, unknown, or of the wrong type or shape.
        """
        sizes: dict[str, int] = {}
        wrong = set(arrays) != {spec.name for spec in self.inputs}
        for spec in self.inputs:
            array = arrays.get(spec.name)
            if array is None or _named(array) != spec.dtype or array.ndim != len(spec.shape):
                wrong = True
                continue
            for size, dimension in zip(array.shape, spec.shape, strict=True):
                wrong |= size != (sizes.setdefault(dimension, size) if isinstance(dimension, str) else dimension)
        wrong = wrong or any(not 1 <= size <= self.limits[name].most for name, size in sizes.items())
        if wrong:
            seen = ", ".join(f"{name} {_named(array)} {list(array.shape)}" for name, array in arrays.items())
            most = ", ".join(f"{name} up to {limit.most}" for name, limit in self.limits.items())
            expected = ", ".join(f"{spec.name} {spec.dtype} {_shown(spec.shape)}" for spec in self.inputs)
            raise PredictorError(
                f"the {self.part} graph was given {seen or 'nothing'}", f"{expected} with {most}", "report this"
            )
        return sizes


@dataclass(frozen=True)
class BuildSettings:
    """What decides the built artifact, and therefore is part of its cache key.

    Attributes:
        precision: Of weights and arithmetic; int8 is made from the fp32 graph.
        profiles: Shapes that a plan is built for; empty where the backend takes any.
    """

    precision: Precision = "fp32"
    profiles: tuple[Profile, ...] = ()

    def key(self) -> dict[str, str]:
        """Field -> text, equal exactly when the settings are."""
        fields = {
            "precision": self.precision,
            "profiles": [{name: asdict(size) for name, size in profile.items()} for profile in self.profiles],
        }
        return {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}


@dataclass(frozen=True)
class RunSettings:
    """How an artifact is run; changes nothing in it.

    Attributes:
        threads: CPU threads of a graph.
        cuda_graphs: Capture the work of each shape once and replay it.
    """

    threads: int = 1
    cuda_graphs: bool = True


def graph_spec(config: TelmeConfig, part: Part) -> GraphSpec:
    """The interface of one part's graph, from a bundle's configuration."""
    limits = {"batch": Range(1, 1, MOST_BATCH)}
    match part:
        case "text":
            tokens = config.max_prompt_tokens
            limits["tokens"] = Range(min(_LEAST_TOKENS, tokens), min(96, tokens), tokens)
            inputs = tuple(TensorSpec(name, "int64", ("batch", "tokens")) for name in ("input_ids", "attention_mask"))
        case "audio":
            pad = config.input_mode.audio_left_pad
            more = 0 if pad == "batch" else pad
            limits["samples"] = Range(MIN_SAMPLES + more, 3 * _RATE_HZ + more, MAX_SAMPLES + more)
            inputs = (TensorSpec("input_values", "float32", ("batch", "samples")),)
        case "video":
            edge = int((config.video_config or {}).get("image_size", 224))
            inputs = (TensorSpec("pixel_values", "float32", ("batch", FRAMES, 3, edge, edge)),)
        case "fusion":
            features = (TensorSpec(name, "float32", ("batch", FEATURE_DIM)) for name in ("text", "audio", "video"))
            inputs = (*features, TensorSpec("present", "bool", ("batch", 2)))
    logits = TensorSpec("logits", "float32", ("batch", len(config.label_set.names)))
    feature = TensorSpec("feature", "float32", ("batch", FEATURE_DIM))
    return GraphSpec(part, inputs, (logits,) if part == "fusion" else (feature, logits), limits)


def default_profiles(spec: GraphSpec) -> tuple[Profile, ...]:
    """Profiles for a plan: one for an utterance alone and one for many, each for short and for long input."""
    alone, many = Range(1, 1, 1), Range(1, 8, MOST_BATCH)
    lengths = [name for name in spec.limits if name != "batch"]
    if not lengths:
        return ({"batch": alone}, {"batch": many})
    (name,) = lengths
    limit = spec.limits[name]
    # Three quarters of MELD's prompts have less than 128 tokens and of its utterances less than 4 s.
    middle = min(128 if name == "tokens" else 4 * _RATE_HZ, limit.most)
    least = min(limit.least, middle)
    short, long = Range(least, middle, middle), Range(middle, max(limit.most // 2, middle), limit.most)
    return tuple({"batch": batch, name: length} for batch in (alone, many) for length in (short, long))


def _named(array: Array | Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
