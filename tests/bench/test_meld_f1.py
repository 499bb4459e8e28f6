"""`python bench/meld_f1.py` on MELD in miniature, with toy bundles: every step, and what it says of clips that fail."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from bench import meld_f1, transcripts
from bench.transcripts import Said, Transcripts, as_captured, word_error_rate
from stream.asr import Transcription
from stream.config import AsrConfig
from telme import cache as cache_module
from telme import clips
from telme.bundle import load_bundle
from telme.data import ClipSource
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import INTERRUPTED
from telme.features import Missing
from telme.importer import import_published
from telme.ladder import Ladder, Outputs
from telme.predictor import TorchNetworks
from tests.bundles import make_full_bundle, make_tiny_bundle
from tests.commands import EXAMPLES
from tests.miniature import make_iemocap, make_meld, write_clip
from tests.telme.checkpoints import make_checkpoint, toy_backbones, toy_tokenizer_files


class Bench:
    """The data, the bundles and a cache."""

    def __init__(self, folder: Path) -> None:
        self.data = make_meld(folder / "meld", train=0, dev=4)
        self.csv = self.data / "dev_meld_emo.csv"
        self.clips = self.data / "dev_splits_complete"
        self.published = make_full_bundle(folder / "published", mode="published-meld")
        self.folder = folder

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str, bundle: Path | None = None) -> dict[str, Any]:
        """The JSON line of a run with clips."""
        given = ["--csv", str(self.csv), "--clips", str(self.data), "--bundle", str(bundle or self.published)]
        assert meld_f1.main([*given, "--cache", str(self.folder / "cache"), "--workers", "0", *arguments]) == 0
        line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return line


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """For tests that change nothing in it."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def own(tmp_path: Path) -> Bench:
    """For tests that break its clips."""
    return Bench(tmp_path)


