"""Laws of every sampler, names, and refusals; the numbers are in test_scheduler_vectors.py and _parity.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from ovenbird.errors import ModelError, RequestError
from ovenbird.noise import TorchNoise
from ovenbird.plans import LADDERS
from ovenbird.predictions import PREDICTIONS, Known, clean_estimate, threshold
from ovenbird.schedulers import KINDS, NAMES, SAMPLERS, Call, Scheduler, from_config, from_name, sampler
from ovenbird.solvers import root

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
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
ENDS = {"final_sigmas_type": "sigma_min"}
STREAM = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DIFFUSING = [name for name in SAMPLERS if not name.startswith("flow")]
Array = NDArray[np.float32]


def toy(x: Any, t: float) -> Any:
    """A network of a kind: bounded, not linear, and different at every timestep; for arrays and for tensors."""
    return (x * 0.8) / (1 + abs(x)) + 0.05 * x * (t / 1000) + 0.02


def noise_from(seed: int, shape: tuple[int, ...]) -> Callable[[], Array]:
    return partial(TorchNoise(seed), shape)


# Laws.


def plain(name: str, **options: Any) -> Scheduler:
    return from_name(name, {**(FLOW if name.startswith("flow") else STABLE_DIFFUSION), **options})


def run(scheduler: Scheduler, n: int, *, seed: int = 0, start: int = 0) -> Array:
    latents = TorchNoise(seed)((1, 4, 4, 4)) * np.float32(scheduler.init_noise_sigma(n))
    return scheduler.sample(toy, latents, n, noise=noise_from(9, latents.shape), start=start)


@pytest.mark.filterwarnings("ignore:.*not from noise to a picture")
@pytest.mark.parametrize("name", NAMES)
def test_r9_few_steps_are_defined(name: str) -> None:
    for spacing in ("leading", "linspace", "trailing"):
        scheduler = plain(name, timestep_spacing=spacing)
        for n in (1, 2, 3):
            assert np.isfinite(run(scheduler, n)).all()
            assert math.isfinite(scheduler.init_noise_sigma(n))
            assert (scheduler.timesteps(n) >= 0).all()


@pytest.mark.filterwarnings("ignore:.*not from noise to a picture")  # 1000 // 1001 is 0
@pytest.mark.parametrize("n", [999, 1000])
@pytest.mark.parametrize("name", SAMPLERS)
def test_r9_many_steps_are_defined(name: str, n: int) -> None:
    for spacing in ("leading", "linspace", "trailing"):
        scheduler = plain(name, timestep_spacing=spacing, original_inference_steps=1000)
        assert np.isfinite(run(scheduler, n)).all()
        assert (scheduler.timesteps(n) >= 0).all()


@pytest.mark.parametrize("ladder", ["karras", "exponential", "beta", "lu"])
def test_r9_ladders_of_many_steps_are_defined(ladder: str) -> None:
    for row in SAMPLERS.values():
        if ladder in row.suffixes:
            assert np.isfinite(run(plain(f"{row.name}_{ladder}"), 999)).all(), row.name


@pytest.mark.parametrize("n", [1, 2, 3, 4, 999, 1000])
@pytest.mark.filterwarnings("ignore:.*not from noise to a picture")
def test_r9_runge_kutta_warm_up_is_defined_for_every_number_of_steps(n: int) -> None:
    scheduler = from_config({**STABLE_DIFFUSION, "skip_prk_steps": False})
    assert np.isfinite(run(scheduler, n)).all()
    assert scheduler.calls(n) == n + 3 * min(3, n - 1)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm2_a", "pndm", "deis_karras"])
def test_r10_a_single_step_that_leads_nowhere_is_warned_of(name: str) -> None:
    scheduler = plain(name, timestep_spacing="leading")
    with pytest.warns(UserWarning, match="not from noise to a picture"):
        run(scheduler, 1)


@pytest.mark.parametrize("name", ["ddim", "euler", "lcm", "flow_euler", "dpmpp_2m_karras"])
def test_r10_a_single_step_from_noise_to_a_picture_is_not_warned_of(name: str) -> None:
    run(plain(name, timestep_spacing="trailing"), 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_asked_at_every_timestep_in_turn(name: str) -> None:
    scheduler, asked = plain(name), []
    latents = TorchNoise(0)((1, 4, 4, 4))
    steps = scheduler.steps(lambda x, t: asked.append((x, t)) or x, latents, 10, noise=lambda: latents, start=2)
    assert asked == []
    assert len(list(steps)) == len(asked) == scheduler.calls(10, 2) == scheduler.calls(10) - 2
    assert [t for _, t in asked] == scheduler.timesteps(10)[2:].tolist()
    assert all(x.dtype == np.float32 and x.shape == latents.shape for x, _ in asked)


def test_only_some_ask_more_often_than_they_step() -> None:
    twice = {"heun": 19, "dpm2": 19, "dpm2_a": 19}
    assert {name: plain(name).calls(10) for name in SAMPLERS} == dict.fromkeys(SAMPLERS, 10) | {"pndm": 11} | twice
    assert {name for name in SAMPLERS if plain(name).calls_per_step == 2} == twice.keys()


@pytest.mark.parametrize("name", NAMES)
def test_n4_runs_leave_nothing_behind(name: str) -> None:
    scheduler = plain(name)
    first = run(scheduler, 7, seed=1)
    run(scheduler, 5, seed=2)
    assert_array_equal(run(scheduler, 7, seed=1), first)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_stays_and_the_rest_is_as_without_it(name: str) -> None:
    """With a network that does to one place what does not depend on the others."""
    scheduler, seen = plain(name), list[Array]()
    clean, noise, begin = (TorchNoise(seed)((1, 4, 4, 4)) for seed in (1, 2, 3))
    begin *= np.float32(scheduler.init_noise_sigma(5))
    new = np.zeros((1, 1, 4, 4), bool)
    new[..., 1:3, :2] = True
    here = np.broadcast_to(new, begin.shape)

    def network(x: Array, t: float) -> Array:
        seen.append(x)
        return np.asarray(toy(x, t))

    known = Known(clean, noise, new)
    kept = [*scheduler.steps(network, begin, 5, noise=noise_from(9, begin.shape), known=known)]
    alone = [*scheduler.steps(toy, begin, 5, noise=noise_from(9, begin.shape))]
    for (latents, estimate), (expected, guess) in zip(kept, alone, strict=True):
        assert_allclose(latents[here], expected[here], rtol=1e-5, atol=1e-6)
        assert_allclose(estimate[here], guess[here], rtol=1e-4, atol=1e-5)
        assert_array_equal(estimate[~here], np.broadcast_to(clean, estimate.shape)[~here])
    for (latents, _), shown in zip(kept, seen[1:], strict=False):
        place, asked = latents[~here], shown[~here]
        assert_allclose(asked / np.linalg.norm(asked), place / np.linalg.norm(place), atol=1e-6)
    assert_allclose(kept[-1].latents[~here], clean[~here], atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_n4_runs_do_not_disturb_each_other(name: str) -> None:
    scheduler = plain(name)

    def walk(seed: int) -> Iterator[Call]:
        latents = TorchNoise(seed)((1, 4, 4, 4))
        return scheduler.steps(toy, latents, 7, noise=noise_from(seed, latents.shape))

    *_, (one, two) = zip(walk(1), walk(2), strict=True)
    for call, again in ((one, list(walk(1))[-1]), (two, list(walk(2))[-1])):
        assert_array_equal(call.latents, again.latents)
        assert_array_equal(call.clean, again.clean)


@pytest.mark.parametrize("name", SAMPLERS)
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


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        (name, prediction)
        for name in SAMPLERS
        for prediction in KINDS[SAMPLERS[name].class_name].rules["prediction_type"]
        if (name, prediction) != ("pndm", "v_prediction")  # whose averages of v are not exact
        if (prediction == "flow_prediction") == name.startswith("flow")
    ],
)
def test_a_network_that_knows_the_picture_makes_it(name: str, prediction: str) -> None:
    """Whatever it predicts."""
    picture, unit = TorchNoise(1)((1, 4, 4, 4)), TorchNoise(2)((1, 4, 4, 4))
    scheduler = plain(name, prediction_type=prediction, set_alpha_to_one=True, timestep_spacing="leading")
    begin, plan = scheduler.add_noise(picture, unit, 10, 0), scheduler._plan(10, 0)
    levels = iter(plan.sigmas)

    def network(shown: Array, t: float) -> Array:
        sigma = next(levels)
        x = shown * scheduler._frame.shown(sigma)
        eps = (x - picture) / sigma
        v = (eps - picture * sigma) / root(sigma)
        return {"epsilon": eps, "v_prediction": v, "sample": picture, "flow_prediction": eps - picture}[prediction]

    calls = [*scheduler.steps(network, begin, 10, noise=noise_from(3, unit.shape))]
    assert max(np.abs(call.clean - picture).max() for call in calls) < 1e-4
    end = calls[-1].latents
    lowest = plan.strides[-1][1]  # some classes end a little above 0
    assert np.abs(end * scheduler._frame.kept(lowest) - picture).max() < 4 * lowest + 1e-4


def test_r16_unipc_with_b1_ends_as_with_b2_where_diffusers_is_not_finite() -> None:
    """The last step, to 0, is of order 1, where B does not count."""
    config = {**STABLE_DIFFUSION, "_class_name": "UniPCMultistepScheduler"}
    first, second = (from_config({**config, "solver_type": kind}) for kind in ("bh1", "bh2"))
    assert np.isfinite(run(first, 20)).all()
    assert np.abs(run(first, 20) - run(second, 20)).max() < 0.2 * np.abs(run(second, 20)).max()
    assert_array_equal(run(first, 1), run(second, 1))


def test_zero_terminal_snr_begins_with_pure_noise() -> None:
    pure = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for name in ("ddim", "ddpm", "lcm", "tcd", "euler", "euler_a", "dpmpp_2m", "unipc"):
        scheduler = plain(name, **pure)
        latents = np.zeros((1, 4, 4, 4), np.float32)
        assert np.abs(scheduler.add_noise(latents + 1, latents, 10, 0)).max() <= 1 / (1 if "euler" in name else 4095)
        assert np.isfinite(run(scheduler, 10)).all()


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm", "tcd"])
def test_noise_predicted_from_pure_noise_is_refused(name: str) -> None:
    scheduler = plain(name, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ModelError, match="pure noise") as caught:
        scheduler.timesteps(10)
    assert "v_prediction" in str(caught.value.hint)


def test_n6_a_flow_ends_where_diffusers_ends_it() -> None:
    """The lowest share of noise is shifted twice: 0.00893, where once would be 0.00299."""
    plan = plain("flow_euler")._plan(4, 0)
    shares = [sigma / (1 + sigma) for sigma in plan.sigmas]
    assert shares[0] == pytest.approx(1, abs=1e-7)
    assert shares[-1] == pytest.approx(0.00893, abs=5e-6)
    assert plan.timesteps.tolist() == pytest.approx([1000 * share for share in shares], rel=1e-6)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_predictions_stand_for_the_same_picture(sigma: float) -> None:
    picture, eps = TorchNoise(1)(64), TorchNoise(2)(64)
    x = picture + eps * sigma
    outputs = {
        "epsilon": eps,
        "v_prediction": (eps - picture * sigma) / root(sigma),
        "sample": picture,
        "flow_prediction": eps - picture,
    }
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
    assert plain(name).label == sampler(name).label
    for spelled in (sampler(name).label, sampler(name).label.upper(), f" {name.upper()} "):
        assert sampler(spelled) == sampler(name)


def test_web_uis_names_mean_what_they_mean_there() -> None:
    karras = plain("DPM++ 2M SDE Karras")
    assert karras.class_name == "DPMSolverMultistepScheduler"
    assert karras.options["algorithm_type"] == "sde-dpmsolver++"
    assert [name for name, on in karras.options.items() if name in LADDERS and on] == ["use_karras_sigmas"]
    assert plain("PLMS").class_name == "PNDMScheduler"
    assert plain("euler A").class_name == "EulerAncestralDiscreteScheduler"


@pytest.mark.parametrize("class_name", KINDS)
def test_a_class_of_diffusers_is_a_name_too(class_name: str) -> None:
    first = next(row for row in SAMPLERS.values() if row.class_name == class_name)
    assert sampler(class_name) == sampler(class_name.lower()) == first


@pytest.mark.parametrize("name", DIFFUSING)
def test_every_sampler_can_be_named_for_the_model_of_every_other(name: str) -> None:
    """Options of the model's own class, with values that this one does not know, are not in the way."""
    for own in KINDS.keys() - {"FlowMatchEulerDiscreteScheduler"}:
        model = {**STABLE_DIFFUSION, **from_config({"_class_name": own}).options, "_class_name": own}
        assert from_name(name, model).label == SAMPLERS[name].label


