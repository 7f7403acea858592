"""Textual inversion (Gal et al., 2022): words that files add to what a text encoder knows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovenbird import tensors
from ovenbird.backends import Rows
from ovenbird.bundle import Bundle, printable
from ovenbird.disk import is_file
from ovenbird.errors import ModelError, RequestError
from ovenbird.text import vocabulary

Vectors = NDArray[np.float32]  # (vectors, D)
Wanted = Mapping[str, str | Path] | Iterable[str | Path]
"""Word -> file, or files, each with a word of its own choice; ``FILE:WORD`` names it otherwise."""
LARGEST_FILE = 16 << 20
MOST_FILES = 100
MOST_VECTORS = 75
"""As many as fit between start and end of a text."""
LONGEST_WORD = 64


@dataclass(frozen=True)
class Embedding:
    """One word, and its vectors for each text encoder, equally many."""

    word: str
    vectors: Mapping[str, Vectors]
    """By the component that they are for."""
    file: str
    sha256: str

    @property
    def count(self) -> int:
        """How many tokens the word is."""
        return len(next(iter(self.vectors.values())))

    @property
    def names(self) -> list[str]:
        """What diffusers calls them: ``<cat>``, ``<cat>_1``, ``<cat>_2`` ..."""
        return [self.word, *(f"{self.word}_{place}" for place in range(1, self.count))]


@dataclass(frozen=True)
class Embeddings:
    """All the words that are added, in the order in which they were given.  None by itself."""

    words: tuple[Embedding, ...] = ()
    known: Mapping[str, int] = field(default_factory=dict)
    """Text encoder -> how many tokens it knows without them."""

    @classmethod
    def open(cls, bundle: Bundle, keys: Mapping[str, str], wanted: Wanted) -> Embeddings:
        """Read and check the files: they must fit the text encoders, and the words must be new.

        ``keys`` says which text encoder a tensor is for.  Raises ``RequestError`` and ``ModelError``; reads no model.
        """
        words = tuple(_read(path, keys, word) for path, word in _places(wanted))
        if not words:
            return cls()
        for component in keys.values():
            _check_fit(bundle, component, words)
            _check_new(bundle, component, words)
        return cls(words, {component: _setting(bundle, component, "vocab_size") for component in keys.values()})

    def rows(self, component: str) -> Rows | None:
        """What the component's table of tokens gets behind its last row, if it gets anything."""
        found = [word.vectors[component] for word in self.words if component in word.vectors]
        return Rows(np.concatenate(found), self.known[component]) if found else None

    def tokens(self, component: str) -> dict[str, tuple[int, ...]]:
        """Word -> the ids that stand for it in this text encoder, and each one's name -> that id alone."""
        found: dict[str, tuple[int, ...]] = {}
        begin = self.known.get(component, 0)
        for word in self.words:
            ids = range(begin, begin + word.count)
            found |= {name: (id,) for name, id in zip(word.names, ids, strict=True)} | {word.word: tuple(ids)}
            begin = ids.stop
        return found

    def facts(self) -> list[dict[str, str]]:
        """What is written into a picture."""
        return [{"word": word.word, "file": word.file, "sha256": word.sha256} for word in self.words]


NO_EMBEDDINGS = Embeddings()


def _places(wanted: Wanted) -> list[tuple[Path, str | None]]:
    if isinstance(wanted, str | Path):
        wanted = [wanted]
    places: list[tuple[Path, str | None]]
    if isinstance(wanted, Mapping):
        places = [(Path(path), word) for word, path in wanted.items()]
    else:
        places = [_split(place) for place in wanted]
    if len(places) > MOST_FILES:
        raise RequestError(f"embeddings: {len(places)} files are more than {MOST_FILES}")
    return places


def _split(place: str | Path) -> tuple[Path, str | None]:
    path, colon, word = str(place).rpartition(":")
    if not colon or isinstance(place, Path) or is_file(Path(place)):
        return Path(place), None
    return Path(path), word


def _read(path: Path, keys: Mapping[str, str], word: str | None) -> Embedding:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > LARGEST_FILE:
            raise RequestError(f"embedding: {path} is not a file of at most {LARGEST_FILE >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"embedding: {path} cannot be read: {error.strerror}", hint="write FILE or FILE:WORD"
        ) from error
    found = tensors.parse(path, content)
    if set(found) != set(keys):
        if len(found) != 1 or len(keys) != 1:
            raise ModelError(
                f"{path} holds {_listed(found)}; for this family of models it would hold {_listed(keys)}",
                hint="embeddings are made for one family: SD 1.x, SD 2.x or SDXL",
            )
        [(name, tensor)] = found.items()
        word, found = name if word is None else word, dict.fromkeys(keys, tensor)
    _check_word(path, path.stem if word is None else word)
    vectors = {component: _vectors(path, found[key]) for key, component in keys.items()}
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise ModelError(f"{path} holds not as many vectors for one text encoder as for the other")
    return Embedding(
        path.stem if word is None else word, vectors, printable(path.name), hashlib.sha256(content).hexdigest()
    )


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(f"{name[:LONGEST_WORD]!a}" for name in found[:4]) + (" ..." if len(found) > 4 else "")


def _check_word(path: Path, word: object) -> None:
    short = isinstance(word, str) and 0 < len(word) <= LONGEST_WORD
    if not isinstance(word, str) or not short or not word.isprintable() or " " in word:
        raise RequestError(
            f"embedding: the word for {path} is {str(word)[:LONGEST_WORD]!a}, not 1 to {LONGEST_WORD} printable "
            "characters without spaces",
            hint="give it another one: FILE:WORD",
        )


def _vectors(path: Path, tensor: NDArray[np.float32]) -> Vectors:
    rows = tensor[None] if tensor.ndim == 1 else tensor
    if rows.ndim != 2 or not 1 <= len(rows) <= MOST_VECTORS:
        raise ModelError(f"{path} holds {tensor.shape}, not 1 to {MOST_VECTORS} vectors")
    if not np.isfinite(rows).all():
        raise ModelError(f"{path} holds numbers that are not finite", hint="the file may be damaged")
    return rows


def _setting(bundle: Bundle, component: str, key: str) -> int:
    value = bundle.config(component).get(key)
    if not isinstance(value, int):
        raise ModelError(f"{bundle.path / component / 'config.json'}: {key} is {value!r}, not a number")
    return value


def _check_fit(bundle: Bundle, component: str, words: Iterable[Embedding]) -> None:
    width = _setting(bundle, component, "hidden_size")
    for word in words:
        found = word.vectors[component].shape[1]
        if found != width:
            raise ModelError(
                f"{word.file} has vectors of {found} numbers; those of {bundle.name}'s {component} have {width}",
                hint="SD 1.x has 768, SD 2.x 1024, SDXL 768 and 1280: it was made for another family",
            )


def _check_new(bundle: Bundle, component: str, words: Iterable[Embedding]) -> None:
    taken = set(vocabulary(bundle.tokenizer(component.removeprefix("text_encoder"))))
    for name in _reserved(words):
        if name in taken:
            raise RequestError(
                f"embedding: the word {name!a} is known already, to the model or from another file",
                hint="give it another one: FILE:WORD",
            )
        taken.add(name)


def _reserved(words: Iterable[Embedding]) -> Iterator[str]:
    # With the first name that diffusers would give one vector more: it, too, takes that for a part of the word.
    for word in words:
        yield from word.names
        if word.count == 1:
            yield f"{word.word}_1"
