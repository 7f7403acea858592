"""How a prompt is read: as it stands, or with the web UI's marks for words that count for more or for less."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

FACTORS = {"(": 1.1, "[": 1 / 1.1}
"""Opening bracket -> what it does to the weight, unless a number before its closing one says otherwise."""
OPENING = {")": "(", "]": "["}
LARGEST_WEIGHT = 10.0
"""On both sides of zero; pictures suffer long before."""
MOST_CHUNKS = 16
"""Chunks of 75 tokens that a prompt may fill, 1200 tokens; the U-Net's attention to the text costs as many times."""
BOUND = 1e100
"""Far beyond any weight, and yet the product of two is finite."""

_NUMBER = r":\s*+(?P<number>[+-]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++))\s*+\)"
# Possessive throughout: what was tried once is not tried again, so time grows with the length and no faster.
_MARK = re.compile(rf"\\(?P<escaped>[\\()\[\]])|(?P<opening>[(\[])|{_NUMBER}|(?P<closing>[)\]])|(?P<pause>\bBREAK\b)")
_WEIGHT = re.compile(_NUMBER)
_SPECIAL = re.compile(r"[\\()\[\]]")
_NOT_HERE = {
    "prompt editing": re.compile(r":\s*+[0-9.]++\s*+\]"),
    "alternation": re.compile(r"(?<!\\)\[[^\[\]|]*+\|[^\[\]]*+\]"),
    "composition": re.compile(r"\bAND\b"),
    "a network": re.compile(r"<(?:lora|lyco|hypernet):[^<>]*+>"),
}
"""What else the web UI reads in a prompt."""


class Piece(NamedTuple):
    """Some text, and how much its tokens count."""

    text: str
    weight: float


Sections = list[list[Piece]]
"""A prompt.  Each section begins a chunk of its own."""


def plain(text: str) -> Sections:
    """Every character for itself.  Warns where somebody seems to have meant a weight."""
    found = _WEIGHT.search(text)
    if found:
        warnings.warn(f"{found[0]!r:.80} is read as text; the syntax webui would make it a weight", stacklevel=2)
    return [[Piece(text, 1.0)]]


def webui(text: str) -> Sections:
    r"""``(more)`` times 1.1, ``[less]`` by 1.1, ``(so:1.3)`` times 1.3, also nested; ``BREAK`` begins a section.

    A backslash takes the meaning from ``( ) [ ] \``.  What is opened and not closed reaches to the end; what is closed
    and was not opened is text.  Round and square ones do not see each other.  Never raises; linear in time.
    Warns of what else the web UI knows and of weights beyond ``LARGEST_WEIGHT``, which are held there.
    """
    for name, pattern in _NOT_HERE.items():
        found = pattern.search(text)
        if found:
            warnings.warn(f"{found[0]!r:.80} is {name} in the web UI; here it is read as text", stacklevel=2)
    sections: list[list[Piece]] = [[]]
    for piece in _pieces(text):
        if piece is None:
            sections.append([])
        else:
            sections[-1].append(piece)
    heaviest = max((abs(piece.weight) for section in sections for piece in section), default=1.0)
    if heaviest > LARGEST_WEIGHT:
        warnings.warn(f"a weight in the prompt is beyond {LARGEST_WEIGHT:g} and is held there", stacklevel=2)
    return [_joined(section) for section in sections]


def escape(text: str) -> str:
    """The text in the web UI's syntax that reads as this one does as it stands."""
    return _SPECIAL.sub(r"\\\g<0>", text)


@dataclass(frozen=True)
class Syntax:
    """A way to read prompts, and how many chunks of 75 tokens one may fill."""

    read: Callable[[str], Sections]
    chunks: int


SYNTAXES = {"plain": Syntax(plain, 1), "webui": Syntax(webui, MOST_CHUNKS)}
"""``plain`` is how diffusers and the scripts of CompVis read a prompt, ``webui`` how stable-diffusion-webui does."""


def _pieces(text: str) -> Iterator[Piece | None]:
    """Pieces with their weights, and None where a section ends."""
    marks = list(_MARK.finditer(text))
    partners = _partners(marks)
    closed = set(partners.values())
    # For either bracket the product of all factors that are open.
    weights = {bracket: [1.0] for bracket in FACTORS}
    end = 0
    for place, mark in enumerate(marks):
        weight = weights["("][-1] * weights["["][-1]
        yield Piece(text[end : mark.start()], weight)
        end = mark.end()
        if mark["pause"]:
            yield None
        elif mark["opening"]:
            number = marks[partners[place]]["number"] if place in partners else None
            factor = _bounded(float(number)) if number else FACTORS[mark["opening"]]
            stack = weights[mark["opening"]]
            stack.append(_bounded(stack[-1] * factor))
        elif place in closed:
            weights[_opening(mark)].pop()
        else:
            yield Piece(mark["escaped"] or mark[0], weight)
    yield Piece(text[end:], weights["("][-1] * weights["["][-1])


def _partners(marks: list[re.Match[str]]) -> dict[int, int]:
    """Place of an opening bracket -> place of the one that closes it."""
    waiting: dict[str, list[int]] = {bracket: [] for bracket in FACTORS}
    partners = {}
    for place, mark in enumerate(marks):
        if mark["opening"]:
            waiting[mark["opening"]].append(place)
        elif (mark["closing"] or mark["number"]) and waiting[_opening(mark)]:
            partners[waiting[_opening(mark)].pop()] = place
    return partners


def _opening(mark: re.Match[str]) -> str:
    return OPENING[mark[0][-1]]


def _bounded(weight: float) -> float:
    return min(max(weight, -BOUND), BOUND)


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one weight as one piece, so that a bracket that changes nothing does not part a word."""
    full = (piece for piece in pieces if piece.text)
    return [
        Piece("".join(piece.text for piece in group), min(max(weight, -LARGEST_WEIGHT), LARGEST_WEIGHT))
        for weight, group in groupby(full, attrgetter("weight"))
    ]
