"""``ovenbird img2img``: ``scripts/img2img.py`` of CompVis, with its options and its output folder."""

from __future__ import annotations

from typing import Any

import click

from ovenbird.commands.compvis import run, script
from ovenbird.commands.options import PATH, options
from ovenbird.errors import RequestError
from ovenbird.pages import Page, under

START = under(
    "As in CompVis' script",
    click.option("--init-img", "init_image", type=PATH, help="The picture to start from: PNG, JPEG or WebP."),
    click.option(
        "--strength",
        type=float,
        default=0.75,
        help="How much of it may change, above 0 to 1; only that share of the steps is run.",
    ),
)


@click.command(
    cls=Page,
    short_help="Make pictures from a picture as CompVis' scripts/img2img.py does.",
    context_settings={"show_default": True},
    examples=('ovenbird img2img --prompt "a large red house" --init-img photo.jpg --strength 0.6',),
)
@options(START, script("outputs/img2img-samples", n_samples=2, n_iter=1, scale=5.0))
def img2img(**typed: Any) -> None:
    """Make pictures from a picture as CompVis' scripts/img2img.py does: same options, same output folder."""
    if typed["init_image"] is None:
        raise RequestError("init-img: there is no picture to start from", hint="--init-img FILE; or ovenbird txt2img")
    run({**typed, "height": None, "width": None})
