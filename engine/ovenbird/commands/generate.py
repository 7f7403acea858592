"""``ovenbird generate``, which is ``demo.py``, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ovenbird import recall
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
from ovenbird.commands.recalling import as_read, check_files, compare, recalled
from ovenbird.metadata import PICTURES, check_room, format_of
from ovenbird.pages import Page, under

DEFAULT_OUTPUT = "output.png"
EARLIER = under(
    "The prompt",
    click.option(
        "--params-from",
        type=PATH,
        metavar="PICTURE",
        help="Take every setting that is not typed from a picture of ovenbird, which makes it again, or of "
        "stable-diffusion-webui.",
    ),
)
WHERE = under(
    "Where it goes",
    click.option(
        "--output",
        type=PATH,
        help=f"The {', '.join(PICTURES)} to write; several pictures are NAME-0, NAME-1 and so on.  "
        f"[default: {DEFAULT_OUTPUT}, or the next free name]",
    ),
    click.option("--overwrite", is_flag=True, help="Replace an --output that exists."),
)


@click.command(
    cls=Page,
    context_settings={"show_default": True},
    examples=(
        'ovenbird generate --prompt "a large red house in the snow at night"',
        'ovenbird generate --prompt "a small blue boat" --num-images 4 --seed 7 --output boat.png',
        'ovenbird generate --prompt "a red house" --init-image photo.jpg --strength 0.6',
        'ovenbird generate --model models/sd15 --preset balanced --prompt "a harbour at noon"',
        "ovenbird generate --params-from boat-2.png --num-inference-steps 50",
    ),
)
@options(PROMPT, EARLIER, START, WHERE, SIDES, SAMPLING, BETWEEN, HIRES, TILES, SIZES, RUNNING)
def generate(**typed: Any) -> None:
    """Make a picture of a prompt."""
    timings = timings_since_start()
    earlier = recall.read(typed["params_from"]) if typed["params_from"] else None
    if earlier:
        typed = dict(recalled(typed, earlier))
    request = request_of(typed)
    if earlier:
        check_files(request, earlier)
    paths = outputs(typed["output"], len(typed["prompt"]) * typed["num_images"], typed["overwrite"])
    for prompt in typed["prompt"]:
        check_room(paths[0], prompt, typed["negative_prompt"], typed["to_prompt"] or "")
    # Of a single picture every stage is needed once: what is done with may go.
    once = len(paths) == 1 and not typed["hires_scale"] and not typed["preview_every"]
    pipeline = pipeline_of(typed, timings, keep=not once)
    if earlier:
        compare(pipeline, earlier)
        request = as_read(pipeline, request, earlier)
    draw(pipeline, [request.settled(pipeline.bundle.default_size)], paths, typed)


def outputs(output: Path | None, count: int, overwrite: bool) -> list[Path]:
    """Where the pictures go: ``name.png``, or ``name-0.png``, ``name-1.png`` ... for several."""
    check_folder("output", output)
    if output is None:
        free = _free_names(count)
        check_folder("output", free[0])
        return free
    format_of(output)
    paths = [output] if count == 1 else [output.with_stem(f"{output.stem}-{k}") for k in range(count)]
    for path in paths:
        check_folder("output", path)
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
