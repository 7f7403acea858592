"""``ovenbird frames``: an animation that leads from one picture to another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import click

from ovenbird import images
from ovenbird.commands.drawing import draw
from ovenbird.commands.options import (
    HIRES,
    PATH,
    RUNNING,
    SAMPLING,
    SIDES,
    SIZES,
    START,
    TILES,
    WORDS,
    check_folder,
    check_free,
    options,
    pipeline_of,
    request_of,
    timings_since_start,
)
from ovenbird.errors import RequestError
from ovenbird.metadata import ANIMATIONS, save_animation
from ovenbird.pages import Page, under

MAX_FPS = 50.0  # browsers slow down what is faster
ENDS = under(
    "What they show",
    click.option("--prompt", required=True, help="What the first frame shows."),
    click.option("--to-prompt", help="What the last frame shows.  [default: the same]"),
    click.option("--to-seed", type=int, help="The seed of the last frame.  [default: the same]"),
    click.option("--frames", type=int, default=16, help="How many, with both ends."),
)
WHERE = under(
    "Where they go",
    click.option(
        "--output",
        type=PATH,
        default="walk.webp",
        help="The animation to write, .webp or .gif; every frame becomes a PNG in a folder of that name.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace what exists."),
    click.option("--fps", type=float, default=8.0, help="Frames a second."),
    click.option("--loop/--no-loop", default=True, help="Show it again and again, or once."),
    click.option("--bounce", is_flag=True, help="There and back."),
)


@click.command(
    cls=Page,
    short_help="Make an animation between two prompts or seeds.",
    context_settings={"show_default": True},
    examples=(
        'ovenbird frames --prompt "a large red house" --to-prompt "a large red tent" --seed 7',
        'ovenbird frames --prompt "a house" --seed 1 --to-seed 2 --frames 24 --output walk.gif --bounce',
    ),
)
@options(ENDS, WORDS, START, WHERE, SIDES, SAMPLING, HIRES, TILES, SIZES, RUNNING)
def frames(**typed: Any) -> None:
    """Make an animation that leads from one prompt, or seed, to another."""
    timings = timings_since_start()
    output: Path = typed["output"]
    if typed["to_prompt"] is None and typed["to_seed"] is None:
        raise RequestError("to_prompt: there is nowhere to go", hint="add --to-prompt, --to-seed or both")
    requests = request_of(typed, variation_seed=typed["to_seed"]).frames(typed["frames"])
    if not 0 < typed["fps"] <= MAX_FPS:
        raise RequestError(f"fps: {typed['fps']:g} is not above 0 and up to {MAX_FPS:g}")
    paths = outputs(output, len(requests), typed["overwrite"])
    pipeline = pipeline_of(typed, timings)
    settled = [request.settled(pipeline.bundle.default_size) for request in requests]
    paths[0].parent.mkdir(exist_ok=True)
    draw(pipeline, settled, paths, typed)
    if typed["overwrite"]:
        _remove_others(paths)
    there = [images.read("frames", path) for path in paths]
    shown = [*there, *there[-2:0:-1]] if typed["bounce"] else there
    save_animation(shown, output, fps=typed["fps"], loop=typed["loop"], overwrite=typed["overwrite"])
    click.echo(json.dumps({"path": str(output), "frames": len(shown)}) if typed["as_json"] else output)


def _remove_others(paths: Sequence[Path]) -> None:
    """Frames behind the last one, which an animation that was longer and is replaced has left."""
    for number in count(len(paths)):
        path = _frame(paths[0].parent, number)
        if not path.is_file():
            return
        path.unlink()


def _frame(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.png"


def outputs(output: Path, count: int, overwrite: bool) -> list[Path]:
    """Where the frames go: ``walk.webp`` has ``walk/00000.png``, ``walk/00001.png`` ..."""
    check_folder("output", output)
    if output.suffix.lower() not in ANIMATIONS:
        raise RequestError(
            f"output: {output} does not end in {' or '.join(ANIMATIONS)}", hint=f"use {output.with_suffix('.webp')}"
        )
    folder = output.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"output: {folder}, where the frames would go, is not a folder", hint="choose another name")
    paths = [_frame(folder, k) for k in range(count)]
    check_free("output", [output, *paths], overwrite)
    return paths
