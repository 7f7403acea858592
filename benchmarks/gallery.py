"""What the README shows, drawn by nestling at the default settings where nothing else is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ovenbird import Pipeline, Request, schedulers
from ovenbird.commands.options import DEFAULT_STEPS
from ovenbird.images import fitted

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROMPTS = (
    "a large red house on the left in the snow at night under the stars",
    "a small blue boat on the sea at sunset, in the middle, with the sun in the sky",
    "a big yellow tent in a meadow by day, on the right, in front of mountains",
    "a huge purple mushroom in a green field, in the middle, with clouds",
    "a white lighthouse on the right on the sea, by day, with hills behind",
    "a large green tree on the sand at dusk, on the left, with a flat horizon",
    "a large red hot-air balloon on the right, in a snowy field, with snowy peaks in the background, by day",
    "at night, a small white house in a meadow, under the moon, with hills behind",
    "a large yellow sailboat on the water, on the left, under a clear sky at noon",
    "a little crimson toadstool in the desert, on the right, at sunset, under a cloudy sky",
)
HOUSE, MUSHROOM, BOAT = PROMPTS[0], PROMPTS[3], PROMPTS[8]
COLUMNS, GAP, LABEL = 5, 4, 15

Labelled = tuple[str, Image.Image]


def sheet(pipeline: Pipeline) -> Image.Image:
    """Ten prompts."""
    return grid([("", draw(pipeline, prompt)) for prompt in PROMPTS])


def samplers(pipeline: Pipeline) -> Image.Image:
    """One prompt and one seed with every sampler, but for the one of models of another kind."""
    rows = [row for row in schedulers.SAMPLERS.values() if row.name != "flow_euler"]
    return grid([(row.label, draw(pipeline, MUSHROOM, seed=2, scheduler=row.name)) for row in rows])


def from_pictures(pipeline: Pipeline) -> Image.Image:
    """A sketch and what becomes of it; a picture, a mask, and what is made there."""
    sketch, mask = Image.new("RGB", (128, 128), (120, 170, 230)), Image.new("L", (128, 128))
    pen = ImageDraw.Draw(sketch)
    pen.rectangle((0, 84, 128, 128), fill=(80, 160, 70))
    pen.rectangle((20, 58, 58, 98), fill=(190, 40, 30))
    pen.polygon([(14, 60), (64, 60), (39, 34)], fill=(60, 30, 30))
    mask.paste(255, (0, 44, 64, 116))
    house, places = draw(pipeline, HOUSE), ("in a meadow by day", "in the snow at night", "on the sand at sunset")
    things = ("yellow tent", "blue mushroom", "green tree")
    made = [
        draw(pipeline, f"a large red house on the left {place}", image=sketch, strength=0.65) for place in places
    ] + [
        draw(pipeline, f"a large {thing} on the left in the snow at night", image=house, mask_image=mask)
        for thing in things
    ]
    labels = ["in a meadow by day", "in the snow at night", "on the sand at sunset", *things]
    first, second = list(zip(labels, made, strict=True))[:3], list(zip(labels, made, strict=True))[3:]
    shown = Image.composite(Image.new("RGB", house.size, "white"), house, mask.point(lambda white: white // 2))
    return grid([("a sketch", sketch), *first, ("a picture and its mask", shown), *second], columns=4)


def larger(pipeline: Pipeline) -> Image.Image:
    """Made small, enlarged and made anew; and a small picture that was given."""
    small = {"width": 88, "height": 88}
    made = draw(pipeline, BOAT, **small)
    hires = {
        upscaler: draw(pipeline, BOAT, **small, hires_scale=1.5, hires_upscaler=upscaler, hires_strength=0.5)
        for upscaler in ("latent", "lanczos")
    }
    given = fitted(draw(pipeline, HOUSE), 64, 64)
    return grid(
        [
            ("88x88", made),
            ("resized", fitted(made, 128, 128)),
            *((f"hires, {upscaler}", image) for upscaler, image in hires.items()),
            ("64x64", given),
            ("resized", fitted(given, 128, 128)),
            ("upscale", draw(pipeline, HOUSE, image=given, width=128, height=128, strength=0.3, tile_size=128)),
        ],
        columns=4,
    )


def walk(pipeline: Pipeline) -> Image.Image:
    """Nine frames between two prompts and two seeds."""
    wish = Request(
        prompt="a large red house in the middle in a meadow by day",
        to_prompt="a large yellow tent in the middle on the sand at sunset",
        seed=1,
        variation_seed=2,
        num_inference_steps=DEFAULT_STEPS,
    )
    return grid([("", image) for image in pipeline.generate(wish.frames(9)).images], columns=9)


GALLERY: dict[str, Callable[[Pipeline], Image.Image]] = {
    "nestling": sheet,
    "samplers": samplers,
    "from-pictures": from_pictures,
    "larger": larger,
    "walk": walk,
}
"""Name of a PNG in ``docs`` -> what draws it."""


def draw(pipeline: Pipeline, prompt: str, **settings: Any) -> Image.Image:
    """One picture, seed 1."""
    wish: dict[str, Any] = {"seed": 1, "num_inference_steps": DEFAULT_STEPS, **settings}
    return pipeline.generate(Request(prompt=prompt, **wish)).images[0]


def grid(pictures: Sequence[Labelled], columns: int = COLUMNS) -> Image.Image:
    """Pictures in rows, each at the foot of its cell, with its label below."""
    width, height = (max(image.size[side] for _, image in pictures) for side in (0, 1))
    below = LABEL if any(label for label, _ in pictures) else 0
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + below + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(11)
    for index, (label, image) in enumerate(pictures):
        row, column = divmod(index, columns)
        left, foot = column * (width + GAP), row * (height + below + GAP) + height
        whole.paste(image, (left, foot - image.height))
        pen.text((left, foot + 1), label, "black", font)
    return whole
