from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ovenbird import Bundle, Request, RequestError, families
from ovenbird.embeddings import NO_EMBEDDINGS
from ovenbird.errors import ModelError
from ovenbird.families import texts
from ovenbird.prompts import plain, webui
from ovenbird.text import PromptTokenizer, Tokens, tokenize

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
    ids = tokenizer(plain("")).ids[0].tolist()
    assert ids == [tokenizer.start, tokenizer.end] + [tokenizer.pad] * 75


@pytest.mark.filterwarnings("ignore:the prompt is longer")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_r5_ids_equal_transformers(tokenizer: PromptTokenizer, nestling: Path, prompt: str) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.CLIPTokenizerFast.from_pretrained(nestling / "fp16" / "tokenizer")
    expected = reference(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert tokenizer(plain(prompt)).ids[0].tolist() == expected


@pytest.mark.parametrize("count", [75, 76, 77, 78, 300])
def test_r4_what_is_cut_is_named_and_the_end_stays(tokenizer: PromptTokenizer, count: int) -> None:
    prompt = " ".join(["house"] * 75 + [f"tree{n}" for n in range(count - 75)])
    if count == 75:
        ids = tokenizer(plain(prompt)).ids
    else:
        with pytest.warns(UserWarning, match="tree0"):
            ids = tokenizer(plain(prompt)).ids
    assert ids.shape == (1, 77)
    assert ids[0, -1] == tokenizer.end


def test_e4_a_folder_without_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="vocab"):
        PromptTokenizer.open(tmp_path)


def test_m10_a_regular_expression_in_the_folder_is_not_used(nestling: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(nestling / "fp16" / "tokenizer" / name, tmp_path)
    evil = {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(evil))
    ours = PromptTokenizer.open(nestling / "fp16" / "tokenizer")
    prompt = plain("a" * 40 + "!")
    assert (PromptTokenizer.open(tmp_path)(prompt).ids == ours(prompt).ids).all()


# Chunks.  Numbers are ids of nestling's vocabulary.

START, END, HOUSE, TREE, RED, COMMA = 804, 805, 660, 616, 657, 267


def row(*ids: int) -> list[int]:
    return [START, *ids, END, *[END] * (75 - len(ids))]


def words(**counts: int) -> str:
    return " ".join(" ".join([word] * count) for word, count in counts.items())


def test_long_prompts_fill_chunk_after_chunk(tokenizer: PromptTokenizer) -> None:
    found = tokenizer(webui(words(house=75, tree=76)), 16)
    assert found.ids.tolist() == [row(*[HOUSE] * 75), row(*[TREE] * 75), row(TREE)]
    assert found.weights.tolist() == [[1.0] * 77] * 3


@pytest.mark.parametrize(("before", "chunk"), [(74, 75), (73, 74), (55, 56), (54, 75)])
def test_a_full_chunk_ends_behind_a_comma_that_is_near(tokenizer: PromptTokenizer, before: int, chunk: int) -> None:
    found = tokenizer(webui(f"{words(house=before)}, {words(tree=30)}"), 16).ids
    first = [*[HOUSE] * before, COMMA, *[TREE] * (chunk - before - 1)]
    assert found.tolist() == [row(*first), row(*[TREE] * (30 - (chunk - before - 1)))]


def test_a_comma_right_behind_a_full_chunk_begins_the_next(tokenizer: PromptTokenizer) -> None:
    found = tokenizer(webui(f"{words(house=60)}, {words(tree=14)}, {words(red=3)}"), 16).ids
    assert found.tolist() == [row(*[HOUSE] * 60, COMMA, *[TREE] * 14), row(COMMA, *[RED] * 3)]


def test_break_begins_a_chunk_and_one_without_words_is_one(tokenizer: PromptTokenizer) -> None:
    found = tokenizer(webui("red BREAK house BREAK BREAK tree"), 16).ids
    assert found.tolist() == [row(RED), row(HOUSE), row(), row(TREE)]


def test_weights_stand_where_their_tokens_do(tokenizer: PromptTokenizer) -> None:
    found = tokenizer(webui("red (house:1.5) tree [red]"), 16)
    assert found.ids.tolist() == [row(RED, HOUSE, TREE, RED)]
    expected = np.ones(77, np.float32)
    expected[[2, 4]] = 1.5, 1 / 1.1
    np.testing.assert_array_equal(found.weights, [expected])
    far = tokenizer(webui(f"{words(house=76)} (red:2)"), 16)
    assert [list(map(int, place)) for place in np.argwhere(far.weights == 2)] == [[1, 2]]


@pytest.mark.parametrize("most", [1, 2, 16])
def test_r4_what_is_beyond_the_last_chunk_is_named(tokenizer: PromptTokenizer, most: int) -> None:
    fits = f"{words(house=75 * (most - 1) + 70)}, {words(tree=4)}"
    assert tokenizer(webui(fits), most).ids.shape == (most, 77)
    with pytest.warns(UserWarning, match=rf"longer than {75 * most} tokens; this was cut off: 'red \(snow +blue'"):
        found = tokenizer(webui(rf"{fits} red \((snow:1.2) BREAK blue"), most).ids
    assert found.shape == (most, 77)
    np.testing.assert_array_equal(found[-1], row(*[HOUSE] * 70, COMMA, *[TREE] * 4))  # no stop at the comma: it is full


def test_all_prompts_get_the_chunks_of_the_longest(tokenizer: PromptTokenizer) -> None:
    other = PromptTokenizer(tokenizer.tokenizer, START, END, 0, COMMA, 77)
    short, long = tokenize([tokenizer, other], ["red", words(house=76)], "webui")
    assert [found.ids.tolist() for found in short] == [
        [row(RED), row()],
        [[START, RED, END, *[0] * 74], [START, END, *[0] * 75]],
    ]
    assert [found.ids.shape for found in long] == [(2, 77)] * 2
    assert all((found.weights == 1).all() for found in [*short, *long])


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if len(prompt) < 200])
def test_text_without_marks_is_the_same_in_every_syntax(tokenizer: PromptTokenizer, prompt: str) -> None:
    found: list[Tokens] = [tokenize([tokenizer], [prompt], syntax)[0][0] for syntax in ("plain", "webui")]
    assert found[0].ids.tolist() == found[1].ids.tolist()
    assert found[0].weights.tolist() == found[1].weights.tolist() == [[1.0] * 77]


def test_a_bracket_that_changes_nothing_does_not_part_a_word(tokenizer: PromptTokenizer) -> None:
    assert tokenizer(webui(r"ho(us:1)e tr\(ee")).ids.tolist() == tokenizer(plain("house tr(ee")).ids.tolist()


def test_small_chunks_end_too(tokenizer: PromptTokenizer) -> None:
    small = PromptTokenizer(tokenizer.tokenizer, START, END, END, COMMA, 5)
    found = small(webui(", house, house house house house"), 16).ids.tolist()
    assert [row[1:4] for row in found] == [[COMMA, HOUSE, COMMA], [HOUSE] * 3, [HOUSE, END, END]]


# Words that are added, of several tokens.

ADDED = {"<cat>": (900, 901, 902), "<cat>_1": (901,), "<cat>_2": (902,), "zqx": (903,), "zqxw": (904,)}


@pytest.fixture(scope="module")
def learned(nestling: Path) -> PromptTokenizer:
    return PromptTokenizer.open(nestling / "fp16" / "tokenizer", ADDED)


@pytest.mark.filterwarnings("ignore:the prompt is longer")
@pytest.mark.parametrize(
    "prompt",
    [
        "a red <cat> house",
        "red<cat>house, tree<cat><cat>",
        "<CAT> < cat> <cat",
        "<cat>_1 <cat>_2",
        "zqx zqxy azqxw ZQX",
        "<|endoftext|><cat>\u00e9<cat>e\u0301",
        "house " * 73 + "<cat>",
        "<cat>" * 30,
    ],
)
def test_added_words_are_found_as_diffusers_finds_them(learned: PromptTokenizer, nestling: Path, prompt: str) -> None:
    transformers = pytest.importorskip("transformers")
    loaders = pytest.importorskip("diffusers.loaders")
    reference = transformers.CLIPTokenizer.from_pretrained(nestling / "fp16" / "tokenizer")
    reference.add_tokens(list(ADDED))
    first = len(reference) - len(ADDED)
    text = loaders.TextualInversionLoaderMixin()._maybe_convert_prompt(prompt, reference)
    expected = reference(text, padding="max_length", max_length=77, truncation=True).input_ids
    found = learned(plain(prompt)).ids[0].tolist()
    assert found == [900 + id - first if id >= first else id for id in expected]
    assert max(found) >= 900 or "<CAT>" in prompt


def test_an_added_word_is_weighed_and_never_torn_apart(learned: PromptTokenizer) -> None:
    found = learned(webui(f"{words(house=73)} (<cat>:1.5)"), 16)
    assert found.ids.tolist() == [row(*[HOUSE] * 73), row(900, 901, 902)]
    assert found.weights[1, :5].tolist() == [1, 1.5, 1.5, 1.5, 1]
    fits = learned(webui(f"{words(house=72)} <cat> house"), 16).ids
    assert fits.tolist() == [row(*[HOUSE] * 72, 900, 901, 902), row(HOUSE)]


def test_r4_an_added_word_is_named_as_it_was_written_when_it_is_cut(learned: PromptTokenizer) -> None:
    with pytest.warns(UserWarning, match="this was cut off: '<cat>house'"):
        ids = learned(plain(f"{words(house=74)} <cat>house")).ids
    assert ids[0, -3:].tolist() == [HOUSE, 900, END]  # the rest of it is gone, as in diffusers


def test_a_text_without_room_is_refused(nestling: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(nestling / "fp16" / "tokenizer" / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 2}))
    with pytest.raises(ModelError, match="no room"):
        PromptTokenizer.open(tmp_path)


def test_another_tokenizer_is_read_instead_of_the_models(nestling: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "tokenizer_config.json"):
        shutil.copy(nestling / "fp16" / "tokenizer" / name, tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    own = Bundle.open("nestling")
    changed = families.with_tokenizer(own, tmp_path)
    ids = [PromptTokenizer.open(each.tokenizer())(plain("a house")).ids for each in (own, changed)]
    assert (ids[1] != ids[0]).any() and own.words_digest is None and changed.words_digest
    [[told]] = texts.read(changed, [""], ["a house"], Request(prompt="a house"), NO_EMBEDDINGS)
    assert (told.ids == ids[1]).all()
    known = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(known | {"more": len(known)}))
    with pytest.raises(
        RequestError, match=f"counts to {len(known)}, and the text_encoder of nestling knows {len(known)}"
    ):
        families.with_tokenizer(own, tmp_path)
    with pytest.raises(RequestError, match="is not a folder with vocab"):
        families.with_tokenizer(own, tmp_path / "nowhere")
    two = dataclasses.replace(own, family="sdxl")
    with pytest.raises(RequestError, match="nestling has two tokenizers"):
        families.with_tokenizer(two, nestling / "fp16" / "tokenizer")


def test_nothing_behind_the_last_break_is_no_chunk(tokenizer: PromptTokenizer) -> None:
    assert tokenizer(webui("red BREAK"), 16).ids.tolist() == tokenizer(webui("red"), 16).ids.tolist()
    assert len(tokenizer(webui("BREAK red"), 16).ids) == 2 and len(tokenizer(webui(""), 16).ids) == 1
