"""docs/ci.md is true: options, exit codes, folders and lines are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ovenbird import cli, errors
from ovenbird_export.cli import export, verify

COMMANDS = {"export": export, "verify": verify, "": cli.main}


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "docs" / "ci.md").read_text(encoding="utf-8")


def test_every_option_exists(text: str) -> None:
    found = re.findall(r"^(?:.*?[ `(])?ovenbird( (?:export|verify))? (.*--.*)$", text, re.MULTILINE)
    assert len(found) > 4
    for command, words in found:
        known = {option for parameter in COMMANDS[command.strip()].params for option in parameter.opts}
        for option in re.findall(r"(?<!\w)--[a-z][\w-]*", words):
            assert option in known | {"--version"}, (command, option)
    everywhere = set(re.findall(r"(?<![\w/])--[a-z][\w-]+", text))
    options = {o for command in COMMANDS.values() for parameter in command.params for o in parameter.opts}
    assert everywhere - {"--version"} <= options


def test_every_exit_code_is_explained(text: str) -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OvenbirdError)
    ]
    assert told == {0, *(kind.exit_code for kind in kinds)}


def test_the_cache_is_where_it_is_said_to_be(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ovenbird.hub import Shelf

    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path))
    shelf = Shelf("OWNER/NAME")
    assert f"$OVENBIRD_CACHE/{shelf.home.relative_to(tmp_path).as_posix()}" in text
    assert shelf.key("<commit>", "complete") == "hub/OWNER--NAME/<commit>.complete"


def test_lines_and_summary_are_as_printed(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ovenbird import progress

    monkeypatch.setattr(progress, "elapsed", lambda: 41.7)
    progress.end(4_700_000)
    assert capsys.readouterr().err.strip() in text.splitlines()
    summary = text[text.index("| `seconds` |") : text.index("## How it ends")]
    told = set(re.findall(r"`(\w+)`", re.sub(r"\|[^|]*\|$", "", summary, flags=re.MULTILINE)))
    assert told == {"seconds", "folders", "path", "bytes", "name", "family", "precision", "source", "verification"}
