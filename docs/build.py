"""Write docs/api.md from the docstrings of what is public: ``python docs/build.py``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import ovenbird

PAGE = Path(__file__).with_name("api.md")
GROUPS = {
    "To make pictures": ("Pipeline", "Request"),
    "What comes back": ("Result", "Picture", "Step", "TimingReport"),
    "Models": ("Bundle",),
    "What is raised": (
        "OvenbirdError",
        "RequestError",
        "ModelError",
        "MissingExtraError",
        "ResourceError",
        "NumericError",
        "Cancelled",
    ),
}
ATTRIBUTE = re.compile(r'^    (\w+): .*\n    """((?:[^"]|"(?!""))*)"""', re.MULTILINE)
"""A field of a class, and the docstring below it."""
INTRODUCTION = """# Every public name

Written by `python docs/build.py` from the docstrings of `ovenbird`.  How they go together: [python.md](python.md)."""


def page() -> str:
    """The whole document.  Raises ``AssertionError`` for a public name that stands in no group."""
    named = [name for names in GROUPS.values() for name in names]
    assert sorted([*named, "__version__"]) == ovenbird.__all__, "a public name stands in no group"
    parts = [INTRODUCTION]
    for heading, names in GROUPS.items():
        parts += [f"## {heading}", *(part for name in names for part in described(name, getattr(ovenbird, name)))]
    return "\n\n".join(parts) + "\n"


def described(name: str, kind: type) -> Iterator[str]:
    """A class, its fields, and its public methods."""
    bases = [base.__name__ for base in kind.__bases__ if base not in (object, tuple)]
    yield f"### {name}" + (f"({', '.join(bases)})" if bases else "")
    yield text(kind)
    if is_dataclass(kind):
        yield "\n".join(["| field | default | |", "| --- | --- | --- |", *rows(kind)])
    for method, member in vars(kind).items():
        if not method.startswith("_"):
            yield from of_member(method, member)


def rows(kind: Any) -> Iterator[str]:
    """Of a table of a dataclass's fields."""
    told = {name: " ".join(words.split()) for name, words in ATTRIBUTE.findall(inspect.getsource(kind))}
    for each in fields(kind):
        default = "" if each.default is MISSING else repr(each.default)
        cells = (f"`{each.name}: {each.type}`", default and f"`{default}`", told.get(each.name, ""))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def of_member(name: str, member: Any) -> Iterator[str]:
    """A method with its signature, or a property."""
    if isinstance(member, property):
        yield f"`{name}`: {text(member.fget)}"
    elif callable(function := getattr(member, "__func__", getattr(member, "func", member))):
        called = str(inspect.signature(function)) if inspect.isfunction(member) or hasattr(member, "__func__") else ""
        yield f"#### {name}\n\n```text\n{name}{wrapped(called)}\n```" if called else f"`{name}`: {text(function)}"
        if called:
            yield text(function)


def wrapped(signature: str) -> str:
    """A signature with a line for each argument, if it is long."""
    signature = re.sub(r"(: |-> )'(.*?)'", r"\1\2", signature)  # annotations are kept as text
    signature = re.sub(r"\b(?:cls|self)(?:, )?", "", signature, count=1)
    if len(signature) < 90:
        return signature
    inside, _, result = signature[1:].rpartition(") -> ")
    arguments = re.split(r", (?![^\[(]*[\])])", inside)
    return "(\n" + "".join(f"    {argument},\n" for argument in arguments) + f") -> {result}"


def text(documented: Any) -> str:
    """A docstring, whose double back quotes become single ones."""
    return re.sub(r"``(.+?)``", r"`\1`", inspect.getdoc(documented) or "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
