"""Latents to pixels, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays
from ovenbird.denoiser import Latents
from ovenbird.errors import NumericError
from ovenbird.images import Pixels
from ovenbird.noise import Draw

Values = NDArray[np.float32]  # (1, 3, H, W), -1 .. 1


def decode(decoder: Callable[[Arrays], Arrays], latents: Latents, config: Mapping[str, Any]) -> Pixels:
    """One picture (H, W, 3) from latents (1, 4, H/8, W/8), by the decoder that ``config`` is of, full or tiny.

    Raises ``NumericError`` for one that is not finite.
    """
    scaled = latents / np.float32(config.get("scaling_factor", 0.18215))
    shifted = scaled + np.float32(config.get("shift_factor") or 0.0)
    decoded = decoder({"latent_sample": shifted})["sample"][0]
    if not np.isfinite(decoded).all():
        raise NumericError("the picture is not finite")
    return np.ascontiguousarray(to_uint8(decoded).transpose(1, 2, 0))


class Encoded(NamedTuple):
    """The latents that an autoencoder has for a picture, and how unsure it is of each; None if it has no doubts."""

    mean: Latents
    deviation: Latents | None

    def draw(self, noise: Draw) -> Latents:
        """Latents (1, 4, H/8, W/8); without doubts nothing is drawn, as in diffusers."""
        return self.mean if self.deviation is None else self.mean + self.deviation * noise(self.mean.shape)


def encode(encoder: Callable[[Arrays], Arrays], values: Values, config: Mapping[str, Any]) -> Encoded:
    """What an autoencoder makes of one picture.  Raises ``NumericError`` when that is not finite."""
    outputs = encoder({"sample": values})
    mean, deviation = outputs.get("latent_sample"), None
    if "latent_parameters" in outputs:
        mean, log_variance = np.split(outputs["latent_parameters"], 2, axis=1)
        deviation = np.exp(np.clip(log_variance, -30, 20) * 0.5)  # within bounds, as in training
    if mean is None or not np.isfinite(mean).all():
        raise NumericError("the latents are not finite")
    scale = np.float32(config.get("scaling_factor", 0.18215))
    mean = (mean - np.float32(config.get("shift_factor") or 0.0)) * scale
    return Encoded(mean, None if deviation is None else deviation * scale)


def from_uint8(pixels: Pixels) -> Values:
    """0 .. 255 to -1 .. 1, channels first."""
    values = pixels.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    return np.ascontiguousarray(values * 2 - 1)


def to_uint8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """-1 .. 1 to 0 .. 255, clipped before the cast."""
    pixels: NDArray[np.uint8] = np.rint(np.clip(values * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels
