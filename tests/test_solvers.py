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

from ovenbird import averages, solvers
from ovenbird.noise import TorchNoise, karras_sigmas
from ovenbird.predictions import PREDICTIONS
from ovenbird.solvers import LAWS, Solver, Strides, root

SPREAD = 0.7
Array = NDArray[Any]


def ladder(count: int, highest: float = 20.0, lowest: float = 0.02, *, end: float | None = None) -> Strides:
    stops = karras_sigmas(highest, lowest, count + (end is None)).tolist()
    return list(pairwise(stops if end is None else [*stops, end]))


def again_at_first(strides: Strides) -> Strides:
    return [*strides[:1], *strides] if len(strides) > 1 else strides


def two_calls(between: Callable[[float, float], float]) -> Callable[[Strides], Strides]:
    def prepare(strides: Strides) -> Strides:
        return [
            stride for s, lower in strides for stride in ([(s, between(s, lower)), (s, lower)] if lower else [(s, 0.0)])
        ]

    return prepare


def halfway(sigma: float, lower: float) -> float:
    return math.sqrt(sigma * lower)


def gaussian(x: Array, sigma: float) -> Array:
    """The best estimate of clean values that are normal, with standard deviation SPREAD."""
    return x * (SPREAD**2 / (SPREAD**2 + sigma**2))


def flow(x: Array, sigma: float, lower: float) -> Array:
    """Where the probability flow takes x from sigma to lower, for the same values."""
    return x * math.sqrt((SPREAD**2 + lower**2) / (SPREAD**2 + sigma**2))


def no_noise() -> Array:
    raise AssertionError("this solver must not draw")


def with_orders(orders: Callable[[int], list[int]], solver: Any, law: str, rule: averages.Rule, **more: Any) -> Solver:
    """A solver that is told the order of each stride: as ``orders`` has them, and 1 for a last stride to 0."""

    def walk_orders(denoise: Any, x: Array, strides: Strides, noise: Any) -> Any:
        told = orders(len(strides))
        if strides[-1][1] == 0:
            told[-1] = 1
        return solver(denoise, x, strides, noise, law=LAWS[law], rule=rule, orders=told, **more)

    return walk_orders


def multi(order: int, law: str, rule: averages.Rule) -> Solver:
    return with_orders(lambda count: [order] * count, solvers.multistep, law, rule)


def single(order: int, law: str, rule: averages.Rule) -> Solver:
    return with_orders(lambda count: [1 + call % order for call in range(count)], solvers.singlestep, law, rule)


def unipc(order: int, law: str, rule: averages.Rule, **more: Any) -> Solver:
    return with_orders(lambda count: [order] * count, solvers.unipc, law, rule, **more)


def same(strides: Strides) -> Strides:
    return strides


plms = partial(solvers.pndm, scalings=PREDICTIONS["epsilon"])
ddim = partial(solvers.ddim, eta=0.0)
dpmpp_2m = multi(2, "dpmsolver++", averages.midpoint)
published = partial(averages.published, stochastic=False)

# Each with its order of convergence.  PNDM turns an average of v at several levels into a slope as if it belonged to
# the present one, which leaves order 1; the published third-order multistep formula drops half of the curvature.
PLAIN: dict[str, tuple[Solver, Callable[[Strides], Strides], float]] = {
    "euler": (solvers.euler, same, 1),
    "ddim": (ddim, same, 1),
    "heun": (solvers.heun, two_calls(lambda sigma, lower: lower), 2),
    "dpm2": (solvers.dpm2, two_calls(halfway), 2),
    "lms_2": (partial(solvers.lms, order=2), same, 2),
    "lms_3": (partial(solvers.lms, order=3), same, 3),
    "dpmpp_1": (multi(1, "dpmsolver++", averages.midpoint), same, 1),
    "dpmpp_2m": (dpmpp_2m, same, 2),
    "dpmpp_2m_heun": (multi(2, "dpmsolver++", averages.exact), same, 2),
    "dpmpp_3m": (multi(3, "dpmsolver++", published(averages.exact)), same, 2),
    "dpmpp_3m_exact": (multi(3, "dpmsolver++", averages.exact), same, 3),
    "dpm_2m": (multi(2, "dpmsolver", averages.midpoint), same, 2),
    "dpm_3m": (multi(3, "dpmsolver", published(averages.midpoint)), same, 2),
    "deis_2": (multi(2, "dpmsolver", averages.exact), same, 2),
    "dpmpp_2s": (single(2, "dpmsolver++", averages.chord), same, 2),
    "dpmpp_2s_heun": (single(2, "dpmsolver++", averages.exact), same, 2),
    "dpmpp_3s": (single(3, "dpmsolver++", averages.chord), same, 3),
    "dpmpp_3s_heun": (single(3, "dpmsolver++", averages.exact), same, 3),
    "dpm_2s": (single(2, "dpmsolver", averages.chord), same, 2),
    "dpm_3s": (single(3, "dpmsolver", averages.chord), same, 3),
    "unipc_1": (unipc(1, "dpmsolver++", averages.midpoint), same, 2),
    "unipc_2": (unipc(2, "dpmsolver++", averages.midpoint), same, 3),
    "unipc_2_b1": (unipc(2, "dpmsolver++", averages.leaning), same, 3),
    "unipc_3": (unipc(3, "dpmsolver++", averages.midpoint), same, 4),
    "unipc_2_noise": (unipc(2, "dpmsolver", averages.midpoint), same, 3),
    "unip_2": (unipc(2, "dpmsolver++", averages.midpoint, uncorrected=range(1000)), same, 2),
    "plms": (plms, again_at_first, 2),
    "plms_v": (partial(solvers.pndm, scalings=PREDICTIONS["v_prediction"]), again_at_first, 1),
}


