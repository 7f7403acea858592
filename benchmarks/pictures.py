"""Ten prompts, ten pictures, one sheet: what the README shows."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ovenbird import Pipeline, Request
from ovenbird.commands.options import DEFAULT_STEPS

SHEET = Path(__file__).resolve().parents[1] / "docs" / "nestling.png"
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
COLUMNS, GAP = 5, 4


def sheet(pipeline: Pipeline) -> Image.Image:
    """The pictures of ``PROMPTS`` at the default settings, seed 1, five in a row."""
    images = [
        pipeline.generate(Request(prompt=prompt, seed=1, num_inference_steps=DEFAULT_STEPS)).images[0]
        for prompt in PROMPTS
    ]
    width, height = images[0].size
    rows = -(-len(images) // COLUMNS)
    whole = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, COLUMNS)
        whole.paste(image, (column * (width + GAP), row * (height + GAP)))
    return whole
