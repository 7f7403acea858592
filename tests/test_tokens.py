"""Token ids of 2,000 strings are those of ``tokenizers`` as transformers' ``CLIPTokenizerFast`` sets it up.

transformers' other class, ``CLIPTokenizer``, is another tokenizer without the package ftfy: it drops control and format
characters and U+FFFD, makes every Chinese character a word, and writes a sigma at the end of a word in its own way.  Of
these strings it has a third's ids alike, and every ordinary one's.  Here the fast one is followed: it is the same in
every installation, and it drops nothing.

``python tests/test_tokens.py`` writes ``tokens.json`` anew from transformers.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from token_corpus import BY_HAND, COUNT, strings

from ovenbird import Request, RequestError
from ovenbird.prompts import plain
from ovenbird.text import PromptTokenizer

STORED = Path(__file__).with_name("tokens.json")
NESTLING = Path(__file__).resolve().parents[1] / "models" / "nestling" / "fp16" / "tokenizer"
Ids = list[list[int]]


def ours(folder: Path) -> Ids:
    tokenizer = PromptTokenizer.open(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is cut, and what looks like a weight
        return [tokenizer(plain(text)).ids[0].tolist() for text in strings()]


def theirs(folder: Path, name: str) -> Ids:
    transformers = pytest.importorskip("transformers")
    tokenizer = getattr(transformers, name).from_pretrained(folder)
    found: Ids = tokenizer(strings(), padding="max_length", max_length=77, truncation=True).input_ids
    return found


def stored(ids: Ids) -> dict[str, Any]:
    """Those by hand whole, of the others a digest."""
    digests = [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:8] for row in ids]
    return {"by hand": ids[: len(BY_HAND)], "digests": digests}


def test_r5_ids_of_2000_strings_are_the_stored_ones() -> None:
    told, found = json.loads(STORED.read_text(encoding="utf-8")), stored(ours(NESTLING))
    assert len(set(strings())) > 0.99 * COUNT == 0.99 * len(told["digests"])
    assert found["by hand"] == told["by hand"]
    differing = [
        text for text, *pair in zip(strings(), found["digests"], told["digests"], strict=True) if len(set(pair)) > 1
    ]
    assert differing == []


@pytest.mark.export
@pytest.mark.parametrize("vocabulary", ["nestling", "as large as CLIP's"])
def test_r5_ids_of_2000_strings_are_those_of_transformers(vocabulary: str, tmp_path: Path) -> None:
    folder = NESTLING
    if vocabulary != "nestling":
        pytest.importorskip("ovenbird_export.vocabulary").write_tokenizer(tmp_path / "clip", 49408, "<|endoftext|>")
        folder = tmp_path / "clip"
    found, fast = ours(folder), theirs(folder, "CLIPTokenizerFast")
    assert [text for text, *pair in zip(strings(), found, fast, strict=True) if pair[0] != pair[1]] == []
    if folder == NESTLING:
        assert stored(fast) == json.loads(STORED.read_text(encoding="utf-8"))


@pytest.mark.export
def test_r5_the_slow_class_agrees_on_ordinary_words_and_not_on_all() -> None:
    fast, slow = theirs(NESTLING, "CLIPTokenizerFast"), theirs(NESTLING, "CLIPTokenizer")
    alike = {text for text, *pair in zip(strings(), fast, slow, strict=True) if pair[0] == pair[1]}
    assert {text for text in strings() if text.isascii() and text.isprintable() and "<|" not in text} <= alike
    assert {"日本語の家 房子 집 ひらがな カタカナ ｶﾞ", "\u0000 nul\u0000in\u0000words"}.isdisjoint(alike)
    assert len(alike) == pytest.approx(COUNT / 3, rel=0.1)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d house", "\udc80"])
def test_r5_half_a_character_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^prompt: .* half a character"):
        Request(prompt=text)


if __name__ == "__main__":
    STORED.write_text(json.dumps(stored(theirs(NESTLING, "CLIPTokenizerFast"))) + "\n", encoding="utf-8")