def walk(solver: Solver, denoise: Any, x: Array, strides: Strides, noise: Any = no_noise) -> list[Array]:
    return list(solver(denoise, x, strides, noise))


def error(name: str, count: int) -> float:
    solver, prepare, _ = PLAIN[name]
    x, strides = np.array([20.0]), ladder(count)
    end = walk(solver, gaussian, x, prepare(strides))[-1]
    return float(np.abs(end - flow(x, strides[0][0], strides[-1][1])).item())


@pytest.mark.parametrize("name", PLAIN)
def test_order_of_convergence(name: str) -> None:
    measured = math.log2(error(name, 150) / error(name, 300))
    assert measured == pytest.approx(PLAIN[name][2], abs=0.12)


def test_four_steps_of_adams_converge_until_the_first_ones_count() -> None:
    assert math.log2(error("lms_3", 60) / error("lms_3", 120)) > 2.8
    four = partial(solvers.lms, order=4)
    x, strides = np.array([20.0]), ladder(120)
    assert (
        np.abs(walk(four, gaussian, x, strides)[-1] - flow(x, *strides[0][:1], 0.02)).item() < error("lms_3", 120) / 5
    )


def test_runge_kutta_converges_with_order_four() -> None:
    def off(count: int) -> float:
        x, end, strides = np.array([20.0]), np.array([20.0]), ladder(count, lowest=2.0)
        for sigma, lower in strides:
            four = [(sigma, halfway(sigma, lower))] * 2 + [(sigma, lower)] * 2
            end = walk(partial(plms, warm_up=1), gaussian, end, four)[-1]
        return float(np.abs(end - flow(x, strides[0][0], strides[-1][1])).item())

    # The middle is only nearly the middle of what the formula integrates over, so the order is not quite reached.
    assert off(20) < error("plms", 20) / 10


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "plms_v"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_an_ideal_denoiser_of_one_picture_is_followed_exactly(name: str, count: int) -> None:
    solver, prepare, _ = PLAIN[name]
    picture = TorchNoise(1)((2, 4, 3, 5)).astype(float)
    strides = prepare(ladder(count, end=0.0))
    start = picture + TorchNoise(2)(picture.shape) * 20
    steps = walk(solver, lambda x, sigma: picture, start, strides)
    assert len(steps) == len(strides)
    for x, (_, lower) in zip(steps, strides, strict=True):
        assert_allclose(x - picture, (start - picture) * (lower / 20), atol=1e-10)


@pytest.mark.parametrize("name", PLAIN)
def test_single_precision_stays_single(name: str) -> None:
    solver, prepare, _ = PLAIN[name]
    steps = walk(solver, gaussian, TorchNoise(2)((2, 3)), prepare(ladder(6, end=0.0)))
    assert {x.dtype for x in steps} == {np.dtype(np.float32)}


# Not for those whose strides are parts of a step, nor for UniPC, which learns from being asked again after correcting.
STEPPING = [name for name in PLAIN if not name.startswith(("dpmpp_2s", "dpmpp_3s", "dpm_2s", "dpm_3s", "heun", "dpm2"))]


