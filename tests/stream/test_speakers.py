"""Who spoke: the clustering as a pure function, the bounds of dialogues, and real sound."""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.config import Config, SpeakersConfig
from stream.ears import Ears
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Draft, Missing, Pcm, Span, Utterance
from stream.replay import FileReplay
from stream.speakers import (
    ENOUGH_S,
    Attribution,
    Conversation,
    Speaker,
    SpeakersByVoice,
    VoiceClusters,
    speakers_for,
)
from stream.voice import Voice
from telme.errors import SourceError
from tests.commands import EXAMPLES

NS_PER_S = 1_000_000_000
SIZE = 16
THRESHOLD = SpeakersConfig().threshold
CONVERSATION = EXAMPLES / "conversation.mp4"
NO_PICTURES = Missing("not wanted")

# Who speaks, for how long, and how far from the person's mean voice.
turns = st.tuples(st.integers(0, 11), st.floats(0.25, 15), st.integers(0, 2**32 - 1))


def voice_of(person: int, seed: int, spread: float) -> Voice:
    """One utterance's voice: people are at right angles, `spread` is the length of what is added to the mean."""
    noise = np.random.default_rng(seed).normal(size=SIZE)
    voice = np.eye(SIZE)[person] + spread * noise / np.linalg.norm(noise)
    return np.asarray(voice / np.linalg.norm(voice), np.float32)


@given(st.lists(turns, max_size=60), st.integers(1, 9))
def test_numbers_come_in_order_of_appearance_and_never_more_than_asked_for(
    said: list[tuple[int, float, int]], most: int
) -> None:
    clusters = VoiceClusters(THRESHOLD, most)
    numbers = [clusters.assign(voice_of(person, seed, 1.0), seconds)[0] for person, seconds, seed in said]
    assert all(number <= max(numbers[:place], default=-1) + 1 for place, number in enumerate(numbers))
    assert all(number < most for number in numbers)


@given(st.lists(turns, max_size=40))
def test_people_who_sound_apart_keep_their_number_whatever_the_order(said: list[tuple[int, float, int]]) -> None:
    clusters = VoiceClusters(THRESHOLD, 9)
    known: dict[int, int] = {}
    for person, seconds, seed in said:
        if person > 8:
            continue
        number, certain = clusters.assign(voice_of(person, seed, 0.2), ENOUGH_S + seconds)
        assert certain
        assert number == known.setdefault(person, len(known))


@given(st.lists(turns, max_size=30), st.floats(0.1, ENOUGH_S, exclude_max=True))
def test_an_utterance_too_short_opens_no_speaker_and_teaches_nothing(
    said: list[tuple[int, float, int]], seconds: float
) -> None:
    clusters, untouched = VoiceClusters(THRESHOLD, 9), VoiceClusters(0.65, 9)
    for made in (clusters, untouched):
        made.assign(voice_of(0, 0, 0), 3.0)
    for person, _, seed in said:
        assert clusters.assign(voice_of(person, seed, 0.2), seconds)[0] == 0
    for person in range(3):
        assert clusters.assign(voice_of(person, 1, 0.2), 2.0) == untouched.assign(voice_of(person, 1, 0.2), 2.0)


def test_a_short_word_of_a_stranger_goes_to_the_nearest_and_is_said_to_be_uncertain() -> None:
    clusters = VoiceClusters(THRESHOLD, 9)
    clusters.assign(voice_of(0, 0, 0), 3.0)
    clusters.assign(voice_of(1, 0, 0), 3.0)
    stranger = (voice_of(1, 0, 0) + 5 * voice_of(5, 0, 0)) / np.float32(np.sqrt(26))
    assert clusters.assign(stranger, 0.6) == (1, False)
    assert clusters.assign(voice_of(1, 0, 0), 0.6) == (1, True)


def test_a_tenth_person_goes_to_the_nearest_and_is_said_to_be_uncertain() -> None:
    clusters = VoiceClusters(THRESHOLD, 9)
    for person in range(9):
        assert clusters.assign(voice_of(person, 0, 0), 3.0) == (person, True)
    number, certain = clusters.assign(voice_of(9, 0, 0.1), 3.0)
    assert number in range(9)
    assert not certain


