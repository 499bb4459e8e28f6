"""Who spoke: one speaker for all, one a channel, or the voices told apart as they appear.

A dialogue is what its speakers' ids mean something in: it ends with a long silence or on the user's word, and the next
one begins with nobody known. All three modes are descriptions behind one path, `Conversation.attribute`.

Voices are clustered online. An utterance goes to the speaker whose centroid is nearest in cosine; where even that one
is too far, it opens a new speaker. How far is too far depends on how much was heard, since a short utterance, and a
speaker of whom little is known, lie far from everybody:

    limit(utterance, speaker) = threshold - 0.25 / seconds of the utterance - 0.15 / seconds known of the speaker

The first utterance of a dialogue opens its first speaker, however short it is. Later, one of less than ENOUGH_S goes to
the nearest speaker, opens none and teaches nothing. An utterance is certain where it opened its speaker or lies within
that one's limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream.config import SpeakersConfig
from stream.items import SAMPLE_RATE_HZ, Draft, Pcm, Utterance
from stream.voice import Voice, VoiceEncoder

# Found on conversations of two and three voices, real and synthetic (bench/speakers.py, bench/LOG.md).
ENOUGH_S = 1.0  # shorter utterances neither open a speaker, but a dialogue's first, nor teach one
_UTTERANCE_SLACK_S = 0.25
_SPEAKER_SLACK_S = 0.15
_LEAST_UTTERANCE_S = 0.5  # what is shorter gets no more slack
_LEAST_KNOWN_S = 0.25
# What a speaker's centroid is worth at most, so that a voice that changes in hours is followed.
_MOST_KNOWN_S = 120.0


@dataclass(frozen=True)
class Speaker:
    """Who spoke. `certain`: False where it is only the nearest guess."""

    id: str
    certain: bool


@dataclass(frozen=True)
class Attribution:
    """Who spoke, in which dialogue of the session, counted from 0."""

    speaker: Speaker
    dialogue: int


class Speakers(Protocol):
    """A way to tell who spoke, within one dialogue."""

    def who(self, pcm: Pcm, channel: int) -> Speaker:
        """Who spoke: int16 [S] from the first voiced sample to the last, and the channel it came from, from 0."""
        ...

    def guess(self, pcm: Pcm, channel: int, begins: bool) -> Speaker:
        """Who seems to speak, in a new dialogue if it `begins`; nothing is learned from it."""
        ...

    def hear_ahead(self, pcm: Pcm, channel: int) -> None:
        """Do now what `who` would do for this very sound; nothing is learned from it."""
        ...

    def forget(self) -> None:
        """A new dialogue begins."""
        ...


class OneSpeaker:
    """Everybody is `speaker1`."""

    def who(self, pcm: Pcm, channel: int) -> Speaker:
        """Always the same."""
        return Speaker("speaker1", certain=True)

    def guess(self, pcm: Pcm, channel: int, begins: bool) -> Speaker:
        """Always the same."""
        return self.who(pcm, channel)

    def hear_ahead(self, pcm: Pcm, channel: int) -> None:
        """There is nothing to hear."""

    def forget(self) -> None:
        """There is nothing to forget."""


class SpeakerPerChannel:
    """Each channel is a speaker, `channel1` and so on."""

    def who(self, pcm: Pcm, channel: int) -> Speaker:
        """The channel's."""
        return Speaker(f"channel{channel + 1}", certain=True)

    def guess(self, pcm: Pcm, channel: int, begins: bool) -> Speaker:
        """The channel's."""
        return self.who(pcm, channel)

    def hear_ahead(self, pcm: Pcm, channel: int) -> None:
        """There is nothing to hear."""

    def forget(self) -> None:
        """There is nothing to forget."""


class SpeakersByVoice:
    """Voices are told apart: `speaker1` and so on, in order of appearance in the dialogue.

    Args:
        encode: Speech to voice.
        config: Threshold and most speakers.
    """

    def __init__(self, encode: Callable[[Pcm], Voice], config: SpeakersConfig) -> None:
        self._encode = encode
        self._config = config
        self._clusters = VoiceClusters(config.threshold, config.most)
        self._ahead: dict[int, tuple[Pcm, Voice]] = {}  # by channel

    def who(self, pcm: Pcm, channel: int) -> Speaker:
        """Whose voice it is, or whose it is nearest to."""
        ahead = self._ahead.pop(channel, None)
        voice = ahead[1] if ahead is not None and np.array_equal(ahead[0], pcm) else self._encode(pcm)
        number, certain = self._clusters.assign(voice, len(pcm) / SAMPLE_RATE_HZ)
        return Speaker(f"speaker{number + 1}", certain)

    def guess(self, pcm: Pcm, channel: int, begins: bool) -> Speaker:
        """Whose voice it is nearest to; never certain."""
        number = 0 if begins else self._clusters.nearest(self._encode(pcm))
        return Speaker(f"speaker{number + 1}", certain=False)

    def hear_ahead(self, pcm: Pcm, channel: int) -> None:
        """Encode the voice; of a channel's sounds the last is kept."""
        self._ahead[channel] = (pcm, self._encode(pcm))

    def forget(self) -> None:
        """The next voice is `speaker1` again."""
        self._clusters = VoiceClusters(self._config.threshold, self._config.most)


def speakers_for(config: SpeakersConfig) -> Speakers:
    """What the configuration asks for.

    Raises:
        BundleError: The voice encoder cannot be loaded.
    """
    if config.mode == "cluster":
        return SpeakersByVoice(VoiceEncoder(), config)
    return SpeakerPerChannel() if config.mode == "channel" else OneSpeaker()


class VoiceClusters:
    """Online clustering: voices in, numbers out, from 0 in order of appearance. A number once given never changes.

    Args:
        threshold: Cosine from which a long utterance is of a well-known speaker.
        most: Most clusters; then the nearest is taken.
    """

    def __init__(self, threshold: float, most: int) -> None:
        self._threshold = threshold
        self._most = most
        self._sums: list[NDArray[np.float32]] = []  # of the voices, each times its seconds
        self._known_s: list[float] = []

    def assign(self, voice: Voice, seconds: float) -> tuple[int, bool]:
        """The cluster of a voice, and whether that is certain.

        Args:
            voice: Of length one.
            seconds: How much speech it was made from.
        """
        if not self._sums:
            return self._open(voice, seconds), True
        nearness = self._nearness(voice)
        slack = _UTTERANCE_SLACK_S / max(seconds, _LEAST_UTTERANCE_S)
        limits = [
            self._threshold - slack - _SPEAKER_SLACK_S / max(known_s, _LEAST_KNOWN_S) for known_s in self._known_s
        ]
        nearest = max(range(len(nearness)), key=nearness.__getitem__)
        is_near = nearness[nearest] >= limits[nearest]
        if seconds < ENOUGH_S:
            return nearest, is_near
        if is_near:
            self._teach(nearest, voice, seconds)
            return nearest, True
        if len(self._sums) < self._most and not any(
            near >= limit for near, limit in zip(nearness, limits, strict=True)
        ):
            return self._open(voice, seconds), True
        return nearest, False

    def nearest(self, voice: Voice) -> int:
        """The nearest cluster; 0, which the first voice will open, when there is none."""
        return int(np.argmax(self._nearness(voice))) if self._sums else 0

    def _nearness(self, voice: Voice) -> list[float]:
        return [float(voice @ total) / max(float(np.linalg.norm(total)), 1e-9) for total in self._sums]

    def _open(self, voice: Voice, seconds: float) -> int:
        self._sums.append(voice * seconds)
        self._known_s.append(seconds)
        return len(self._sums) - 1

    def _teach(self, number: int, voice: Voice, seconds: float) -> None:
        known_s = self._known_s[number] + seconds
        kept = min(_MOST_KNOWN_S / known_s, 1.0)
        self._sums[number] = (self._sums[number] + voice * seconds) * np.float32(kept)
        self._known_s[number] = known_s * kept


class Conversation:
    """Utterances in, in order of their end; who spoke in which dialogue out.

    Args:
        speakers: Tells who spoke.
        gap_s: A silence so long ends the dialogue; 0 is never.
    """

    def __init__(self, speakers: Speakers, gap_s: int) -> None:
        self._speakers = speakers
        self._gap_ns = gap_s * 1_000_000_000
        self._asked_ns: deque[int] = deque()
        self._dialogue = 0
        self._last_end_ns: int | None = None  # with what was slept; None: nobody has spoken yet

    def begin_dialogue(self, at_ns: int) -> None:
        """Speech that ends after `at_ns` (monotonic) is of a new dialogue. From any thread."""
        self._asked_ns.append(at_ns)

    def attribute(self, utterance: Utterance) -> Attribution:
        """Say whose the utterance is. Only for what is believed to be speech: noise opens no speaker."""
        if self._is_asked(utterance.heard_ns) or self._is_after_gap(utterance):
            self._speakers.forget()
            self._dialogue += 1
            self._last_end_ns = None
        self._last_end_ns = max(self._last_end_ns or 0, utterance.end_ns + utterance.slept_ns)
        return Attribution(self._speakers.who(_voiced(utterance), utterance.channel), self._dialogue)

    def hear_ahead(self, draft: Draft) -> None:
        """Hear the voice of what may be an utterance, so that `attribute` need not. In the thread of `attribute`."""
        self._speakers.hear_ahead(_voiced(draft), draft.channel)

    def guess(self, utterance: Utterance) -> Attribution:
        """Whose an utterance that is not over seems to be, and of which dialogue; nothing is learned from it."""
        asked = any(asked_ns < utterance.heard_ns for asked_ns in tuple(self._asked_ns))
        begins = self._is_after_gap(utterance) or (asked and self._last_end_ns is not None)
        speaker = self._speakers.guess(_voiced(utterance), utterance.channel, begins)
        return Attribution(speaker, self._dialogue + begins)

    def _is_asked(self, heard_ns: int) -> bool:
        asked = False
        while self._asked_ns and self._asked_ns[0] < heard_ns:
            self._asked_ns.popleft()
            asked = True
        return asked and self._last_end_ns is not None

    def _is_after_gap(self, utterance: Utterance) -> bool:
        return (
            bool(self._gap_ns)
            and self._last_end_ns is not None
            and utterance.start_ns + utterance.slept_ns - self._last_end_ns >= self._gap_ns
        )


def _voiced(speech: Utterance | Draft) -> Pcm:
    span = speech.span
    return speech.pcm[span.voiced_start - span.start : span.voiced_end - span.start]
