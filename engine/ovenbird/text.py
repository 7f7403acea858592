"""From a prompt to chunks of token ids, as CLIP's tokenizer makes them (Radford et al., 2021), and their weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ovenbird.bundle import read_json
from ovenbird.errors import ModelError
from ovenbird.prompts import SYNTAXES, Piece, Sections

TokenIds = NDArray[np.int64]  # (chunks, length)
Weights = NDArray[np.float32]  # (chunks, length); 1 changes nothing

Words = Mapping[str, tuple[int, ...]]
"""Words that the vocabulary does not have -> the ids that stand for each."""
NO_WORDS: Words = {}

# CLIP's own pattern, fixed here: a regular expression is never taken from a model folder.
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
LARGEST_VOCABULARY = 1_000_000
COMMA = ",</w>"
LOOK_BACK = 20
"""A full chunk ends behind a comma among its last so many tokens, if there is one, as the web UI has it."""


@dataclass(frozen=True)
class Tokens:
    """A prompt as a text encoder takes it: a row for each chunk."""

    ids: TokenIds
    weights: Weights


class Token(NamedTuple):
    """One token between start and end."""

    id: int
    weight: float
    begin: int
    """Where it begins in its section's text."""
    part: int = 0
    """Which of a word's tokens, for one that was added with several."""


@dataclass(frozen=True)
class PromptTokenizer:
    """Byte-pair encoding with a start, an end, and padding up to ``length``."""

    tokenizer: Tokenizer
    start: int
    end: int
    pad: int
    comma: int | None
    length: int
    words: Words = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, words: Words = NO_WORDS) -> PromptTokenizer:
        """Read ``vocab.json`` and ``merges.txt`` (or ``tokenizer.json``).  Raises ``ModelError``.

        The ``words`` are found before anything else, wherever they stand, letter for letter, the longest first.
        """
        config = _optional_json(folder / "tokenizer_config.json")
        vocabulary, merges = _vocabulary(folder)
        names = {key: _token(config, key, "<|endoftext|>") for key in ("eos_token", "pad_token", "unk_token")}
        names["bos_token"] = _token(config, "bos_token", "<|startoftext|>")
        for key, token in names.items():
            if token not in vocabulary:
                raise ModelError(f"{folder}: the {key} {token!r} is not in the vocabulary")
        length = min(int(config.get("model_max_length", 77)), 77)
        if length < 3:
            raise ModelError(f"{folder}: a text of {length} tokens has no room between its start and its end")
        tokenizer = _clip(vocabulary, merges, names)
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
        ids = {key: vocabulary[token] for key, token in names.items()}
        comma = vocabulary.get(COMMA)
        return cls(tokenizer, ids["bos_token"], ids["eos_token"], ids["pad_token"], comma, length, words)

    def __call__(self, prompt: Sections, most: int = 1) -> Tokens:
        """At most so many chunks; what does not fit is cut, with a warning that names the lost text."""
        rows: list[list[Token]] = []
        for place, section in enumerate(prompt):
            tokens, begin = self._encode(section), 0
            while not begin or begin < len(tokens):  # a section without tokens is a chunk, too
                if len(rows) == most:
                    self._say_lost(prompt[place:], tokens[begin].begin if tokens else 0, most)
                    return self._filled(rows)
                end = self._end(tokens, begin, last=len(rows) + 1 == most)
                rows.append(tokens[begin:end])
                begin = end
        return self._filled(rows)

    def extended(self, tokens: Tokens, chunks: int) -> Tokens:
        """The same with empty prompts behind it, until there are so many chunks."""
        more = self._filled([[]] * (chunks - len(tokens.ids)))
        return Tokens(np.concatenate([tokens.ids, more.ids]), np.concatenate([tokens.weights, more.weights]))

    @property
    def room(self) -> int:
        """How many tokens fit between start and end."""
        return self.length - 2

    def _encode(self, section: Sequence[Piece]) -> list[Token]:
        tokens: list[Token] = []
        base = 0
        for text, weight in section:
            found: Encoding = self.tokenizer.encode(text, add_special_tokens=False)
            for id, name, (begin, _) in zip(found.ids, found.tokens, found.offsets, strict=True):
                ids = self.words.get(name, (id,))
                tokens += [Token(each, weight, base + begin, part) for part, each in enumerate(ids)]
            base += len(text)
        return tokens

    def _end(self, tokens: Sequence[Token], begin: int, *, last: bool) -> int:
        """Where the chunk that begins there ends; the last one that is allowed takes all that fits."""
        full = begin + self.room
        if last or len(tokens) <= full or tokens[full].id == self.comma:
            return full
        if tokens[full].part:
            return full - tokens[full].part  # a word is not torn apart
        places = range(full, max(full - LOOK_BACK, begin), -1)
        return next((place for place in places if tokens[place - 1].id == self.comma), full)

    def _say_lost(self, rest: Sections, begin: int, most: int) -> None:
        lost = " ".join("".join(piece.text for piece in section) for section in rest)[begin:]
        warnings.warn(f"the prompt is longer than {self.room * most} tokens; this was cut off: {lost!r}", stacklevel=3)

    def _filled(self, rows: Sequence[Sequence[Token]]) -> Tokens:
        ids = np.full((len(rows), self.length), self.pad, np.int64)
        weights = np.ones((len(rows), self.length), np.float32)
        for place, row in enumerate(rows):
            ids[place, : len(row) + 2] = [self.start, *(token.id for token in row), self.end]
            weights[place, 1 : len(row) + 1] = [token.weight for token in row]
        return Tokens(ids, weights)


def tokenize(tokenizers: Sequence[PromptTokenizer], prompts: Sequence[str], syntax: str) -> list[list[Tokens]]:
    """For each prompt its tokens by each tokenizer, in as many chunks everywhere as the longest needs."""
    how = SYNTAXES[syntax]
    found = [[tokenizer(read, how.chunks) for tokenizer in tokenizers] for read in map(how.read, prompts)]
    chunks = max(len(tokens.ids) for row in found for tokens in row)
    return [
        [tokenizer.extended(tokens, chunks) for tokenizer, tokens in zip(tokenizers, row, strict=True)] for row in found
    ]


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]], names: dict[str, str]) -> Tokenizer:
    model = models.BPE(vocabulary, merges, unk_token=names["unk_token"], end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    special = sorted(set(names.values()))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def vocabulary(folder: Path) -> Mapping[str, int]:
    """Token -> its id.  Raises ``ModelError``."""
    return _vocabulary(folder)[0]


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if (folder / "vocab.json").is_file():
        vocabulary: dict[str, Any] = read_json(folder / "vocab.json")
        lines = _lines(folder / "merges.txt")
    elif (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model", {})
        vocabulary, lines = model.get("vocab", {}), model.get("merges", [])
    else:
        raise ModelError(f"{folder} holds neither vocab.json nor tokenizer.json", hint="export the model again")
    merges = [tuple(line.split()) if isinstance(line, str) else tuple(line) for line in lines]
    merges = [pair for pair in merges if len(pair) == 2]
    if not vocabulary or len(vocabulary) > LARGEST_VOCABULARY or len(merges) > LARGEST_VOCABULARY:
        raise ModelError(f"{folder}: a vocabulary of {len(vocabulary)} tokens is not plausible")
    return vocabulary, merges  # type: ignore[return-value]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="export the model again") from error
    return [line for line in lines if line and not line.startswith("#version")]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token(config: dict[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    return str(value["content"] if isinstance(value, dict) else value)
