"""Averages over a stride of what the network says, from the few levels where it was asked.

Every solver of higher order is Euler with a better answer: the average, over the stride, of a polynomial through the
last answers.  Along the stride from ``sigma`` to ``lower`` the place u runs from 0 to 1, evenly in log sigma; earlier
calls lie below 0.  Solvers differ in how they weigh the places, and in which of their means they take for granted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ovenbird.noise import Floats

Answers = Sequence[tuple[float, Floats]]  # (level, what the network said there); the stride leaves from the first
# (how many answers, pull) -> what 1, u, u² ... average to: a mean for each answer used
Rule = Callable[[int, float], Sequence[float]]


def average(answers: Answers, lower: float, pull: float, rule: Rule) -> Floats:
    """The average from the first answer's level down to ``lower``, where sigma weighs ``sigma ** -pull``.

    If the rule has fewer means than there are answers, those before the last do not count.
    """
    sigma, first = answers[0]
    if len(answers) == 1 or lower == sigma:
        return first
    length = math.log(sigma / lower)
    means = rule(len(answers), pull * length)
    used = [*answers[: len(means) - 1], answers[-1]]
    places = [math.log(sigma / level) / length for level, _ in used]
    # The weights add up to 1.  Differences are small, and so are their rounding errors.
    return first + combine([answer - first for _, answer in used[1:]], weights(places, means)[1:])


def weights(places: Sequence[float], means: Sequence[float]) -> list[float]:
    """How much the answer at each place counts, if the powers of the place have these means (Björck, Pereyra 1970).

    A system of Vandermonde's; for so few places, plain floats are solved sooner than arrays.
    """
    found, count = [*means], len(places)
    for k in range(count - 1):
        for i in range(count - 1, k, -1):
            found[i] -= places[k] * found[i - 1]
    for k in reversed(range(count - 1)):
        for i in range(k + 1, count):
            found[i] /= places[i] - places[i - k - 1]
        for i in range(k, count - 1):
            found[i] -= found[i + 1]
    return found


def combine(answers: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Their weighted sum."""
    return np.asarray(sum(answer * weight for answer, weight in zip(answers, weights, strict=True)))


# Rules.  ``pull`` is how much more, in the exponent, the end of the stride weighs than its beginning.


def exact(count: int, pull: float) -> list[float]:
    """The true means, so that polynomials of degree ``count - 1`` are averaged exactly."""
    places, shares = _gauss()
    pulled = shares * np.exp(pull * (places - 1))
    return [float(pulled @ places**power / pulled.sum()) for power in range(count)]


@cache
def _gauss() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places and weights of Gauss and Legendre on 0..1.  A start would notice them, and most samplers do without."""
    places, shares = np.polynomial.legendre.leggauss(24)
    return (places + 1) / 2, shares / 2


def midpoint(count: int, pull: float) -> Sequence[float]:
    """Two answers are read off in the middle of the stride; more are averaged exactly."""
    return (1.0, 0.5) if count == 2 else exact(count, pull)


def leaning(count: int, pull: float) -> Sequence[float]:
    """Two answers are read off beyond the middle; more are averaged exactly (UniPC's B_1, Zhao et al. 2023)."""
    return (1.0, -pull / math.expm1(-pull) / 2) if count == 2 else exact(count, pull)


def chord(count: int, pull: float) -> Sequence[float]:
    """Two answers are read off in the middle of the stride; of more, only the first and the last count."""
    return (1.0, 0.5) if count == 2 else exact(2, pull)


def published(rule: Rule, *, stochastic: bool) -> Rule:
    """``rule`` for two answers; for three, the formula of DPM-Solver++ 3M as its authors' code and diffusers have it.

    It takes half of the curvature into account, which leaves order 2; the stochastic one, in diffusers, also subtracts
    where it should add, which leaves some noise.
    """

    def third(count: int, pull: float) -> Sequence[float]:
        if count < 3:
            return rule(count, pull)
        one, mean, square = exact(3, pull)
        return one, mean, square / 2 + (1 / math.expm1(-pull) if stochastic else 0.0)

    return third
