"""``ovenbird upscale``: a given picture, enlarged and made anew in part, tile by tile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ovenbird import images
from ovenbird.commands.drawing import draw
from ovenbird.commands.generate import WHERE, outputs
from ovenbird.commands.options import (
    PATH,
    RUNNING,
    SAMPLING,
    SIZES,
    WORDS,
    options,
    pipeline_of,
    request_of,
    timings_since_start,
)
from ovenbird.errors import RequestError
from ovenbird.metadata import check_room
from ovenbird.pages import Page, under

MAX_SCALE = 8.0
GIVEN = under(
    "What it becomes",
    click.argument("picture", type=PATH),
    click.option("--scale", type=float, default=2.0, help="How much larger, above 1."),
    click.option("--prompt", default="", help="What the picture shows."),
    click.option("--strength", type=float, default=0.3, help="How much of it may change, above 0 to 1."),
    click.option(
        "--tile-size",
        type=int,
        help="The most pixels a side that the U-Net sees at once, a multiple of 8.  [default: the model's own size]",
    ),
)


@click.command(
    cls=Page,
    short_help="Enlarge a picture and make its details anew.",
    context_settings={"show_default": True},
    examples=(
        "ovenbird upscale photo.jpg",
        'ovenbird upscale photo.jpg --scale 3 --prompt "a harbour at noon" --strength 0.4 --output big.png',
    ),
)
@options(GIVEN, WORDS, WHERE, SAMPLING, SIZES, RUNNING)
def upscale(**typed: Any) -> None:
    """Enlarge PICTURE (PNG, JPEG or WebP) and make its details anew."""
    timings = timings_since_start()
    request = request_of(typed, **_larger(typed["picture"], typed["scale"]))
    paths = outputs(typed["output"], 1, typed["overwrite"])
    check_room(paths[0], typed["prompt"], typed["negative_prompt"])
    pipeline = pipeline_of(typed, timings, keep=bool(typed["preview_every"]))
    request = replace(request, tile_size=request.tile_size or pipeline.bundle.default_size)
    draw(pipeline, [request.settled(pipeline.bundle.default_size)], paths, typed)


def _larger(path: Path, scale: float) -> dict[str, Any]:
    """The picture, and the size that it becomes."""
    if not 1 < scale <= MAX_SCALE:
        raise RequestError(f"scale: {scale:g} is not above 1 and up to {MAX_SCALE:g}")
    picture = images.picture("picture", images.read("picture", path))
    width, height = (int(side * scale) // 8 * 8 for side in picture.size)
    return {"image": picture, "width": width, "height": height}
