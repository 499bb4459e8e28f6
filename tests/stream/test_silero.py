"""Silero's network: a stream gives what the whole gives, and a file that is not what it should be is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from faster_whisper import vad as faster_whisper_vad

from stream import silero
from stream.silero import CHUNK_SAMPLES, SileroStream, speech_probabilities
from telme.errors import TranscriptionError
from tests.stream.sounds import example_clips, no_speech


@pytest.fixture
def unloaded() -> Iterator[None]:
    silero.load.cache_clear()
    yield
    silero.load.cache_clear()


@pytest.mark.parametrize("size", [480, 512, 777])
def test_a_stream_gives_what_the_whole_gives(size: int) -> None:
    pcm = example_clips()[0].pcm
    pcm = pcm[: len(pcm) - len(pcm) % CHUNK_SAMPLES]
    stream, newest = SileroStream(), []
    for first in range(0, len(pcm), size):
        newest.append(stream(pcm[first : first + size]))
    whole = speech_probabilities(pcm)
    ends = [(min(first + size, len(pcm)) // CHUNK_SAMPLES) - 1 for first in range(0, len(pcm), size)]
    # The last chunk is left out: faster-whisper blanks its end.
    pairs = [(one, whole[end]) for one, end in zip(newest, ends, strict=True) if 0 <= end < len(whole) - 1]
    assert len(pairs) > 50
    np.testing.assert_allclose([one for one, _ in pairs], [other for _, other in pairs], atol=1e-6)


def test_the_sound_is_left_as_it_was() -> None:
    pcm = example_clips()[1].pcm
    before = pcm.copy()
    speech_probabilities(pcm)
    SileroStream()(pcm)
    assert np.array_equal(pcm, before)


def test_speech_is_likely_and_noise_is_not() -> None:
    assert float(np.median(speech_probabilities(example_clips()[0].pcm))) > 0.5
    assert max(float(speech_probabilities(pcm).max()) for _, pcm in no_speech(2.0)) < 0.5


def test_less_than_a_chunk_says_nothing() -> None:
    assert len(speech_probabilities(np.zeros(CHUNK_SAMPLES - 1, np.int16))) == 0
    assert SileroStream()(np.full(CHUNK_SAMPLES - 1, 5000, np.int16)) == 0


@pytest.mark.usefixtures("unloaded")
def test_a_damaged_file_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silero.onnx").write_bytes(b"not a network")
    model = faster_whisper_vad.SileroVADModel
    monkeypatch.setattr(silero, "get_vad_model", lambda: model(str(tmp_path / "silero.onnx")))
    with pytest.raises(TranscriptionError, match=r"cannot be loaded: .*install the pinned versions"):
        SileroStream()


@pytest.mark.usefixtures("unloaded")
def test_another_release_of_the_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [SimpleNamespace(name=name) for name in ("input", "state", "sr")]
    older = SimpleNamespace(session=SimpleNamespace(get_inputs=lambda: inputs))
    monkeypatch.setattr(silero, "get_vad_model", lambda: older)
    with pytest.raises(TranscriptionError, match="takes input, state, sr; expected input, h, c"):
        silero.load()
