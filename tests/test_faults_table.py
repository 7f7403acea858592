"""docs/faults.md names every test of every row; ``python tests/test_faults_table.py`` writes these lists anew."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "faults.md"
ROWS = {"R": 16, "I": 12, "N": 6, "E": 13, "M": 11, "B": 1}
ROW = re.compile(r"^\| ([RINEMB]\d+) \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)
ID = re.compile(r"([rinemb])(\d+)")


def ids(name: str) -> Iterator[str]:
    """Those that the name of a test begins with: ``test_r2_r7_to_r9_...`` has R2, R7, R8 and R9."""
    words = name.removeprefix("test_").split("_")
    for place, word in enumerate(words):
        found = ID.fullmatch(word)
        if word == "to" and place and ID.fullmatch(words[place - 1]) and ID.fullmatch(words[place + 1]):
            kind, first = ID.fullmatch(words[place - 1]).groups()  # type: ignore[union-attr]
            yield from (f"{kind.upper()}{n}" for n in range(int(first) + 1, int(words[place + 1][1:])))
        elif found:
            yield found[0].upper()
        else:
            return


def listed() -> dict[str, list[str]]:
    """Row -> its tests, as path::name."""
    found: dict[str, list[str]] = {f"{kind}{n}": [] for kind, count in ROWS.items() for n in range(1, count + 1)}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for row in ids(node.name):
                    if row in found:
                        found[row].append(f"{path.name}::{node.name}")
    return found


def cell(names: list[str]) -> str:
    """A cell of the table: the file once for all of its tests."""
    by_file: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        file, _, test = name.partition("::")
        by_file.setdefault(file, []).append(f"`{test}`")
    return "; ".join(f"{file}: {', '.join(found)}" for file, found in by_file.items()) or "none yet"


def written() -> str:
    """The document with its lists of tests as they are now."""
    found = listed()
    return ROW.sub(
        lambda row: f"| {row[1]} | {row[2]} | {row[3]} | {cell(found[row[1]])} |", TABLE.read_text(encoding="utf-8")
    )


def test_every_row_stands_in_the_table_once() -> None:
    rows = [row[1] for row in ROW.finditer(TABLE.read_text(encoding="utf-8"))]
    assert rows == [f"{kind}{n}" for kind, count in ROWS.items() for n in range(1, count + 1)]


def test_every_test_of_a_row_is_listed_and_every_one_that_is_listed_exists() -> None:
    assert written() == TABLE.read_text(encoding="utf-8"), f"run: python {Path(__file__).relative_to(ROOT)}"


def test_every_row_has_a_test() -> None:
    assert [row for row, names in listed().items() if not names] == []


def test_names_tell_their_rows() -> None:
    assert [*ids("test_r2_r7_to_r9_bad_values")] == ["R2", "R7", "R8", "R9"]
    assert [*ids("test_e1_e8_killed")] == ["E1", "E8"]
    assert [*ids("test_to_prompt")] == [*ids("test_what_m1_is")] == []


if __name__ == "__main__":
    TABLE.write_text(written(), encoding="utf-8")
    sys.exit(0)
