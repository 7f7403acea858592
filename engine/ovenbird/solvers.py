"""Solvers: ways down from noise to a picture, one generator each.

Everywhere ``x = clean + sigma * noise``, and ``denoise(x, sigma)`` estimates the clean latents.  A solver walks the
strides ``(sigma, lower)`` and yields x after every model call, at the level ``lower``; whoever iterates owns progress,
previews and cancelling.  Numbers are Python floats (double precision), arrays keep their own precision.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]  # (N, 4, H/8, W/8), x = clean + sigma * noise
Denoise = Callable[[Latents, float], Latents]
Noise = Callable[[], Latents]
Strides = Sequence[tuple[float, float]]  # (sigma, lower): where a step leaves, where it lands
Solver = Callable[[Denoise, Latents, Strides, Noise], Iterator[Latents]]
Scalings = Callable[[float], tuple[float, float]]  # sigma -> (skip, out): clean = skip * x + out * network output


def root(sigma: float) -> float:
    """The standard deviation of x when that of clean latents is 1; divided by it, x has unit variance again."""
    return math.sqrt(1 + sigma * sigma)


def towards(x0: Latents, x: Latents, sigma: float, lower: float) -> Latents:
    """Walk straight from ``x`` at ``sigma`` towards ``x0``, as far as ``lower``."""
    return x0 + (x - x0) * (lower / sigma)


def fresh(sigma: float, lower: float, eta: float) -> tuple[float, float]:
    """How far below ``lower`` to step, and how much fresh noise comes back up; their squares add up to its square."""
    up = eta * lower * math.sqrt(max(sigma**2 - lower**2, 0.0)) / sigma
    return math.sqrt(max(lower**2 - up**2, 0.0)), up


def euler(denoise: Denoise, x: Latents, strides: Strides, noise: Noise) -> Iterator[Latents]:
    """Follow the slope (x - x0) / sigma.  DDIM with eta = 0 is this, in other coordinates."""
    for sigma, lower in strides:
        x = x + (x - denoise(x, sigma)) / sigma * (lower - sigma)
        yield x


def euler_ancestral(denoise: Denoise, x: Latents, strides: Strides, noise: Noise) -> Iterator[Latents]:
    """Euler with fresh noise.  DDIM with eta = 1 is this, in other coordinates.

    The last step draws too, for nothing: so a picture uses as much of its stream as it does in diffusers.
    """
    for sigma, lower in strides:
        down, up = fresh(sigma, lower, 1.0)
        x = x + (x - denoise(x, sigma)) / sigma * (down - sigma) + noise() * up
        yield x


def ddim(
    denoise: Denoise,
    x: Latents,
    strides: Strides,
    noise: Noise,
    *,
    eta: float = 0.0,
    clip: Callable[[Latents], Latents] = lambda x0: x0,
) -> Iterator[Latents]:
    """From the estimate back up, by the noise found along with it and, for eta > 0, fresh noise (Song et al. 2021).

    ``clip`` touches the estimate only.
    """
    level = strides[0][0]
    for sigma, lower in strides:
        x = reread(x, level, sigma)
        x0 = denoise(x, sigma)
        down, up = fresh(sigma, lower, eta)
        x, level = clip(x0) + (x - x0) * (down / sigma), lower
        if eta:
            x = x + noise() * up
        yield x


def reread(x: Latents, level: float, sigma: float) -> Latents:
    """The same unit-variance latents, taken for those of another level.

    diffusers' DDIM does so wherever its steps, T // n timesteps long, do not meet the next timestep.
    """
    return x if level == sigma else x * (root(sigma) / root(level))


def dpmpp_2m(
    denoise: Denoise, x: Latents, strides: Strides, noise: Noise, *, euler_at_end: bool = False
) -> Iterator[Latents]:
    """Euler towards an estimate extrapolated, in log sigma, from the last two (DPM-Solver++ 2M, Lu et al. 2022)."""
    last: tuple[Latents, float] | None = None
    for left, (sigma, lower) in zip(reversed(range(len(strides))), strides, strict=True):
        x0 = target = denoise(x, sigma)
        if last and lower > 0 and not (euler_at_end and left == 0):
            ahead = math.log(sigma / lower) / (2 * math.log(last[1] / sigma))
            target = x0 + (x0 - last[0]) * ahead
        if lower < sigma:  # a step of no length, as in very fine ladders, teaches nothing about the slope
            last = x0, sigma
        x = towards(target, x, sigma, lower)
        yield x


def pndm(
    denoise: Denoise, x: Latents, strides: Strides, noise: Noise, *, scalings: Scalings, warm_up: int = 0
) -> Iterator[Latents]:
    """Extrapolate the network's raw output, not the slope, and move as DDIM does (PNDM, Liu et al. 2022).

    ``warm_up`` Runge-Kutta steps of four strides each come first.  Without them this is PLMS: its second stride takes
    the first one again, with the mean of the outputs at both ends.
    """
    transfer = _Transfer(denoise, scalings)
    z = x / root(strides[0][0])
    outputs: deque[Latents] = deque(maxlen=4)
    for i in range(warm_up):
        z, first = yield from _runge_kutta(transfer, z, strides[4 * i : 4 * i + 4])
        outputs.append(first)
    yield from _multistep(transfer, z, strides[4 * warm_up :], outputs)


class _Transfer:
    """Ask the network, and move with an answer; on ``z = x / root(sigma)``, which can be read at any level."""

    def __init__(self, denoise: Denoise, scalings: Scalings) -> None:
        self.denoise, self.scalings = denoise, scalings

    def ask(self, z: Latents, sigma: float) -> Latents:
        x, (skip, out) = z * root(sigma), self.scalings(sigma)
        return np.asarray((self.denoise(x, sigma) - x * skip) / out)

    def move(self, z: Latents, output: Latents, sigma: float, lower: float) -> Latents:
        x, (skip, out) = z * root(sigma), self.scalings(sigma)
        return towards(x * skip + output * out, x, sigma, lower) / root(lower)


def _runge_kutta(
    transfer: _Transfer, z: Latents, strides: Strides
) -> Generator[Latents, None, tuple[Latents, Latents]]:
    """One step of order 4 in four strides, half, half, whole and whole; returns where it lands and its first output."""
    (sigma, near), (_, half), _, (_, lower) = strides
    first = transfer.ask(z, sigma)
    yield (middle := transfer.move(z, first, sigma, near)) * root(near)
    second = transfer.ask(middle, half)
    yield (middle := transfer.move(z, second, sigma, half)) * root(half)
    third = transfer.ask(middle, half)
    yield (end := transfer.move(z, third, sigma, lower)) * root(lower)
    fourth = transfer.ask(end, lower)
    z = transfer.move(z, (first + (second + third) * 2 + fourth) * (1 / 6), sigma, lower)
    yield z * root(lower)
    return z, first


ADAMS_BASHFORTH = (  # weights of past outputs, oldest first
    (1.0,),
    (-1 / 2, 3 / 2),
    (5 / 12, -16 / 12, 23 / 12),
    (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
)


def _extrapolate(outputs: Collection[Latents]) -> Latents:
    weights = ADAMS_BASHFORTH[len(outputs) - 1]
    return np.asarray(sum(output * weight for output, weight in zip(outputs, weights, strict=True)))


def _multistep(transfer: _Transfer, z: Latents, strides: Strides, outputs: deque[Latents]) -> Iterator[Latents]:
    kept, redo = z, None if outputs else 1
    for i, (sigma, lower) in enumerate(strides):
        if i == redo:
            mean = (outputs[-1] + transfer.ask(z, lower)) * 0.5
            z = transfer.move(kept, mean, sigma, lower)
        else:
            kept = z
            outputs.append(transfer.ask(z, sigma))
            z = transfer.move(z, _extrapolate(outputs), sigma, lower)
        yield z * root(lower)
