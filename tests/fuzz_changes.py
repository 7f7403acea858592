"""What a target is, and ways to change its input: as bytes, as JSON, or as what lies in a frame."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Change = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""(chance, input, the others) -> another one."""

DEEP = "@deep@"
"""Stands for lists in lists, which Python's JSON does not write."""
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, -(2**63), 2**64, 10**400, -(10**400)),
    *(0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "a", "0", "1e999", "\0", "\ud800", "../../x", "/etc/passwd", "a" * 5000, "\n", "-inf", "\u202e", "{}%s"),
    *([], {}, [[]], [None], [0], [-1], ["a"], {"a": 1}, {"": None}, [1, "a"], [1e308] * 9, list(range(300)), DEEP),
)
NUMBERS = tuple(number.to_bytes(8, "little", signed=number < 0) for number in (0, 1, -1, 2**31, 2**32, 2**48, 2**63))


def as_bytes(*words: bytes) -> Change:
    """Bits, bytes, pieces of itself and of others, and the ``words`` of its language."""

    def change(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice((0, 1, 1, 2, 4, 8, 64, 1000)))
        other = chance.choice(others)
        start = chance.randint(0, len(other))
        new = chance.choice(
            (
                b"",
                bytes([chance.randrange(256)]),
                bytes([data[at] ^ 1 << chance.randrange(8)]) if at < len(data) else b"\0",
                chance.choice(words) if words else b"\xff",
                chance.choice(words) if words else b"9",
                chance.choice(NUMBERS)[: chance.choice((1, 2, 4, 8))],
                data[at:end] * chance.choice((2, 3, 100)),
                other[start : start + chance.choice((1, 8, 100))],
            )
        )
        return data[:at] + new + data[end if chance.random() < 0.7 else at :]

    return change


def as_json(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Any value by an odd one or by another of its own, keys away, under other names, or twice."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return as_bytes()(chance, data, others)
    if chance.random() < 0.05:
        return as_bytes(b"[", b"{", b'"', b",", b"9" * 5000, b"NaN")(chance, data, others)
    places = list(_places(value))
    if not places or chance.random() < 0.02:
        return _written(chance.choice(ODD))
    parent, key = chance.choice(places)
    how = chance.random()
    if how < 0.6:
        parent[key] = chance.choice(ODD)
    elif how < 0.7:
        del parent[key]
    elif how < 0.8:
        other, place = chance.choice(places)
        parent[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
    elif how < 0.9 and isinstance(parent, dict):
        parent[chance.choice(("", "a", "__class__", "\0", "../x", "size", str(key) * 3))] = parent[key]
    elif isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = chance.choice((-parent[key], parent[key] + 1, parent[key] * 10**6, str(parent[key])))
    elif isinstance(parent[key], str):
        text = as_bytes(b"\0", b"..", b"/")(chance, parent[key].encode("utf-8", "surrogatepass"), [b"a"])
        parent[key] = text.decode("utf-8", "replace")
    else:
        name = json.dumps(key)
        return _written(value).replace(f"{name}:".encode(), f"{name}: 1, {name}:".encode(), 1)
    return _written(value)


def _keys(parent: Any) -> Any:
    return parent if isinstance(parent, dict) else range(len(parent))


def _places(value: Any) -> Any:
    stack = [value]
    while stack:
        parent = stack.pop()
        if isinstance(parent, dict | list):
            for key in _keys(parent):
                yield parent, key
                stack.append(parent[key])


def _written(value: Any) -> bytes:
    depth = 100_000
    return json.dumps(value).encode().replace(f'"{DEEP}"'.encode(), b"[" * depth + b"]" * depth)


def framed(take: Callable[[bytes], bytes], put: Callable[[bytes, bytes], bytes], inside: Change) -> Change:
    """What lies in a frame, which fits it again afterwards; now and then the frame itself.

    ``take`` finds it, and ``put`` puts another one into the same frame.
    """

    def change(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        if chance.random() < 0.2:
            return as_bytes()(chance, data, others)
        try:
            return put(data, inside(chance, take(data), [take(other) for other in others[:8]]))
        except Exception:  # the frame is broken already
            return as_bytes()(chance, data, others)

    return change


def either(*changes: Change) -> Change:
    """One of these."""
    return lambda chance, data, others: chance.choice(changes)(chance, data, others)


class Target(NamedTuple):
    """A parser, what it takes, and how that may be changed."""

    parse: Callable[[bytes, Path], object]
    """(input, a folder to write to): raises nothing but ``OvenbirdError``."""
    seeds: Callable[[], Iterable[bytes]]
    change: Change = as_bytes()


def text_of(data: bytes) -> str:
    """As from a command line: what is no UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def json_of(value: object) -> bytes:
    """Its bytes."""
    return json.dumps(value).encode()
