from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ovenbird.errors import RequestError
from ovenbird.noise import (
    PURE_NOISE,
    TorchNoise,
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    sigma_at,
    spaced_timesteps,
    timestep_at,
    training_betas,
    training_sigmas,
    zero_terminal_snr,
)

FACTS = json.loads(Path(__file__).with_name("scheduler_vectors.json").read_text(encoding="utf-8"))
QUANTILES = {
    0.001: 1.855873851745199e-05,
    0.1: 0.03958440558878085,
    0.3: 0.23401700387523572,
    0.75: 0.824319621347305,
    0.99: 0.9991387611784571,
}
LATENTS = training_betas("scaled_linear", 0.00085, 0.012, 1000)


@pytest.mark.parametrize("fact", FACTS["torch_randn"], ids=str)
def test_r13_noise_is_torchs(fact: dict[str, Any]) -> None:
    noise = TorchNoise(fact["seed"])
    drawn = [noise(fact["shape"]) for _ in range(fact["draw"])][-1]
    assert drawn.dtype == np.float32
    assert drawn.shape == tuple(fact["shape"])
    assert_allclose(drawn.ravel()[:4], fact["first4"], rtol=0, atol=5e-7)
    assert drawn.sum(dtype=float) == pytest.approx(fact["sum"], abs=1e-6 * drawn.size)
    assert np.abs(drawn).sum(dtype=float) == pytest.approx(fact["abs_sum"], rel=1e-7)


def test_draws_of_any_size_follow_each_other_as_in_torch() -> None:
    facts = FACTS["small_draws"]
    noise = TorchNoise(facts["seed"])
    for size, values in zip(facts["sizes"], facts["values"], strict=True):
        assert_allclose(noise(size), values, rtol=0, atol=0 if size < 16 else 5e-7)


@pytest.mark.parametrize("fact", FACTS["large_seeds"], ids=str)
def test_r13_seeds_are_masked_as_in_torch(fact: dict[str, Any]) -> None:
    assert_allclose(TorchNoise(int(fact["seed"]))(16)[:4], fact["first4"], rtol=0, atol=5e-7)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 4), (1,), (3, 5), (2, 3, 4), 7])
def test_noise_of_odd_shapes(shape: tuple[int, ...]) -> None:
    assert TorchNoise(1)(shape).shape == np.empty(shape).shape


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "1", None])
def test_r13_seeds_out_of_range_are_refused(seed: Any) -> None:
    with pytest.raises(RequestError, match="seed"):
        TorchNoise(seed)


@pytest.mark.parametrize("seed", [0, 5, 2**31 + 1, 2**32 + 7, 2**64 - 1])
def test_r13_noise_against_torch_itself(seed: int) -> None:
    torch = pytest.importorskip("torch")
    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchNoise(seed)
    for size in (1, 3, 16, 5, 17, 1000, 1, 15, 33, 7, 4096):
        assert_allclose(ours(size), torch.randn(size, generator=theirs).numpy(), rtol=0, atol=0 if size < 16 else 5e-7)


def test_betas_run_from_end_to_end() -> None:
    assert LATENTS[[0, -1]].tolist() == pytest.approx([0.00085, 0.012], rel=1e-6)
    assert np.sqrt(LATENTS)[500] == pytest.approx((500 * 0.012**0.5 + 499 * 0.00085**0.5) / 999, rel=1e-6)
    cosine = training_betas("squaredcos_cap_v2", 0, 0, 1000)
    assert cosine[-1] == np.float32(0.999)
    assert (np.diff(cosine) >= 0).all()


def test_known_levels_of_stable_diffusion() -> None:
    assert training_sigmas(LATENTS)[[0, -1]].tolist() == pytest.approx([0.029167, 14.6146], rel=2e-5)


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    sigmas = training_sigmas(zero_terminal_snr(LATENTS))
    assert sigmas[-1] == PURE_NOISE == 2**24
    assert training_sigmas(zero_terminal_snr(LATENTS), 4096.0)[-1] == 4096
    assert sigmas[0] == pytest.approx(training_sigmas(LATENTS)[0], rel=1e-3)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("leading", [801, 601, 401, 201, 1]),
        ("linspace", [999, 749.25, 499.5, 249.75, 0]),
        ("trailing", [999, 799, 599, 399, 199]),
    ],
)
def test_spacings(spacing: str, expected: list[float]) -> None:
    assert spaced_timesteps(spacing, 5, 1000, 1).tolist() == expected


def test_trailing_spacing_never_runs_below_zero() -> None:
    for count in range(1, 1001):
        timesteps = spaced_timesteps("trailing", count, 1000, 0)
        assert len(timesteps) == count
        assert timesteps[0] == 999
        assert timesteps[-1] >= 0


@pytest.mark.parametrize("ladder", [karras_sigmas, exponential_sigmas, beta_sigmas])
def test_ladders_go_down_from_end_to_end(ladder: Any) -> None:
    sigmas = ladder(14.6, 0.03, 20)
    assert sigmas[[0, -1]].tolist() == pytest.approx([14.6, 0.03])
    assert (np.diff(sigmas) < 0).all()
    assert ladder(14.6, 0.03, 1).tolist() == pytest.approx([14.6])


def test_karras_ladder_is_even_in_the_seventh_root() -> None:
    assert np.diff(karras_sigmas(14.6, 0.03, 9) ** (1 / 7), 2) == pytest.approx(0, abs=1e-12)


def test_beta_ladder_is_at_the_quantiles_of_scipy() -> None:
    """scipy.stats.beta.ppf(share, 0.6, 0.6), scipy 1.17.1, at 1000 shares of which these are some."""
    levels = beta_sigmas(1.0, 0.0, 1001)[::-1]
    for share, quantile in QUANTILES.items():
        assert levels[round(share * 1000)] == pytest.approx(quantile, rel=1e-12)
    assert_allclose(levels + levels[::-1], 1, atol=1e-12)


def test_fewer_levels_leave_the_upper_ones_out() -> None:
    assert spaced_timesteps("linspace", 5, 1000, 1, reach=801).tolist() == [800, 600, 400, 200, 0]
    assert spaced_timesteps("leading", 5, 1000, 1, reach=800).tolist() == [641, 481, 321, 161, 1]
    assert spaced_timesteps("trailing", 5, 1000, 1, reach=700).tolist() == [699, 499, 299, 99]


def test_levels_and_timesteps_are_inverse() -> None:
    trained = training_sigmas(LATENTS)
    timesteps = np.arange(0.0, 1000)
    assert_allclose(timestep_at(sigma_at(timesteps, trained), trained), timesteps, atol=1e-3)
    assert sigma_at(np.array([1000.0]), trained)[0] == trained[-1]
    assert timestep_at(np.array([1e-9, 1e9]), trained).tolist() == [0, 999]


@pytest.mark.parametrize("function", [lambda: training_betas("x", 0, 1, 5), lambda: spaced_timesteps("x", 1, 5, 0)])
def test_unknown_schedules_raise(function: Any) -> None:
    with pytest.raises(ValueError, match="unknown"):
        function()
