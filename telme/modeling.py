"""TelmeModel: teacher, students and fusion as one model of transformers.

A folder or hub repository holds one safetensors file for each part, with that network's own parameter names, so that a
part can be trained, replaced and digested alone:

    config.json         TelmeConfig; says which parts there are
    text.safetensors    the text teacher
    audio.safetensors   the audio student, where there is one; video.safetensors likewise
    fusion.safetensors  the fusion, where there is one

Shapes: B batch, T tokens, S samples, F video frames, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from telme.config import UNFIT_SETTINGS, Part, TelmeConfig, check_settings
from telme.errors import BundleError
from telme.fusion import AttentionShiftFusion
from telme.models import AudioStudent, TextTeacher, VideoStudent

CONFIG_FILE = "config.json"
PART_FILES: Mapping[Part, str] = {
    "text": "text.safetensors",
    "audio": "audio.safetensors",
    "video": "video.safetensors",
    "fusion": "fusion.safetensors",
}
# What a bundle may hold; nothing else is fetched from a hub.
BUNDLE_PATTERNS = ("*.json", "*.safetensors", "*.txt", "README.md", "SHA256SUMS")
_HUB_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


class TelmeOutput(NamedTuple):
    """What the whole model says of a batch.

    Attributes:
        logits: [B, C]; the fusion's, or the teacher's in a model without one.
        used: [B, 3] bool: text, which always is, audio and video.
    """

    logits: Tensor
    used: Tensor


class TelmeModel(PreTrainedModel):
    """The parts that a configuration names; those it does not name are None.

    Args:
        config: The configuration; weights are random until loaded.
    """

    config_class = TelmeConfig
    base_model_prefix = ""

    def __init__(self, config: TelmeConfig) -> None:
        super().__init__(config)
        parts = config.parts
        self.text = TextTeacher(config)
        self.audio = AudioStudent(config) if "audio" in parts else None
        self.video = VideoStudent(config) if "video" in parts else None
        self.fusion = AttentionShiftFusion(config, config.input_mode) if "fusion" in parts else None
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Backbones initialise themselves; heads and fusion keep torch's own initialisation."""

    def network(self, part: Part) -> nn.Module | None:
        """One part."""
        found: nn.Module | None = getattr(self, part)
        return found

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        input_values: Tensor | None = None,
        pixel_values: Tensor | None = None,
        present: Tensor | None = None,
    ) -> TelmeOutput:
        """Answer a batch. In a published mode the fusion's attention runs across it, as the authors' does.

        Args:
            input_ids: [B, T] int64 prompts, left-padded, the mask token last.
            attention_mask: [B, T] int64, 0 on the padding.
            input_values: [B, S] float32 as `telme.sound.pad_left` makes it; None where no row has sound.
            pixel_values: [B, F, 3, edge, edge] float32; None where no row has pictures.
            present: [B, 2] bool, whether a row has audio and video; None where each has all that was given.
        """
        text = self.text(input_ids, attention_mask)
        if self.fusion is None:
            used = torch.tensor([True, False, False], device=text.logits.device).expand(len(text.logits), 3)
            return TelmeOutput(text.logits, used)
        heard = self.audio(input_values).feature if self.audio is not None and input_values is not None else None
        seen = self.video(pixel_values).feature if self.video is not None and pixel_values is not None else None
        answer = self.fusion(text.feature, heard, seen, present)
        return TelmeOutput(answer.logits, answer.used)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        config: TelmeConfig | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Self:
        """Load a model in eval mode on the CPU.

        Args:
            pretrained_model_name_or_path: Folder, or id of a hub repository.
            config: Configuration to use instead of the folder's.
            dtype: Type of the floating-point weights, whatever they are on disk.
            options: What the hub's snapshot_download takes: revision, cache_dir, force_download, local_files_only,
                token. Others, which the Auto classes hand to every model, mean nothing here.

        Raises:
            BundleError: It cannot be had, or a part is missing, damaged or does not fit the configuration.
        """
        hub = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
        folder = model_folder(pretrained_model_name_or_path, **hub)
        config = read_config(folder) if config is None else config
        with no_init_weights():
            model = cls(config)
        for part in config.parts:
            network = model.network(part)
            assert network is not None
            _load_part(folder / PART_FILES[part], network, dtype)
        model.eval()  # type: ignore[no-untyped-call]
        return model

    def save_pretrained(self, save_directory: str | PathLike[str], *_: Any, **__: Any) -> None:
        """Write config.json and the parts' files, in the type that the weights have.

        What else transformers hands to this method, such as a shard size, means nothing here.

        Args:
            save_directory: Folder; made if need be.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        for part in self.config.parts:
            network = self.network(part)
            assert network is not None
            write_part(folder, part, network.state_dict())


def model_folder(name: str | PathLike[str], **hub_options: Any) -> Path:
    """A local folder for a folder's path or a hub id, which is downloaded, or taken from the hub's cache.

    Raises:
        BundleError: It is neither a folder nor to be had from the hub.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    hub_id = str(name)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(BUNDLE_PATTERNS), **hub_options))
    except (OSError, HFValidationError) as error:
        raise BundleError(
            f"no bundle {hub_id!r}: neither a folder nor to be had from the hub ({type(error).__name__})",
            "a bundle's folder or a hub id",
            "check the name, or the network; once downloaded it is found without one",
        ) from error


def read_config(folder: Path) -> TelmeConfig:
    """The configuration in a folder.

    Raises:
        BundleError: It is missing or not TelME's, or a field holds what it cannot.
    """
    path = folder / CONFIG_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("model_type") != TelmeConfig.model_type:
            raise BundleError(
                f"{path} with model_type {settings.get('model_type')!r}", "model_type 'telme'", "give a TelME bundle"
            )
        check_settings(path, settings)
        config: TelmeConfig = TelmeConfig.from_dict(settings)
    except UNFIT_SETTINGS as error:
        raise BundleError(f"{path}: {error}", "a TelME configuration", "copy the bundle again") from error
    return config


def write_part(folder: Path, part: Part, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write one part's file.

    Args:
        folder: Where.
        part: Which.
        weights: Its parameters by their own names.
        dtype: Type on disk of floating-point weights; None leaves them as they are.

    Raises:
        BundleError: It cannot be written.
    """
    kept = {
        name: (value.to(dtype) if dtype is not None and value.is_floating_point() else value).cpu().contiguous()
        for name, value in weights.items()
    }
    path = folder / PART_FILES[part]
    try:
        save_file(kept, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be written: {error}", "a folder with room", "free some space") from error


def _load_part(path: Path, network: nn.Module, dtype: torch.dtype) -> None:
    try:
        weights = load_file(path)
        network.load_state_dict(
            {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()},
            assign=True,
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(
            f"{path}: {error}", "the weights that config.json describes", "copy the bundle again"
        ) from error


# So that transformers' Auto classes load a bundle, once this module is imported.
AutoModel.register(TelmeConfig, TelmeModel, exist_ok=True)
