"""The authors' checkpoints become a bundle, or one clear error and nothing on disk."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from telme import importer
from telme.bundle import load_bundle, load_tokenizer
from telme.checkpoint_files import CheckpointFile, read_checkpoint
from telme.dialogue import Turn
from telme.errors import BundleError, TelmeStreamError, UsageError
from telme.features import FeatureMaker
from telme.importer import import_published, published_tokenizer
from telme.modes import CLEAN, PUBLISHED_MELD
from telme.predictor import TorchNetworks, TorchPredictor
from telme.published import PARTS, published_names
from telme.shelf import verify
from telme.tokens import prompt_for_tokenizer
from tests.telme.authors import Shelf, put, put_bytes, refused
from tests.telme.checkpoints import pack, processor_files, toy_tokenizer_files
from tests.telme.prompts import made_up_prompts


@pytest.mark.parametrize("dataset", ["meld", "iemocap"])
def test_every_published_number_is_in_the_bundle(shelf: Shelf, tmp_path: Path, dataset: str) -> None:
    source = shelf.authors[dataset]
    bundle = load_bundle(str(shelf.imported(source, tmp_path / "bundle", dataset)))
    assert bundle.config.input_mode.name == f"published-{dataset}"
    assert bundle.config.parts == ("text", "audio", "video", "fusion")
    for part, published in PARTS.items():
        network = bundle.model.network(part)
        assert network is not None
        own, weights = network.state_dict(), read_checkpoint(CheckpointFile("", source / published.file))
        for name, ours in published_names(part, weights, own).items():
            assert torch.equal(own[ours], weights[name]), name
    findings = list(verify(str(tmp_path / "bundle")))
    assert not [finding for finding in findings if finding.wrong]
    assert findings[-1].seen == "probabilities sum to 1, from text, audio, video"


def test_an_imported_bundle_answers_from_text_alone_and_says_so(shelf: Shelf, tmp_path: Path) -> None:
    bundle = load_bundle(str(shelf.imported(shelf.authors["meld"], tmp_path / "bundle")))
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    (prediction,) = TorchPredictor(bundle).predict([maker.make(maker.window([Turn("a", "it's me")]))])
    assert prediction.unused == {"audio": "not given", "video": "not given"}


@torch.inference_mode()
def test_a_left_pad_is_kept_and_heard(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the live worker's predictor, in the rate of the mode."""
    source, out = shelf.authors["meld"], tmp_path / "bundle"
    import_published(source, "meld", out, shelf.tokenizer, backbones=shelf.backbones, left_pad_ms=200)
    bundle = load_bundle(str(out))
    assert bundle.config.audio_left_pad_ms == 200
    maker, predictor = FeatureMaker(bundle.tokenizer, bundle.config), TorchPredictor(bundle)
    heard: list[Tensor] = []
    usual = TorchNetworks.audio
    monkeypatch.setattr(TorchNetworks, "audio", lambda own, sound: heard.append(sound) or usual(own, sound))  # type: ignore[func-returns-value]
    noise = torch.rand(16_000, generator=torch.Generator().manual_seed(1)).numpy()
    predictor.predict([maker.make(maker.window([Turn("a", "it's me")]), noise)])
    assert [sound.shape for sound in heard] == [(1, 4_410 + 22_050)]
    assert not heard[0][:, :4_410].any()
    with pytest.raises(BundleError, match="audio_left_pad_ms 99999"):
        import_published(source, "meld", tmp_path / "no", shelf.tokenizer, backbones=shelf.backbones, left_pad_ms=99999)
    assert not (tmp_path / "no").exists()


def test_a_folder_without_the_files_is_said_before_anything_is_fetched(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "tokenizer_from_hub", lambda: pytest.fail("it was"))
    (tmp_path / "wrong").mkdir()
    with pytest.raises(BundleError, match=r"wrong without the text teacher of meld: there is no teacher.bin"):
        import_published(tmp_path / "wrong", "meld", tmp_path / "bundle", backbones=shelf.backbones)
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]
    with pytest.raises(BundleError, match=r"nothing without vocab.json or tokenizer.json"):
        import_published(shelf.authors["meld"], "meld", tmp_path / "bundle", tmp_path / "nothing")


def test_an_archive_gives_what_its_folder_gives(shelf: Shelf, tmp_path: Path) -> None:
    pack(shelf.authors["meld"], tmp_path / "TelME.tar.gz")
    first = shelf.imported(tmp_path / "TelME.tar.gz", tmp_path / "a")
    second = shelf.imported(shelf.authors["meld"], tmp_path / "b")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["TelME.tar.gz", "a", "b"]


