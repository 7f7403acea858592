"""Families differ in what they tell the U-Net about the request; the loop is the same.  One file each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays
from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning
from ovenbird.families import sd, sdxl
from ovenbird.request import Request

Encoders = Callable[[str], Callable[[Arrays], Arrays]]
"""A text encoder by the name of its component."""

FAMILIES: dict[str, Callable[[Bundle, Encoders, Request, bool], Conditioning]] = {
    "sd": sd.condition,
    "sdxl": sdxl.condition,
}
"""``Bundle.family`` -> (bundle, text encoders, settled request, whether to guide) -> conditioning."""


def condition(bundle: Bundle, encoders: Encoders, wish: Request) -> Conditioning:
    """Every input of the U-Net but latents and timestep, with two rows, the negative first, if there is guidance.

    A distilled model (LCM, Luo et al., 2023) has learned guidance: it is told the scale, and its one row is enough.
    """
    width = bundle.config("unet").get("time_cond_proj_dim")
    guide = wish.guidance_scale > 1 and not width
    told = FAMILIES[bundle.family](bundle, encoders, wish, guide)
    return {**told, "timestep_cond": guidance_embedding(wish.guidance_scale, width)} if width else told


def guidance_embedding(guidance_scale: float, width: int) -> NDArray[np.float32]:
    """The scale above 1 as sines and cosines (1, width), float32."""
    half = width // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1))
    angles = (guidance_scale - 1) * 1000 * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)])
    return np.asarray(embedding[None], np.float32)
