"""A made-up vocabulary in the form of CLIP's, because CLIP's own may not be shipped.

Its byte-pair merges are the syllables of English, put together from their beginnings, vowels and ends, the frequent
ones first.  So an ordinary prompt has about two tokens a word where CLIP has a little more than one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice, product
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from ovenbird_export import publish

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
ENDS = ("", WORD_END)
VERSION = "#version: 0.2"

# By falling frequency; of each longer one the part before its last letter stands before it.
ONSETS = """
t s r n d l c m p b f h w g v st th ch tr pr gr br sh cr cl fl pl bl str dr fr sp j k y gl sl sc sw sk sm sn wh ph z q
qu kn wr tw spr scr thr shr spl x
"""
VOWELS = "e a o i u ea ou ai y ee oo io au ow ay ie oa ia ue oi ei ew aw oy ui"
CODAS = """
n r s t l d m nd ng st nt rd c ck ll ct p ss k rt b f g x th ld ch rs ns ts ls ds rn rm rk lt lk sh mp nk pt ft ff tt ph
gh ght zz z v
"""


def write_tokenizer(folder: Path, size: int, padding: str) -> None:
    """The files of a ``CLIPTokenizer`` with ``size`` tokens: 0 to ``size`` - 1, the last one ends a text."""
    tokens, pairs = vocabulary(size)
    special = {"bos_token": START, "eos_token": END, "pad_token": padding, "unk_token": END}
    settings = {"errors": "replace", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    folder.mkdir(parents=True)
    publish.write_text(folder / "vocab.json", json.dumps({token: id for id, token in enumerate(tokens)}))
    publish.write_text(folder / "merges.txt", "\n".join([VERSION, *(" ".join(pair) for pair in pairs), ""]))
    publish.write_json(folder / "special_tokens_map.json", special)
    publish.write_json(folder / "tokenizer_config.json", special | settings)


def vocabulary(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """All tokens in order, and the pairs that are merged, the earlier ones first.

    As in CLIP: a letter for each byte, the same at the end of a word, what merging gives, the start and the end.
    """
    # CLIP's order of the bytes: those that print stand for themselves, the others come behind.
    letters = sorted(ByteLevel.alphabet())
    single = [letter + end for end in ENDS for letter in letters]
    merged = dict(islice(_unique(_pairs()), size - len(single) - 2))
    return [*single, *merged, START, END], list(merged.values())


def _unique(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, tuple[str, str]]]:
    seen = set()
    for pair in pairs:
        token = "".join(pair)
        if token not in seen:
            seen.add(token)
            yield token, pair


def _pairs() -> Iterator[tuple[str, str]]:
    onsets, vowels, codas = ONSETS.split(), VOWELS.split(), CODAS.split()
    clusters = [(part[:-1], part[-1]) for part in (*onsets, *codas, *vowels) if len(part) > 1]
    open_syllables = _by_rank(onsets, vowels)
    closed_syllables = [*_by_rank(vowels, codas), *_by_rank(map("".join, open_syllables), codas)]
    for (left, right), end in product([*clusters, *open_syllables, *closed_syllables], ENDS):
        yield left, right + end


def _by_rank(lefts: Iterable[str], rights: Iterable[str]) -> list[tuple[str, str]]:
    ranked = sorted(product(enumerate(lefts), enumerate(rights)), key=lambda pair: pair[0][0] + pair[1][0])
    return [(left, right) for (_, left), (_, right) in ranked]
