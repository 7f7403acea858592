"""Lines that documents and help pages tell to type: whether the command line understands them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click

from ovenbird.cli import main

STARTS = {("ovenbird",): [], ("python", "demo.py"): ["generate"]}
ENDS = ("|", ">", "&", "&&", ";", "||", "2>")


def ours(text: str) -> Iterator[list[str]]:
    """The words behind ``ovenbird`` of every line that begins with it, or with ``python demo.py``."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        for part in line.strip().removeprefix("$ ").split(" && "):
            words = shlex.split(part, comments=True) if part.startswith(("ovenbird ", "python demo.py")) else []
            for start, given in STARTS.items():
                if tuple(words[: len(start)]) == start:
                    yield [*given, *_until_the_end(words[len(start) :])]


def _until_the_end(words: list[str]) -> Iterator[str]:
    for word in words:
        if word in ENDS:
            return
        yield word


def understood(words: list[str]) -> None:
    """Raises ``click.UsageError`` for a command or an option that does not exist, or a value of another type."""
    if not words or words[0] in ("--help", "--version"):
        return
    with main.make_context("ovenbird", ["--debug"]) as parent:
        name, command, rest = main.resolve_command(parent, words)
        assert command is not None
        if "--help" not in rest:
            command.make_context(name, rest, parent=parent).close()
        else:
            known = {option for parameter in command.params for option in parameter.opts}
            unknown = {word for word in rest if word.startswith("--")} - known - {"--help"}
            if unknown:
                raise click.NoSuchOption(unknown.pop())