@pytest.mark.parametrize(
    ("file", "edit", "says"),
    [
        ("teacher.bin", lambda weights: weights.pop("W.bias"), r"teacher.bin with missing W\.bias"),
        ("total_fusion.bin", lambda weights: weights.update(X=torch.ones(1)), "total_fusion.bin with extra X"),
        (
            "student_audio/total_student.bin",
            lambda weights: weights.update({"W.bias": torch.ones(2)}),
            r"student_audio/total_student.bin with mis-shaped W\.bias: \[2\], expected \[7\]",
        ),
        (
            "student_video/total_student.bin",
            lambda weights: weights["W.bias"].fill_(float("nan")),
            r"not finite in W\.bias",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_named(
    shelf: Shelf, authors: Path, tmp_path: Path, file: str, edit: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    weights = torch.load(authors / file, weights_only=True)
    edit(weights)
    put(authors / file, weights)
    refused(shelf, authors, tmp_path, says)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("raw", [False, True])
def test_a_payload_is_refused_and_not_run(shelf: Shelf, authors: Path, tmp_path: Path, raw: bool) -> None:
    victim = tmp_path / "victim"
    content = {"W.bias": torch.ones(7), "evil": Payload(str(victim))}
    if raw:
        put_bytes(authors / "teacher.bin", pickle.dumps(content))
    else:
        put(authors / "teacher.bin", content)
    refused(shelf, authors, tmp_path, "teacher.bin holds code or is damaged, and was not run")
    assert not victim.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file_is_refused(shelf: Shelf, authors: Path, tmp_path: Path, kept: float, legacy: bool) -> None:
    path = authors / "teacher.bin"
    put(path, torch.load(path, weights_only=True), zipped=not legacy)
    content = path.read_bytes()
    put_bytes(path, content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    refused(shelf, authors, tmp_path, "teacher.bin")


def test_a_flipped_bit_is_found(shelf: Shelf, authors: Path, tmp_path: Path) -> None:
    path = authors / "teacher.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    put_bytes(path, bytes(content))
    refused(shelf, authors, tmp_path, "teacher.bin is damaged in")


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {"a": 1}, {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_refused(shelf: Shelf, authors: Path, tmp_path: Path, content: object) -> None:
    put(authors / "teacher.bin", content)
    refused(shelf, authors, tmp_path, "expected tensors by name")


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_a_truncated_archive_is_refused(shelf: Shelf, tmp_path: Path, kept: float) -> None:
    archive = tmp_path / "TelME.tar.gz"
    pack(shelf.authors["meld"], archive)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    refused(shelf, archive, tmp_path, "TelME.tar.gz")


def test_no_source_is_named(shelf: Shelf, tmp_path: Path) -> None:
    refused(shelf, tmp_path / "none", tmp_path, "no file or folder")


def test_a_folder_that_is_taken_stays_as_it_is(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="exists"):
        shelf.imported(shelf.authors["meld"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_an_unknown_data_set_is_a_wrong_usage(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of meld, iemocap"):
        shelf.imported(shelf.authors["meld"], tmp_path / "bundle", "emory")


@pytest.mark.parametrize("break_it", ["empty", "longer", "no json"])
def test_another_tokenizer_is_refused(shelf: Shelf, tmp_path: Path, break_it: str) -> None:
    folder = tmp_path / "tokenizer"
    toy_tokenizer_files(folder)
    vocabulary = folder / "vocab.json"
    match break_it:
        case "empty":
            vocabulary.unlink()
        case "longer":
            vocabulary.write_text(vocabulary.read_text(encoding="utf-8").replace("{", '{"zzz": 9999, ', 1), "utf-8")
        case _:
            vocabulary.write_text("no json", encoding="utf-8")
    with pytest.raises(BundleError, match="tokenizer"):
        import_published(shelf.authors["meld"], "meld", tmp_path / "bundle", folder, backbones=shelf.backbones)
    assert not (tmp_path / "bundle").exists()


def test_processors_come_along_and_are_checked(shelf: Shelf, tmp_path: Path) -> None:
    folder, out = processor_files(tmp_path / "processors"), tmp_path / "bundle"
    import_published(shelf.authors["meld"], "meld", out, shelf.tokenizer, folder, shelf.backbones)
    for name, repository in (("audio", "data2vec-audio-base-960h"), ("video", "videomae-base")):
        given = folder / repository / "preprocessor_config.json"
        assert (out / f"{name}_preprocessor_config.json").read_bytes() == given.read_bytes()
    assert not [finding for finding in verify(str(out)) if finding.wrong]
    (out / "video_preprocessor_config.json").unlink()
    wrong = {finding.name for finding in verify(str(out)) if finding.wrong}
    assert wrong == {"digests", "inputs"}


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("videomae-base", '{"image_mean": [0.5, 0.5, 0.5], "size": 224}', r"image_mean .*\(0.485, 0.456, 0.406\)"),
        ("videomae-base", "no json", "not a valid JSON"),
        ("data2vec-audio-base-960h", '{"sampling_rate": 8000}', "sampling_rate 8000; expected sampling_rate 16000"),
        ("data2vec-audio-base-960h", None, "the processor of facebook/data2vec-audio-base-960h"),
    ],
)
def test_another_processor_is_refused(shelf: Shelf, tmp_path: Path, file: str, content: str | None, says: str) -> None:
    folder = processor_files(tmp_path / "processors")
    path = folder / file / "preprocessor_config.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=says):
        import_published(shelf.authors["meld"], "meld", tmp_path / "b", shelf.tokenizer, folder, shelf.backbones)
    assert not (tmp_path / "b").exists()


def test_a_disk_without_room_leaves_nothing(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TelmeStreamError, match="cannot be written"):
        shelf.imported(shelf.authors["meld"], tmp_path / "file" / "bundle")


def test_the_bundles_tokenizer_is_the_one_that_was_given(shelf: Shelf, tmp_path: Path) -> None:
    bundle = shelf.imported(shelf.authors["meld"], tmp_path / "bundle")
    given = published_tokenizer(shelf.tokenizer, load_bundle(str(bundle)).config)
    kept = load_tokenizer(bundle)
    for mode in (CLEAN, PUBLISHED_MELD):
        prompts = [prompt_for_tokenizer(prompt, mode) for prompt in made_up_prompts(100)]
        made = [tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"] for tokenizer in (given, kept)]
        assert made[0] == made[1]
    assert [kept.convert_ids_to_tokens(len(kept) - 9 + number) for number in range(9)] == [
        f"<s{number}>" for number in range(1, 10)
    ]
