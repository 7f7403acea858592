"""``ovenbird models``: what --model can name here without a download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from ovenbird import models as known
from ovenbird import progress
from ovenbird.bundle import EMBEDDED
from ovenbird.commands.about import runtimes, size
from ovenbird.commands.cache import table
from ovenbird.errors import OvenbirdError
from ovenbird.pages import JSON, QUIET, Page
from ovenbird.sizes import show_size

COLUMNS = ("model", "variant", "size", "picture", "runtimes")
MORE = (
    "more: ovenbird export SOURCE models/NAME makes one of a checkpoint;",
    "      --model OWNER/NAME takes one that is exported already from the Hugging Face Hub",
)


@click.command(
    cls=Page,
    short_help="List the models that --model can name here.",
    examples=("ovenbird models", "ovenbird models --json", "ovenbird info nestling"),
)
@JSON
@QUIET
def models(as_json: bool) -> None:
    """List the models that --model can name here without a download, with their variants.

    These are nestling, which comes with ovenbird, the folders in models/, and what was downloaded from the Hub.  Any
    other folder can be given by its path.  A variant is chosen with --precision.
    """
    found = [_facts(name) for name in known.names()]
    if as_json:
        click.echo(json.dumps({"models": found}, indent=2))
        return
    click.echo("\n".join(table([COLUMNS, *(row for facts in found for row in _rows(facts))])))
    progress.tell("\n".join(MORE))


def _facts(name: str) -> dict[str, Any]:
    try:
        with progress.silent():
            bundles = known.open_variants(name)
        return {
            "name": name,
            "embedded": name == EMBEDDED,
            "family": bundles[0].family,
            "default_size": bundles[0].default_size,
            "variants": [
                {
                    "precision": bundle.precision,
                    "path": str(bundle.path),
                    "bytes": size(bundle),
                    "runtimes": runtimes(bundle),
                    "verified": bundle.manifest is not None,
                }
                for bundle in bundles
            ],
        }
    except OvenbirdError as error:
        return {"name": name, "error": str(error)}


def _rows(facts: dict[str, Any]) -> Sequence[Sequence[str]]:
    if "error" in facts:
        return [[facts["name"], "-", "", "", facts["error"]]]
    side = f"{facts['default_size']}x{facts['default_size']}"
    return [
        [facts["name"], each["precision"], show_size(each["bytes"]), side, ", ".join(each["runtimes"])]
        for each in facts["variants"]
    ]
