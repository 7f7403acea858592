"""What the network's answer means: an estimate of the clean latents; and what may be done to that estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird.solvers import Denoise, Latents, Noise, Scalings, Solver, Strides, root

PREDICTIONS: dict[str, Scalings] = {
    "epsilon": lambda sigma: (1.0, -sigma),
    "v_prediction": lambda sigma: (1 / root(sigma) ** 2, -sigma / root(sigma)),
    "sample": lambda sigma: (0.0, 1.0),
    "flow_prediction": lambda sigma: (1 / (1 + sigma), -sigma / (1 + sigma)),
}


def clean_estimate(output: Latents, x: Latents, skip: float, out: float) -> Latents:
    """The clean latents that an output stands for; its scalings are ``PREDICTIONS[prediction_type](sigma)``."""
    return x * skip + output * out


def threshold(x0: Latents, *, quantile: float, limit: float) -> Latents:
    """Clip each image to a quantile of its own absolute values, and scale that to 1 (Saharia et al. 2022, Imagen)."""
    sizes = np.quantile(np.abs(x0), quantile, axis=tuple(range(1, x0.ndim)), keepdims=True)
    bound: Latents = np.minimum(np.maximum(sizes, 1.0), limit).astype(np.float32)
    return np.asarray(np.clip(x0, -bound, bound) / bound)


# Wrappers of the denoiser.


def over(wrap: Callable[[Denoise], Denoise], solver: Solver) -> Solver:
    """The solver, over a wrapped denoiser."""

    def walk(denoise: Denoise, x: Latents, strides: Strides, noise: Noise) -> Iterator[Latents]:
        return solver(wrap(denoise), x, strides, noise)

    return walk


def clipped(denoise: Denoise, clip: Callable[[Latents], Latents]) -> Denoise:
    """Estimates within bounds."""
    return lambda x, sigma: clip(denoise(x, sigma))


def anchored(denoise: Denoise, shares: Mapping[float, tuple[float, float]]) -> Denoise:
    """Estimates that become the latents themselves where there is no noise (Song et al. 2023, equation 5).

    ``shares`` gives, for each level, how much of the latents (of unit variance) and of the estimate count.
    """

    def estimate(x: Latents, sigma: float) -> Latents:
        own, estimated = shares[sigma]
        return denoise(x, sigma) * estimated + x * (own / root(sigma))

    return estimate


class Remembering:
    """The denoiser, and the ``latest`` of its estimates."""

    def __init__(self, denoise: Denoise) -> None:
        self._denoise = denoise
        self.latest: Latents

    def __call__(self, x: Latents, sigma: float) -> Latents:
        """The estimate."""
        self.latest = self._denoise(x, sigma)
        return self.latest


class Known(NamedTuple):
    """What inpainting keeps: clean latents, the noise that goes with them, and where something new is wanted."""

    latents: Latents
    noise: Latents
    new: NDArray[np.bool_]  # (1, 1, H/8, W/8)

    def into(self, x: Latents, sigma: float, unit: float = 1.0) -> Latents:
        """``x`` where something new is wanted; elsewhere what is known, at the same level, in units of ``unit``."""
        return np.where(self.new, x, (self.latents + self.noise * sigma) / unit)


def keep_known(denoise: Denoise, known: Known, levels: Iterable[float]) -> Denoise:
    """Estimates from what is known, at a level for each call; the first sees what the run began with, as in diffusers.

    That is all a solver needs: what it does to one place does not depend on the others.
    """
    calls = enumerate(levels)

    def estimate(x: Latents, sigma: float) -> Latents:
        call, level = next(calls)
        return denoise(known.into(x, level) if call else x, sigma)

    return estimate