def test_text_alone_needs_no_clips(shared: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_tiny_bundle(tmp_path / "tiny")
    assert meld_f1.main(["--csv", str(shared.csv), "--bundle", str(bundle), "--text", "gold"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    line = json.loads(last)
    assert (line["n"], line["modalities"], line["protocol"], line["text"]) == (16, "text", "streaming", "gold")
    assert (line["no_answer"], line["left_out"]) == (0, {})
    assert len(shown) == 1 + 7 + 2
    counts = np.array(line["confusion"])
    truth, answers = np.nonzero(counts)[0], np.nonzero(counts)[1]
    times = counts[truth, answers]
    expected = f1_score(np.repeat(truth, times), np.repeat(answers, times), average="weighted", zero_division=0)
    assert line["weighted_f1"] == pytest.approx(100 * expected, abs=1e-3)
    assert line["interval"][0] <= line["weighted_f1"] <= line["interval"][1]


@pytest.mark.parametrize("protocol", ["streaming", "published"])
@pytest.mark.parametrize("modalities", ["text", "audio", "video", "text,audio", "text,video", "text,audio,video"])
def test_every_step_is_scored(
    shared: Bench, capsys: pytest.CaptureFixture[str], modalities: str, protocol: str
) -> None:
    line = shared.run(capsys, "--modalities", modalities, "--protocol", protocol)
    assert (line["modalities"], line["protocol"], line["n"]) == (modalities, protocol, 16)
    assert sum(map(sum, line["confusion"])) == 16


def test_the_temperature_scales_only_what_it_was_fitted_on(own: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    config = own.published / "config.json"
    said = {}
    for temperature in (1.0, 0.2):
        text = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**text, "calibration_temperature": temperature}), encoding="utf-8")
        for modalities in ("text", "text,audio"):
            line = own.run(capsys, "--modalities", modalities)
            said[modalities, temperature] = line["calibration_error"]
    assert said["text", 1.0] == said["text", 0.2]
    assert said["text,audio", 1.0] != said["text,audio", 0.2]


def test_a_second_run_decodes_and_encodes_nothing(
    shared: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shared.run(capsys)
    assert first["modalities"] == "text,audio,video"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(cache_module, "read_clip", never)
    for network in ("text", "audio", "video"):
        monkeypatch.setattr(TorchNetworks, network, never)
    assert shared.run(capsys) == first
    # The other protocol pads the sounds of this mode, so of the encoders the audio student alone is asked again.
    monkeypatch.undo()
    monkeypatch.setattr(TorchNetworks, "text", never)
    monkeypatch.setattr(TorchNetworks, "video", never)
    assert shared.run(capsys, "--protocol", "published")["n"] == 16


@pytest.mark.parametrize("protocol", ["streaming", "published"])
def test_another_backend_answers_the_same(
    shared: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared.folder))
    kept = shared.folder / f"{protocol}.json"
    eager = shared.run(capsys, "--protocol", protocol, "--save", str(kept))
    onnx = shared.run(capsys, "--protocol", protocol, "--backend", "onnx", "--against", str(kept))
    assert (eager["backend"], onnx["backend"]) == ("torch-cpu", "onnx-fp32")
    assert onnx["confusion"] == eager["confusion"]
    assert onnx["calibration_error"] == pytest.approx(eager["calibration_error"], abs=1e-4)
    assert onnx["against"]["interval"] == [0, 0]


@pytest.mark.parametrize(
    ("mode", "protocol", "turns"),
    [("published-meld", "published", 33), ("published-meld", "streaming", 24), ("clean", "published", 24)],
)
def test_the_published_protocol_leaves_out_no_turn_of_a_long_dialogue(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    protocol: str,
    turns: int,
) -> None:
    rows = [f"{number},a,{'ab'[number % 2]},joy,neutral,0,{number}" for number in range(33)]
    path = tmp_path / "long.csv"
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    bundle = make_full_bundle(tmp_path / "bundle", mode=mode)
    seen: dict[int, Sequence[int]] = {}
    read = Ladder.text

    def look(ladder: Ladder, prompts: Mapping[int, Sequence[int]]) -> Outputs:
        seen.update(prompts)
        return read(ladder, prompts)

    monkeypatch.setattr(Ladder, "text", look)
    given = ["--csv", str(path), "--bundle", str(bundle), "--text", "gold", "--modalities", "text"]
    assert meld_f1.main([*given, "--protocol", protocol, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 33
    vocabulary = load_bundle(str(bundle)).tokenizer.get_vocab()
    assert [seen[32].count(vocabulary[token]) for token in SPEAKER_TOKENS[:2]] == [
        (turns + 1) // 2 + 1,  # the question at the end names it too
        turns // 2,
    ]


def test_runs_are_compared_on_the_same_utterances(
    shared: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "text.json"
    text = shared.run(capsys, "--modalities", "text", "--save", str(kept))
    itself = shared.run(capsys, "--modalities", "text", "--against", str(kept))["against"]
    assert itself == {"model": text["model"], "difference": 0, "interval": [0, 0], "n": 16}
    video = shared.run(capsys, "--modalities", "video", "--against", str(kept))
    assert video["against"]["difference"] == pytest.approx(video["weighted_f1"] - text["weighted_f1"], abs=2e-3)
    low, high = video["against"]["interval"]
    assert low <= video["against"]["difference"] <= high


def test_the_confusion_matrix_is_drawn(shared: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared.run(capsys, "--modalities", "text", "--png", str(tmp_path / "confusion.png"))
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_clips_that_fail_are_counted_and_left_out_of_what_needs_them(
    own: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    (own.clips / "dia0_utt0.mp4").unlink()
    (own.clips / "dia0_utt1.mp4").write_bytes(b"no film")
    content = (own.clips / "dia1_utt0.mp4").read_bytes()
    (own.clips / "dia1_utt0.mp4").write_bytes(content[: len(content) // 2])
    write_clip(own.clips / "dia2_utt2.mp4", None, np.full((9, 32, 48, 3), 90, np.uint8))
    fused = own.run(capsys)
    assert (fused["n"], fused["left_out"]) == (16, {})
    audio = own.run(capsys, "--modalities", "audio")
    assert audio["n"] == 12
    assert sum(audio["left_out"].values()) == 4
    assert "audio: its file has no sound" in audio["left_out"]
    video = own.run(capsys, "--modalities", "video")
    assert video["n"] == 13
    kept = own.folder / "audio.json"
    own.run(capsys, "--modalities", "audio", "--save", str(kept))
    assert own.run(capsys, "--modalities", "video", "--against", str(kept))["against"]["n"] == 12


@pytest.fixture
def spoken(own: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Each clip is understood but for three: one is rejected, one has no file and one no sound."""
    (own.clips / "dia0_utt1.mp4").unlink()
    write_clip(own.clips / "dia0_utt2.mp4", None, np.full((9, 32, 48, 3), 90, np.uint8))
    with own.csv.open(encoding="utf-8") as file:
        texts = [row["Utterance"] for row in csv.DictReader(file)]
    left = [text for place, text in enumerate(texts) if place not in (1, 2)]

    class Recognizer:
        """Says what is annotated, but for the first word of the last utterance; rejects the first."""

        def __init__(self, config: AsrConfig) -> None:
            self.said = 0

        def transcribe(self, pcm: object) -> Transcription:
            self.said += 1
            text = left[self.said - 1]
            if self.said == len(left):
                text = text.partition(" ")[2]
            return Transcription(text, "too quiet" if self.said == 1 else None)

    monkeypatch.setattr(transcripts, "Transcriber", Recognizer)
    return own


def test_recognized_words_are_scored_with_their_error_rate(
    spoken: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = spoken.run(capsys, "--text", "asr", "--modalities", "text")
    assert (line["n"], line["no_answer"]) == (14, 1)
    assert sum(line["left_out"].values()) == 2
    assert sum(row[-1] for row in line["confusion"]) == 1
    gold = spoken.run(capsys, "--modalities", "text")
    assert 0 < line["word_error_rate"] < 0.3
    assert "word_error_rate" not in gold
    # Kept: the recognizer is not asked again.
    monkeypatch.setattr(transcripts, "Transcriber", None)
    assert spoken.run(capsys, "--text", "asr", "--modalities", "text") == line
    (lines,) = (spoken.folder / "cache").glob("transcripts-*.jsonl")
    lines.write_text(lines.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(TypeError):
        spoken.run(capsys, "--text", "asr", "--modalities", "text")


def test_a_clip_that_the_system_did_not_let_be_read_is_transcribed_the_next_time(
    spoken: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    flags = ["--csv", str(spoken.csv), "--clips", str(spoken.data), "--bundle", str(spoken.published)]
    flags += ["--cache", str(spoken.folder / "cache"), "--text", "asr", "--modalities", "text"]
    with monkeypatch.context() as failing:
        failing.setattr(clips, "open_media", refuse)
        assert meld_f1.main(flags) == 1
    assert "dia0_utt0.mp4 cannot be read: Input/output error" in capsys.readouterr().err.splitlines()[-1]
    assert not list((spoken.folder / "cache").glob("transcripts-*.jsonl"))
    assert meld_f1.main(flags) == 0


def test_the_real_recognizer_hears_clips_as_the_capture_side_does(tmp_path: Path) -> None:
    film = EXAMPLES / "conversation.mp4"
    found = Transcripts(tmp_path, AsrConfig()).of(
        [ClipSource(film, film), ClipSource(Missing("gone"), film)], quiet=True
    )
    assert found[1] == Missing("gone")
    assert isinstance(found[0], Said)
    spoken = " ".join(item["text"] for item in json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8")))
    assert word_error_rate([spoken], [found[0].text]) < 0.2


def test_sound_is_brought_to_16_bits_at_16_khz() -> None:
    pcm = as_captured(np.array([0.0, 0.5, -0.5, 1.5, -1.5], np.float32), 16_000)
    assert pcm.tolist() == [0, 16384, -16384, 32767, -32767]
    assert len(as_captured(np.zeros(44_100, np.float32), 44_100)) == 16_000


@pytest.mark.parametrize(
    ("spoken", "written", "rate"),
    [
        (["It\x92s me, Ann!"], ["it's me ann"], 0.0),
        (["one two", "..."], ["one", "noise"], 0.5),
        (["one two", "three"], ["", "three"], 2 / 3),
        (["?"], [""], 0.0),
    ],
)
def test_word_error_rate_counts_words_alone(spoken: list[str], written: list[str], rate: float) -> None:
    assert word_error_rate(spoken, written) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--modalities", "audio"], 2, "without --clips"),
        (["--text", "asr"], 2, "without --clips"),
        (["--modalities", "audio", "--text", "asr", "--clips", "."], 2, "without text"),
        (["--clips", "nowhere"], 1, "no folder nowhere"),
        (["--clips", ".", "--modalities", "audio,video"], 2, "audio and video without text"),
        (["--backend", "torch", "--precision", "fp16"], 2, "torch in fp16 on the CPU"),
        (["--against", "nothing.json"], 1, "nothing.json"),
        (["--csv", "nothing.csv"], 1, "no file nothing.csv"),
        (["--save", "/dev/full"], 1, "cannot be written"),
    ],
)
def test_errors_are_one_line(
    shared: Bench, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    given = ["--csv", str(shared.csv), "--bundle", str(shared.published), *arguments]
    assert meld_f1.main(given) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("meld_f1: error: ")
    assert says in captured.err.splitlines()[-1]


def test_another_files_answers_are_not_compared(
    shared: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared.run(capsys, "--modalities", "text", "--save", str(tmp_path / "run.json"))
    other = make_meld(tmp_path / "other", train=0, dev=2, clips=False)
    given = ["--csv", str(other / "dev_meld_emo.csv"), "--bundle", str(shared.published)]
    assert meld_f1.main([*given, "--against", str(tmp_path / "run.json")]) == 1
    assert "is about other utterances" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "row", "says"),
    [
        ("Utterance,Speaker,Dialogue_ID,Utterance_ID", "hello,a,0,0", "without column Emotion"),
        ("Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID", "hello,a,bliss,0,0", "line 2 with label 'bliss'"),
    ],
)
def test_annotations_that_cannot_be_read_are_an_error(
    shared: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], header: str, row: str, says: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\n{row}\n", encoding="utf-8")
    assert meld_f1.main(["--csv", str(path), "--bundle", str(shared.published)]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "error: no room on the GPU for"),
        (KeyboardInterrupt(), INTERRUPTED, "meld_f1: interrupted; what is in the cache"),
    ],
)
def test_a_full_gpu_and_an_interrupt_are_one_line(
    shared: Bench,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr(TorchNetworks, "text", Mock(side_effect=failure))
    assert meld_f1.main(["--csv", str(shared.csv), "--bundle", str(shared.published)]) == code
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_disk_that_is_full_while_caching_is_an_error(shared: Bench, tmp_path: Path) -> None:
    given = ["--csv", str(shared.csv), "--bundle", str(shared.published), "--clips", str(shared.data)]
    command = [
        sys.executable,
        str(Path(meld_f1.__file__)),
        *given,
        "--cache",
        str(tmp_path / "cache"),
        "--workers",
        "0",
    ]
    # No file may grow past 20 blocks of 512 bytes; Python would leave .pyc files cut short there.
    limited = ["sh", "-c", 'export PYTHONDONTWRITEBYTECODE=1\nulimit -f 20\nexec "$@"', "sh", *command]
    ran = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "cannot be written: File too large; expected room for the cached clips" in ran.stderr.splitlines()[-1]
    assert not [path for path in (tmp_path / "cache").rglob("*") if "safetensors" in path.name]


def test_what_a_recognizer_cannot_keep_is_an_error(
    spoken: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (spoken.folder / "file").write_text("", encoding="utf-8")
    given = ["--csv", str(spoken.csv), "--bundle", str(spoken.published), "--clips", str(spoken.data)]
    assert meld_f1.main([*given, "--text", "asr", "--cache", str(spoken.folder / "file" / "cache")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("modalities", ["text", "text,audio"])
def test_nothing_understood_is_an_error(
    own: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, modalities: str
) -> None:
    rejected = Said("", "too quiet")
    monkeypatch.setattr(Transcripts, "of", lambda _, sources, quiet: [rejected for _ in sources])
    given = ["--csv", str(own.csv), "--bundle", str(own.published), "--clips", str(own.data), "--workers", "0"]
    given += ["--cache", str(own.folder / "cache"), "--text", "asr", "--modalities", modalities]
    assert meld_f1.main(given) == 1
    assert "no utterance could be answered: the recognizer rejected all" in capsys.readouterr().err


def test_iemocap_is_evaluated_likewise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbones = toy_backbones(toy_tokenizer_files(tmp_path / "tokenizer"))
    make_checkpoint(tmp_path / "authors", "iemocap", backbones)
    bundle, data = tmp_path / "bundle", make_iemocap(tmp_path / "iemocap", train=0, dev=1)
    import_published(tmp_path / "authors", "iemocap", bundle, tmp_path / "tokenizer", backbones=backbones)
    given = ["--csv", str(data / "IEMOCAP_dev.csv"), "--bundle", str(bundle), "--clips", str(data), "--workers", "0"]
    assert meld_f1.main([*given, "--cache", str(tmp_path / "cache"), "--protocol", "published"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "4 utterances, 4 with sound, 4 with pictures" in shown
    line = json.loads(shown[-1])
    assert (line["n"], list(line["per_class"])) == (4, ["ang", "exc", "fru", "hap", "neu", "sad"])


def test_nothing_to_answer_is_an_error(own: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    for path in own.clips.iterdir():
        path.unlink()
    given = ["--csv", str(own.csv), "--bundle", str(own.published), "--clips", str(own.data), "--workers", "0"]
    assert meld_f1.main([*given, "--cache", str(own.folder / "cache"), "--modalities", "video"]) == 1
    assert "no utterance could be answered: 16 video: " in capsys.readouterr().err
