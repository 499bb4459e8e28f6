"""Token ids as transformers 4.27.2 gives them: how `tokens_4272.json` was made.

Run it in an environment of its own that has transformers==4.27.2 and nothing of this project; see README.md here.

    python tokens_4272.py VOCABULARY_FOLDER PROMPTS.json > answer.json

VOCABULARY_FOLDER holds GPT-2's vocab.json and merges.txt, or a part of them; PROMPTS.json is a list of prompts.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SPEAKERS = tuple(f"<s{number}>" for number in range(1, 10))
SHOWN = 3


def answer(prompts: Sequence[str], ids: Sequence[Sequence[int]]) -> dict[str, object]:
    """What is kept: digests of the prompts and of their ids, and the ids of the first few."""
    return {
        "prompts": len(prompts),
        "prompts_sha256": digest(prompts),
        "ids_sha256": digest(ids),
        "first_ids": [list(row) for row in ids[:SHOWN]],
    }


def digest(rows: Sequence[object]) -> str:
    """SHA-256 of rows as JSON, one a line."""
    return hashlib.sha256("\n".join(json.dumps(row) for row in rows).encode()).hexdigest()


def vocabulary(folder: Path) -> dict[str, int]:
    """The folder's vocab.json with RoBERTa's special tokens after it."""
    known: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    return {**known, **{token: len(known) + place for place, token in enumerate(SPECIAL)}}


def main() -> None:
    """Tokenize with the installed transformers."""
    import transformers

    folder, prompts_file = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "vocab.json").write_text(json.dumps(vocabulary(folder)), encoding="utf-8")
        (Path(made) / "merges.txt").write_bytes((folder / "merges.txt").read_bytes())
        tokenizer = transformers.RobertaTokenizer.from_pretrained(made)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPEAKERS)})
    prompts = json.loads(prompts_file.read_text(encoding="utf-8"))
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    json.dump({"transformers": transformers.__version__, **answer(prompts, ids)}, sys.stdout)


if __name__ == "__main__":
    main()
