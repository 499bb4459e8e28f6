"""MELD and IEMOCAP, described: files, columns, clips, and what is known to be broken. The reader is `telme.data`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from telme.errors import DataError
from telme.labels import IEMOCAP, MELD, LabelSet

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Columns:
    """Names of an annotation file's columns.

    Attributes:
        dialogue, speaker, text, emotion: What they say.
        utterance: What names the utterance, in its dialogue or in the whole data set.
        start, end: Where the utterance lies in its recording, in seconds; None where a clip is one utterance.
    """

    dialogue: str
    speaker: str
    text: str
    emotion: str
    utterance: str
    start: str | None = None
    end: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All that a file must have."""
        every = (self.dialogue, self.speaker, self.text, self.emotion, self.utterance, self.start, self.end)
        return tuple(dict.fromkeys(name for name in every if name is not None))


@dataclass(frozen=True)
class ClipLayout:
    """Where the clip of an utterance lies.

    Attributes:
        sound: Patterns of paths under the data set's folder, tried in order. Their fields are `folder` (the split's),
            `dialogue` and `utterance` (the annotations') and the groups of `name`.
        pictures: The same for the pictures, which may be in the same file.
        name: A pattern that utterance names match, for the parts of such a name.
        margin_s: The pictures start so much before the utterance and end so much after it, where a recording holds
            several utterances.
    """

    sound: tuple[str, ...]
    pictures: tuple[str, ...]
    name: str = r".+"
    margin_s: float = 0.0


@dataclass(frozen=True)
class SplitFiles:
    """One split.

    Attributes:
        annotations: Names that its CSV file goes by, the first that is there.
        folder: Folder of its clips, where the data set has one for each split.
    """

    annotations: tuple[str, ...]
    folder: str = ""


@dataclass(frozen=True)
class Dataset:
    """How one data set writes its annotations and keeps its clips.

    Attributes:
        labels: Its classes.
        columns: Of its annotation files, which are UTF-8.
        splits: Its files.
        clips: Where its clips are.
        known_bad: (split, dialogue, utterance) -> what is wrong with that clip.
    """

    labels: LabelSet
    columns: Columns
    splits: Mapping[Split, SplitFiles]
    clips: ClipLayout
    known_bad: Mapping[tuple[Split, str, str], str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Key in `DATASETS`."""
        return self.labels.dataset

    def split_of(self, annotations: Path) -> Split:
        """The split that a file holds, by its name.

        Raises:
            DataError: No split goes by that name.
        """
        for split, files in self.splits.items():
            if annotations.name in files.annotations:
                return split
        known = [name for files in self.splits.values() for name in files.annotations]
        raise DataError(
            f"{annotations.name} is no annotation file of {self.name}", f"one of {', '.join(known)}", "rename the file"
        )


_OUT_OF_SYNC = "its sound and pictures belong to another utterance (out of sync)"
_MISCUT = "it is mis-cut and minutes long"
# Reported in the data set's public threads (declare-lab/MELD).
_MELD_KNOWN_BAD: dict[tuple[Split, str, str], str] = {
    ("train", "125", "3"): "the file is corrupt",
    ("dev", "110", "7"): "the file is missing from the archive",
    ("train", "309", "0"): _MISCUT,
    ("test", "38", "4"): _MISCUT,
    ("test", "220", "0"): _MISCUT,
    ("test", "155", "3"): "it has zero length",
    **{("train", "241", str(utterance)): _OUT_OF_SYNC for utterance in range(1, 14)},
    ("train", "757", "7"): _OUT_OF_SYNC,
    ("train", "485", "0"): _OUT_OF_SYNC,
}

# The test archive also holds clips under a second kind of name.
_MELD_CLIPS = (
    "{folder}/dia{dialogue}_utt{utterance}.mp4",
    "{folder}/final_videos_testdia{dialogue}_utt{utterance}.mp4",
)
MELD_DATA = Dataset(
    labels=MELD,
    columns=Columns("Dialogue_ID", "Speaker", "Utterance", "Emotion", "Utterance_ID"),
    # As TelME's authors name the files, and as MELD's do.
    splits={
        "train": SplitFiles(("train_meld_emo.csv", "train_sent_emo.csv"), "train_splits"),
        "dev": SplitFiles(("dev_meld_emo.csv", "dev_sent_emo.csv"), "dev_splits_complete"),
        "test": SplitFiles(("test_meld_emo.csv", "test_sent_emo.csv"), "output_repeated_splits_test"),
    },
    clips=ClipLayout(_MELD_CLIPS, _MELD_CLIPS),
    known_bad=_MELD_KNOWN_BAD,
)
IEMOCAP_DATA = Dataset(
    labels=IEMOCAP,
    # The speaker column holds the utterance's name, such as Ses01F_impro01_M003; see `telme.dialogue.speaker_of`.
    columns=Columns("Dialogue_ID", "Speaker", "Utterance", "Emotion", "Speaker", "Start_Time", "End_Time"),
    splits={
        "train": SplitFiles(("IEMOCAP_train.csv",)),
        "dev": SplitFiles(("IEMOCAP_dev.csv",)),
        "test": SplitFiles(("IEMOCAP_test.csv",)),
    },
    # A recording shows both actors; the published code cuts it one second wider at each end.
    clips=ClipLayout(
        sound=("Session{session}/sentences/wav/{recording}/{utterance}.wav",),
        pictures=(
            "Session{session}/dialog/avi/DivX/{recording}.avi",
            "Session{session}/dialog/avi/Divx/{recording}.avi",
        ),
        name=r"(?P<recording>Ses0(?P<session>[1-5])[FM]_\w+)_[FM]\w*\d+",
        margin_s=1.0,
    ),
)
DATASETS: Mapping[str, Dataset] = {data.name: data for data in (MELD_DATA, IEMOCAP_DATA)}
