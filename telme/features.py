"""From turns, sound and pictures to tensors: the only such path, used by training, evaluation and the live worker.

Shapes: B batch, T tokens, S samples, edge the side of the video student's picture in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from telme.config import TelmeConfig
from telme.dialogue import SPEAKER_TOKENS, DialogueWindow, Turn, heard_text
from telme.errors import FeatureError
from telme.frames import FRAMES
from telme.modes import Mode, Student
from telme.pixels import cropped, normalised
from telme.sound import input_values, too_long
from telme.tokens import prompt_for_tokenizer

MODALITIES = ("text", "audio", "video")
CAPTURE_RATE_HZ = 16_000
_INT16_FULL_SCALE = 32_768
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Missing:
    """A modality that an utterance does not have, or that the model does not read, and why."""

    reason: str


NOT_GIVEN = Missing("not given")


@dataclass(frozen=True, eq=False)
class Watched:
    """Pictures that the video student has watched before: its feature [1, D] stands for them."""

    feature: Tensor


@dataclass(frozen=True, eq=False)
class Media:
    """An utterance's sound and pictures on the way to tensors, small enough to keep on disk.

    Attributes:
        sound: [S] float32 as `telme.sound.input_values` makes it, or why there is none.
        pictures: [8, edge, edge, 3] uint8 as `telme.pixels.cropped` makes it, or why there are none.
        blank: Published code: the pictures of a clip that is too long are zeros, whatever they show.
    """

    sound: NDArray[np.float32] | Missing = NOT_GIVEN
    pictures: NDArray[np.uint8] | Missing = NOT_GIVEN
    blank: bool = False

    @property
    def missing(self) -> dict[str, str]:
        """`audio` and `video`, where they are missing, and why."""
        both = {"audio": self.sound, "video": self.pictures}
        return {name: item.reason for name, item in both.items() if isinstance(item, Missing)}


@dataclass(frozen=True, eq=False)
class Features:
    """One utterance, ready for a Predictor.

    Attributes:
        prompt_ids: Token ids of the prompt, the mask token last.
        context_turns: Turns in the prompt, the current one included.
        sound: [S] float32 as `telme.sound.input_values` makes it, or why there is none.
        pixels: [1, 8, 3, edge, edge] float32 as `telme.pixels.pixel_values` makes it, what was made of the same
            pictures before, or why there are none.
    """

    prompt_ids: tuple[int, ...]
    context_turns: int
    sound: NDArray[np.float32] | Missing = NOT_GIVEN
    pixels: Tensor | Watched | Missing = NOT_GIVEN

    @property
    def missing(self) -> dict[str, str]:
        """`audio` and `video`, where they are missing, and why."""
        both = {"audio": self.sound, "video": self.pixels}
        return {name: item.reason for name, item in both.items() if isinstance(item, Missing)}


class FeatureMaker:
    """Makes `Features` as the weights of a bundle need them; what the bundle does not read is not made.

    Args:
        tokenizer: The bundle's tokenizer, with `<s1>`..`<s9>`, a separator and a mask token.
        config: Gives the mode, the prompt's length, the turns of context and what is read.

    Raises:
        FeatureError: The tokenizer lacks a token.
        BundleError: The configuration names no mode there is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TelmeConfig) -> None:
        known = tokenizer.get_vocab()
        lacking = [token for token in SPEAKER_TOKENS if token not in known]
        if lacking or tokenizer.mask_token_id is None or tokenizer.sep_token is None or tokenizer.pad_token_id is None:
            raise FeatureError(
                f"a tokenizer without {', '.join(lacking) or 'mask, separator or pad token'}",
                "<s1>..<s9>, mask, separator and pad tokens",
                "use the tokenizer that was saved with the bundle",
            )
        self.mode: Mode = config.input_mode
        self._tokenizer = tokenizer
        self._separator: str = tokenizer.sep_token
        self._mask_id: int = tokenizer.mask_token_id
        self._keep = config.max_prompt_tokens - 1
        self._max_turns = config.max_turns
        self._unread = {name: config.why_unread(name) for name in self.mode.student_order}
        self._edge = int((config.video_config or {}).get("image_size", 224))

    def window(self, heard: Iterable[Turn] = ()) -> DialogueWindow:
        """A dialogue's window, into which turns go through `heard`.

        Args:
            heard: Turns that it has heard already, as the speech recognizer wrote them.
        """
        return DialogueWindow.of(map(self.heard, heard), self._max_turns, self.mode)

    def heard(self, turn: Turn) -> Turn:
        """A turn as the speech recognizer wrote it -> as the weights have read such turns."""
        return Turn(turn.speaker, heard_text(turn.text, self.mode))

    def make(
        self,
        window: DialogueWindow,
        audio: NDArray[Any] | Missing = NOT_GIVEN,
        video: NDArray[Any] | Watched | Missing = NOT_GIVEN,
        audio_rate_hz: int = CAPTURE_RATE_HZ,
    ) -> Features:
        """Features of the window's last turn. Sound or pictures that cannot be made tensors are missing, and say why.

        Args:
            window: The dialogue up to and with the utterance, in the maker's mode.
            audio: [samples] mono, int16 or float32 within -1 .. 1.
            video: [8, height, width, 3] uint8 RGB, chosen by `telme.frames.frame_indices`, or what was made of them.
            audio_rate_hz: Rate of the sound.

        Raises:
            FeatureError: The window is empty.
        """
        if isinstance(video, Watched):
            heard = self.features(window, self.media(audio, NOT_GIVEN, audio_rate_hz))
            return replace(heard, pixels=video)
        return self.features(window, self.media(audio, video, audio_rate_hz))

    def media(
        self,
        audio: NDArray[Any] | Missing = NOT_GIVEN,
        video: NDArray[Any] | Missing = NOT_GIVEN,
        audio_rate_hz: int = CAPTURE_RATE_HZ,
    ) -> Media:
        """The first half of `make`, which needs no dialogue; arguments as there."""
        sound = self._made("audio", audio, lambda pcm: input_values(as_float(pcm), audio_rate_hz, self.mode))
        long = not isinstance(audio, Missing) and too_long(audio, audio_rate_hz)
        if long and self.mode.long_clip == "absent" and not isinstance(video, Missing):
            video = Missing("the clip is too long")
        pictures = self._made("video", video, lambda frames: cropped(frames, self._edge))
        return Media(sound, pictures, blank=long and self.mode.long_clip == "zeros")

    def features(self, window: DialogueWindow, media: Media) -> Features:
        """The second half of `make`.

        Args:
            window: The dialogue up to and with the utterance, in the maker's mode.
            media: As `media` made it.

        Raises:
            FeatureError: The window is empty.
        """
        return Features(self.prompt_ids(window), len(window), media.sound, self.pixels(media))

    def pixels(self, media: Media) -> Tensor | Missing:
        """The video student's input [1, 8, 3, edge, edge], or why there is none."""
        if isinstance(media.pictures, Missing):
            return media.pictures
        if media.blank:
            return torch.zeros((1, FRAMES, 3, self._edge, self._edge))
        return normalised(media.pictures, self.mode)

    @property
    def media_settings(self) -> dict[str, Any]:
        """All settings that `media` depends on, as values of JSON: the key under which its results can be kept."""
        return {
            "audio_rate_hz": self.mode.audio_rate_hz,
            "long_clip": self.mode.long_clip,
            "frame_rule": self.mode.frame_rule,
            "edge": self._edge,
            "read": [name for name in sorted(self._unread) if self._unread[name] is None],
        }

    def prompt_ids(self, window: DialogueWindow) -> tuple[int, ...]:
        """Token ids of the prompt of a window's last turn, the mask token last.

        Raises:
            FeatureError: The window is empty.
        """
        prompt = prompt_for_tokenizer(window.prompt(self._separator), self.mode)
        ids = self._tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return (*ids[-self._keep :], self._mask_id)

    def _made(
        self, name: Student, given: NDArray[Any] | Missing, make: Callable[[NDArray[Any]], _Made]
    ) -> _Made | Missing:
        if isinstance(given, Missing):
            return given
        if unread := self._unread[name]:
            return Missing(unread)
        try:
            return make(given)
        except FeatureError as error:
            return Missing(str(error))


def as_float(pcm: NDArray[Any]) -> NDArray[np.float32]:
    """Samples as float32; int16 is brought to -1 .. 1.

    Raises:
        FeatureError: They are of another type.
    """
    if pcm.dtype == np.float32:
        return pcm
    if pcm.dtype == np.int16:
        return pcm.astype(np.float32) / np.float32(_INT16_FULL_SCALE)
    raise FeatureError(f"sound of {pcm.dtype}", "int16 or float32", "convert it")


def collate_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-pad prompts to the longest of them: ids [B, T] and mask [B, T], both int64."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, width - len(prompt) :] = 1
    return ids, mask
