"""Parameters of the authors' checkpoints under our names, and every difference named.

The networks here keep the published names, so the mapping only leaves out what nothing reads. The published text
teacher was saved by an old transformers, which stored position ids as a buffer, and with a pooler that its forward
never calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from telme.config import Part

# Names of each kind that an error lists.
_NAMED = 20


@dataclass(frozen=True)
class PublishedPart:
    """One of the four checkpoint files.

    Attributes:
        title: What it holds, in words.
        file: Its path as the authors' training saves it.
        also: Another path that their code reads it from: IEMOCAP's inference has names that no training of theirs
            writes.
        unused: What may be in it and is read by nothing, as a pattern of whole parameter names.
    """

    title: str
    file: str
    also: tuple[str, ...]
    unused: re.Pattern[str]

    @property
    def names(self) -> tuple[str, ...]:
        """All paths that it is known by."""
        return (self.file, *self.also)


PARTS: Mapping[Part, PublishedPart] = {
    "text": PublishedPart(
        "text teacher",
        "teacher.bin",
        (),
        re.compile(r"text_model\.(embeddings\.(position_ids|token_type_ids)|pooler\.dense\.(weight|bias))"),
    ),
    # The mask vector is for training with masked spans; a student built without such training has none.
    "audio": PublishedPart(
        "audio student",
        "student_audio/total_student.bin",
        ("student_audio/low_logit_student.bin",),
        re.compile(r"model\.masked_spec_embed"),
    ),
    "video": PublishedPart(
        "video student",
        "student_video/total_student.bin",
        ("student_video/low_logit_student.bin",),
        re.compile(r"(?!)"),
    ),
    "fusion": PublishedPart("fusion", "total_fusion.bin", ("low_logit_fusion.bin",), re.compile(r"(?!)")),
}


@dataclass(frozen=True)
class Differences:
    """How a checkpoint differs from the network it is loaded into; all empty when it fits.

    Attributes:
        missing: Parameters of the network that the checkpoint lacks.
        extra: Parameters of the checkpoint that the network lacks, but for those known to be unused.
        misshapen: `name: shape seen, shape expected` of those that have another shape.
    """

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.misshapen)

    def __str__(self) -> str:
        return "; ".join(f"{kind} {listed(names)}" for kind, names in self._named.items())

    @property
    def counted(self) -> str:
        """How many of each kind, and the first."""
        return ", ".join(f"{len(names)} {kind}: {names[0]}" for kind, names in self._named.items())

    @property
    def _named(self) -> dict[str, tuple[str, ...]]:
        """Those there are, by kind."""
        named = {"missing": self.missing, "extra": self.extra, "mis-shaped": self.misshapen}
        return {kind: names for kind, names in named.items() if names}


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def published_names(part: Part, names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Published parameter name -> name in our network, without those that nothing reads.

    Args:
        part: Which of the four files.
        names: The names in it.
        known: The names of our network, which win over the pattern of unused ones.
    """
    ours = set(known)
    return {name: name for name in names if name in ours or not PARTS[part].unused.fullmatch(name)}


def differences(part: Part, weights: Mapping[str, Tensor], module: nn.Module) -> Differences:
    """What keeps a checkpoint from fitting a network, by name."""
    own = module.state_dict()
    names = published_names(part, weights, own)
    found = set(names.values())
    misshapen = [
        f"{name}: {list(weights[name].shape)}, expected {list(own[ours].shape)}"
        for name, ours in names.items()
        if ours in own and weights[name].shape != own[ours].shape
    ]
    return Differences(
        missing=tuple(name for name in own if name not in found),
        extra=tuple(name for name, ours in names.items() if ours not in own),
        misshapen=tuple(misshapen),
    )
