"""Every class against diffusers itself: whole walks with a small made-up network, and the same noise."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from ovenbird.noise import TorchNoise
from ovenbird.schedulers import KINDS, NAMES, SAMPLERS, from_config, from_name, sampler

pytestmark = pytest.mark.export
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
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
SHAPE = (2, 4, 6, 8)
Array = NDArray[Any]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """diffusers and torch warn, of what does not matter here; so does ovenbird of single steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Arrays are small: threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy(x: Any, t: float) -> Any:
    """A network of a kind: bounded, not linear, and different at every timestep; for arrays and for tensors."""
    return (x * 0.8) / (1 + abs(x)) + 0.05 * x * (t / 1000) + 0.02


MADE: dict[str, Any] = {}


def theirs(config: dict[str, Any], n: int) -> Any:
    """The scheduler of diffusers, ready for n steps.  Making some takes long; singlestep ones remember earlier runs."""
    class_name = config["_class_name"]
    if repr(config) not in MADE or class_name == "DPMSolverSinglestepScheduler":
        known = inspect.signature(getattr(diffusers, class_name).__init__).parameters
        options = {option: value for option, value in config.items() if option in known}
        MADE[repr(config)] = getattr(diffusers, class_name)(**options)
    MADE[repr(config)].set_timesteps(n)
    return MADE[repr(config)]


def their_walk(scheduler: Any, latents: Array, start: int, eta: float, network: Any = toy) -> Array:
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    known = inspect.signature(scheduler.step).parameters
    settings = {"eta": eta, "generator": torch.Generator().manual_seed(3)}
    step = partial(scheduler.step, **{name: value for name, value in settings.items() if name in known})
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    x = torch.from_numpy(latents)
    for t in scheduler.timesteps[start:]:
        x = step(network(scale(x, t), t.item()), t, x).prev_sample
    return x.numpy()


def difference(config: dict[str, Any], n: int, start: int = 0, eta: float = 0.0) -> float:
    """The largest difference between the ends of both walks, relative to the largest value there."""
    ours, reference = from_config(config), theirs(config, n)
    assert_allclose(ours.timesteps(n), reference.timesteps.numpy(), rtol=0, atol=1e-3)
    assert ours.timesteps(n).dtype.kind == reference.timesteps.numpy().dtype.kind
    begin = float(getattr(reference, "init_noise_sigma", 1.0))
    assert ours.init_noise_sigma(n) == pytest.approx(begin, rel=1e-6)
    latents = TorchNoise(0)(SHAPE) * np.float32(begin)
    expected = their_walk(reference, latents, start, eta)
    got = ours.sample(toy, latents, n, noise=partial(TorchNoise(3), SHAPE), start=start, eta=eta)
    return relative(got, expected)


def relative(got: Array, expected: Array) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def config_of(name: str, **options: Any) -> dict[str, Any]:
    base = FLOW if name.startswith("flow") else STABLE_DIFFUSION
    return {**base, **sampler(name).options, **options}


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_is_that_of_diffusers(name: str) -> None:
    for spacing, n in (("leading", 16), ("linspace", 3), ("trailing", 11)):
        assert difference(config_of(name, timestep_spacing=spacing), n) < 3e-5, (spacing, n)


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        (name, prediction)
        for name, row in SAMPLERS.items()
        for prediction in KINDS[row.class_name].rules["prediction_type"]
        if prediction != "flow_prediction"
    ],
)
def test_every_prediction_is_that_of_diffusers(name: str, prediction: str) -> None:
    for n, start in product([1, 3, 16], [0, 2]):
        config = config_of(name, prediction_type=prediction)
        if start < from_config(config).calls(n):
            assert difference(config, n, start) < 3e-5, (n, start)


