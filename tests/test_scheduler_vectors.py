"""Published numbers: what the tests of diffusers expect of its schedulers, copied as facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from ovenbird.kinds import KINDS, Run
from ovenbird.noise import TorchNoise
from ovenbird.schedulers import Scheduler, from_config
from ovenbird.solvers import root

FACTS = json.loads(Path(__file__).with_name("scheduler_vectors.json").read_text(encoding="utf-8"))
Array = NDArray[Any]


def ramp(shape: tuple[int, ...]) -> Array:
    """Element [b, ...] is i / size, with i the row-major index of (..., b)."""
    size = int(np.prod(shape))
    return np.moveaxis(np.arange(size, dtype=np.float32).reshape(*shape[1:], shape[0]) / np.float32(size), -1, 0)


def dummy_model(x: Array, t: float) -> Array:
    return x * (t / (t + 1))


def published(vector: dict[str, Any]) -> Array:
    scheduler, n, start = from_config(vector["config"]), vector["num_inference_steps"], vector["start"]
    x = ramp((4, 3, 8) if vector["one_dimensional"] else (4, 3, 8, 8))
    noise = None if vector["seed"] is None else partial(TorchNoise(vector["seed"]), x.shape)
    reverse = np.float32(1 - 1 / x.size) - x
    if vector["loop"] == "k":
        x = x * np.float32(scheduler.init_noise_sigma(n))
    if vector["add_noise"]:
        x = scheduler.add_noise(x, reverse, n, start)
    if vector["loop"] == "k":
        return scaled_in_place(scheduler, x, n, start, noise)
    return scheduler.sample(dummy_model, x, n, start=start, noise=noise, eta=vector["eta"])


def scaled_in_place(scheduler: Scheduler, x: Array, n: int, start: int, noise: Callable[[], Array] | None) -> Array:
    """The tests' loop for these classes: the scaled model input replaces the latents, unlike in any pipeline."""
    kind, plan = KINDS[scheduler.class_name], scheduler._plan(n, start)
    timesteps = iter(plan.timesteps.tolist())
    v = scheduler.options["prediction_type"] == "v_prediction"

    def denoise(x: Array, sigma: float) -> Array:
        x /= np.float32(root(sigma))
        output = dummy_model(x, next(timesteps))
        return x / root(sigma) ** 2 - output * (sigma / root(sigma)) if v else x - output * sigma

    solver = kind.solver(Run(scheduler.options, scheduler.trained, plan, 0.0))
    *_, last = solver(denoise, x, plan.strides, noise or (lambda: x))
    return last


@pytest.mark.parametrize("vector", FACTS["published_vectors"], ids=lambda vector: vector["id"])
def test_r9_published_vectors(vector: dict[str, Any]) -> None:
    sizes = np.abs(published(vector)).astype(np.float64)
    for fact, got in ((vector["abs_sum"], sizes.sum()), (vector["abs_mean"], sizes.mean())):
        if fact:
            room = 5e-6 * fact["value"] if vector["sum_tolerance_tighter_than_float32"] else 0
            assert got == pytest.approx(fact["value"], abs=max(fact["abs_tol"], room), rel=0)


def test_every_class_that_has_vectors_is_known() -> None:
    assert len(FACTS["published_vectors"]) == 62
    assert {vector["config"]["_class_name"] for vector in FACTS["published_vectors"]} == KINDS.keys() - {
        "FlowMatchEulerDiscreteScheduler"
    }


@pytest.mark.parametrize("fact", FACTS["timesteps"], ids=lambda fact: fact["source"])
def test_published_timesteps(fact: dict[str, Any]) -> None:
    assert from_config(fact["config"]).timesteps(fact["num_inference_steps"]).tolist() == fact["timesteps"]


@pytest.mark.parametrize("start", [0, 20, 487, 512, 999])
def test_published_variance_of_ddpm(start: int) -> None:
    """A step from latents of 0, with a network that says 0, is nothing but the noise it adds."""
    fact = FACTS["ddpm_variance"]
    scheduler, zero = from_config({"_class_name": "DDPMScheduler"}), np.zeros((1, 1, 1, 1), np.float32)
    end = next(scheduler.steps(lambda x, t: x, zero, 1000, start=999 - start, noise=lambda: zero + 1)).latents
    if str(start) in fact["values"]:
        assert end.item() ** 2 == pytest.approx(fact["values"][str(start)], abs=fact["abs_tol"])


def test_published_variance_of_ddim() -> None:
    fact, zero = FACTS["ddim_variance"], np.zeros((1, 1, 1, 1), np.float32)
    scheduler = from_config({"_class_name": "DDIMScheduler"})
    for steps, variance in fact["values"].items():
        timestep, lower = map(int, steps.split(","))
        if timestep == lower:
            continue
        n = 1000 // (timestep - lower)
        start = scheduler.timesteps(n).tolist().index(timestep)
        end = next(scheduler.steps(lambda x, t: x, zero, n, start=start, eta=1.0, noise=lambda: zero + 1)).latents
        assert end.item() ** 2 == pytest.approx(variance, abs=fact["abs_tol"])


def test_n6_published_levels_of_a_flow() -> None:
    fact = FACTS["flow_levels"]
    plan = from_config(fact["config"])._plan(fact["num_inference_steps"], 0)
    shares = [sigma / (1 + sigma) for sigma in (*plan.sigmas, plan.strides[-1][1])]
    assert_allclose(shares, fact["shares"], atol=1e-7)
    assert plan.timesteps.tolist() == [int(share * 1000) for share in fact["shares"][:-1]]
