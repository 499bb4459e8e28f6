"""The clips of both splits, for the stages that see and hear them."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from telme.bundle import Bundle
from telme.cache import FORMAT, ClipReport, MediaCache, digest_of, prepare
from telme.checkpoints import write_json
from telme.config import TelmeConfig
from telme.data import ClipSource, Row, find_clip, read_split
from telme.datasets import Split
from telme.errors import DataError
from telme.features import FeatureMaker, Missing
from telme.job import SPLITS, Job, prompts_of
from telme.learners import ClipExamples
from telme.models import EncoderOutput
from telme.modes import Student


class Clips:
    """Rows, prompts and clips of both splits; the clips are made and counted at once.

    Args:
        job: What and how; the counts go into its folder.
        bundle: Gives the tokenizer.
        config: Names the students whose clips are wanted.
        cache: Folder of cached clips.
    """

    def __init__(self, job: Job, bundle: Bundle, config: TelmeConfig, cache: Path) -> None:
        reading = copy.deepcopy(config)
        reading.fusion = asdict(job.recipe.fusion_settings)  # so that the maker makes what the students read
        self.maker = FeatureMaker(bundle.tokenizer, reading)
        self.cache = MediaCache(cache, self.maker)
        self._left_pad_ms = config.audio_left_pad_ms
        self.rows: dict[Split, list[Row]] = {}
        self.sources: dict[Split, list[ClipSource]] = {}
        self.prompts: dict[Split, list[tuple[int, ...]]] = {}
        self.reports: dict[Split, ClipReport] = {}
        for split in SPLITS:
            rows = read_split(job.root, split, job.data)
            self.rows[split] = rows
            self.prompts[split] = prompts_of(rows, self.maker, config)
            self.sources[split] = [find_clip(row, job.root, split, job.data, self.maker.mode) for row in rows]
            self.reports[split] = prepare(self.cache, self.sources[split], job.run.workers, f"{split} clips")
            self._tell(job.out, split)

    def digests(self, student: Student) -> dict[Split, str]:
        """Of what the student takes: another one where other clips are missing, their files are of other sizes, or
        sound and pictures are made in another way.
        """
        padded = student == "audio" and self._left_pad_ms is not None
        return {
            split: digest_of(
                [
                    FORMAT,
                    *([self._left_pad_ms] if padded else []),
                    *(
                        None if student in missing else [_size(_file(source, student)), source.span_s]
                        for source, missing in zip(self.sources[split], self.reports[split].missing, strict=True)
                    ),
                ]
            )
            for split in SPLITS
        }

    def _tell(self, folder: Path, split: Split) -> None:
        report = self.reports[split]
        sys.stderr.write(f"{split}: {report}\n")
        rows = zip(self.rows[split], report.missing, strict=True)
        each = {f"{row.dialogue}/{row.utterance}": missing for row, missing in rows if missing}
        write_json(folder / f"clips-{split}.json", {"summary": str(report), "reasons": report.reasons, "clips": each})


def clip_examples(
    clips: Clips, student: Student, said: dict[Split, dict[str, Tensor]], offsets: Tensor
) -> dict[Split, ClipExamples]:
    """Both splits, with what the teacher says of them, but for the offsets that were added to it after training.

    Args:
        clips: Of both.
        student: Who learns from them.
        said: Of each split the teacher's `feature` [N, 768] and `logits` [N, C], a row for each utterance.
        offsets: [C]

    Raises:
        DataError: No clip of a split has what this student takes.
    """
    return {
        split: _examples_of(clips, student, split, EncoderOutput(answer["feature"], answer["logits"] - offsets))
        for split, answer in said.items()
    }


def _examples_of(clips: Clips, student: Student, split: Split, said: EncoderOutput) -> ClipExamples:
    """The utterances of a split that have the modality; the others teach this student nothing."""
    kept = [row for row, missing in enumerate(clips.reports[split].missing) if student not in missing]
    if not kept:
        raise DataError(
            f"no {student} in any clip of {split}", "clips beside the annotations", "see clips-*.json in --out for why"
        )
    return ClipExamples(
        clips.cache,
        clips.maker,
        student,
        [clips.sources[split][row] for row in kept],
        [clips.rows[split][row].label for row in kept],
        EncoderOutput(said.feature[kept], said.logits[kept]),
    )


def _file(source: ClipSource, student: Student) -> Path | Missing:
    return source.sound if student == "audio" else source.pictures


def _size(file: Path | Missing) -> int | None:
    return file.stat().st_size if isinstance(file, Path) else None
