"""Made conversations: their truth is where the sound is, and what is written is read again."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from bench import conversations
from bench.conversations import (
    HALVES,
    Conversation,
    Recorded,
    Synthetic,
    converse,
    in_noise,
    persons,
    read,
    synthetic_voices,
    write,
)
from bench.endpointing import no_speech
from bench.listening import find
from bench.noises import NOISES
from bench.voices import EDGE_SAMPLES, SENTENCES, SynthVoice, channels
from stream.items import SAMPLE_RATE_HZ
from telme.errors import DataError


def voices() -> list[Recorded]:
    """Two voices of loud noise, ten pieces each."""
    rng = np.random.default_rng(3)
    edge = np.zeros(EDGE_SAMPLES, np.int16)
    pieces = [
        [np.concatenate((edge, rng.integers(1_000, 3_000, 8_000 + 500 * n).astype(np.int16), edge)) for n in range(10)]
        for _ in range(2)
    ]
    return [Recorded(name, of) for name, of in zip(("a", "b"), pieces, strict=True)]


def conversation(seed: int = 1) -> Conversation:
    return converse(np.random.default_rng(seed), voices(), turns=8)


def test_the_truth_is_where_the_sound_is() -> None:
    made = conversation()
    assert len(made.turns) == 8
    audible = np.abs(made.pcm.astype(int)) > 300
    for turn in made.turns:
        assert audible[turn.start : turn.end].all()
        assert not audible[turn.start - 100 : turn.start].any()
        assert not audible[turn.end : turn.end + 100].any()


def test_a_channel_without_a_sound_is_no_voice(tmp_path: Path) -> None:
    silence = np.zeros(16_000, np.int16)
    sound = np.random.default_rng(1).integers(-3_000, 3_000, 16_000).astype(np.int16)
    for name, left in (("one", sound), ("none", silence)):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as wav:
            wav.setparams((2, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            wav.writeframes(np.column_stack((left, silence)).tobytes())
    assert len(channels(tmp_path / "one.wav")) == 1
    assert channels(tmp_path / "none.wav") == []


def test_the_same_seed_makes_the_same_conversation() -> None:
    assert np.array_equal(conversation().pcm, conversation().pcm)
    assert not np.array_equal(conversation().pcm[:80_000], conversation(seed=2).pcm[:80_000])


@pytest.mark.parametrize("kind", NOISES)
def test_noise_has_the_ratio_that_was_asked_for(kind: str) -> None:
    clean = conversation()
    noisy = in_noise(np.random.default_rng(1), clean, kind, snr_db=10)
    noise = noisy.pcm.astype(float) - clean.pcm
    speech = np.concatenate([clean.pcm[turn.start : turn.end] for turn in clean.turns]).astype(float)
    assert 10 * np.log10(np.mean(speech**2) / np.mean(noise**2)) == pytest.approx(10, abs=0.2)
    assert (noisy.condition, noisy.noise, noisy.turns) == ("10 dB", kind, clean.turns)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = conversation()
    write(made, tmp_path / "it.wav", tmp_path / "it.json")
    again = read(tmp_path / "it.wav", tmp_path / "it.json")
    assert again.turns == made.turns
    assert np.abs(again.pcm.astype(int) - made.pcm).max() <= 1


@pytest.mark.parametrize(
    "truth", ["", "{}", '[{"speaker": "a"}]', '[{"speaker": "a", "text": "", "start_ms": "x", "end_ms": 1}]']
)
def test_a_truth_that_is_none_is_refused(tmp_path: Path, truth: str) -> None:
    write(conversation(), tmp_path / "it.wav", tmp_path / "it.json")
    (tmp_path / "it.json").write_text(truth)
    with pytest.raises(DataError, match=r"conversation\.json"):
        read(tmp_path / "it.wav", tmp_path / "it.json")


def test_a_cut_is_found_in_its_sound() -> None:
    pcm = conversation().pcm
    assert find(pcm[20_000:40_000], pcm, 24_000) == 20_000
    with pytest.raises(ValueError, match="not in the sound"):
        find(pcm[20_000:40_000], pcm, 19_000)


def test_no_speech_lasts_as_long_as_was_asked_for() -> None:
    assert len(no_speech("keyboard", 6, seed=1)) == 6 * SAMPLE_RATE_HZ


def test_nobody_says_a_thing_twice() -> None:
    said = voices()[0].lines(np.random.default_rng(1), 20)
    assert len(said) == 10
    assert len({len(line.pcm) for line in said}) == 10


def test_a_voice_that_always_hesitates_runs_out_of_hesitations_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "HESITATES", 1.0)
    monkeypatch.setattr(conversations, "speak", lambda voice, text: np.zeros(1_000, np.int16))
    said = Synthetic(SynthVoice("none", "none")).lines(np.random.default_rng(1), 10)
    texts = [line.text for line in said]
    assert len(set(texts)) == 10
    assert sum(text in SENTENCES for text in texts) == 10 - len(HALVES)


def test_a_conversation_has_no_two_voices_that_are_one_to_the_ear() -> None:
    for seed in range(50):
        drawn = [voice.name for voice in persons(np.random.default_rng(seed), synthetic_voices(), 3)]
        assert len(drawn) == len({name.rstrip("0123456789") for name in drawn}) == 3
    assert len(persons(np.random.default_rng(0), voices(), 3)) == 2
