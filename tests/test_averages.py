from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ovenbird.averages import average, chord, exact, leaning, midpoint, published, weights
from ovenbird.solvers import ADAMS_BASHFORTH


@pytest.mark.parametrize("pull", [-12.0, -1.0, -1e-3, 1e-9, 0.5, 3.0, 12.0, 40.0])
def test_means_are_those_of_the_closed_form(pull: float) -> None:
    one, mean, square = exact(3, pull)
    all_of_it = -math.expm1(-pull)
    assert one == pytest.approx(1)
    if abs(pull) > 1e-2:
        assert mean == pytest.approx(1 / all_of_it - 1 / pull, rel=1e-9)
        assert square == pytest.approx(1 / all_of_it - 2 * mean / pull, rel=1e-8)
    else:
        assert (mean, square) == pytest.approx((1 / 2, 1 / 3), rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_even_strides_have_the_weights_of_adams_and_bashforth(count: int) -> None:
    places = [-float(back) for back in reversed(range(count))]
    means = [1 / (power + 1) for power in range(count)]
    assert_allclose(weights(places, means), ADAMS_BASHFORTH[count - 1], atol=1e-12)


@pytest.mark.parametrize(
    ("count", "rule"), [*product([1, 2, 3], [exact, midpoint, leaning, chord, published(exact, stochastic=False)])]
)
def test_an_answer_that_never_changes_is_its_own_average(count: int, rule: object) -> None:
    answers = [(2.0 * 1.3**back, np.full(3, 5.0)) for back in range(count)]
    assert_allclose(average(answers, 1.1, 2.0, rule), 5.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("pull", "count"), [*product([-1.0, 1.0, 2.0], [1, 2, 3, 4])])
def test_polynomials_in_log_sigma_are_averaged_exactly(pull: float, count: int) -> None:
    def answer(sigma: float | np.ndarray) -> np.ndarray:
        return np.polynomial.polynomial.polyval(np.log(sigma), [0.3, -1.1, 0.7, 0.4][:count])

    levels = [3.0, 3.5, 4.6, 1.2][:count]
    sigmas = np.exp(np.linspace(np.log(3.0), np.log(1.2), 100_001))
    expected = np.average((answer(sigmas)[1:] + answer(sigmas)[:-1]) / 2, weights=np.diff(sigmas**-pull))
    got = average([(level, np.array([answer(level)])) for level in levels], 1.2, pull, exact)
    assert got.item() == pytest.approx(expected, rel=1e-8)


def test_a_chord_leaves_out_the_middle() -> None:
    def with_middle(value: float) -> float:
        answers = [(3.0, np.array([1.0])), (2.5, np.array([value])), (2.0, np.array([2.0]))]
        return average(answers, 1.5, 1.0, chord).item()

    assert with_middle(0.0) == with_middle(100.0)
    assert average([(3.0, np.array([1.0])), (2.0, np.array([2.0]))], 4 / 3, 1.0, chord).item() == pytest.approx(2.0)


def test_two_answers_are_read_off_where_the_rule_says() -> None:
    answers = [(2.0, np.array([1.0])), (4.0, np.array([0.0]))]
    assert average(answers, 1.0, 1.0, midpoint).item() == pytest.approx(1.5)
    assert average(answers, 1.0, 1.0, leaning).item() == pytest.approx(1 + math.log(2) / (1 - 1 / 2) / 2)


def test_published_rules_differ_by_the_curvature_only() -> None:
    def bend(curvature: float) -> float:
        answers = [(math.exp(-u), np.array([2 + 3 * u + curvature * u * u])) for u in (0.0, -1.0, -2.0)]
        true, half = (
            average(answers, math.exp(-1.0), 1.0, rule).item() for rule in (exact, published(exact, stochastic=False))
        )
        return true - half

    assert bend(0.0) == pytest.approx(0, abs=1e-12)
    assert bend(2.0) == pytest.approx(exact(3, 1.0)[2])


def test_a_stride_of_no_length_takes_the_newest_answer() -> None:
    assert average([(2.0, np.array([1.0])), (3.0, np.array([9.0]))], 2.0, 1.0, exact).item() == 1.0
