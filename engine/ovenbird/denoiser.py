"""The U-Net as the samplers call it: guidance, and the prompt's part of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays

Latents = NDArray[np.float32]  # (N, 4, H/8, W/8)
Conditioning = Mapping[str, NDArray[np.float32]]
Model = Callable[[Latents, float], Latents]


def guided(unet: Callable[[Arrays], Arrays], conditioning: Conditioning, guidance_scale: float) -> Model:
    """Classifier-free guidance (Ho and Salimans, 2022): both halves in one call, then away from the first.

    ``conditioning`` holds the negative half first; with but one row for each of the latents there is nothing to guide
    away from.
    """

    def model(x: Latents, t: float) -> Latents:
        guide = rows(conditioning) > len(x)
        sample = np.concatenate([x, x]) if guide else x
        output: Latents = unet({"sample": sample, "timestep": np.array(t), **conditioning})["out_sample"]
        if not guide:
            return output
        without, given = np.split(output, 2)
        return without + np.float32(guidance_scale) * (given - without)

    return model


def rows(conditioning: Conditioning) -> int:
    """How many latents go through the U-Net in one call: for each picture 2 with guidance, else 1."""
    return len(conditioning["encoder_hidden_states"])


def beside(model: Model, more: Latents) -> Model:
    """The model, shown more channels after those of the latents."""
    return lambda x, t: model(np.concatenate([x, more], axis=1), t)