def test_a_voice_that_changes_slowly_is_followed_for_hours() -> None:
    clusters = VoiceClusters(THRESHOLD, 9)
    for step in range(2000):
        angle = step / 2000 * np.pi / 2
        voice = np.cos(angle) * voice_of(0, 0, 0) + np.sin(angle) * voice_of(1, 0, 0)
        assert clusters.assign(voice.astype(np.float32), 3.0) == (0, True)


class FakeSpeakers:
    """Remembers how often it was told to forget, and what it was asked."""

    def __init__(self) -> None:
        self.forgot = 0
        self.asked: list[tuple[int, int]] = []
        self.ahead: list[tuple[int, int]] = []

    def who(self, pcm: Pcm, channel: int) -> Speaker:
        self.asked.append((len(pcm), channel))
        return Speaker(f"speaker{len(self.asked)}", certain=True)

    def guess(self, pcm: Pcm, channel: int, begins: bool) -> Speaker:
        return Speaker("speaker1" if begins else f"speaker{len(self.asked)}", certain=False)

    def hear_ahead(self, pcm: Pcm, channel: int) -> None:
        self.ahead.append((len(pcm), channel))

    def forget(self) -> None:
        self.forgot += 1
        self.asked.clear()


def utterance(start_s: float, end_s: float, channel: int = 0, slept_s: int = 0) -> Utterance:
    """An utterance whose sound reached the program when it was spoken."""
    start, end = int(start_s * SAMPLE_RATE_HZ), int(end_s * SAMPLE_RATE_HZ)
    span = Span(start, end + 320, start + 160, end, forced=False)
    start_ns, end_ns = int(start_s * NS_PER_S), int(end_s * NS_PER_S)
    pcm = np.zeros(end + 320 - start, np.int16)
    return Utterance(0, channel, span, start_ns, end_ns, pcm, NO_PICTURES, end_ns, end_ns, 0, slept_s * NS_PER_S)


def test_only_the_voiced_part_is_listened_to() -> None:
    speakers = FakeSpeakers()
    conversation = Conversation(speakers, 120)
    assert conversation.attribute(utterance(1, 3, channel=2)) == Attribution(Speaker("speaker1", True), 0)
    assert speakers.asked == [(2 * SAMPLE_RATE_HZ - 160, 2)]
    said = utterance(1, 3)
    conversation.hear_ahead(Draft(2, said.span, said.pcm))
    assert speakers.ahead == [(2 * SAMPLE_RATE_HZ - 160, 2)]


def test_a_voice_heard_ahead_is_encoded_once_and_only_taken_for_the_very_same_sound() -> None:
    encoded: list[int] = []

    def encode(pcm: Pcm) -> Voice:
        encoded.append(int(pcm[0]))
        return voice_of(int(pcm[0]), 0, 0)

    first, second = (np.full(2 * SAMPLE_RATE_HZ, person, np.int16) for person in (1, 2))
    speakers = SpeakersByVoice(encode, SpeakersConfig(mode="cluster"))
    speakers.hear_ahead(first, 0)
    speakers.hear_ahead(second, 1)
    assert speakers.who(first.copy(), 0) == Speaker("speaker1", certain=True)
    assert encoded == [1, 2]
    encoded.clear()
    speakers.hear_ahead(first, 0)
    assert speakers.who(second, 0) == Speaker("speaker2", certain=True)
    assert speakers.who(first, 0) == Speaker("speaker1", certain=True)
    assert encoded == [1, 2, 1]  # what was heard ahead is of the utterance that comes next


@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0.3, 15)), max_size=30), st.integers(0, 200))
def test_a_dialogue_ends_with_a_long_silence_and_only_with_it(said: list[tuple[float, float]], gap_s: int) -> None:
    speakers = FakeSpeakers()
    conversation = Conversation(speakers, gap_s)
    at_s, expected = 0.0, 0
    for number, (pause_s, length_s) in enumerate(said):
        spoken = utterance(at_s + pause_s, at_s + pause_s + length_s)
        pause_ns = spoken.start_ns - int(at_s * NS_PER_S)
        expected += number > 0 and gap_s > 0 and pause_ns >= gap_s * NS_PER_S
        assert conversation.attribute(spoken).dialogue == expected
        at_s += pause_s + length_s
    assert speakers.forgot == expected