def test_every_name_is_on_the_list_once() -> None:
    spelled = [word.lower() for name in NAMES for word in {name, sampler(name).label.lower()}]
    assert len(spelled) == len(set(spelled))
    assert set(SAMPLERS) <= set(NAMES)


def test_a_config_without_a_name_is_known_by_its_class() -> None:
    assert from_config({"_class_name": "DDIMScheduler"}).label == "DDIMScheduler"


def test_a_named_sampler_keeps_what_training_fixed() -> None:
    training = {"beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 500, "prediction_type": "epsilon"}
    for name in DIFFUSING:
        options = plain(name, **training).options
        assert {**options, **training} == options
        assert options.get("steps_offset", 1) == 1


def test_what_training_fixed_is_that_of_the_models_own_class() -> None:
    assert from_name("heun", {"_class_name": "DDIMScheduler"}).options["beta_end"] == 0.02
    assert from_config({"_class_name": "HeunDiscreteScheduler"}).options["beta_end"] == 0.012


def test_a_flow_and_a_diffusion_are_not_sampled_alike() -> None:
    with pytest.raises(RequestError, match=r"euler is not for this model: .* prediction_type"):
        from_name("euler", FLOW)
    with pytest.raises(RequestError, match=r"flow_euler is not for this model: .* prediction_type"):
        from_name("flow_euler", STABLE_DIFFUSION)
    with pytest.raises(ModelError, match="prediction_type"):
        from_name("euler", STABLE_DIFFUSION | {"prediction_type": "guess"})


def test_a_named_sampler_takes_its_own_ladder() -> None:
    assert plain("dpmpp_2m_karras").options["use_karras_sigmas"] is True
    assert plain("dpmpp_2m", use_karras_sigmas=True).options["use_karras_sigmas"] is False
    assert plain("euler", use_exponential_sigmas=True).options["use_exponential_sigmas"] is False
    assert plain("euler_beta", use_karras_sigmas=True).options["use_beta_sigmas"] is True


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("DPM++ 2M Carras", "dpmpp_2m_karras"), ("eulr", "euler"), ("DPM++ 3M SDE", "dpmpp_2m_sde"), ("uni_pc", "unipc")],
)
def test_r15_an_unknown_name_is_refused_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(RequestError, match="ddim, ddpm, pndm") as caught:
        plain(typed)
    assert caught.value.hint == f"did you mean {meant!r}?"


