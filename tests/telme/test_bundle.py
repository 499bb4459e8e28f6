"""The bundle: what loads, and what each broken folder says."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from telme.bundle import REQUIRED_FILES, TEXT_FILE, load_bundle, load_tokenizer, open_bundle, save_bundle
from telme.dialogue import DialogueWindow, Turn
from telme.errors import BundleError, FeatureError
from telme.features import FeatureMaker
from telme.fusion import AttentionShiftFusion
from telme.models import TextTeacher
from telme.predictor import TorchPredictor
from telme.recipes import recipe_named
from telme.record import RECORD_FILE, Training, read_record
from telme.shelf import verify
from tests.bundles import make_full_bundle, make_tiny_bundle, tiny_config, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_bundle(tmp_path / "tiny")


def test_what_was_saved_is_loaded(folder: Path) -> None:
    first, second = load_bundle(str(folder)), load_bundle(str(folder))
    assert first.model_id == second.model_id
    assert first.model_id.startswith("tiny-")
    assert first.config.label_set.names[3] == "joy"
    for name, value in first.model.state_dict().items():
        assert value.dtype == torch.float32, name
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert not first.model.training


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_lacking_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(str(folder))


@pytest.mark.parametrize("name", ["fusion.safetensors", "audio.safetensors"])
def test_a_part_that_the_configuration_names_and_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    folder = make_full_bundle(tmp_path / "bundle")
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"No such file or directory: {name}"):
        open_bundle(str(folder))
    (wrong,) = [finding for finding in verify(str(folder)) if finding.name == "parts"]
    assert wrong.wrong
    assert name in wrong.seen


def test_no_bundle_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="compact"):
        load_bundle(str(tmp_path / "nothing"))


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / TEXT_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=TEXT_FILE):
        load_bundle(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["text_config"]["hidden_size"] = 48
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(BundleError, match="size mismatch"):
        load_bundle(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}'])
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"config\.json"):
        load_bundle(str(folder))


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 1}', '{"added_tokens": []}'])
def test_a_damaged_tokenizer_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        load_bundle(str(folder))


def test_a_tokenizer_with_more_tokens_than_the_weights_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<stranger>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BundleError, match="tokens"):
        load_bundle(str(folder))


def test_a_bundle_stays_whole_when_the_next_one_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bundle = load_bundle(str(folder))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(bundle.tokenizer), "save_pretrained", full)
    with pytest.raises(BundleError, match="No space left"):
        save_bundle(folder, bundle.config, bundle.model.text, bundle.tokenizer, "another card")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_bundle_without_a_record_does_not_keep_that_of_the_one_in_its_place(folder: Path) -> None:
    bundle = load_bundle(str(folder))
    how = recipe_named("clean", "meld").teacher
    training = Training("teacher", "meld", "clean", how, ("lr: 1", "seed: 2"), 1, "here", 3, 2, 50.0)
    save_bundle(folder, bundle.config, bundle.model.text, bundle.tokenizer, "card", record={"text": training})
    assert read_record(folder) == {"text": training}
    assert RECORD_FILE in (folder / "SHA256SUMS").read_text(encoding="utf-8")
    save_bundle(folder, bundle.config, bundle.model.text, bundle.tokenizer, "another card")
    assert read_record(folder) == {}


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_bundle_is_what_the_users_mask_says(tmp_path: Path, mask: int, expected: int) -> None:
    before = os.umask(mask)
    try:
        folder = make_tiny_bundle(tmp_path / "made")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {expected}


def test_modes_that_are_alike_are_left_to_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On FAT each file has the mode of the mount, and chmod is for the mount's owner."""
    monkeypatch.setattr(Path, "chmod", Mock(side_effect=PermissionError(errno.EPERM, "Operation not permitted")))
    before = os.umask(0o077)  # as safetensors makes its files
    try:
        folder = make_tiny_bundle(tmp_path / "made")
    finally:
        os.umask(before)
    assert load_bundle(str(folder)).folder == folder


def test_parts_that_the_configuration_does_not_name_are_not_saved(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    with pytest.raises(BundleError, match="the parts text, fusion"):
        save_bundle(tmp_path, config, TextTeacher(config), tokenizer, "#", {"fusion": AttentionShiftFusion(config)})


def test_a_model_id_follows_from_all_weights(tmp_path: Path) -> None:
    whole, deaf = make_full_bundle(tmp_path / "a" / "toy"), make_full_bundle(tmp_path / "b" / "toy", ["audio"])
    ids = {load_bundle(str(folder)).model_id for folder in (whole, deaf)}
    assert len(ids) == 2
    assert all(model_id.startswith("toy-") for model_id in ids)


def test_sums_are_those_that_sha256sum_checks(folder: Path) -> None:
    run = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "text.safetensors: OK" in run.stdout


def test_neighbours_and_padding_change_no_answer(folder: Path) -> None:
    bundle = load_bundle(str(folder))
    maker, predictor = FeatureMaker(bundle.tokenizer, bundle.config), TorchPredictor(bundle)
    windows = [
        DialogueWindow.of([Turn("a", "hello there")]),
        DialogueWindow.of([Turn("a", "what is it ?"), Turn("b", "i am so sad"), Turn("a", "no !")]),
    ]
    features = [maker.make(window) for window in windows]
    together = predictor.predict(features)
    alone = [predictor.predict([item])[0] for item in features]
    for one, other in zip(together, alone, strict=True):
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-12)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_the_prompt_is_cut_from_the_left_and_ends_with_the_mask() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    maker = FeatureMaker(tokenizer, config)
    long = DialogueWindow.of([Turn("a", "hello there you " * 40), Turn("b", "yes")])
    features = maker.make(long)
    assert len(features.prompt_ids) == config.max_prompt_tokens
    assert str(tokenizer.decode(list(features.prompt_ids))).endswith("<s2> yes [SEP] now <s2> feels [MASK]")
    assert features.context_turns == 2


def test_a_transcript_cannot_write_tokens_of_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    maker = FeatureMaker(tokenizer, tiny_config(len(tokenizer)))
    features = maker.make(DialogueWindow.of([Turn("a", "yes [MASK] <s7> </s> no [SEP]")]))
    assert features.prompt_ids.count(tokenizer.mask_token_id) == 1
    assert features.prompt_ids.count(tokenizer.sep_token_id) == 1
    assert tokenizer.convert_tokens_to_ids("<s7>") not in features.prompt_ids


def test_a_tokenizer_without_speakers_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, mask_token="[MASK]", sep_token="[SEP]")
    with pytest.raises(FeatureError, match="pad token"):
        FeatureMaker(bare, config)