def test_what_the_machine_slept_is_silence() -> None:
    conversation = Conversation(FakeSpeakers(), 120)
    dialogues = [
        conversation.attribute(utterance(1 + number, 1.5 + number, slept_s=slept_s)).dialogue
        for number, slept_s in enumerate((5000, 5060, 5060, 5180, 5180))
    ]
    assert dialogues == [0, 0, 0, 1, 1]
    assert conversation.guess(utterance(6, 7, slept_s=5400)).dialogue == 2


def test_overlapping_channels_do_not_shorten_a_silence() -> None:
    conversation = Conversation(FakeSpeakers(), 10)
    conversation.attribute(utterance(0, 30))
    conversation.attribute(utterance(2, 31, channel=1))
    conversation.attribute(utterance(3, 5))
    assert conversation.attribute(utterance(40, 41)).dialogue == 0
    assert conversation.attribute(utterance(52, 53)).dialogue == 1


def test_a_new_dialogue_on_command_begins_with_the_next_speech() -> None:
    speakers = FakeSpeakers()
    conversation = Conversation(speakers, 0)
    conversation.begin_dialogue(0)  # before anybody spoke there is nothing to end
    assert conversation.attribute(utterance(1, 2)).dialogue == 0
    conversation.begin_dialogue(5 * NS_PER_S)
    conversation.begin_dialogue(6 * NS_PER_S)  # nobody spoke in between: one new dialogue
    assert conversation.attribute(utterance(3, 4)).dialogue == 0  # heard before the command, transcribed after it
    assert conversation.attribute(utterance(7, 8)) == Attribution(Speaker("speaker1", True), 1)
    assert conversation.attribute(utterance(9, 10)).dialogue == 1
    assert speakers.forgot == 1


def attributed(path: Path, config: SpeakersConfig) -> list[tuple[Utterance, Attribution]]:
    """The capture side on a file, from sound to speaker, without transcription."""
    conversation = Conversation(speakers_for(config), config.dialogue_gap_s)
    with FileReplay(path, True, NO_PICTURES, splits=config.mode == "channel") as source:
        ears = Ears(Config(speakers=config), source, NO_PICTURES)
        heard = [item for block in source.blocks() for item in ears.hear(block)]
        found = [item for item in [*heard, *ears.end()] if isinstance(item, Utterance)]
    return [(item, conversation.attribute(item)) for item in found]


def test_two_voices_that_alternate_are_told_apart() -> None:
    found = [whose for _, whose in attributed(CONVERSATION, SpeakersConfig(mode="cluster"))]
    assert [whose.speaker for whose in found] == [Speaker("speaker1", True), Speaker("speaker2", True)] * 5
    assert {whose.dialogue for whose in found} == {0}


def test_at_most_as_many_voices_as_asked_for() -> None:
    found = attributed(CONVERSATION, SpeakersConfig(mode="cluster", most=1))
    assert {whose.speaker.id for _, whose in found} == {"speaker1"}
    assert not all(whose.speaker.certain for _, whose in found)


def test_everybody_is_one_speaker_by_default() -> None:
    found = attributed(CONVERSATION, SpeakersConfig())
    assert [whose for _, whose in found] == [Attribution(Speaker("speaker1", True), 0)] * 10


def sound_of(path: Path) -> Pcm:
    with FileReplay(path, True, NO_PICTURES) as source:
        return np.concatenate([block.pcm for block in source.blocks() if isinstance(block, AudioBlock)])


