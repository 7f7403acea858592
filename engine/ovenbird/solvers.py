"""Solvers: ways down from noise to a picture, one generator each.

Everywhere ``x = clean + sigma * noise``, and ``denoise(x, sigma)`` estimates the clean latents.  A solver walks the
strides ``(sigma, lower)``, one for each call of the model, and yields x after every call, at the level ``lower``;
whoever iterates owns progress, previews and cancelling.  Numbers are Python floats (double precision), arrays keep
their own precision.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird.averages import Rule, average, combine, weights

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


def slope(x0: Latents, x: Latents, sigma: float) -> Latents:
    """dx / dsigma, which is the noise that the estimate finds in x (Karras et al. 2022, equation 3)."""
    return (x - x0) / sigma


def fresh(sigma: float, lower: float, eta: float) -> tuple[float, float]:
    """How far below ``lower`` to step, and how much fresh noise comes back up; their squares add up to its square."""
    up = eta * lower * math.sqrt(max(sigma**2 - lower**2, 0.0)) / sigma
    return math.sqrt(max(lower**2 - up**2, 0.0)), up


# One call a step, and nothing remembered.


def euler(denoise: Denoise, x: Latents, strides: Strides, noise: Noise) -> Iterator[Latents]:
    """Follow the slope, which points at the estimate.  DDIM with eta = 0 is this, in other coordinates."""
    for sigma, lower in strides:
        x = towards(denoise(x, sigma), x, sigma, lower)
        yield x


def euler_ancestral(denoise: Denoise, x: Latents, strides: Strides, noise: Noise) -> Iterator[Latents]:
    """Euler with fresh noise.  DDIM with eta = 1 is this, in other coordinates.

    The last step draws too, for nothing: so a picture uses as much of its stream as it does in diffusers.
    """
    for sigma, lower in strides:
        down, up = fresh(sigma, lower, 1.0)
        x = towards(denoise(x, sigma), x, sigma, down) + noise() * up
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


def ddpm(
    denoise: Denoise, x: Latents, strides: Strides, noise: Noise, *, lowest: float, wide: bool = False
) -> Iterator[Latents]:
    """Draw from what may have been one level below, were the estimate right (Ho et al. 2020, equations 6 and 7).

    ``wide`` is the larger of their two variances.  Nothing is added to what comes from the level ``lowest``.
    """
    for sigma, lower in strides:
        alpha, share, ratio = posterior(sigma, lower)
        x = denoise(x, sigma) * share + x * (alpha * ratio)
        if sigma > lowest:
            x = x + noise() * (root(lower) * math.sqrt((1 - alpha) * (1.0 if wide else ratio)))
        yield x


def posterior(sigma: float, lower: float) -> tuple[float, float, float]:
    """Alpha of the stride, the share of the estimate below it, and the ratio of the shares of noise below and above.

    Signals and alpha are rounded to single precision, as in torch: for the lowest levels' beta that is 1e-4 of it.
    """
    signal, below = (float(np.float32(1 / (1 + level**2))) for level in (sigma, lower))
    alpha = float(np.float32(signal / below))
    return alpha, (1 - alpha) / (1 - signal), (1 - below) / (1 - signal)


def lcm(denoise: Denoise, x: Latents, strides: Strides, noise: Noise) -> Iterator[Latents]:
    """All the way to the estimate, and back up with fresh noise (latent consistency models, Luo et al. 2023)."""
    for sigma, lower in strides:
        x = denoise(x, sigma)
        if lower:
            x = x + noise() * lower
        yield x


def tcd(denoise: Denoise, x: Latents, strides: Strides, noise: Noise, *, depths: Sequence[float]) -> Iterator[Latents]:
    """Euler below ``lower``, as deep as told, and back up with fresh noise (trajectory consistency, Zheng et al. 2024).

    The last step stays where it lands.
    """
    last = len(strides) - 1
    for i, ((sigma, lower), down) in enumerate(zip(strides, depths, strict=True)):
        x = towards(denoise(x, sigma), x, sigma, down)
        if down < lower and i < last:
            x = x + noise() * math.sqrt(lower**2 - down**2)
        yield x


# Two calls a step, except for the last; the strides of both leave from where the step does.


def heun(denoise: Denoise, x: Latents, strides: Strides, noise: Noise) -> Iterator[Latents]:
    """Euler, then again with the mean of the slopes at both ends (Karras et al. 2022, algorithm 1)."""
    for (sigma, lower), again in zip_longest(strides[::2], strides[1::2]):
        first = slope(denoise(x, sigma), x, sigma)
        ahead = x + first * (lower - sigma)
        yield ahead
        if again:
            second = slope(denoise(ahead, lower), ahead, lower)
            x = x + (first + second) * ((lower - sigma) / 2)
            yield x


def dpm2(denoise: Denoise, x: Latents, strides: Strides, noise: Noise, *, eta: float = 0.0) -> Iterator[Latents]:
    """Follow the slope found halfway down, in log sigma (DPM-Solver-2, Lu et al. 2022); eta = 1 adds fresh noise."""
    for (sigma, middle), second in zip_longest(strides[::2], strides[1::2]):
        halfway = towards(denoise(x, sigma), x, sigma, middle)
        yield halfway
        if second:
            down, up = fresh(sigma, second[1], eta)
            x = x + slope(denoise(halfway, middle), halfway, middle) * (down - sigma)
            if eta:
                x = x + noise() * up
            yield x


# Answers remembered over several calls.


class Law(NamedTuple):
    """What is averaged over a stride, how much its lower end weighs, and the step taken with the average."""

    read: Callable[[Latents, Latents, float], Latents]  # of x0, x and sigma
    pull: float
    move: Callable[[Latents, Latents, float, float, Noise], Latents]  # of the average, x, sigma, lower and noise


def _estimate(x0: Latents, x: Latents, sigma: float) -> Latents:
    return x0


def _to_estimate(x0: Latents, x: Latents, sigma: float, lower: float, noise: Noise) -> Latents:
    return towards(x0, x, sigma, lower)


def _to_estimate_and_up(x0: Latents, x: Latents, sigma: float, lower: float, noise: Noise) -> Latents:
    down, up = fresh(sigma, lower, 1.0)
    return towards(x0, x, sigma, down) + noise() * up


def _along_slope(eps: Latents, x: Latents, sigma: float, lower: float, noise: Noise) -> Latents:
    return x + eps * (lower - sigma)


def _along_slope_and_up(eps: Latents, x: Latents, sigma: float, lower: float, noise: Noise) -> Latents:
    up = math.sqrt(max(sigma**2 - lower**2, 0.0))
    return _along_slope(eps, x, sigma, 2 * lower - sigma, noise) + noise() * up


LAWS = {  # Lu et al. 2022: DPM-Solver averages the noise, DPM-Solver++ the estimate; the others are stochastic
    "dpmsolver": Law(slope, -1, _along_slope),
    "dpmsolver++": Law(_estimate, 1, _to_estimate),
    "sde-dpmsolver": Law(slope, -1, _along_slope_and_up),
    "sde-dpmsolver++": Law(_estimate, 2, _to_estimate_and_up),
}


def multistep(
    denoise: Denoise, x: Latents, strides: Strides, noise: Noise, *, law: Law, rule: Rule, orders: Sequence[int]
) -> Iterator[Latents]:
    """Step with the average of the last answers: DPM-Solver multistep (Lu et al. 2022), DEIS (Zhang and Chen 2023).

    ``orders`` tells each stride how many answers to use, if there are as many.
    """
    past: deque[tuple[float, Latents]] = deque(maxlen=max(orders))
    for (sigma, lower), order in zip(strides, orders, strict=True):
        remember(past, sigma, law.read(denoise(x, sigma), x, sigma))
        x = law.move(average([*past][:order], lower, law.pull, rule), x, sigma, lower, noise)
        yield x


def remember(past: deque[tuple[float, Latents]], sigma: float, answer: Latents) -> None:
    """Put the answer before the earlier ones; of two at one level, as very fine ladders have them, the newer stays."""
    if past and past[0][0] == sigma:
        past.popleft()
    past.appendleft((sigma, answer))


def singlestep(
    denoise: Denoise,
    x: Latents,
    strides: Strides,
    noise: Noise,
    *,
    law: Law,
    rule: Rule,
    orders: Sequence[int],
) -> Iterator[Latents]:
    """Step again and again from one place, each time further and knowing more (DPM-Solver-2 and -3, Lu et al. 2022).

    ``orders`` has a 1 wherever a new place is taken, and counts up from there.
    """
    begin, answers = x, list[tuple[float, Latents]]()
    for (sigma, lower), order in zip(strides, orders, strict=True):
        if order == 1:
            begin, answers = x, []
        answers = [answer for answer in answers if answer[0] != sigma]
        answers.append((sigma, law.read(denoise(x, sigma), x, sigma)))
        x = law.move(average(answers, lower, law.pull, rule), begin, answers[0][0], lower, noise)
        yield x


def unipc(
    denoise: Denoise,
    x: Latents,
    strides: Strides,
    noise: Noise,
    *,
    law: Law,
    rule: Rule,
    orders: Sequence[int],
    uncorrected: Collection[int] = (),
) -> Iterator[Latents]:
    """Take each step again, knowing also what the network says at its end (UniPC, Zhao et al. 2023).

    After the strides in ``uncorrected`` it is not taken again.
    """
    past: deque[tuple[float, Latents]] = deque(maxlen=max(orders))
    before, known = x, list[tuple[float, Latents]]()
    for i, ((sigma, lower), order) in enumerate(zip(strides, orders, strict=True)):
        answer = law.read(denoise(x, sigma), x, sigma)
        if known and i - 1 not in uncorrected and sigma < known[0][0]:
            x = law.move(average([*known, (sigma, answer)], sigma, law.pull, rule), before, known[0][0], sigma, noise)
        remember(past, sigma, answer)
        known, before = [*past][:order], x
        x = law.move(average(known, lower, law.pull, rule), x, sigma, lower, noise)
        yield x


def lms(
    denoise: Denoise, x: Latents, strides: Strides, noise: Noise, *, above: Sequence[float] = (), order: int = 4
) -> Iterator[Latents]:
    """Integrate a polynomial, in sigma, through the last slopes (Adams and Bashforth, with strides of any length).

    A run that starts further down counts the slopes ``above`` its start as 0, as diffusers does.
    """
    past: deque[tuple[float, Latents]] = deque(maxlen=order)
    for level in above:
        remember(past, level, np.zeros_like(x))
    for sigma, lower in strides:
        remember(past, sigma, slope(denoise(x, sigma), x, sigma))
        if lower < sigma:
            places = [(level - sigma) / (lower - sigma) for level, _ in past]
            means = [1 / (power + 1) for power in range(len(places))]
            x = x + combine([answer for _, answer in past], weights(places, means)) * (lower - sigma)
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
    yield from _plms(transfer, z, strides[4 * warm_up :], outputs)


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
    return combine([*outputs], ADAMS_BASHFORTH[len(outputs) - 1])


def _plms(transfer: _Transfer, z: Latents, strides: Strides, outputs: deque[Latents]) -> Iterator[Latents]:
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
