"""Offline weighted F1 on annotated utterances: `python bench/meld_f1.py --csv FILE --bundle compact --text gold`.

Steps (--modalities): text, audio or video alone are answered by that network's own classifier; text with audio, video
or both by the fusion, in which the other student is absent. Steps with audio or video need clips, recognized words too.

Protocols: streaming, each utterance from itself and the turns before it, as the live worker does; published, in groups
of four in the order of the file and with all of a dialogue's turns that the prompt has room for, as the authors' test
code does (it differs for weights in a published mode only).

Words (--text): gold, the annotated ones; asr, what the live recognizer writes for the clips, in the context too, with
the word error rate. Who spoke is as annotated.

An utterance that a step cannot read (no clip, or a damaged one) is left out and counted; one whose words the recognizer
rejects gets no answer, which counts as a wrong one. The bootstrap draws dialogues: 95 % of 10,000 resamples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.confusion import picture
from bench.outputs import OutputCache
from bench.runs import MODALITIES, Run, saved, summary, table, told
from bench.transcripts import Said, Transcripts, word_error_rate
from engines.predictor import BACKENDS, PRECISIONS, choices, networks_of
from engines.spec import RunSettings
from engines.store import Store, default_root
from stream.config import AsrConfig
from telme.bundle import Bundle, open_bundle
from telme.cache import MediaCache, prepare
from telme.config import PUBLISHED_FUSION, TelmeConfig
from telme.data import ClipSource, Row, find_clip, read_rows, windows
from telme.datasets import DATASETS
from telme.dialogue import Turn
from telme.errors import INTERRUPTED, DataError, OutOfMemory, TelmeStreamError, UsageError
from telme.evaluate import Report, score
from telme.features import FeatureMaker, Media, Missing
from telme.labels import LabelSet
from telme.ladder import STUDENTS, Ladder, Modality, Outputs, check_step, probabilities


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        run = evaluate(options)
        settings = {"protocol": options.protocol, "text": options.text}
        line = summary(run, settings, options.against)
        if options.save is not None:
            _write(options.save, json.dumps({"summary": line, **saved(run)}).encode())
        if options.png is not None:
            _write(
                options.png,
                picture(run.report, run.labels, f"{line['model']}, {line['text']} text, {line['protocol']}"),
            )
    except TelmeStreamError as error:
        sys.stderr.write(f"meld_f1: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("meld_f1: interrupted; what is in the cache is not made again\n")
        return INTERRUPTED
    if not options.json:
        print(table(run, line))
    print(json.dumps(line))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, help="annotation file, for instance dev_meld_emo.csv")
    parser.add_argument("--bundle", default="compact", help="packaged name or folder (default: compact)")
    parser.add_argument(
        "--clips", type=Path, help="the data set's folder, with train_splits and so on, or Session1 to 5"
    )
    parser.add_argument(
        "--modalities", type=_modalities, help="for instance text,audio (default: text; with --clips, all)"
    )
    parser.add_argument("--protocol", choices=["streaming", "published"], default="streaming")
    parser.add_argument(
        "--left-pad-ms", type=int, help="zeros before each sound, in either protocol (default: the bundle's)"
    )
    parser.add_argument("--text", choices=["gold", "asr"], default="gold", help="whose words")
    parser.add_argument("--asr-model", default="offline", help="Whisper: offline, a folder, name or hub id")
    parser.add_argument("--backend", choices=BACKENDS, default="torch", help="what runs the networks (default: torch)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the backend (default: its own)")
    parser.add_argument(
        "--cache",
        type=Path,
        help="folder for clips, transcripts and encoder outputs (default: the user's, with --clips)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode clips")
    parser.add_argument("--save", type=Path, help="keep the answers in this JSON file, for --against")
    parser.add_argument("--against", type=Path, help="answers of another run, to compare with on the same utterances")
    parser.add_argument("--png", type=Path, help="draw the confusion matrix")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    return parser


def _modalities(text: str) -> frozenset[Modality]:
    given = frozenset(name for name in MODALITIES if name in text.split(","))
    if not given or len(given) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(MODALITIES)}")
    return given


def evaluate(options: argparse.Namespace) -> Run:
    """Answer every utterance that can be answered, and score.

    Raises:
        UsageError: There is no such step, or it needs clips.
        DataError: A file does not hold what it must, or the cache cannot be written.
        BundleError: The bundle cannot be loaded.
        TranscriptionError: The recognizer cannot be had.
        PredictorError: The networks failed, or the GPU has no room for them.
    """
    opened = open_bundle(options.bundle)
    modalities = _step(options, opened)
    bundle = _padded(opened, options.left_pad_ms)
    rows = read_rows(options.csv, DATASETS[bundle.config.dataset])
    folder, sources = options.cache, []
    if options.clips is not None:
        folder = folder or platformdirs.user_cache_path("telme-stream") / "evaluation"
        sources = _sources(rows, options, bundle)
    words = _Words(rows)
    if options.text == "asr":
        words = _Words(rows, Transcripts(folder, AsrConfig(model=options.asr_model)).of(sources, options.json))
    choice = choices(options.backend, options.precision)[0]
    networks = networks_of(bundle, choice, RunSettings(), Store(default_root()))
    cache = OutputCache(folder, opened, f"{networks.backend} {choice.precision}")
    reader = _Reader(bundle, Ladder(bundle, networks, options.protocol), cache)
    clips = _clips(reader.maker, folder, sources, modalities, options.workers)
    try:
        answers, left_out = reader.answers(words, clips, modalities)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"no room on the GPU for {bundle.model_id}: {error}",
            "memory for it",
            "stop what else uses that memory, or set CUDA_VISIBLE_DEVICES= to run on the CPU",
        ) from error
    return Run(
        model_id=bundle.model_id,
        backend=networks.backend,
        modalities=tuple(name for name in MODALITIES if name in modalities),
        labels=bundle.config.label_set.names,
        rows=rows,
        answers=answers,
        left_out=left_out,
        clips=clips.said if clips is not None else "",
        wer=words.error_rate(),
        left_pad_ms=bundle.config.audio_left_pad_ms if "audio" in modalities else None,
        report=_scored(rows, answers, left_out, bundle.config.label_set),
    )


def _padded(bundle: Bundle, left_pad_ms: int | None) -> Bundle:
    if left_pad_ms is None:
        return bundle
    config = TelmeConfig.from_dict({**bundle.config.to_dict(), "audio_left_pad_ms": left_pad_ms})
    return replace(bundle, config=config)


def _sources(rows: Sequence[Row], options: argparse.Namespace, bundle: Bundle) -> list[ClipSource]:
    data = DATASETS[bundle.config.dataset]
    split = data.split_of(options.csv)
    return [find_clip(row, options.clips, split, data, bundle.config.input_mode) for row in rows]


def _scored(
    rows: Sequence[Row],
    answers: Mapping[int, NDArray[np.float64] | None],
    left_out: Mapping[str, int],
    labels: LabelSet,
) -> Report:
    answered = {place: given for place, given in answers.items() if given is not None}
    if not answered:
        raise DataError(
            f"no utterance could be answered: {told(left_out) or 'the recognizer rejected all'}",
            "clips that can be read and understood",
            "check --clips",
        )
    return score(
        np.stack(list(answered.values())),
        [rows[place].label for place in answered],
        labels,
        [rows[place].label for place, given in answers.items() if given is None],
    )


def _step(options: argparse.Namespace, bundle: Bundle) -> frozenset[Modality]:
    there: frozenset[Modality] = frozenset(name for name in MODALITIES if name in bundle.config.parts)
    fused = "fusion" in bundle.config.parts and options.clips is not None
    modalities: frozenset[Modality] = options.modalities or (there if fused else frozenset({"text"}))
    check_step(modalities, bundle)
    if options.left_pad_ms is not None and "audio" not in modalities:
        raise UsageError("--left-pad-ms in a step without audio", "audio among --modalities", "leave --left-pad-ms out")
    if options.text == "asr" and "text" not in modalities:
        raise UsageError("--text asr in a step without text", "text among --modalities", "leave --text out")
    if options.clips is None and (options.text == "asr" or modalities != {"text"}):
        raise UsageError("sound or pictures without --clips", "the data set's folder", "add --clips DIR")
    if options.clips is not None and not options.clips.is_dir():
        raise DataError(f"no folder {options.clips}", "the data set's folder", "check --clips")
    return modalities


class _Words:
    """Who said what, as annotated or as recognized."""

    def __init__(self, rows: Sequence[Row], said: Sequence[Said | Missing] | None = None) -> None:
        self.rows = rows
        self.said = said

    def heard(self, maker: FeatureMaker) -> dict[int, Row]:
        """Place -> utterance, for those that enter the dialogue; as the weights have read such words."""
        if self.said is None:
            return dict(enumerate(self.rows))
        return {
            place: replace(row, turn=maker.heard(Turn(row.turn.speaker, said.text)))
            for place, (row, said) in enumerate(zip(self.rows, self.said, strict=True))
            if isinstance(said, Said) and said.rejected is None
        }

    def why_unread(self, place: int) -> str | None:
        """Why an utterance has no words that anybody could have recognized."""
        said = None if self.said is None else self.said[place]
        return f"no sound for the recognizer: {said.reason}" if isinstance(said, Missing) else None

    def error_rate(self) -> float | None:
        """Wrong words per word of the utterances that have sound; None for annotated words."""
        if self.said is None:
            return None
        pairs = [
            (row.turn.text, said) for row, said in zip(self.rows, self.said, strict=True) if isinstance(said, Said)
        ]
        return word_error_rate(
            [text for text, _ in pairs], ["" if said.rejected is not None else said.text for _, said in pairs]
        )


@dataclass(frozen=True)
class _Clips:
    """Sound and pictures of the utterances."""

    cache: MediaCache
    sources: Sequence[ClipSource]
    missing: Sequence[Mapping[str, str]]
    said: str

    def there(self, modality: Modality) -> list[int]:
        """Utterances that have it."""
        return [place for place, lacking in enumerate(self.missing) if modality not in lacking]

    def media(self, place: int) -> Media:
        """One utterance's."""
        return self.cache.media(self.sources[place])