@pytest.mark.parametrize("name", [None, "EDMEulerScheduler", 3, []])
def test_r15_an_unknown_class_is_refused(name: Any) -> None:
    with pytest.raises(ModelError, match="not known") as caught:
        from_config({"_class_name": name})
    assert "DDIMScheduler" in str(caught.value.hint)


def test_a_class_that_needs_torchsde_is_refused_with_what_is_nearest() -> None:
    with pytest.raises(ModelError, match="DPMSolverSDEScheduler") as caught:
        from_config({"_class_name": "DPMSolverSDEScheduler"})
    assert "dpmpp_2s_sde" in str(caught.value.hint)
    assert (
        from_name("dpmpp_2s_sde", {**STABLE_DIFFUSION, "_class_name": "DPMSolverSDEScheduler"}).label == "DPM++ 2S SDE"
    )


@pytest.mark.parametrize(
    ("class_name", "option", "value"),
    [
        ("DPMSolverMultistepScheduler", "algorithm_type", "deis"),
        ("DPMSolverMultistepScheduler", "algorithm_type", "dpmsolver"),  # which cannot end at zero
        ("DPMSolverMultistepScheduler", "solver_order", 4),
        ("DPMSolverMultistepScheduler", "solver_type", "bh2"),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", "low"),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", math.nan),
        ("DPMSolverMultistepScheduler", "variance_type", "learned_range"),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", True),  # without a prediction of flow
        ("DPMSolverMultistepScheduler", "use_dynamic_shifting", True),
        ("DPMSolverSinglestepScheduler", "algorithm_type", "sde-dpmsolver"),
        ("UniPCMultistepScheduler", "lower_order_final", False),  # and ending at zero
        ("UniPCMultistepScheduler", "disable_corrector", [0.5]),
        ("UniPCMultistepScheduler", "disable_corrector", 3),
        ("UniPCMultistepScheduler", "solver_p", {"_class_name": "DDIMScheduler"}),
        ("UniPCMultistepScheduler", "sigma_min", -1.0),
        ("DDPMScheduler", "variance_type", "learned"),
        ("DDPMScheduler", "variance_type", "fixed_large_log"),
        ("LCMScheduler", "original_inference_steps", 2000),
        ("TCDScheduler", "thresholding", True),
        ("HeunDiscreteScheduler", "rescale_betas_zero_snr", True),
        ("KDPM2DiscreteScheduler", "prediction_type", "sample"),
        ("FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting", True),
        ("FlowMatchEulerDiscreteScheduler", "invert_sigmas", True),
        ("FlowMatchEulerDiscreteScheduler", "shift", 0.0),
        ("EulerDiscreteScheduler", "interpolation_type", "log_linear"),
        ("EulerDiscreteScheduler", "timestep_type", "continuous"),
        ("EulerDiscreteScheduler", "sigma_max", "big"),
        ("EulerAncestralDiscreteScheduler", "prediction_type", "sample"),
        ("PNDMScheduler", "prediction_type", "sample"),
        ("PNDMScheduler", "rescale_betas_zero_snr", True),
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
def test_r15_options_that_cannot_be_honoured_are_refused(class_name: str, option: str, value: Any) -> None:
    with pytest.raises(ModelError, match=option):
        from_config({"_class_name": class_name, option: value})


@pytest.mark.parametrize("betas", [[0.1, 0.2], [0.0] * 1000, [1.0] * 1000, [1e-9] * 1000, [math.nan] * 1000])
def test_impossible_betas_are_refused(betas: list[float]) -> None:
    with pytest.raises(ModelError, match="beta"):
        from_config({"_class_name": "DDIMScheduler", "trained_betas": betas})


@pytest.mark.parametrize(
    ("class_name", "options", "match"),
    [
        ("DPMSolverMultistep", {"use_karras_sigmas": True, "use_lu_lambdas": True}, "only one"),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver", "solver_order": 3, **ENDS}, "no solver_order 3"),
        (
            "DPMSolverSinglestep",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"},
            "leaves noise",
        ),
        ("UniPCMultistep", {"thresholding": True, "predict_x0": False}, "predict_x0"),
        ("DEISMultistep", {"prediction_type": "flow_prediction"}, "use_flow_sigmas"),
        ("DPMSolverMultistep", {**STREAM, **ENDS}, "final_sigmas_type"),
        ("DPMSolverMultistep", {**STREAM, "use_karras_sigmas": True}, "no other levels"),
        ("UniPCMultistep", {**STREAM, "use_beta_sigmas": True}, "use_karras_sigmas"),
    ],
)
def test_r15_options_that_contradict_each_other_are_refused(class_name: str, options: Any, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        from_config({"_class_name": f"{class_name}Scheduler", **options})


def test_a_clip_that_leaves_no_level_is_refused() -> None:
    with pytest.raises(ModelError, match="lambda_min_clipped"):
        from_config({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": 50.0}).timesteps(5)


@pytest.mark.parametrize("extra", [{"_diffusers_version": "9"}, {"skip_prk_steps": True}, {"tomorrow": False}])
def test_what_does_not_matter_is_ignored(extra: dict[str, Any]) -> None:
    assert from_config({"_class_name": "EulerDiscreteScheduler", **extra}).timesteps(5).tolist()[0] == 999


@pytest.mark.parametrize("n", [0, -1, 1001, 10**9, 2.0, True, None, "10", math.nan])
def test_r9_impossible_numbers_of_steps_are_refused(n: Any) -> None:
    for name in SAMPLERS:
        with pytest.raises(RequestError, match="num_inference_steps"):
            plain(name).timesteps(n)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_more_steps_than_were_distilled_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match=r"1\.\.50"):
        plain(name).timesteps(51)


@pytest.mark.parametrize("start", [-1, 11, 1.0, True])
def test_impossible_starts_are_refused(start: Any) -> None:
    for name in SAMPLERS:
        with pytest.raises(RequestError, match="start"):
            plain(name).calls(5, start)


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpm2_a"])
def test_a_run_cannot_start_amid_a_step(name: str) -> None:
    with pytest.raises(RequestError, match="amid a step"):
        plain(name).calls(10, 3)
    assert plain(name).calls(10, 4) == 15


def test_a_run_cannot_start_amid_the_warm_up() -> None:
    with pytest.raises(RequestError, match="Runge-Kutta"):
        from_config({**STABLE_DIFFUSION, "skip_prk_steps": False}).calls(10, 4)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf])
def test_impossible_etas_are_refused(eta: float) -> None:
    with pytest.raises(RequestError, match="eta"):
        plain("ddim").steps(toy, np.zeros((1, 4, 4, 4), np.float32), 5, eta=eta)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ddim", "tcd")])
def test_an_eta_that_would_be_ignored_is_refused(name: str) -> None:
    plain(name).check_eta(0.0)
    with pytest.raises(RequestError, match="would ignore it"):
        plain(name).steps(toy, np.zeros((1, 4, 4, 4), np.float32), 5, eta=0.5)


@pytest.mark.parametrize(
    ("name", "eta"),
    [
        ("euler_a", 0.0),
        ("ddim", 0.5),
        ("tcd", 0.5),
        ("dpmpp_2m_sde", 0.0),
        ("lcm", 0.0),
        ("ddpm", 0.0),
        ("dpm2_a", 0.0),
    ],
)
def test_missing_noise_is_refused_before_the_first_step(name: str, eta: float) -> None:
    with pytest.raises(RequestError, match="noise="):
        plain(name).steps(toy, np.zeros((1, 4, 4, 4), np.float32), 5, eta=eta)
