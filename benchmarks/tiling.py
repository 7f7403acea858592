"""How far pictures that nestling's autoencoder makes in tiles are from those that it makes in one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovenbird import Pipeline, Request, tiles, vae

PROMPTS = Path(__file__).resolve().parents[1] / "models" / "nestling" / "calibration.txt"
SIZES = (384, 512, 768)
SHARES = (3 / 8, 1 / 2, 5 / 8, 3 / 4)
NEAR = 4  # pixels


def measure(pictures: int, told: Callable[[str], object]) -> list[dict[str, Any]]:
    """A row for each size and tile, of levels of 255: with the colours of the whole, and of tiles alone."""
    pipeline = Pipeline.open("nestling", inference_precision="f32")
    prompts = [line for line in PROMPTS.read_text(encoding="utf-8").splitlines() if line][:pictures]
    small = pipeline.generate(Request(prompt=prompts, seed=0, num_inference_steps=16)).images
    rows = []
    for size in SIZES:
        latents = [_latents(pipeline, image, size) for image in small]
        whole = [_decoded(pipeline, each) for each in latents]
        for share in SHARES:
            tile = round(size * share / 64) * 64 if size > 384 else round(size * share)
            row: dict[str, Any] = {"size": size, "tile": tile}
            row |= _gaps(pipeline, latents, whole, tile)
            with _tiles_alone():
                row["alone"] = _gaps(pipeline, latents, whole, tile)
            told(f"{size} in tiles of {tile}: {row}")
            rows.append(row)
    return rows


def _latents(pipeline: Pipeline, image: Image.Image, size: int) -> Any:
    enlarged = image.resize((size, size), Image.Resampling.LANCZOS)
    return pipeline.autoencoder.encode(vae.from_uint8(np.asarray(enlarged))).mean


def _decoded(pipeline: Pipeline, latents: Any) -> Any:
    return pipeline.autoencoder.decode(latents, "full", "").pixels.astype(int)


def _gaps(pipeline: Pipeline, latents: list[Any], whole: list[Any], tile: int) -> dict[str, float]:
    tiling = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", vae_tile=tile)
    gaps = [np.abs(_decoded(tiling, each) - expected) for each, expected in zip(latents, whole, strict=True)]
    seams = [gap[_seams(gap.shape[0], tile)] for gap in gaps]
    return {
        "mean": float(np.mean(gaps)),
        "seams_mean": float(np.mean([gap.mean() for gap in seams])),
        "seams_worst_mean": float(max(gap.mean() for gap in seams)),
        "seams_most": int(max(gap.max() for gap in seams)),
    }


def _seams(size: int, tile: int) -> Any:
    """Where a tile begins or ends inside the picture, and what is near."""
    near = np.zeros((size, size), bool)
    for start in tiles.spread(size // 8, tile // 8):
        for edge in {8 * start, 8 * start + tile} - {0, size}:
            near[edge - NEAR : edge + NEAR] = near[:, edge - NEAR : edge + NEAR] = True
    return near


@contextmanager
def _tiles_alone() -> Iterator[None]:
    """As diffusers has them: blended, and that is all."""
    genuine = tiles._Blend.with_colours_of
    tiles._Blend.with_colours_of = lambda blend, small: blend._mean  # type: ignore[method-assign]
    try:
        yield
    finally:
        tiles._Blend.with_colours_of = genuine  # type: ignore[method-assign]
