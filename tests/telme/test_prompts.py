"""Published prompts and their tokens against what the authors' preprocessing and transformers 4.27.2 gave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import RobertaTokenizer

from telme.modes import CLEAN, PUBLISHED_MELD
from telme.tokens import prompt_for_tokenizer
from tests.golden.tokens_4272 import SPEAKERS, answer, vocabulary
from tests.telme.prompts import GPT2_DIR, MELD_DEV, NO_GPT2, NO_MELD, made_up_prompts, meld_dev_prompts

GOLDEN = Path(__file__).parents[1] / "golden"
needs_meld = pytest.mark.skipif(not MELD_DEV.is_file(), reason=NO_MELD)
needs_gpt2 = pytest.mark.skipif(not (GPT2_DIR / "merges.txt").is_file(), reason=NO_GPT2)


def golden(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    return read


def tokenizer_of(folder: Path) -> RobertaTokenizer:
    """RoBERTa's tokenizer of the installed transformers on a vocabulary, with the speaker tokens."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges: list[Any] = [tuple(line.split(" ")) for line in lines if line]
    tokenizer = RobertaTokenizer(vocab=vocabulary(folder), merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPEAKERS)})
    return tokenizer


def ids_of(tokenizer: RobertaTokenizer, prompts: list[str]) -> list[list[int]]:
    return [tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"] for prompt in prompts]


@needs_meld
def test_published_prompts_of_meld_dev() -> None:
    expected = golden("meld_dev_prompts.json")
    prompts = meld_dev_prompts()
    digests = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts]
    assert digests[:40] == expected["first_40_sha256"]
    assert len(prompts) == expected["rows"]
    assert hashlib.sha256("\n".join(prompts).encode()).hexdigest() == expected["all_sha256"]


def test_published_tokens_of_made_up_prompts() -> None:
    prompts, tokenizer = made_up_prompts(), tokenizer_of(GOLDEN / "bpe")
    expected = golden("tokens_4272.json")["made_up"]
    made = [prompt_for_tokenizer(prompt, PUBLISHED_MELD) for prompt in prompts]
    assert {"transformers": "4.27.2", **answer(prompts, ids_of(tokenizer, made))} == expected


@needs_meld
@needs_gpt2
def test_published_tokens_of_meld_prompts() -> None:
    prompts, tokenizer = meld_dev_prompts()[:1000], tokenizer_of(GPT2_DIR)
    expected = golden("tokens_4272.json")["meld_dev"]
    made = [prompt_for_tokenizer(prompt, PUBLISHED_MELD) for prompt in prompts]
    got = answer(prompts, ids_of(tokenizer, made))
    assert {name: got[name] for name in ("prompts", "prompts_sha256", "ids_sha256")} == {
        name: expected[name] for name in ("prompts", "prompts_sha256", "ids_sha256")
    }


def test_published_blanks() -> None:
    prompt = "<s1>  Oh  no. <s10> <s2> What\x85 </s> Now <s2> feels"
    assert prompt_for_tokenizer(prompt, PUBLISHED_MELD) == "<s1>Oh  no. <s10><s2>What\x85 </s> Now<s2>feels"
    assert prompt_for_tokenizer(prompt, CLEAN) == prompt


def test_feels_falls_apart_without_its_blank() -> None:
    tokenizer = tokenizer_of(GOLDEN / "bpe")
    published, clean = (prompt_for_tokenizer("Now <s2> feels", mode) for mode in (PUBLISHED_MELD, CLEAN))
    assert tokenizer.tokenize(published) == [*tokenizer.tokenize("Now"), "<s2>", *tokenizer.tokenize("feels")]
    assert tokenizer.tokenize(clean) == [*tokenizer.tokenize("Now "), "<s2>", *tokenizer.tokenize(" feels")]
    assert tokenizer.tokenize("feels") != tokenizer.tokenize(" feels")
