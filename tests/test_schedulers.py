from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from ovenbird.errors import ModelError, RequestError
from ovenbird.noise import TorchNoise
from ovenbird.schedulers import (
    KINDS,
    NAMES,
    PREDICTIONS,
    SAMPLERS,
    Scheduler,
    clean_estimate,
    from_config,
    from_name,
    threshold,
)
from ovenbird.solvers import root

FACTS = json.loads(Path(__file__).with_name("scheduler_vectors.json").read_text(encoding="utf-8"))
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
Array = NDArray[np.float32]


def toy(x: Any, t: float) -> Any:
    """A network of a kind: bounded, not linear, and different at every timestep; for arrays and for tensors."""
    return (x * 0.8) / (1 + abs(x)) + 0.05 * x * (t / 1000) + 0.02


def noise_from(seed: int, shape: tuple[int, ...]) -> Callable[[], Array]:
    return partial(TorchNoise(seed), shape)


# Published numbers.


def dummy_sample() -> Array:
    """Element [b, c, h, w] is i / 768, with i the row-major index of (c, h, w, b)."""
    return np.moveaxis(np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4) / 768, -1, 0)


def dummy_noise() -> Array:
    return np.float32(767 / 768) - dummy_sample()


def dummy_model(x: Array, t: float) -> Array:
    return x * (t / (t + 1))


def published(vector: dict[str, Any]) -> Array:
    scheduler, n, start = from_config(vector["config"]), vector["num_inference_steps"], vector["start"]
    noise = None if vector["seed"] is None else noise_from(vector["seed"], (4, 3, 8, 8))
    x = dummy_sample()
    if vector["loop"] == "k":
        x = x * np.float32(scheduler.init_noise_sigma(n))
    if vector["add_noise"]:
        x = scheduler.add_noise(x, dummy_noise(), n, start)
    if vector["loop"] != "k":
        return scheduler.sample(dummy_model, x, n, start=start, noise=noise)
    for index in range(start, n):
        x = scaled_in_place_step(scheduler, x, n, index, noise)
    return x


def scaled_in_place_step(scheduler: Scheduler, x: Array, n: int, index: int, noise: Any) -> Array:
    """One step of the tests' loop, in which the scaled model input replaces the latents, unlike in any pipeline."""
    seen: list[Array] = []
    next(scheduler.steps(lambda scaled, t: seen.append(scaled) or scaled, x, n, start=index, noise=lambda: x))
    return next(scheduler.steps(lambda _, t: dummy_model(seen[0], t), seen[0], n, start=index, noise=noise))


@pytest.mark.parametrize("vector", FACTS["published_vectors"], ids=lambda vector: vector["id"])
def test_published_vectors(vector: dict[str, Any]) -> None:
    sizes = np.abs(published(vector)).astype(np.float64)
    for fact, got in ((vector["abs_sum"], sizes.sum()), (vector["abs_mean"], sizes.mean())):
        if fact:
            room = 5e-6 * fact["value"] if vector["sum_tolerance_tighter_than_float32"] else 0
            assert got == pytest.approx(fact["value"], abs=max(fact["abs_tol"], room), rel=0)


@pytest.mark.parametrize("fact", FACTS["timesteps"], ids=lambda fact: fact["source"])
def test_published_timesteps(fact: dict[str, Any]) -> None:
    assert from_config(fact["config"]).timesteps(fact["num_inference_steps"]).tolist() == fact["timesteps"]


def test_published_variance_of_ddim() -> None:
    """A step from latents of 0, with a network that says 0, is nothing but the noise it adds."""
    scheduler = from_config({"_class_name": "DDIMScheduler"})
    zero = np.zeros((1, 1, 1, 1), np.float32)
    for steps, variance in FACTS["ddim_variance"]["values"].items():
        timestep, lower = map(int, steps.split(","))
        if timestep == lower:
            continue
        n = 1000 // (timestep - lower)
        start = scheduler.timesteps(n).tolist().index(timestep)
        end = next(scheduler.steps(lambda x, t: x, zero, n, start=start, eta=1.0, noise=lambda: zero + 1))
        assert end.item() ** 2 == pytest.approx(variance, abs=FACTS["ddim_variance"]["abs_tol"])


# diffusers itself.


