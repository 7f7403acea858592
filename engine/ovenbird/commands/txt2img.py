"""``ovenbird txt2img``: ``scripts/txt2img.py`` of CompVis, with its options and its output folder."""

from __future__ import annotations

from typing import Any

import click

from ovenbird.commands.compvis import run, script
from ovenbird.commands.options import options
from ovenbird.pages import Page, under

SIDES = under(
    "As in CompVis' script",
    click.option("--H", "height", type=int, help="Pixels, a multiple of 8.  [default: the model's own]"),
    click.option("--W", "width", type=int, help="Pixels, a multiple of 8.  [default: the model's own]"),
)


@click.command(
    cls=Page,
    short_help="Make pictures as CompVis' scripts/txt2img.py does.",
    context_settings={"show_default": True},
    examples=(
        'ovenbird txt2img --prompt "a large red house in the snow" --plms',
        "ovenbird txt2img --from-file prompts.txt --ckpt sd-v1-4.ckpt --n_samples 1 --n_iter 1",
    ),
)
@options(SIDES, script("outputs/txt2img-samples", n_samples=3, n_iter=2, scale=7.5))
def txt2img(**typed: Any) -> None:
    """Make pictures as CompVis' scripts/txt2img.py does: same options, same output folder."""
    run(typed)