@pytest.mark.parametrize("name", [name for name in STEPPING if not name.startswith(("plms", "unipc"))])
@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_strides_of_no_length_change_nothing(name: str, at: int) -> None:
    solver, prepare, _ = PLAIN[name]
    x, strides = TorchNoise(1)(16), ladder(5)
    still = [*strides[:at], (strides[at][0], strides[at][0]), *strides[at:]]
    assert_allclose(walk(solver, gaussian, x, prepare(still))[-1], walk(solver, gaussian, x, strides)[-1], rtol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_every_stride_may_have_no_length(name: str) -> None:
    solver, prepare, _ = PLAIN[name]
    steps = walk(solver, gaussian, TorchNoise(1)(16), prepare([(2.0, 2.0)] * 5))
    assert np.isfinite(steps).all()


ANCESTRAL: dict[str, tuple[Solver, Callable[[Strides], Strides]]] = {
    "euler_ancestral": (solvers.euler_ancestral, same),
    "ddim_0.3": (partial(solvers.ddim, eta=0.3), same),
    "ddim_1": (partial(solvers.ddim, eta=1.0), same),
    "ddpm": (partial(solvers.ddpm, lowest=0.0), same),
    "ddpm_wide": (partial(solvers.ddpm, lowest=0.0, wide=True), same),
    "dpm2_ancestral": (partial(solvers.dpm2, eta=1.0), two_calls(lambda sigma, lower: lower)),
    "dpmpp_1_sde": (multi(1, "sde-dpmsolver++", averages.midpoint), same),
    "dpmpp_2m_sde": (multi(2, "sde-dpmsolver++", averages.midpoint), same),
    "dpmpp_2m_sde_heun": (multi(2, "sde-dpmsolver++", averages.exact), same),
    "dpmpp_3m_sde": (multi(3, "sde-dpmsolver++", averages.published(averages.exact, stochastic=True)), same),
    "dpmpp_2s_sde": (single(2, "sde-dpmsolver++", averages.chord), same),
    "dpmpp_3s_sde": (single(3, "sde-dpmsolver++", averages.chord), same),
    "dpm_2m_sde": (multi(2, "sde-dpmsolver", averages.midpoint), same),
}


@pytest.mark.parametrize("name", ANCESTRAL)
def test_an_ancestral_walk_ends_on_the_only_picture(name: str) -> None:
    solver, prepare = ANCESTRAL[name]
    picture = TorchNoise(1)((1, 4, 4, 4))
    noise = partial(TorchNoise(3), picture.shape)
    strides = ladder(30, end=None if name == "dpm_2m_sde" else 0.0)
    end = walk(solver, lambda x, sigma: picture, picture * 9, prepare(strides), noise)[-1]
    assert np.abs(end - picture).max() < (0.1 if name in ("dpm_2m_sde", "ddpm_wide") else 1e-5)


@pytest.mark.parametrize("name", ANCESTRAL)
def test_an_ancestral_walk_keeps_the_spread_of_the_data(name: str) -> None:
    solver, prepare = ANCESTRAL[name]
    x, strides = TorchNoise(4)(4000) * root(20.0), ladder(300, end=None if name == "dpm_2m_sde" else 0.0)
    end = walk(solver, gaussian, x, prepare(strides), partial(TorchNoise(5), 4000))[-1]
    assert end.std() == pytest.approx(SPREAD, rel=0.06)
    assert abs(np.corrcoef(x, end)[0, 1]) < 0.9  # a path of its own, while the flow keeps the order of all values


@pytest.mark.parametrize(("name", "draws"), [("euler_ancestral", 6), ("ddim_1", 6), ("ddpm", 6), ("dpm2_ancestral", 5)])
def test_draws_are_as_many_as_in_diffusers(name: str, draws: int) -> None:
    drawn: list[Array] = []

    def noise() -> Array:
        drawn.append(np.zeros(4, np.float32))
        return drawn[-1]

    solver, prepare = ANCESTRAL[name]
    walk(solver, gaussian, np.ones(4, np.float32), prepare(ladder(6, end=0.0)), noise)
    assert len(drawn) == draws


SAME = {
    "ddim": (solvers.euler, partial(solvers.ddim, eta=0.0)),
    "ddim_1": (solvers.euler_ancestral, partial(solvers.ddim, eta=1.0)),
    "dpm_1": (solvers.euler, multi(1, "dpmsolver", averages.midpoint)),
    "dpmpp_1": (solvers.euler, multi(1, "dpmsolver++", averages.midpoint)),
    "dpmpp_1_sde": (solvers.euler_ancestral, multi(1, "sde-dpmsolver++", averages.midpoint)),
    "tcd_0": (solvers.euler, lambda d, x, s, n: solvers.tcd(d, x, s, n, depths=[lower for _, lower in s])),
    "tcd_1": (solvers.lcm, lambda d, x, s, n: solvers.tcd(d, x, s, n, depths=[0.0 for _ in s])),
    "deis_2": (multi(2, "dpmsolver", averages.exact), unipc(2, "dpmsolver", averages.exact, uncorrected=range(9))),
    "unip_2": (dpmpp_2m, unipc(2, "dpmsolver++", averages.midpoint, uncorrected=range(9))),
}


@pytest.mark.parametrize("name", SAME)
def test_one_solver_is_another(name: str) -> None:
    x = TorchNoise(1)(64).astype(float) * 20
    walks = [walk(solver, gaussian, x, ladder(8, end=0.0), partial(TorchNoise(2), 64)) for solver in SAME[name]]
    for ours, other in zip(*walks, strict=True):
        assert_allclose(ours, other, atol=1e-12)


def test_ddpm_is_euler_ancestral_but_for_rounding() -> None:
    x = TorchNoise(1)(64) * 20
    walks = [
        walk(solver, gaussian, x, ladder(8, end=0.0), partial(TorchNoise(2), 64))
        for solver in (solvers.euler_ancestral, ANCESTRAL["ddpm"][0])
    ]
    assert_allclose(walks[0], walks[1], atol=2e-3)


@pytest.mark.parametrize(("sigma", "lower"), [(14.6, 11.0), (1.0, 0.9), (0.03, 0.0), (2.0**24, 3.0)])
def test_the_posterior_is_an_average(sigma: float, lower: float) -> None:
    alpha, share, ratio = solvers.posterior(sigma, lower)
    assert share + alpha * ratio == pytest.approx(1, abs=1e-4)
    assert share == pytest.approx(1 - (lower / sigma) ** 2, rel=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_fresh_noise_makes_up_for_what_is_taken(eta: float) -> None:
    for sigma, lower in ladder(5, end=0.0):
        down, up = solvers.fresh(sigma, lower, eta)
        assert down**2 + up**2 == pytest.approx(lower**2)
        assert up == pytest.approx(eta * solvers.fresh(sigma, lower, 1.0)[1])


def test_consistency_forgets_where_it_came_from() -> None:
    strides, noise = ladder(4, end=0.0), partial(TorchNoise(7), 16)
    steps = walk(solvers.lcm, lambda x, sigma: np.zeros(16), np.ones(16) * 50, strides, noise)
    again = TorchNoise(7)
    for x, (_, lower) in zip(steps, strides, strict=True):
        assert_allclose(x, again(16) * lower if lower else 0, rtol=1e-6)


def test_slopes_before_the_start_count_as_nothing() -> None:
    x, strides = np.array([20.0]), ladder(8)
    whole, none = walk(solvers.lms, gaussian, x, strides), walk(solvers.lms, gaussian, x, strides[3:])
    above = [sigma for sigma, _ in strides[:3]]
    late = walk(partial(solvers.lms, above=above), gaussian, x, strides[3:])
    # As if the network had said, above, that there is no noise at all: the first slope counts for more than a stride.
    assert np.abs(late[0] - none[0]).item() > 1
    quiet = partial(solvers.lms, order=1)
    assert_allclose(walk(quiet, gaussian, x, strides)[0], whole[0])


def test_clipping_leaves_the_noise_alone() -> None:
    x, (sigma, lower) = np.array([10.0]), (2.0, 1.0)
    clipped = partial(solvers.ddim, eta=0.0, clip=lambda x0: np.clip(x0, -1, 1))
    assert walk(clipped, lambda x, sigma: np.array([4.0]), x, [(sigma, lower)])[-1].item() == 1 + (10 - 4) / 2


def test_latents_are_read_anew_where_strides_leave_a_gap() -> None:
    x, strides = TorchNoise(1)(16), [(4.0, 2.0), (1.9, 0.5)]
    middle = walk(ddim, gaussian, x, strides[:1])[-1] * (root(1.9) / root(2.0))
    assert_allclose(walk(ddim, gaussian, x, strides)[-1], walk(ddim, gaussian, middle, strides[1:])[-1], rtol=1e-6)


def test_order_one_at_the_end_is_euler() -> None:
    x, strides = np.array([20.0]), ladder(5)
    last = partial(solvers.multistep, law=LAWS["dpmsolver++"], rule=averages.midpoint, orders=[2, 2, 2, 2, 1])
    *_, before, end = walk(last, gaussian, x, strides)
    assert_allclose(end, walk(solvers.euler, gaussian, before, strides[-1:])[-1])
    assert np.abs(end - walk(dpmpp_2m, gaussian, x, strides)[-1]).item() > 1e-6


def test_multistep_weights_are_averages() -> None:
    for weights in solvers.ADAMS_BASHFORTH:
        assert sum(weights) == pytest.approx(1)
