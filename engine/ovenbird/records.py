"""The lines of job files: bytes -> names and values, from JSON lines or CSV, with suspicion."""

from __future__ import annotations

import csv
import difflib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from ovenbird.errors import RequestError
from ovenbird.pages import MEANT
from ovenbird.request import Request

JSON, CSV = (".jsonl", ".ndjson", ".json"), ".csv"
LONGEST_LINE = 4 << 20
ALSO = {"init_image": "image", "mask": "mask_image", "num_images": "num_images_per_prompt"}
"""The name of an option -> that of the field, where they differ."""
TYPES = {field.name: str(field.type) for field in fields(Request)}
PAIRS = ("tuple", "Pair")


Record = tuple[int, Callable[[], Any]]
"""The number of a line, and what reads it, which raises ``RequestError``."""
HINT = "a line is a job, in JSON or CSV; a file with a prompt a line is for: ovenbird txt2img --from-file"


def read(path: Path, digest: Any) -> Iterator[Record]:
    """What stands in a job file, whose bytes go through ``digest``; blank lines are no records.

    Raises ``RequestError`` where it is no job file at all.
    """
    end = path.suffix.lower()
    if end not in (*JSON, CSV):
        known = ", ".join((*JSON, CSV))
        raise RequestError(f"jobs: {path} ends in none of {known}", hint=HINT)
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: there is a NUL in the name
        raise RequestError(f"jobs: {path} cannot be read: {getattr(error, 'strerror', error)}") from error
    with file:
        yield from (_rows if end == CSV else _objects)(_lines(file, digest))


def _lines(file: IO[bytes], digest: Any) -> Iterator[str]:
    """What is not UTF-8 is refused by whoever reads them, for that line alone."""
    encoding = "utf-8-sig"  # as spreadsheets begin a file
    while raw := file.readline(LONGEST_LINE + 1):
        if len(raw) > LONGEST_LINE:
            raise RequestError(f"jobs: a line is longer than {LONGEST_LINE >> 20} MiB", hint="is it a job file?")
        digest.update(raw)
        yield raw.decode(encoding, "surrogateescape")
        encoding = "utf-8"


def _objects(lines: Iterator[str]) -> Iterator[Record]:
    """Of JSON lines."""
    for number, text in enumerate(lines, 1):
        if text.strip():
            yield number, functools.partial(_object, text)


def _rows(lines: Iterator[str]) -> Iterator[Record]:
    """Of a CSV file, whose first row has names."""
    reader = csv.reader(lines, strict=True)
    names: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first, functools.partial(_refuse, f"not CSV: {error}")
            continue
        if names is None:
            names = [name.strip() for name in row]
            if unknown := [name for name in names if not is_known(name)]:
                hint = "cells are apart by commas" if {*";\t"} & {*unknown[0]} else nearest(unknown[0])
                raise RequestError(f"jobs: the first row has {unknown[0]!r:.60}", hint=hint)
        elif row:
            yield first, functools.partial(_cells, names, row)


def _cells(names: Sequence[str], row: Sequence[str]) -> list[tuple[str, Any]]:
    """An empty cell says nothing."""
    if len(row) != len(names):
        raise RequestError(f"it has {len(row)} cells, and the first row {len(names)}")
    _check_utf8("".join(row))
    return [(name, _of_text(name, cell)) for name, cell in zip(names, row, strict=True) if cell]


def _of_text(name: str, text: str) -> Any:
    """By the type of the field; what cannot be read so stays as it is, and ``Request`` says what is wrong with it."""
    kind = TYPES.get(ALSO.get(name, name), "str")
    number = float if "float" in kind else int
    try:
        if kind.startswith(PAIRS):
            return [number(part) for part in text.split()]
        return number(text) if kind.startswith(("int", "float")) else text
    except ValueError:
        return text


def _object(text: str) -> list[tuple[str, Any]]:
    _check_utf8(text)
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise RequestError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {str(error)[:100]}") from error
    if not isinstance(value, _Pairs):
        raise RequestError("it is not an object", hint='for example {"prompt": "a red house", "seed": 7}')
    return value


class _Pairs(list[tuple[str, Any]]):
    """An object as JSON has it, in which a key may come twice."""


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON's")


def _check_utf8(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("it is not UTF-8") from None


def _refuse(problem: str) -> None:
    raise RequestError(problem)


def is_known(name: str) -> bool:
    """Whether a job may say it."""
    return name in TYPES or name in ALSO or name in ("id", "output")


def nearest(name: str) -> str:
    """The hint for a name that is not known."""
    known = [*TYPES, *ALSO, "id", "output"]
    meant = MEANT.get("--" + name.replace("_", "-"), "").strip("-").replace("-", "_")
    near = [meant] if meant in known else difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else "known are id, output and the settings of ovenbird generate"
