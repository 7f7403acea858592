"""How like two pictures are, and two trajectories: the figures of the proof from end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Backend
from ovenbird.bundle import Bundle
from ovenbird.pipeline import Pipeline
from ovenbird.request import MIN_SIZE, Request
from ovenbird.result import Step
from ovenbird_export.recipes import Shapes

PROMPTS = ("a red house by the sea at sunset", "a boat on a lake in front of mountains, by day")
STEPS = 4
LARGEST_SIDE = 192
"""Pixels; the sides are not equal, and one is a multiple of 8 only."""
WINDOW = 7
"""Pixels of the square in which structure is compared."""
LARGEST_PSNR = 99.0
"""dB; what equal pictures get, since JSON has no infinity."""


@dataclass(frozen=True)
class Run:
    """What one prompt gave."""

    latents: NDArray[np.float32]
    pixels: NDArray[np.uint8]


def runs(folder: Path, backend: Backend, shapes: Shapes) -> list[Run]:
    """A picture for each of ``PROMPTS``, made by the engine in ``f32``."""
    bundle = Bundle.open(folder)
    side = min(max(bundle.default_size, MIN_SIZE), LARGEST_SIDE)
    height, width = shapes.height or max(side - 8, MIN_SIZE), shapes.width or side
    wishes = [
        Request(prompt=prompt, seed=seed, num_inference_steps=STEPS, height=height, width=width)
        for seed, prompt in enumerate(PROMPTS)
    ]
    latents: dict[int, NDArray[np.float32]] = {}
    found = []
    # One stage at a time: SDXL's U-Net and text encoders do not fit into 24 GB together.
    for event in Pipeline(bundle, backend, inference_precision="f32", keep=False).stream(wishes):
        if isinstance(event, Step):
            latents[event.pictures[0]] = event.latents
        else:
            found.append(Run(latents[event.picture], np.asarray(event.image)))
    return found


def compare(found: Sequence[Run], reference: Sequence[Run]) -> dict[str, float]:
    """The worst over all prompts: relative error of the latents, PSNR in dB and SSIM of the pictures."""
    pairs = list(zip(found, reference, strict=True))
    return {
        "latents_relative": max(relative(ours.latents, theirs.latents) for ours, theirs in pairs),
        "psnr_db": min(psnr(ours.pixels, theirs.pixels) for ours, theirs in pairs),
        "ssim": min(ssim(ours.pixels, theirs.pixels) for ours, theirs in pairs),
    }


def relative(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The norm of the difference over the norm of the reference."""
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def psnr(found: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio in dB."""
    error = np.mean((found.astype(np.float64) - reference) ** 2)
    return min(LARGEST_PSNR, float(10 * np.log10(255**2 / error))) if error else LARGEST_PSNR


def ssim(found: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Structural similarity (Wang et al., 2004) of two pictures (H, W, 3), the mean over windows and channels."""
    x, y = found.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variance_x = (_window_mean(x * x) - mean_x**2) * unbiased
    variance_y = (_window_mean(y * y) - mean_y**2) * unbiased
    covariance = (_window_mean(x * y) - mean_x * mean_y) * unbiased
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))))


def _window_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    windows = np.lib.stride_tricks.sliding_window_view(values, (WINDOW, WINDOW), axis=(0, 1))
    return np.asarray(windows.mean(axis=(-2, -1)))
