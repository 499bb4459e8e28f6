"""Which channels are heard: all of them, or one where they are copies."""

from __future__ import annotations

import numpy as np
import pytest

from stream.channels import Channels
from stream.items import Pcm

RANDOM = np.random.default_rng(0)


def noise(level: float) -> Pcm:
    """30 ms of that RMS."""
    return (RANDOM.normal(0, level, 480)).astype(np.int16)


def heard(*blocks: tuple[Pcm, Pcm]) -> list[int]:
    """How many channels of each block are heard."""
    channels = Channels("a file")
    return [len(channels.heard(np.stack(block))) for block in blocks]


SPEECH, OTHER, FAINT, HISS = noise(3_000), noise(3_000), noise(10), noise(10)
BLANK = np.zeros(480, np.int16)


def test_copies_are_heard_once(caplog: pytest.LogCaptureFixture) -> None:
    assert heard((SPEECH, SPEECH), (BLANK, BLANK), (OTHER, OTHER)) == [1, 1, 1]
    assert caplog.messages == ["a file gives the same sound on all channels; one is heard"]


def test_what_a_lossy_codec_makes_of_copies_is_heard_once() -> None:
    left, right = SPEECH, (SPEECH + noise(750)).astype(np.int16)
    assert heard((FAINT, HISS), (left, right), (FAINT, HISS)) == [2, 1, 1]


def test_a_quiet_moment_that_a_codec_made_of_its_own_settles_nothing() -> None:
    """AAC at 64 kbit/s makes such blocks of copies, at a word's end and before the first."""
    odd = (noise(250), noise(250))
    assert heard((SPEECH, SPEECH), odd, (OTHER, OTHER), odd) == [1, 1, 1, 1]
    faint = (noise(100), noise(100))
    assert heard(faint, (SPEECH, SPEECH)) == [2, 1]


def test_copies_too_quiet_to_settle_it_are_heard_once() -> None:
    """Speech at -57 dBFS, of which each sentence was said on both channels."""
    quiet = [noise(46) for _ in range(20)]
    assert heard((BLANK, BLANK), *((block, block) for block in quiet)) == [2] + [1] * 20
    assert heard(*((block, block) for block in quiet), (SPEECH, BLANK), (SPEECH, SPEECH)) == [1] * 20 + [2, 2]
    assert heard((quiet[0], quiet[0]), (quiet[1], quiet[2]), (quiet[3], BLANK)) == [1, 2, 2]


@pytest.mark.parametrize("right", [BLANK, OTHER, (SPEECH // 3).astype(np.int16)])
def test_channels_that_differ_are_heard_apart_even_where_they_agree(right: Pcm) -> None:
    assert heard((BLANK, BLANK), (SPEECH, right), (SPEECH, SPEECH)) == [2, 2, 2]


def test_channels_that_begin_as_copies_are_heard_apart_once_they_differ(caplog: pytest.LogCaptureFixture) -> None:
    assert heard((SPEECH, SPEECH), (SPEECH, BLANK), (SPEECH, SPEECH)) == [1, 2, 2]
    assert caplog.messages[1:] == ["the channels of a file differ by now; each is heard"]


def test_one_channel_is_heard() -> None:
    assert len(Channels("a file").heard(SPEECH[None])) == 1
