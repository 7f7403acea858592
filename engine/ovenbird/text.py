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

from ovenbird.bundle import LARGEST_JSON, read_json
from ovenbird.disk import is_file
from ovenbird.errors import ModelError, RequestError
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


class CutOff(UserWarning):
    """A prompt is longer than what is read of it."""


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
        vocabulary, merges = byte_pairs(folder)
        names = {key: _token(config, key, "<|endoftext|>") for key in ("eos_token", "pad_token", "unk_token")}
        names["bos_token"] = _token(config, "bos_token", "<|startoftext|>")
        for key, token in names.items():
            if token not in vocabulary:
                raise ModelError(f"{folder}: the {key} {token!r:.80} is not in the vocabulary")
        length = _length(folder, config.get("model_max_length", 77))
        tokenizer = _clip(folder, vocabulary, merges, names)
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
        ids = {key: vocabulary[token] for key, token in names.items()}
        comma = vocabulary.get(COMMA)
        return cls(tokenizer, ids["bos_token"], ids["eos_token"], ids["pad_token"], comma, length, words)

    def __call__(self, prompt: Sections, most: int = 1) -> Tokens:
        """At most so many chunks; what does not fit is cut, with a warning that names the lost text."""
        rows: list[list[Token]] = []
        for place, section in enumerate(prompt):
            tokens, begin = self._encode(section), 0
            if rows and not tokens and place + 1 == len(prompt):
                break  # nothing behind the last BREAK
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
        told = f"the prompt is longer than {self.room * most} tokens; this was cut off: {lost!r}"
        warnings.warn(told, CutOff, stacklevel=3)

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


def _length(folder: Path, told: object) -> int:
    """Of a text, at most CLIP's; some tools write 1e30 where they set no limit."""
    if not isinstance(told, int | float) or not told >= 3:
        raise ModelError(f"{folder}: a text of {told!r:.40} tokens has no room between its start and its end")
    return 77 if told > 77 else int(told)


def _clip(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], names: dict[str, str]) -> Tokenizer:
    try:
        model = models.BPE(vocabulary, merges, unk_token=names["unk_token"], end_of_word_suffix="</w>")
    except Exception as error:  # tokenizers has no type of its own for what does not fit together
        why = f"its vocabulary and its merges do not fit: {str(error)[:200]}"
        raise ModelError(f"{folder}: {why}", hint="export the model again") from error
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
    # In a prompt they are found in any case, as transformers finds them.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=True) for token in special])
    return tokenizer


def checked_tokenizer(folder: Path) -> Path:
    """The same, if it holds a tokenizer, or ``tokenizer`` in it does.  Raises ``RequestError``."""
    places = (place / name for place in (folder, folder / "tokenizer") for name in ("vocab.json", "tokenizer.json"))
    if not any(map(is_file, places)):
        raise RequestError(
            f"tokenizer: {folder} is not a folder with vocab.json and merges.txt",
            hint="a model folder has its own tokenizer: leave --tokenizer out",
        )
    return folder


def vocabulary(folder: Path) -> Mapping[str, int]:
    """Token -> its id.  Raises ``ModelError``."""
    return byte_pairs(folder)[0]


def byte_pairs(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> its id, and which are merged: of ``vocab.json`` and ``merges.txt``, else of ``tokenizer.json``, which is
    all that transformers 5 writes.  Raises ``ModelError``."""
    vocabulary: Any
    lines: Any
    if (folder / "vocab.json").is_file():
        vocabulary, lines = read_json(folder / "vocab.json"), _lines(folder / "merges.txt")
    elif (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model")
        vocabulary, lines = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    else:
        raise ModelError(f"{folder} holds neither vocab.json nor tokenizer.json", hint="export the model again")
    if not isinstance(vocabulary, dict) or not isinstance(lines, list):
        raise ModelError(f"{folder}: there is no vocabulary in it, or no merges", hint="export the model again")
    ids = vocabulary.values()
    if not vocabulary or not all(type(id) is int and 0 <= id < LARGEST_VOCABULARY for id in ids):
        raise ModelError(f"{folder}: not every token has a number from 0 to {LARGEST_VOCABULARY}")
    if len(vocabulary) > LARGEST_VOCABULARY or len(lines) > LARGEST_VOCABULARY:
        raise ModelError(f"{folder}: a vocabulary of {len(vocabulary)} tokens is not plausible")
    pairs = [line.split() if isinstance(line, str) else line for line in lines]
    return vocabulary, [(pair[0], pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2]


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ModelError(f"{path} is larger than {LARGEST_JSON >> 20} MiB")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="export the model again") from error
    return [line for line in lines if line and not line.startswith("#version")]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token(config: dict[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    return str(value.get("content") if isinstance(value, dict) else value)