DDIM, DDPM, PNDM, LMS, EULER, EULER_A, HEUN, DPM2, DPM2_A, MULTI, SINGLE, DEIS, UNIPC, LCM, TCD, FLOW_EULER = KINDS
ENDS = {"final_sigmas_type": "sigma_min"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5}
CLIP = {"clip_sample": True, "clip_sample_range": 0.8}
PURE = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
STREAM = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    (DDIM, CLIP),
    (DDIM, THRESHOLD),
    (DDIM, PURE),
    (DDIM, {"prediction_type": "sample", "set_alpha_to_one": True}),
    (DDIM, COSINE),
    (DDPM, CLIP),
    (DDPM, THRESHOLD),
    (DDPM, PURE),
    (DDPM, {"variance_type": "fixed_large"}),
    (DDPM, {"variance_type": "fixed_small_log"}),
    (PNDM, {"skip_prk_steps": True, "set_alpha_to_one": True, "beta_schedule": "linear"}),
    (PNDM, {"skip_prk_steps": False}),
    (PNDM, {"skip_prk_steps": False, "prediction_type": "v_prediction"}),
    (LMS, COSINE),
    (EULER, ENDS),
    (EULER, PURE),
    (EULER, {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}),
    (EULER_A, PURE),
    (EULER_A, {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()}),
    (HEUN, CLIP),
    (DPM2, COSINE),
    (MULTI, ENDS),
    (MULTI, {**ENDS, "lower_order_final": False}),
    (MULTI, {**ENDS, "euler_at_final": True}),
    (MULTI, {"solver_type": "heun"}),
    (MULTI, {"solver_order": 1}),
    (MULTI, {"solver_order": 3, "lower_order_final": False}),
    (MULTI, {"solver_order": 3, "use_karras_sigmas": True}),
    (MULTI, PURE),
    (MULTI, THRESHOLD),
    (MULTI, {"use_lu_lambdas": True, "prediction_type": "sample"}),
    (MULTI, {**COSINE, "use_karras_sigmas": True}),
    (MULTI, {**COSINE, "lambda_min_clipped": -5.1}),
    (MULTI, {"variance_type": "fixed_small", "lambda_min_clipped": -math.inf}),
    (MULTI, STREAM),
    *[
        (MULTI, {**ENDS, "algorithm_type": kind, "solver_type": solver, "solver_order": order})
        for kind, solver, order in product(
            ["dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"], ["midpoint", "heun"], [1, 2, 3]
        )
        if (kind, order) != ("sde-dpmsolver", 3)
    ],
    *[
        (SINGLE, {**ends, "algorithm_type": kind, "solver_type": solver, "solver_order": order})
        for ends, kind, solver, order in product(
            [{}, ENDS], ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"], ["midpoint", "heun"], [1, 2, 3]
        )
        if (kind, order, solver) != ("sde-dpmsolver++", 3, "heun") and (kind != "dpmsolver" or ends)
    ],
    (SINGLE, {**ENDS, "lower_order_final": True}),
    (SINGLE, {**COSINE, "lambda_min_clipped": -5.1}),
    (SINGLE, THRESHOLD),
    (SINGLE, STREAM),
    (DEIS, {"solver_order": 1}),
    (DEIS, {"solver_order": 3}),
    (DEIS, {"solver_order": 3, "lower_order_final": False}),
    (DEIS, THRESHOLD),
    (DEIS, STREAM),
    (UNIPC, {"solver_order": 1}),
    (UNIPC, {"solver_order": 3}),
    (UNIPC, {**ENDS, "solver_order": 3, "lower_order_final": False}),
    (UNIPC, {**ENDS, "solver_type": "bh1"}),
    (UNIPC, {**ENDS, "solver_type": "bh1", "solver_order": 3, "predict_x0": False}),
    (UNIPC, {**ENDS, "predict_x0": False}),
    (UNIPC, {**ENDS, "use_karras_sigmas": True}),
    (UNIPC, {"disable_corrector": [0, 3]}),
    (UNIPC, PURE),
    (UNIPC, THRESHOLD),
    (UNIPC, STREAM),
    (UNIPC, {**STREAM, **ENDS}),
    (UNIPC, {**STREAM, "use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 200.0}),
    (LCM, {"original_inference_steps": 100, "timestep_scaling": 0.01}),
    (LCM, CLIP),
    (LCM, THRESHOLD),
    (LCM, PURE),
    (TCD, {"original_inference_steps": 100, "prediction_type": "sample"}),
    (TCD, PURE),
    (FLOW_EULER, {"shift": 1.0}),
    (FLOW_EULER, {"stochastic_sampling": True}),
    (FLOW_EULER, {"use_beta_sigmas": True, "num_train_timesteps": 500}),
]


# Where diffusers itself, in single precision, is off by more than 3e-5: 4096 and 1 - 0.999 are among its terms.
ROOM = {(EULER, "rescale_betas_zero_snr"): 1e-4, (EULER_A, "rescale_betas_zero_snr"): 1e-4, (DEIS, "flow_shift"): 2e-4}


@pytest.mark.parametrize(("class_name", "options"), VARIANTS, ids=lambda value: str(value)[:70])
def test_options_mean_what_they_mean_in_diffusers(class_name: str, options: dict[str, Any]) -> None:
    base = FLOW if class_name == FLOW_EULER else STABLE_DIFFUSION
    room = max(ROOM.get((class_name, option), 3e-5) for option in options)
    spacings = ["leading", "linspace", "trailing"] if "timestep_spacing" in KINDS[class_name].rules else [""]
    for spacing, n in product(spacings, [4, 14, 16]):
        config = {**base, "_class_name": class_name, **options} | ({"timestep_spacing": spacing} if spacing else {})
        assert difference(config, n) < room, (spacing, n)


@pytest.mark.parametrize("name", [*SAMPLERS, "dpmpp_2s_karras", "unipc_karras"])
def test_a_late_start_is_that_of_diffusers(name: str) -> None:
    config = config_of(name)
    for n, start in product([10, 17], [2, 5, 6]):
        if start % from_config(config).calls_per_step == 0:
            assert difference(config, n, start) < 3e-5, (n, start)


@pytest.mark.parametrize(("name", "eta"), [*product(["ddim", "tcd"], [0.3, 1.0])])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_eta_is_that_of_diffusers(name: str, spacing: str, eta: float) -> None:
    for n, start in product([1, 4, 7], [0, 3]):
        if start < n:
            assert difference(config_of(name, timestep_spacing=spacing), n, start, eta) < 3e-5


@pytest.mark.parametrize("start", [0, 6])
@pytest.mark.parametrize("name", SAMPLERS)
def test_added_noise_is_that_of_diffusers(name: str, start: int) -> None:
    config = config_of(name)
    latents, noise = TorchNoise(1)(SHAPE), TorchNoise(2)(SHAPE)
    reference = theirs(config, 20)
    if hasattr(reference, "set_begin_index"):
        reference.set_begin_index(start)
    clean, normal, at = torch.from_numpy(latents), torch.from_numpy(noise), reference.timesteps[start : start + 1]
    if name.startswith("flow"):
        expected = reference.scale_noise(clean, at, normal)
    else:
        expected = reference.add_noise(clean, normal, at)
    assert_allclose(from_config(config).add_noise(latents, noise, 20, start), expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_timesteps_of_every_number_of_steps(name: str) -> None:
    config = config_of(name)
    ours, reference = from_config(config), theirs(config, 2)
    most = ours.options.get("original_inference_steps", 1000)
    # Of the large ones, some have entries of Karras ladders that another rounding of the betas would move.
    large = (444, 704, 712, 746, 887, 929, 945, 996, 999, 1000) if name == "dpmpp_2m_karras" else (61, 100)
    for n in (*range(1, 31, 4), *large):
        if n <= most:
            reference.set_timesteps(n)
            got = ours.timesteps(n)
            gap = np.abs(got - reference.timesteps.numpy()[: len(got)])
            # The logarithms of torch and numpy round otherwise on other processors; then one of hundreds moves by one.
            assert gap.max() <= 1 and np.sum(gap > 1e-3) <= (n > 400)


def test_r16_their_unipc_with_b1_is_not_finite_at_the_end_and_ours_is() -> None:
    config = config_of("unipc", solver_type="bh1")
    reference = theirs(config, 20)
    assert not np.isfinite(their_walk(reference, TorchNoise(0)(SHAPE), 0, 0.0)).all()
    ours = from_config(config).sample(toy, TorchNoise(0)(SHAPE), 20)
    nearest = from_name("unipc", STABLE_DIFFUSION).sample(toy, TorchNoise(0)(SHAPE), 20)
    assert np.abs(ours - nearest).max() < 0.2 * np.abs(nearest).max()


@pytest.fixture(scope="module")
def nestlings_unet(root: Path) -> Any:
    """The embedded model's U-Net in torch, with words of noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = root / "models" / "nestling" / "source" / "unet"
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder)
    words = torch.from_numpy(TorchNoise(5)((1, 77, unet.config.cross_attention_dim)))

    @torch.no_grad()
    def network(x: Any, t: float) -> Any:
        return unet(x, t, words).sample

    return network


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.startswith("flow")])
def test_whole_trajectories_agree_on_nestling(nestlings_unet: Any, name: str) -> None:
    config, n = config_of(name, prediction_type="v_prediction"), 10
    ours, reference, shape = from_config(config), theirs(config, n), (1, 4, 16, 16)
    latents = TorchNoise(0)(shape) * np.float32(ours.init_noise_sigma(n))
    eta = 0.4 if ours._kind.takes_eta else 0.0
    expected = their_walk(reference, latents, 0, eta, nestlings_unet)
    got = ours.sample(
        lambda x, t: nestlings_unet(torch.from_numpy(x), t).numpy(),
        latents,
        n,
        noise=partial(TorchNoise(3), shape),
        eta=eta,
    )
    assert relative(got, expected) < 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_a"])
def test_the_estimate_is_what_diffusers_calls_the_original_sample(name: str, prediction: str) -> None:
    config = config_of(name, prediction_type=prediction)
    reference, generator = theirs(config, 6), torch.Generator().manual_seed(3)
    latents = TorchNoise(0)(SHAPE) * np.float32(float(reference.init_noise_sigma))
    calls = from_config(config).steps(toy, latents, 6, noise=partial(TorchNoise(3), SHAPE))
    x = torch.from_numpy(latents)
    for t, call in zip(reference.timesteps, calls, strict=True):
        output = toy(reference.scale_model_input(x, t), t.item())
        given = {"generator": generator} if name != "ddim" else {}
        x, original = reference.step(output, t, x, return_dict=False, **given)
        assert relative(call.clean, original.numpy()) < 1e-5