def _clips(
    maker: FeatureMaker, folder: Path, sources: Sequence[ClipSource], modalities: frozenset[Modality], workers: int
) -> _Clips | None:
    if modalities == {"text"}:
        return None
    cache = MediaCache(folder, maker)
    report = prepare(cache, sources, workers)
    return _Clips(cache, sources, report.missing, str(report))


class _Reader:
    """From utterances to answers."""

    def __init__(self, bundle: Bundle, ladder: Ladder, cache: OutputCache) -> None:
        self._bundle = bundle
        self._ladder = ladder
        self._cache = cache
        self.maker = FeatureMaker(bundle.tokenizer, _reading(bundle.config))

    def answers(
        self, words: _Words, clips: _Clips | None, modalities: frozenset[Modality]
    ) -> tuple[dict[int, NDArray[np.float64] | None], dict[str, int]]:
        """Place -> probabilities, or None where there should have been an answer; and why others were left out."""
        outputs = {name: self._outputs(name, words, clips) for name in MODALITIES if name in modalities}
        unread: dict[int, str] = {}
        if "text" in outputs:
            read = outputs["text"]
            students = {student: outputs[student] for student in STUDENTS if student in outputs}
            logits = self._ladder.fuse(read, students) if students else read.logits
            config = self._bundle.config
            # It was fitted on what the bundle itself answers: the text teacher's logits, or the fusion's.
            is_fitted = bool(students) == (config.fusion is not None)
            given = probabilities(logits, config.calibration_temperature if is_fitted else 1.0)
            unread = {place: why for place in range(len(words.rows)) if (why := words.why_unread(place))}
        else:
            assert clips is not None
            ((name, read),) = outputs.items()
            given = probabilities(read.logits)
            unread = {place: f"{name}: {why[name]}" for place, why in enumerate(clips.missing) if name in why}
        answers: dict[int, NDArray[np.float64] | None] = dict(zip(read.rows, given, strict=True))
        places = (place for place in range(len(words.rows)) if place not in unread)
        return {place: answers.get(place) for place in places}, dict(Counter(unread.values()).most_common())

    def _outputs(self, name: Modality, words: _Words, clips: _Clips | None) -> Outputs:
        if name == "text":
            heard = words.heard(self.maker)
            most = len(words.rows) if self._ladder.reads_whole_dialogues else self._bundle.config.max_turns
            turns = windows(heard.values(), most, self._bundle.config.input_mode)
            prompts = {place: self.maker.prompt_ids(window) for place, window in zip(heard, turns, strict=True)}
            return self._cache.outputs(
                {"part": name, "prompts": list(prompts.items())}, lambda: self._ladder.text(prompts)
            )
        assert clips is not None
        places = clips.there(name)
        inputs: dict[str, Any] = {
            "part": name,
            "clips": [(place, str(clips.cache.path(clips.sources[place]))) for place in places],
        }
        if name == "audio":
            inputs["padded to its group"] = self._ladder.pads_sound_to_group
            inputs["left pad"] = self._bundle.config.audio_left_pad_ms
            return self._cache.outputs(
                inputs, lambda: self._ladder.audio(places, lambda place: _sound(clips.media(place)))
            )
        return self._cache.outputs(
            inputs, lambda: self._ladder.video(places, lambda place: _there(self.maker.pixels(clips.media(place))))
        )


def _sound(media: Media) -> NDArray[np.float32]:
    sound: NDArray[np.float32] = _there(media.sound)
    return sound


def _there(item: Any) -> Any:
    assert not isinstance(item, Missing)  # the report said that it is there
    return item


def _reading(config: TelmeConfig) -> TelmeConfig:
    """The configuration, with a fusion: what a student reads is made even where nothing joins it to the text."""
    return TelmeConfig.from_dict(
        {**config.to_dict(), "fusion": config.fusion or asdict(PUBLISHED_FUSION[config.dataset])}
    )


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}", "a folder with room", "choose another place") from error


if __name__ == "__main__":
    sys.exit(main())
