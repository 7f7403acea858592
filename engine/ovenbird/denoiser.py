"""The U-Net as the samplers call it: guidance, and the prompt's part of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import DEEP, Arrays

Latents = NDArray[np.float32]  # (N, 4, H/8, W/8)
Conditioning = Mapping[str, NDArray[np.float32]]
Model = Callable[[Latents, float], Latents]
Corner = tuple[int, int]  # of a tile, in cells from the top and from the left


def guided(unet: Callable[[Arrays], Arrays], conditioning: Conditioning, guidance_scale: float) -> Model:
    """Classifier-free guidance (Ho and Salimans, 2022): both halves in one call, then away from the first.

    ``conditioning`` holds the negative half first; with but one row for each of the latents there is nothing to guide
    away from.
    """

    both = plain(unet, conditioning)

    def model(x: Latents, t: float) -> Latents:
        if rows(conditioning) == len(x):
            return both(x, t)
        without, given = np.split(both(np.concatenate([x, x]), t), 2)
        return without + np.float32(guidance_scale) * (given - without)

    return model


def plain(unet: Callable[[Arrays], Arrays], conditioning: Conditioning) -> Model:
    """The model without guidance: one row of ``conditioning`` for each of the latents."""

    def model(x: Latents, t: float) -> Latents:
        output: Latents = unet({"sample": x, "timestep": np.array(t), **conditioning})["out_sample"]
        return output

    return model


def guided_within(without: Model, given: Model, guidance_scale: float, guides: Callable[[float], bool]) -> Model:
    """Guidance at some timesteps only, and elsewhere half the work (Kynkaanniemi et al., 2024)."""

    def model(x: Latents, t: float) -> Latents:
        output = given(x, t)
        if not guides(t):
            return output
        start = without(x, t)
        return start + np.float32(guidance_scale) * (output - start)

    return model


def reusing(
    full: Callable[[Arrays], Arrays], shallow: Callable[[Arrays], Arrays], every: int
) -> Callable[[Arrays], Arrays]:
    """A U-Net that runs whole at every so many calls, and in between only its outermost layers.

    Those take from the last whole run what comes from below them.  DeepCache (Ma et al., 2024).
    """
    count, deep = 0, {}

    def unet(inputs: Arrays) -> Arrays:
        nonlocal count, deep
        if count % every == 0:
            outputs = full(inputs)
            deep = {DEEP: outputs[DEEP]}
        else:
            outputs = shallow({**inputs, **deep})
        count += 1
        return outputs

    return unet


def rows(conditioning: Conditioning) -> int:
    """How many latents go through the U-Net in one call: for each picture 2 with guidance, else 1."""
    return len(conditioning["encoder_hidden_states"])


def beside(model: Model, more: Latents) -> Model:
    """The model, shown more channels after those of the latents."""
    return lambda x, t: model(np.concatenate([x, more], axis=1), t)


def tiled(model_at: Callable[[Corner], Model], height: int, width: int, tile: Corner) -> Model:
    """A model for pictures larger than it can see: what it says of tiles that overlap, averaged at every step.

    ``model_at`` gives it for the tile at a corner.  MultiDiffusion (Bar-Tal et al., 2023, equation 5).
    """
    corners = list(product(spread(height, tile[0]), spread(width, tile[1])))
    models = [model_at(corner) for corner in corners]
    if len(corners) == 1:
        return models[0]
    places = [np.s_[..., top : top + tile[0], left : left + tile[1]] for top, left in corners]

    def model(x: Latents, t: float) -> Latents:
        said = [one(x[place], t) for one, place in zip(models, places, strict=True)]
        total, count = np.zeros((*said[0].shape[:2], height, width), np.float32), np.zeros((height, width), np.float32)
        for output, place in zip(said, places, strict=True):
            total[place] += output
            count[place] += 1
        return np.asarray(total / count, np.float32)

    return model


def spread(side: int, tile: int) -> list[int]:
    """Where tiles begin, evenly spread, that cover a side and overlap by a quarter or more."""
    count = -(-(side - tile) // (tile - tile // 4)) + 1
    return [round(place) for place in np.linspace(0, side - tile, count)]
