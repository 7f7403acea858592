"""``ovenbird cache``: the compiled models that are kept on the disk."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from ovenbird import compiled
from ovenbird.compiled import Entry
from ovenbird.errors import ResourceError
from ovenbird.pages import JSON, QUIET, Page
from ovenbird.sizes import counted, show_size

COLUMNS = ("model", "component", "shapes", "device", "runtime", "size", "last used")


@click.command(
    cls=Page,
    short_help="List, or remove, the compiled models on the disk.",
    examples=("ovenbird cache", "ovenbird cache --json", "ovenbird cache --clear"),
)
@click.option("--clear", is_flag=True, help="Remove them; downloads and whatever else lies in the folder stay.")
@JSON
@QUIET
def cache(clear: bool, as_json: bool) -> None:
    """List the compiled models that are kept on the disk, the one that was used last first.

    They lie in $OVENBIRD_CACHE, or in ovenbird in the user's cache folder.  When they exceed $OVENBIRD_CACHE_LIMIT
    (20GiB), those that were used longest ago are removed.
    """
    told, text = _cleared() if clear else _listed()
    click.echo(json.dumps({"folder": str(compiled.folder() or ""), **told}, indent=2) if as_json else text)


def _listed() -> tuple[dict[str, Any], str]:
    limit, entries = compiled.limit(), compiled.entries()
    size = sum(entry.size for entry in entries)
    told = {"limit_bytes": limit, "bytes": size, "entries": [_facts(entry) for entry in entries]}
    total = f"{counted(len(entries), 'compiled model')}, {show_size(size)} of {show_size(limit)} ({compiled.LIMIT})"
    rows = [COLUMNS, *(_row(entry) for entry in entries)] if entries else []
    return told, "\n".join([str(compiled.folder() or "nothing is kept: there is no home folder"), *table(rows), total])


def _cleared() -> tuple[dict[str, Any], str]:
    found = compiled.clear()
    gone = counted(found.removed, "compiled model")
    if found.left:
        raise ResourceError(
            f"{gone} removed, {found.left} not: in use, or not yours to remove",
            hint=f"see {compiled.folder()}",
        )
    return found._asdict(), f"{gone} removed, {show_size(found.size)}; everything else stays"


def _facts(entry: Entry) -> dict[str, Any]:
    used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.last_used))
    return {"file": entry.path.name, "bytes": entry.size, "last_used": used, "facts": entry.facts}


def _row(entry: Entry) -> Sequence[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
    try:
        facts: Any = entry.facts
        shapes = [f"{name} {'x'.join(map(str, shape))}" for name, shape in facts["shapes"].items()]
        told = [facts["model"], facts["component"], ", ".join(shapes), facts["device"], facts["runtime"].split("-")[0]]
    except (TypeError, KeyError, AttributeError):
        told = ["damaged", "", "", "", ""]
    return [*map(str, told), show_size(entry.size), used]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines, with cells below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
