"""Laws, on problems whose answer is known in closed form; the tests of schedulers compare with published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from ovenbird import solvers
from ovenbird.noise import TorchNoise, karras_sigmas
from ovenbird.schedulers import PREDICTIONS
from ovenbird.solvers import Solver, Strides, root

SPREAD = 0.7
Array = NDArray[Any]


def ladder(count: int, highest: float = 20.0, lowest: float = 0.02, *, end: float | None = None) -> Strides:
    stops = karras_sigmas(highest, lowest, count + (end is None)).tolist()
    return list(pairwise(stops if end is None else [*stops, end]))


def again_at_first(strides: Strides) -> Strides:
    return [*strides[:1], *strides] if len(strides) > 1 else strides


def gaussian(x: Array, sigma: float) -> Array:
    """The best estimate of clean values that are normal, with standard deviation SPREAD."""
    return x * (SPREAD**2 / (SPREAD**2 + sigma**2))


def flow(x: Array, sigma: float, lower: float) -> Array:
    """Where the probability flow takes x from sigma to lower, for the same values."""
    return x * math.sqrt((SPREAD**2 + lower**2) / (SPREAD**2 + sigma**2))


def no_noise() -> Array:
    raise AssertionError("this solver must not draw")


plms = partial(solvers.pndm, scalings=PREDICTIONS["epsilon"])
ddim = partial(solvers.ddim, eta=0.0)
PLAIN: dict[str, tuple[Solver, Callable[[Strides], Strides]]] = {
    "euler": (solvers.euler, lambda strides: strides),
    "ddim": (ddim, lambda strides: strides),
    "dpmpp_2m": (solvers.dpmpp_2m, lambda strides: strides),
    "plms": (plms, again_at_first),
    "plms_v": (partial(solvers.pndm, scalings=PREDICTIONS["v_prediction"]), again_at_first),
}


def walk(solver: Solver, denoise: Any, x: Array, strides: Strides, noise: Any = no_noise) -> list[Array]:
    return list(solver(denoise, x, strides, noise))


def error(name: str, count: int) -> float:
    solver, prepare = PLAIN[name]
    x, strides = np.array([20.0]), ladder(count)
    end = walk(solver, gaussian, x, prepare(strides))[-1]
    return float(np.abs(end - flow(x, strides[0][0], strides[-1][1])).item())


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1.0), ("ddim", 1.0), ("dpmpp_2m", 2.0), ("plms", 2.0), ("plms_v", 1.0)]
)
def test_order_of_convergence(name: str, order: float) -> None:
    # PNDM turns an average of v at several levels into a slope as if it belonged to the present one: order 1 only.
    measured = math.log2(error(name, 160) / error(name, 320))
    assert measured == pytest.approx(order, abs=0.1)


def test_runge_kutta_converges_with_order_four() -> None:
    def off(count: int) -> float:
        x, end, strides = np.array([20.0]), np.array([20.0]), ladder(count, lowest=2.0)
        for sigma, lower in strides:
            half = math.sqrt(sigma * lower)
            four = [(sigma, half), (sigma, half), (sigma, lower), (sigma, lower)]
            end = walk(partial(plms, warm_up=1), gaussian, end, four)[-1]
        return float(np.abs(end - flow(x, strides[0][0], strides[-1][1])).item())

    # The middle is only nearly the middle of what the formula integrates over, so the order is not quite reached.
    assert off(20) < error("plms", 20) / 10


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "plms"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_an_ideal_denoiser_of_one_picture_is_followed_exactly(name: str, count: int) -> None:
    solver, prepare = PLAIN[name]
    picture = TorchNoise(1)((2, 4, 3, 5)).astype(float)
    strides = prepare(ladder(count, end=0.0))
    start = picture + TorchNoise(2)(picture.shape) * 20
    steps = walk(solver, lambda x, sigma: picture, start, strides)
    assert len(steps) == len(strides)
    for x, (_, lower) in zip(steps, strides, strict=True):
        assert_allclose(x - picture, (start - picture) * (lower / 20), atol=1e-11)


@pytest.mark.parametrize("name", PLAIN)
def test_single_precision_stays_single(name: str) -> None:
    solver, prepare = PLAIN[name]
    steps = walk(solver, gaussian, TorchNoise(2)((2, 3)), prepare(ladder(6, end=0.0)))
    assert {x.dtype for x in steps} == {np.dtype(np.float32)}


ANCESTRAL: dict[str, Solver] = {
    "euler_ancestral": solvers.euler_ancestral,
    "ddim_0.3": partial(solvers.ddim, eta=0.3),
    "ddim_1": partial(solvers.ddim, eta=1.0),
}


@pytest.mark.parametrize("name", ANCESTRAL)
def test_an_ancestral_walk_ends_on_the_only_picture(name: str) -> None:
    picture = TorchNoise(1)((1, 4, 4, 4))
    noise = partial(TorchNoise(3), picture.shape)
    steps = walk(ANCESTRAL[name], lambda x, sigma: picture, picture * 9, ladder(9, end=0.0), noise)
    assert_allclose(steps[-1], picture, atol=1e-6)


@pytest.mark.parametrize("name", ANCESTRAL)
def test_an_ancestral_walk_keeps_the_spread_of_the_data(name: str) -> None:
    x = TorchNoise(4)(4000) * root(20.0)
    end = walk(ANCESTRAL[name], gaussian, x, ladder(200, end=0.0), partial(TorchNoise(5), 4000))[-1]
    assert end.std() == pytest.approx(SPREAD, rel=0.05)
    assert abs(np.corrcoef(x, end)[0, 1]) < 0.9  # a path of its own, while the flow keeps the order of all values


@pytest.mark.parametrize("name", ANCESTRAL)
def test_every_ancestral_step_draws_once(name: str) -> None:
    drawn: list[Array] = []

    def noise() -> Array:
        drawn.append(np.zeros(4, np.float32))
        return drawn[-1]

    walk(ANCESTRAL[name], gaussian, np.ones(4, np.float32), ladder(6, end=0.0), noise)
    assert len(drawn) == 6


@pytest.mark.parametrize(("name", "eta"), [("euler", 0.0), ("euler_ancestral", 1.0)])
def test_ddim_is_euler_in_other_coordinates(name: str, eta: float) -> None:
    x = TorchNoise(1)(64).astype(float) * 20
    same = [
        walk(solver, gaussian, x, ladder(8, end=0.0), partial(TorchNoise(2), 64))
        for solver in (getattr(solvers, name), partial(solvers.ddim, eta=eta))
    ]
    for ours, other in zip(*same, strict=True):
        assert_allclose(ours, other, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_fresh_noise_makes_up_for_what_is_taken(eta: float) -> None:
    for sigma, lower in ladder(5, end=0.0):
        down, up = solvers.fresh(sigma, lower, eta)
        assert down**2 + up**2 == pytest.approx(lower**2)
        assert up == pytest.approx(eta * solvers.fresh(sigma, lower, 1.0)[1])


def test_clipping_leaves_the_noise_alone() -> None:
    x, (sigma, lower) = np.array([10.0]), (2.0, 1.0)
    clipped = partial(solvers.ddim, eta=0.0, clip=lambda x0: np.clip(x0, -1, 1))
    assert walk(clipped, lambda x, sigma: np.array([4.0]), x, [(sigma, lower)])[-1].item() == 1 + (10 - 4) / 2


def test_latents_are_read_anew_where_strides_leave_a_gap() -> None:
    x, strides = TorchNoise(1)(16), [(4.0, 2.0), (1.9, 0.5)]
    middle = walk(ddim, gaussian, x, strides[:1])[-1] * (root(1.9) / root(2.0))
    assert_allclose(walk(ddim, gaussian, x, strides)[-1], walk(ddim, gaussian, middle, strides[1:])[-1], rtol=1e-6)


def test_steps_of_no_length_change_nothing() -> None:
    x = TorchNoise(1)(16)
    strides = ladder(5)
    for solver in (solvers.euler, ddim, solvers.dpmpp_2m):
        still = [*strides[:2], (strides[2][0], strides[2][0]), *strides[2:]]
        assert_allclose(
            walk(solver, gaussian, x, still)[-1], walk(solver, gaussian, x, strides)[-1], rtol=1e-5, atol=1e-7
        )


def test_euler_at_the_end_is_euler() -> None:
    x = np.array([20.0])
    *_, before, last = walk(partial(solvers.dpmpp_2m, euler_at_end=True), gaussian, x, ladder(5))
    assert_allclose(last, walk(solvers.euler, gaussian, before, ladder(5)[-1:])[-1])
    assert np.abs(last - walk(solvers.dpmpp_2m, gaussian, x, ladder(5))[-1]).item() > 1e-6


def test_multistep_weights_are_averages() -> None:
    for weights in solvers.ADAMS_BASHFORTH:
        assert sum(weights) == pytest.approx(1)
