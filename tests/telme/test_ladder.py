"""Every step of the ladder against the worker's predictor, the networks themselves and the model's own batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from telme.bundle import Bundle, load_bundle
from telme.dialogue import Turn
from telme.errors import PredictorError, UsageError
from telme.features import FeatureMaker, Features, collate_prompts
from telme.ladder import Ladder, Outputs, Protocol, check_step, probabilities
from telme.modes import Student
from telme.predictor import TorchNetworks, TorchPredictor
from telme.sound import pad_left
from tests.bundles import make_full_bundle

UTTERANCES = 9
MODES = ("clean", "published-meld")


class World:
    """Nine utterances with sound and pictures, and a bundle."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.bundle: Bundle = load_bundle(str(make_full_bundle(folder / mode, mode=mode)))
        maker = FeatureMaker(self.bundle.tokenizer, self.bundle.config)
        chance = np.random.default_rng(5)
        window = maker.window()
        self.features: list[Features] = []
        self._made: dict[tuple[Protocol, tuple[int, ...]], dict[str, Outputs]] = {}
        for number in range(UTTERANCES):
            window.append(Turn("ab"[number % 2], f"hello {'very ' * number}there"))
            sound = chance.normal(0, 0.1, 1_600 + 300 * number).astype(np.float32)
            frames = chance.integers(0, 256, (8, 40, 50, 3)).astype(np.uint8)
            self.features.append(maker.make(window, sound, frames))

    def ladder(self, protocol: Protocol) -> Ladder:
        return Ladder(self.bundle, TorchNetworks(self.bundle.model), protocol)

    def sound(self, row: int) -> NDArray[np.float32]:
        sound: Any = self.features[row].sound
        return np.asarray(sound)

    def pixels(self, row: int) -> Tensor:
        pixels = self.features[row].pixels
        assert isinstance(pixels, Tensor)
        return pixels

    def outputs(self, protocol: Protocol, rows: tuple[int, ...] = tuple(range(UTTERANCES))) -> dict[str, Outputs]:
        """What the encoders say, made once; the students of `rows` alone."""
        if (protocol, rows) not in self._made:
            self._made[protocol, rows] = self._encoded(self.ladder(protocol), rows)
        return self._made[protocol, rows]

    def _encoded(self, ladder: Ladder, rows: tuple[int, ...]) -> dict[str, Outputs]:
        return {
            "text": ladder.text({row: self.features[row].prompt_ids for row in range(UTTERANCES)}),
            "audio": ladder.audio(rows, self.sound),
            "video": ladder.video(rows, self.pixels),
        }


@pytest.fixture(scope="module", params=MODES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("ladder"), request.param)


def test_streaming_is_what_the_worker_answers(world: World) -> None:
    held = world.outputs("streaming")
    logits = world.ladder("streaming").fuse(held["text"], {"audio": held["audio"], "video": held["video"]})
    expected = [item.probabilities for item in TorchPredictor(world.bundle).predict(world.features)]
    found = probabilities(logits, world.bundle.config.calibration_temperature)
    np.testing.assert_allclose(found, np.array(expected), atol=1e-5)


@torch.inference_mode()
def test_published_is_the_models_own_batch_of_four(world: World) -> None:
    held = world.outputs("published")
    logits = world.ladder("published").fuse(held["text"], {"audio": held["audio"], "video": held["video"]})
    mode = world.bundle.config.input_mode
    if mode.audio_left_pad != "batch":
        streaming = world.outputs("streaming")
        expected = world.ladder("streaming").fuse(
            streaming["text"], {"audio": streaming["audio"], "video": streaming["video"]}
        )
    else:
        batches = []
        for start in range(0, UTTERANCES, 4):
            batch = world.features[start : start + 4]
            rows = range(start, start + len(batch))
            ids, mask = collate_prompts([item.prompt_ids for item in batch], int(world.bundle.tokenizer.pad_token_id))
            sounds = pad_left([world.sound(row) for row in rows], mode)
            pixels = torch.cat([world.pixels(row) for row in rows])
            batches.append(world.bundle.model(ids, mask, sounds, pixels).logits)
        expected = torch.cat(batches)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_protocols_differ_where_the_mode_says_so(world: World) -> None:
    protocols: tuple[Protocol, Protocol] = ("streaming", "published")
    answers = []
    for protocol in protocols:
        held = world.outputs(protocol)
        students: dict[Student, Outputs] = {"audio": held["audio"], "video": held["video"]}
        answers.append(world.ladder(protocol).fuse(held["text"], students))
    same = torch.allclose(answers[0], answers[1], atol=1e-5)
    assert same == (world.bundle.config.input_mode.name == "clean")


def test_one_modality_is_its_own_networks_answer(world: World) -> None:
    held = world.outputs("streaming")
    mode = world.bundle.config.input_mode
    with torch.inference_mode():
        for row in range(UTTERANCES):
            model = world.bundle.model
            assert model.audio is not None
            assert model.video is not None
            for name, expected in (
                ("text", model.text(*collate_prompts([world.features[row].prompt_ids], 0))),
                ("audio", model.audio(pad_left([world.sound(row)], mode))),
                ("video", model.video(world.pixels(row))),
            ):
                torch.testing.assert_close(held[name].logits[row], expected.logits[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("protocol", ["streaming", "published"])
def test_a_student_that_lacks_an_utterance_is_absent_there_alone(world: World, protocol: Protocol) -> None:
    rows = (0, 2, 3, 6)
    held, ladder = world.outputs(protocol, rows), world.ladder(protocol)
    assert held["audio"].rows == rows
    with_both = ladder.fuse(held["text"], {"audio": held["audio"], "video": held["video"]})
    without = ladder.fuse(held["text"], {})
    changed = {row for row in range(UTTERANCES) if not torch.allclose(with_both[row], without[row], atol=1e-6)}
    # No utterance of the last group has any student; across a group, neighbours count too, but shift only who has one.
    assert changed == set(rows)


def test_a_student_without_any_utterance_changes_nothing(world: World) -> None:
    held, ladder = world.outputs("streaming", ()), world.ladder("streaming")
    assert held["audio"].logits.shape == (0, 7)
    torch.testing.assert_close(ladder.fuse(held["text"], {"audio": held["audio"]}), ladder.fuse(held["text"], {}))


def test_steps_that_a_bundle_cannot_take_are_refused(tmp_path: Path) -> None:
    bundle = load_bundle(str(make_full_bundle(tmp_path / "deaf", ["audio", "fusion"])))
    check_step(frozenset({"video"}), bundle)
    for modalities, says in (
        (frozenset({"audio", "video"}), "audio and video without text"),
        (frozenset({"audio"}), "without audio"),
        (frozenset({"text", "video"}), "without fusion"),
    ):
        with pytest.raises(UsageError, match=says):
            check_step(modalities, bundle)  # type: ignore[arg-type]


def test_answers_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(PredictorError, match="not finite"):
        probabilities(torch.tensor([[0.0, float("nan")]]))
