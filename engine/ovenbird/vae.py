"""Latents to pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays
from ovenbird.denoiser import Latents
from ovenbird.errors import NumericError

Pixels = NDArray[np.uint8]  # (H, W, 3)


def decode(decoder: Callable[[Arrays], Arrays], latents: Latents, config: Mapping[str, Any]) -> Pixels:
    """One picture (H, W, 3) from latents (1, 4, H/8, W/8).  Raises ``NumericError`` for one that is not finite."""
    scaled = latents / np.float32(config.get("scaling_factor", 0.18215))
    shifted = scaled + np.float32(config.get("shift_factor") or 0.0)
    decoded = decoder({"latent_sample": shifted})["sample"][0]
    if not np.isfinite(decoded).all():
        raise NumericError("vae_decoder: the picture is not finite", hint="try the fp32 variant: --precision fp32")
    return np.ascontiguousarray(to_uint8(decoded).transpose(1, 2, 0))


def to_uint8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """-1 .. 1 to 0 .. 255, clipped before the cast."""
    pixels: NDArray[np.uint8] = np.rint(np.clip(values * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels
