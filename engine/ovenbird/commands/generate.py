"""``ovenbird generate``, which is ``demo.py``, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ovenbird.commands.drawing import draw, preview_of
from ovenbird.commands.options import (
    BETWEEN,
    HIRES,
    PATH,
    PROMPT,
    RUNNING,
    SAMPLING,
    SIDES,
    SIZES,
    START,
    TILES,
    check_folder,
    check_free,
    options,
    pipeline_of,
    request_of,
    timings_since_start,
)
from ovenbird.errors import RequestError

DEFAULT_OUTPUT = "output.png"
WHERE = (
    click.option("--output", type=PATH, help=f"The PNG to write.  [default: {DEFAULT_OUTPUT}, or the next free name]"),
    click.option("--overwrite", is_flag=True, help="Replace an --output that exists."),
)


@click.command(context_settings={"show_default": True})
@options(PROMPT, START, WHERE, SIDES, SAMPLING, BETWEEN, HIRES, TILES, SIZES, RUNNING)
def generate(**typed: Any) -> None:
    """Make a picture of a prompt."""
    timings = timings_since_start()
    request = request_of(typed)
    paths = outputs(typed["output"], len(typed["prompt"]) * typed["num_images"], typed["overwrite"])
    # Of a single picture every stage is needed once: what is done with may go.
    once = len(paths) == 1 and not typed["hires_scale"] and not typed["preview_every"]
    pipeline = pipeline_of(typed, timings, keep=not once)
    draw(pipeline, [request.settled(pipeline.bundle.default_size)], paths, typed)


def outputs(output: Path | None, count: int, overwrite: bool) -> list[Path]:
    """Where the pictures go: ``name.png``, or ``name-0.png``, ``name-1.png`` ... for several."""
    check_folder("output", output)
    if output is not None and output.suffix.lower() != ".png":
        raise RequestError(f"output: {output} does not end in .png", hint=f"use {output.with_suffix('.png')}")
    if output is None:
        return _free_names(count)
    paths = [output] if count == 1 else [output.with_stem(f"{output.stem}-{k}") for k in range(count)]
    check_free("output", paths, overwrite)
    return paths


def _free_names(count: int) -> list[Path]:
    base, number, free = Path(DEFAULT_OUTPUT), 0, list[Path]()
    while len(free) < count:
        path = base if number == 0 else base.with_stem(f"{base.stem}-{number}")
        if not any(there.exists() or there.is_symlink() for there in (path, preview_of(path))):
            free.append(path)
        number += 1
    return free