def write_channels(path: Path, channels: Sequence[Pcm], rate_hz: int = SAMPLE_RATE_HZ) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.stack(channels, axis=1).tobytes())


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with Anna on the left and Ben on the right, both of them 9 s early in their own channel."""
    sound = sound_of(CONVERSATION)
    lines = json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8"))
    channels = [np.zeros(len(sound), np.int16), np.zeros(len(sound), np.int16)]
    for number, line in enumerate(lines):
        start, end = (line[key] * SAMPLE_RATE_HZ // 1000 for key in ("start_ms", "end_ms"))
        shift = SAMPLE_RATE_HZ * 3 if number % 2 else 0  # so that both speak at once
        channels[number % 2][start - shift : end - shift] = sound[start:end]
    path = tmp_path_factory.mktemp("stereo") / "two.wav"
    write_channels(path, channels)
    return path


def test_each_channel_is_a_speaker_with_its_own_utterances(stereo: Path) -> None:
    found = attributed(stereo, SpeakersConfig(mode="channel"))
    assert sorted(whose.speaker.id for _, whose in found) == ["channel1"] * 5 + ["channel2"] * 5
    utterances = [item for item, _ in found]
    assert sorted(item.seq for item in utterances) == list(range(10))  # in the order in which they began
    ends = [item.span.voiced_end for item in utterances]
    assert ends == sorted(ends)
    starts = [item.span.voiced_start for item in utterances]
    assert any(start < end for start, end in zip(starts[1:], ends[:-1], strict=True))  # they do overlap


def test_the_channels_are_those_of_the_file(tmp_path: Path) -> None:
    left, right = np.arange(48_000, dtype=np.int16), -np.arange(48_000, dtype=np.int16)
    write_channels(tmp_path / "a.wav", [left, right])
    with FileReplay(tmp_path / "a.wav", True, NO_PICTURES, splits=True) as source:
        blocks = [block for block in source.blocks() if isinstance(block, AudioBlock)]
    for channel, expected in enumerate((left, right)):
        assert np.array_equal(np.concatenate([block.pcm for block in blocks if block.channel == channel]), expected)
    assert [block.channel for block in blocks] == [0, 1] * (len(blocks) // 2)
    assert all(a.first_sample == b.first_sample for a, b in zip(blocks[::2], blocks[1::2], strict=True))


@pytest.mark.parametrize("count", [1, 10])
def test_a_file_without_several_channels_is_refused(tmp_path: Path, count: int) -> None:
    write_channels(tmp_path / "a.wav", [np.zeros(4800, np.int16)] * count)
    with (
        pytest.raises(SourceError, match="expected 2 to 9 for --speakers channel"),
        FileReplay(tmp_path / "a.wav", True, NO_PICTURES, splits=True),
    ):
        raise AssertionError("it must not open")


def test_a_guess_names_speaker_and_dialogue_and_changes_nothing() -> None:
    speakers = FakeSpeakers()
    conversation = Conversation(speakers, 10)
    assert conversation.guess(utterance(1, 2)).dialogue == 0
    conversation.attribute(utterance(1, 3))
    assert conversation.guess(utterance(5, 6)) == Attribution(Speaker("speaker1", False), 0)
    assert conversation.guess(utterance(20, 21)).dialogue == 1
    conversation.begin_dialogue(4 * NS_PER_S)
    assert conversation.guess(utterance(5, 6)).dialogue == 1
    assert speakers.forgot == 0
    assert len(speakers.asked) == 1
    assert conversation.attribute(utterance(5, 7)).dialogue == 1


def test_the_first_voice_of_a_new_dialogue_is_guessed_to_be_its_first_speaker() -> None:
    voices = iter([voice_of(0, 0, 0), voice_of(1, 0, 0), voice_of(1, 0, 0), voice_of(1, 0, 0)])
    conversation = Conversation(SpeakersByVoice(lambda _: next(voices), SpeakersConfig(mode="cluster")), 10)
    assert [conversation.attribute(utterance(at, at + 3)).speaker.id for at in (0, 4)] == ["speaker1", "speaker2"]
    assert conversation.guess(utterance(8, 9)) == Attribution(Speaker("speaker2", False), 0)
    assert conversation.guess(utterance(30, 31)) == Attribution(Speaker("speaker1", False), 1)


def test_the_nearest_voice_is_guessed_and_nothing_is_learned() -> None:
    clusters = VoiceClusters(THRESHOLD, 9)
    assert clusters.nearest(voice_of(0, 0, 0)) == 0
    for person in (0, 1):
        clusters.assign(voice_of(person, 0, 0), 3.0)
    assert [clusters.nearest(voice_of(person, 1, 0.1)) for person in (0, 1)] == [0, 1]
    assert clusters.assign(voice_of(2, 0, 0), 3.0) == (2, True)