def theirs(config: dict[str, Any], n: int) -> Any:
    """The scheduler of diffusers, ready for n steps; it and torch warn, of what does not matter here."""
    options = {key: value for key, value in config.items() if key in KINDS[config["_class_name"]].rules}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(pytest.importorskip("diffusers"), config["_class_name"])(**options)
        scheduler.set_timesteps(n)
    return scheduler


def diffusers_walk(config: dict[str, Any], latents: Array, n: int, start: int, eta: float) -> tuple[Any, Array]:
    torch = pytest.importorskip("torch")
    class_name, scheduler = config["_class_name"], theirs(config, n)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    settings: dict[str, Any] = {"eta": eta} if class_name == "DDIMScheduler" else {}
    if eta or "Ancestral" in class_name:
        settings["generator"] = torch.Generator().manual_seed(3)
    x = torch.from_numpy(latents) * scheduler.init_noise_sigma
    for t in scheduler.timesteps[start:]:
        output = toy(scheduler.scale_model_input(x, t), t.item())
        x = scheduler.step(output, t, x, **settings).prev_sample
    return scheduler, x.numpy()


def same_as_diffusers(config: dict[str, Any], n: int, start: int, eta: float = 0.0) -> None:
    ours = from_config(config)
    if start >= ours.calls(n):
        pytest.skip("starts beyond the end")
    latents = TorchNoise(0)((2, 4, 6, 8))
    reference, expected = diffusers_walk(config, latents, n, start, eta)
    assert_allclose(ours.timesteps(n), reference.timesteps.numpy(), rtol=0, atol=1e-4)
    assert ours.timesteps(n).dtype == reference.timesteps.numpy().dtype
    assert ours.init_noise_sigma(n) == pytest.approx(float(reference.init_noise_sigma), rel=1e-6)
    begin = latents * np.float32(ours.init_noise_sigma(n))
    got = ours.sample(toy, begin, n, noise=noise_from(3, latents.shape), start=start, eta=eta)
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize("n", [1, 2, 7, 20, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_is_that_of_diffusers(name: str, prediction: str, n: int, start: int) -> None:
    same_as_diffusers({**STABLE_DIFFUSION, "prediction_type": prediction, **SAMPLERS[name].options}, n, start)


VARIANTS: list[dict[str, Any]] = [
    {"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 0.8},
    {"_class_name": "DDIMScheduler", "thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5},
    {"_class_name": "DDIMScheduler", "prediction_type": "sample", "set_alpha_to_one": True},
    {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"},
    {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": True, "beta_schedule": "linear"},
    {"_class_name": "PNDMScheduler", "skip_prk_steps": False},
    {"_class_name": "PNDMScheduler", "skip_prk_steps": False, "prediction_type": "v_prediction"},
    {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
    {"_class_name": "EulerDiscreteScheduler", "use_exponential_sigmas": True, "prediction_type": "sample"},
    {"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"},
    {"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"_class_name": "EulerAncestralDiscreteScheduler", "trained_betas": np.linspace(0.001, 0.02, 1000).tolist()},
    {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"},
    {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min", "lower_order_final": False},
    {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min", "euler_at_final": True},
    {"_class_name": "DPMSolverMultistepScheduler", "use_exponential_sigmas": True},
    {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True, "prediction_type": "sample"},
    {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
    {"_class_name": "DPMSolverMultistepScheduler", "thresholding": True, "sample_max_value": 2.0},
]


@pytest.mark.parametrize(("spacing", "n"), [*product(["leading", "linspace", "trailing"], [4, 7, 14, 15, 27])])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: " ".join(map(str, variant.values()))[:70])
def test_options_mean_what_they_mean_in_diffusers(variant: dict[str, Any], spacing: str, n: int) -> None:
    same_as_diffusers({**STABLE_DIFFUSION, "timestep_spacing": spacing, **variant}, n, 0)


@pytest.mark.parametrize(("spacing", "eta"), [*product(["leading", "linspace", "trailing"], [0.3, 1.0])])
@pytest.mark.parametrize("start", [0, 3])
def test_eta_is_that_of_diffusers(spacing: str, eta: float, start: int) -> None:
    same_as_diffusers({**STABLE_DIFFUSION, **SAMPLERS["ddim"].options, "timestep_spacing": spacing}, 7, start, eta)


@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_added_noise_is_that_of_diffusers(name: str, start: int) -> None:
    torch = pytest.importorskip("torch")
    config = {**STABLE_DIFFUSION, **SAMPLERS[name].options}
    latents, noise = TorchNoise(1)((2, 4, 5, 6)), TorchNoise(2)((2, 4, 5, 6))
    reference, _ = diffusers_walk(config, latents, 20, start, 0)
    if hasattr(reference, "_step_index"):
        reference._step_index = None
    timesteps = reference.timesteps[start : start + 1]
    expected = reference.add_noise(torch.from_numpy(latents), torch.from_numpy(noise), timesteps).numpy()
    assert_allclose(from_config(config).add_noise(latents, noise, 20, start), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("beta_schedule", "name"), [*product(["linear", "scaled_linear"], NAMES)])
def test_timesteps_of_every_number_of_steps(beta_schedule: str, name: str) -> None:
    config = {**STABLE_DIFFUSION, **SAMPLERS[name].options, "beta_schedule": beta_schedule}
    ours = from_config(config)
    # Of the large ones, some have entries of Karras ladders that another rounding of the betas would move.
    for n in (*range(1, 61), 100, 444, 704, 712, 746, 887, 929, 945, 996, 999, 1000):
        assert_allclose(ours.timesteps(n), theirs(config, n).timesteps.numpy(), rtol=0, atol=1e-4)


# Laws.


def plain(name: str, **options: Any) -> Scheduler:
    return from_name(name, {**STABLE_DIFFUSION, **options})


def run(scheduler: Scheduler, n: int, *, seed: int = 0, start: int = 0) -> Array:
    latents = TorchNoise(seed)((1, 4, 4, 4)) * np.float32(scheduler.init_noise_sigma(n))
    return scheduler.sample(toy, latents, n, noise=noise_from(9, latents.shape), start=start)


@pytest.mark.parametrize("n", [1, 2, 3, 999, 1000])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_number_of_steps_is_defined(name: str, spacing: str, n: int) -> None:
    scheduler = plain(name, timestep_spacing=spacing)
    assert np.isfinite(run(scheduler, n)).all()
    assert math.isfinite(scheduler.init_noise_sigma(n))
    assert (scheduler.timesteps(n) >= 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 999, 1000])
def test_runge_kutta_warm_up_is_defined_for_every_number_of_steps(n: int) -> None:
    scheduler = from_config({**STABLE_DIFFUSION, "skip_prk_steps": False})
    assert np.isfinite(run(scheduler, n)).all()
    assert scheduler.calls(n) == n + 3 * min(3, n - 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_asked_at_every_timestep_in_turn(name: str) -> None:
    scheduler, asked = plain(name), []
    latents = TorchNoise(0)((1, 4, 4, 4))
    steps = scheduler.steps(lambda x, t: asked.append((x, t)) or x, latents, 10, noise=lambda: latents, start=2)
    assert asked == []
    assert len(list(steps)) == len(asked) == scheduler.calls(10, 2) == scheduler.calls(10) - 2
    assert [t for _, t in asked] == scheduler.timesteps(10)[2:].tolist()
    assert all(x.dtype == np.float32 and x.shape == latents.shape for x, _ in asked)
    assert all(type(t) is (float if name.startswith("euler") else int) for _, t in asked)


def test_only_plms_asks_more_often_than_it_steps() -> None:
    assert {name: plain(name).calls(10) for name in NAMES} == dict.fromkeys(NAMES, 10) | {"pndm": 11}


@pytest.mark.parametrize("name", NAMES)
def test_runs_leave_nothing_behind(name: str) -> None:
    scheduler = plain(name)
    first = run(scheduler, 7, seed=1)
    run(scheduler, 5, seed=2)
    assert_array_equal(run(scheduler, 7, seed=1), first)


@pytest.mark.parametrize("name", NAMES)
def test_runs_do_not_disturb_each_other(name: str) -> None:
    scheduler = plain(name)

    def walk(seed: int) -> Iterator[Array]:
        latents = TorchNoise(seed)((1, 4, 4, 4))
        return scheduler.steps(toy, latents, 7, noise=noise_from(seed, latents.shape))

    *_, (one, two) = zip(walk(1), walk(2), strict=True)
    assert_array_equal(one, list(walk(1))[-1])
    assert_array_equal(two, list(walk(2))[-1])


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_written_to(name: str) -> None:
    latents = TorchNoise(0)((1, 4, 4, 4))
    latents.flags.writeable = False
    plain(name).sample(toy, latents, 5, noise=lambda: latents)


def test_a_scheduler_cannot_be_changed() -> None:
    scheduler = plain("euler")
    with pytest.raises(AttributeError):
        scheduler.class_name = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        scheduler.options["beta_end"] = 1.0  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        scheduler.trained[0] = 1.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_network_that_knows_the_picture_makes_it(name: str, prediction: str) -> None:
    """Whatever it predicts; PLMS aside, whose averages of v are not exact."""
    if (name in ("pndm", "euler_a") and prediction == "sample") or (name, prediction) == ("pndm", "v_prediction"):
        pytest.skip("not what this class does")
    picture, unit = TorchNoise(1)((1, 4, 4, 4)), TorchNoise(2)((1, 4, 4, 4))
    scheduler = plain(name, prediction_type=prediction, set_alpha_to_one=True, timestep_spacing="leading")
    sigmas = dict(zip(scheduler.timesteps(10).tolist(), scheduler._plan(10, 0).sigmas, strict=True))

    def network(x: Array, t: float) -> Array:
        sigma = sigmas[t]
        eps = (x * root(sigma) - picture) / sigma
        v = (eps - picture * sigma) / root(sigma)
        return {"epsilon": eps, "v_prediction": v, "sample": picture}[prediction]

    begin = scheduler.add_noise(picture, unit, 10, 0)
    end = scheduler.sample(network, begin, 10, noise=noise_from(3, unit.shape))
    assert_allclose(end, picture, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_predictions_stand_for_the_same_picture(sigma: float) -> None:
    picture, eps = TorchNoise(1)(64), TorchNoise(2)(64)
    x = picture + eps * sigma
    outputs = {"epsilon": eps, "v_prediction": (eps - picture * sigma) / root(sigma), "sample": picture}
    assert outputs.keys() == PREDICTIONS.keys()
    for prediction, output in outputs.items():
        assert_allclose(clean_estimate(output, x, *PREDICTIONS[prediction](sigma)), picture, atol=1e-5)


def test_thresholding_treats_every_image_alone() -> None:
    small, large = np.full((1, 2, 2, 2), 0.5, np.float32), np.full((1, 2, 2, 2), 3.0, np.float32)
    got = threshold(np.concatenate([small, large]), quantile=0.9, limit=2.0)
    assert_array_equal(got, np.concatenate([small, np.ones_like(large)]))


# Names and refusals.


@pytest.mark.parametrize("name", NAMES)
def test_a_named_sampler_is_known_by_its_label(name: str) -> None:
    assert plain(name).label == SAMPLERS[name].label


def test_a_config_without_a_name_is_known_by_its_class() -> None:
    assert from_config({"_class_name": "DDIMScheduler"}).label == "DDIMScheduler"


def test_a_named_sampler_keeps_what_training_fixed() -> None:
    training = {"beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 500, "prediction_type": "epsilon"}
    for name in NAMES:
        options = plain(name, **training).options
        assert {**options, **training, "steps_offset": 1} == options


def test_a_named_sampler_takes_its_own_ladder() -> None:
    assert plain("dpmpp_2m_karras").options["use_karras_sigmas"] is True
    assert plain("dpmpp_2m", use_karras_sigmas=True).options["use_karras_sigmas"] is False
    assert plain("euler", use_exponential_sigmas=True).options["use_exponential_sigmas"] is False


@pytest.mark.parametrize(
    ("typed", "meant"), [("DPM++ 2M Karras", "dpmpp_2m_karras"), ("Euler A", "euler_a"), ("eulr", "euler")]
)
def test_an_unknown_name_is_refused_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(RequestError, match="dpmpp_2m_karras") as caught:
        plain(typed)
    assert caught.value.hint == f"did you mean {meant!r}?"


@pytest.mark.parametrize("name", [None, "UniPCMultistepScheduler", 3, []])
def test_an_unknown_class_is_refused(name: Any) -> None:
    with pytest.raises(ModelError, match="not known") as caught:
        from_config({"_class_name": name})
    assert "DDIMScheduler" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("class_name", "option", "value"),
    [
        ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"),
        ("DPMSolverMultistepScheduler", "solver_order", 3),
        ("DPMSolverMultistepScheduler", "solver_type", "heun"),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", -5.1),
        ("DPMSolverMultistepScheduler", "variance_type", "learned_range"),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", True),
        ("EulerDiscreteScheduler", "use_beta_sigmas", True),
        ("EulerDiscreteScheduler", "interpolation_type", "log_linear"),
        ("EulerDiscreteScheduler", "timestep_type", "continuous"),
        ("EulerDiscreteScheduler", "sigma_max", 10.0),
        ("EulerAncestralDiscreteScheduler", "prediction_type", "sample"),
        ("PNDMScheduler", "prediction_type", "sample"),
        ("PNDMScheduler", "rescale_betas_zero_snr", True),
        ("DDIMScheduler", "rescale_betas_zero_snr", True),
        ("DDIMScheduler", "prediction_type", "flow_prediction"),
        ("DDIMScheduler", "timestep_spacing", "karras"),
        ("DDIMScheduler", "beta_schedule", "sigmoid"),
        ("DDIMScheduler", "beta_start", "0.1"),
        ("DDIMScheduler", "beta_end", math.nan),
        ("DDIMScheduler", "num_train_timesteps", 10**9),
        ("DDIMScheduler", "num_train_timesteps", 1000.0),
        ("DDIMScheduler", "steps_offset", -1),
        ("DDIMScheduler", "steps_offset", True),
        ("DDIMScheduler", "clip_sample", "yes"),
        ("DDIMScheduler", "dynamic_thresholding_ratio", 1.5),
        ("DDIMScheduler", "trained_betas", ["x"]),
        ("DDIMScheduler", "an_option_of_tomorrow", 2),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(class_name: str, option: str, value: Any) -> None:
    with pytest.raises(ModelError, match=option):
        from_config({"_class_name": class_name, option: value})


@pytest.mark.parametrize("betas", [[0.1, 0.2], [0.0] * 1000, [1.0] * 1000, [1e-9] * 1000, [math.nan] * 1000])
def test_impossible_betas_are_refused(betas: list[float]) -> None:
    with pytest.raises(ModelError, match="beta"):
        from_config({"_class_name": "DDIMScheduler", "trained_betas": betas})


def test_two_ladders_at_once_are_refused() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "use_lu_lambdas": True}
    with pytest.raises(ModelError, match="only one"):
        from_config(config)


@pytest.mark.parametrize("extra", [{"_diffusers_version": "9"}, {"skip_prk_steps": True}, {"tomorrow": False}])
def test_what_does_not_matter_is_ignored(extra: dict[str, Any]) -> None:
    assert from_config({"_class_name": "EulerDiscreteScheduler", **extra}).timesteps(5).tolist()[0] == 999


@pytest.mark.parametrize("n", [0, -1, 1001, 10**9, 2.0, True, None, "10", math.nan])
def test_impossible_numbers_of_steps_are_refused(n: Any) -> None:
    for name in NAMES:
        with pytest.raises(RequestError, match="num_inference_steps"):
            plain(name).timesteps(n)


@pytest.mark.parametrize("start", [-1, 11, 1.0, True])
def test_impossible_starts_are_refused(start: Any) -> None:
    for name in NAMES:
        with pytest.raises(RequestError, match="start"):
            plain(name).calls(10, start)


def test_a_run_cannot_start_amid_the_warm_up() -> None:
    with pytest.raises(RequestError, match="Runge-Kutta"):
        from_config({**STABLE_DIFFUSION, "skip_prk_steps": False}).calls(10, 4)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf])
def test_impossible_etas_are_refused(eta: float) -> None:
    with pytest.raises(RequestError, match="eta"):
        plain("ddim").steps(toy, np.zeros((1, 4, 4, 4), np.float32), 5, eta=eta)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ddim"])
def test_an_eta_that_would_be_ignored_is_refused(name: str) -> None:
    plain(name).check_eta(0.0)
    with pytest.raises(RequestError, match="would ignore it"):
        plain(name).steps(toy, np.zeros((1, 4, 4, 4), np.float32), 5, eta=0.5)


@pytest.mark.parametrize(("name", "eta"), [("euler_a", 0.0), ("ddim", 0.5)])
def test_missing_noise_is_refused_before_the_first_step(name: str, eta: float) -> None:
    with pytest.raises(RequestError, match="noise="):
        plain(name).steps(toy, np.zeros((1, 4, 4, 4), np.float32), 5, eta=eta)
