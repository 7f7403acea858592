from __future__ import annotations

from pathlib import Path

import pytest

from ovenbird.errors import ModelError
from ovenbird.text import PromptTokenizer

PROMPTS = [
    "",
    "a red house",
    "  A   Red\tHOUSE\n\n ",
    "don't stop, it's 1234.5!",
    "naïve café — “quotes” … €",
    "日本語の家 и дом",
    "🏠🌲👩‍👩‍👧",
    "e\u0301 ﬁ ½ İ ẞ",
    "\u200f\u202eabc\u0000def\ufffd",
    "a<|endoftext|>b <|startoftext|>",
    "x" * 300,
    "_under_score __ 'S 'LL",
]


@pytest.fixture(scope="module")
def tokenizer(nestling: Path) -> PromptTokenizer:
    return PromptTokenizer.open(nestling / "fp16" / "tokenizer")


def test_r1_an_empty_prompt_is_start_end_and_padding(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer("")[0].tolist()
    assert ids == [tokenizer.start, tokenizer.end] + [tokenizer.pad] * 75


@pytest.mark.filterwarnings("ignore:the prompt is longer")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_r5_ids_equal_transformers(tokenizer: PromptTokenizer, nestling: Path, prompt: str) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.CLIPTokenizerFast.from_pretrained(nestling / "fp16" / "tokenizer")
    expected = reference(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert tokenizer(prompt)[0].tolist() == expected


@pytest.mark.parametrize("count", [75, 76, 77, 78, 300])
def test_r4_what_is_cut_is_named_and_the_end_stays(tokenizer: PromptTokenizer, count: int) -> None:
    prompt = " ".join(["house"] * 75 + [f"tree{n}" for n in range(count - 75)])
    if count == 75:
        ids = tokenizer(prompt)
    else:
        with pytest.warns(UserWarning, match="tree0"):
            ids = tokenizer(prompt)
    assert ids.shape == (1, 77)
    assert ids[0, -1] == tokenizer.end


def test_e4_a_folder_without_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="vocab"):
        PromptTokenizer.open(tmp_path)


def test_m10_a_regular_expression_in_the_folder_is_not_used(nestling: Path, tmp_path: Path) -> None:
    import json
    import shutil

    for name in ("vocab.json", "merges.txt"):
        shutil.copy(nestling / "fp16" / "tokenizer" / name, tmp_path)
    evil = {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(evil))
    ours = PromptTokenizer.open(nestling / "fp16" / "tokenizer")
    assert (PromptTokenizer.open(tmp_path)("a" * 40 + "!") == ours("a" * 40 + "!")).all()
