"""Schedulers: which noise levels, which solver, and what the network's answer means.

Three axes, held together by two tables.  ``SAMPLERS`` has the names that people type.  ``KINDS`` has the classes that a
diffusers ``scheduler_config.json`` names: the options each reads, where it stops on the way down, and which solver
walks there.  A new sampler is a generator in ``solvers.py`` and a row here.
"""

from __future__ import annotations

import difflib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird import solvers
from ovenbird.errors import ModelError, RequestError
from ovenbird.noise import (
    Floats,
    Sigmas,
    exponential_sigmas,
    karras_sigmas,
    sigma_at,
    spaced_timesteps,
    timestep_at,
    training_betas,
    training_sigmas,
    zero_terminal_snr,
)
from ovenbird.solvers import Denoise, Latents, Noise, Scalings, Solver, Strides, root

Model = Callable[[Latents, float], Latents]  # (scaled latents, timestep) -> what the network predicts
Timesteps = NDArray[np.int64] | NDArray[np.float32]
Options = Mapping[str, Any]  # every option its class reads


class Sampler(NamedTuple):
    """A name to ask for, its label in web UIs, and the scheduler options it stands for."""

    name: str
    label: str
    options: Options


_EVEN: Options = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_lu_lambdas": False}
_DPMPP_2M: Options = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "solver_order": 2,
    **_EVEN,
}
_SAMPLERS = (
    # Latents are not confined to [-1, 1]; this class clips them there unless told not to.
    Sampler("ddim", "DDIM", {"_class_name": "DDIMScheduler", "clip_sample": False}),
    Sampler("pndm", "PLMS", {"_class_name": "PNDMScheduler", "skip_prk_steps": True}),
    Sampler("euler", "Euler", {"_class_name": "EulerDiscreteScheduler", **_EVEN}),
    Sampler("euler_a", "Euler a", {"_class_name": "EulerAncestralDiscreteScheduler"}),
    Sampler("dpmpp_2m", "DPM++ 2M", _DPMPP_2M),
    Sampler("dpmpp_2m_karras", "DPM++ 2M Karras", {**_DPMPP_2M, "use_karras_sigmas": True}),
)
SAMPLERS = {sampler.name: sampler for sampler in _SAMPLERS}
NAMES = tuple(SAMPLERS)


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a diffusers ``scheduler_config.json`` describes; ModelError for anything not known here."""
    class_name = config.get("_class_name")
    if not isinstance(class_name, str) or class_name not in KINDS:
        raise ModelError(f"scheduler class {class_name!r:.80} is not known", hint=f"known: {', '.join(KINDS)}")
    return Scheduler(class_name, _read_options(class_name, config))


def from_name(name: str, config: Mapping[str, Any]) -> Scheduler:
    """A sampler by its name in ``SAMPLERS``, for the model whose own scheduler config is given.

    Everything that the named row does not set stays as the model has it.  RequestError for an unknown name, ModelError
    if this model cannot be sampled so.
    """
    return from_config({**config, **sampler(name).options})


def sampler(name: str) -> Sampler:
    """The row of that name.  RequestError, with the nearest name there is, for any other."""
    if name not in SAMPLERS:
        spelled = str(name).lower().replace("++", "pp").replace(" ", "_")
        near = difflib.get_close_matches(spelled, NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise RequestError(f"scheduler: {name!r:.60} is not one of {', '.join(NAMES)}", hint=hint)
    return SAMPLERS[name]


class Plan(NamedTuple):
    """One way down: an entry of each for every model call."""

    timesteps: Timesteps
    sigmas: list[float]  # the level at which the model is asked
    strides: Strides


@dataclass(frozen=True, eq=False)
class Scheduler:
    """A way down from noise to a picture; it holds nothing of any run.

    Latents are in the coordinates of the diffusers class: clean + sigma * noise for the two Euler classes, the same
    scaled to unit variance for the others.  ``start`` is an index into ``timesteps``: at 0 a run begins with noise,
    later with an image that ``add_noise`` took there.  RequestError for a number of steps outside
    1..num_train_timesteps, or a ``start`` that leaves no step.
    """

    class_name: str
    options: Options
    trained: Sigmas = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Freeze the options and work out the levels of training, once."""
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        object.__setattr__(self, "trained", _trained_sigmas(self.options))

    @property
    def label(self) -> str:
        """What web UIs call it; the class, if ``SAMPLERS`` has no row for these options."""
        whole = {**_EVEN, **self.options, "_class_name": self.class_name}
        return next((s.label for s in SAMPLERS.values() if s.options.items() <= whole.items()), self.class_name)

    def timesteps(self, num_inference_steps: int) -> Timesteps:
        """The timestep of every model call, in order."""
        return self._plan(num_inference_steps, 0).timesteps

    def calls(self, num_inference_steps: int, start: int = 0) -> int:
        """How often a run asks the model; for PLMS once more than it has steps."""
        return len(self._plan(num_inference_steps, start).strides)

    def init_noise_sigma(self, num_inference_steps: int) -> float:
        """What to multiply standard normal noise with to have the latents a run begins with."""
        highest = max(self._plan(num_inference_steps, 0).sigmas)
        if self._kind.unit_variance:
            return 1.0
        return root(highest) if self.options["timestep_spacing"] == "leading" else highest

    def add_noise(self, latents: Latents, noise: Latents, num_inference_steps: int, start: int) -> Latents:
        """Clean latents, taken up to where a run from ``start`` begins."""
        sigma = self._plan(num_inference_steps, start).sigmas[0]
        return np.asarray((latents + noise * sigma) / self._scale(sigma), np.float32)

    def sample(
        self,
        model: Model,
        latents: Latents,
        num_inference_steps: int,
        *,
        noise: Noise | None = None,
        start: int = 0,
        eta: float = 0.0,
    ) -> Latents:
        """The last of ``steps``."""
        return deque(self.steps(model, latents, num_inference_steps, noise=noise, start=start, eta=eta), maxlen=1)[0]

    def check_eta(self, eta: float) -> None:
        """RequestError unless ``eta`` is from 0 (DDIM) to 1 (DDPM), and 0 for a sampler that would ignore it."""
        if not 0 <= eta <= 1:
            raise RequestError(f"eta {eta!r:.40} is not between 0 and 1")
        if eta and self._kind.eta is not None:
            raise RequestError(f"eta {eta} is for DDIM; {self.label} would ignore it", hint="leave eta at 0")

    def steps(
        self,
        model: Model,
        latents: Latents,
        num_inference_steps: int,
        *,
        noise: Noise | None = None,
        start: int = 0,
        eta: float = 0.0,
    ) -> Iterator[Latents]:
        """The latents after every model call.

        ``model(model_input, timestep)`` stands for the U-Net in a diffusers loop: scaled latents in, raw prediction
        out.  ``noise()`` gives the next standard normal array of the latents' shape; Euler ancestral and DDIM with
        ``eta`` above 0 need it.  RequestError comes from the call itself, not from the first step.
        """
        self.check_eta(eta)
        eta = eta if self._kind.eta is None else self._kind.eta
        if eta and noise is None:
            raise RequestError(f"{self.label} adds noise at every step: noise= must be given")
        plan = self._plan(num_inference_steps, start)
        solver = self._kind.solver(self.options, num_inference_steps, eta)
        return self._walk(solver, plan, model, np.asarray(latents, np.float32), noise or _no_noise)

    def _walk(self, solver: Solver, plan: Plan, model: Model, latents: Latents, noise: Noise) -> Iterator[Latents]:
        x = latents * self._scale(plan.strides[0][0])
        walk = solver(self._denoiser(model, plan), x, plan.strides, noise)
        for x, (_, lower) in zip(walk, plan.strides, strict=True):
            yield np.asarray(x / self._scale(lower), np.float32)

    def _denoiser(self, model: Model, plan: Plan) -> Denoise:
        timestep = dict(zip(plan.sigmas, plan.timesteps.tolist(), strict=True))
        scalings = PREDICTIONS[self.options["prediction_type"]]

        def denoise(x: Latents, sigma: float) -> Latents:
            output = model(np.asarray(x / root(sigma), np.float32), timestep[sigma])
            return clean_estimate(np.asarray(output, np.float32), x, *scalings(sigma))

        return denoise

    def _plan(self, num_inference_steps: int, start: int) -> Plan:
        trained = len(self.trained)
        if not _is_whole(num_inference_steps) or not 1 <= num_inference_steps <= trained:
            raise RequestError(f"num_inference_steps {num_inference_steps!r:.40} is not a whole number in 1..{trained}")
        if not _is_whole(start) or start < 0:
            raise RequestError(f"start {start!r:.40} is not an index into the timesteps")
        plan = self._kind.plan(self.options, self.trained, int(num_inference_steps), int(start))
        if not plan.strides:
            raise RequestError(f"start {start} leaves nothing of {num_inference_steps} steps")
        return plan

    def _scale(self, sigma: float) -> float:
        return root(sigma) if self._kind.unit_variance else 1.0

    @property
    def _kind(self) -> Kind:
        return KINDS[self.class_name]


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _no_noise() -> Latents:
    raise AssertionError("a solver drew noise that its kind does not declare")


def _trained_sigmas(options: Options) -> Sigmas:
    count, given = options["num_train_timesteps"], options["trained_betas"]
    betas = given
    if given is None:
        betas = training_betas(options["beta_schedule"], options["beta_start"], options["beta_end"], count)
    if betas.shape != (count,) or not np.all((betas > 0) & (betas < 1)):
        raise ModelError(f"the scheduler's betas are not {count} numbers between 0 and 1")
    sigmas = training_sigmas(zero_terminal_snr(betas) if options["rescale_betas_zero_snr"] else betas)
    if sigmas[0] == 0:
        raise ModelError("the scheduler's first beta is so small that its level has no noise")
    sigmas.flags.writeable = False
    return sigmas


# What the network predicts.

PREDICTIONS: dict[str, Scalings] = {
    "epsilon": lambda sigma: (1.0, -sigma),
    "v_prediction": lambda sigma: (1 / root(sigma) ** 2, -sigma / root(sigma)),
    "sample": lambda sigma: (0.0, 1.0),
}


def clean_estimate(output: Latents, x: Latents, skip: float, out: float) -> Latents:
    """The clean latents that an output stands for; its scalings are ``PREDICTIONS[prediction_type](sigma)``."""
    return x * skip + output * out


def threshold(x0: Latents, *, quantile: float, limit: float) -> Latents:
    """Clip each image to a quantile of its own absolute values, and scale that to 1 (Saharia et al. 2022, Imagen)."""
    sizes = np.quantile(np.abs(x0), quantile, axis=tuple(range(1, x0.ndim)), keepdims=True)
    bound: Latents = np.minimum(np.maximum(sizes, 1.0), limit).astype(np.float32)
    return np.asarray(np.clip(x0, -bound, bound) / bound)


# Where each class stops on the way down.  Plans know of ``start``, because PLMS begins anew wherever it is started.

LADDERS = {
    "use_karras_sigmas": karras_sigmas,
    "use_exponential_sigmas": exponential_sigmas,
    "use_lu_lambdas": exponential_sigmas,
}
RUNGE_KUTTA_STEPS = 3  # with the present output, these give the multistep formula the four it needs


def _euler_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    timesteps = _spaced(options, trained, count).astype(np.float32)
    sigmas = sigma_at(timesteps.astype(np.float64), trained)
    if ladder := _ladder(options):
        sigmas = ladder(sigmas[0], sigmas[-1], count)
        timesteps = timestep_at(sigmas, trained).astype(np.float32)
    return _joined(timesteps, sigmas, _end(options, trained), start)


def _dpm_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    # Trailing spacing ends above 0 by itself; of the others one more is made, and the last left out.
    extra = 0 if options["timestep_spacing"] == "trailing" else 1
    timesteps = _spaced(options, trained, count + extra)[:count].round()
    sigmas = sigma_at(timesteps, trained)
    if ladder := _ladder(options):
        sigmas = ladder(trained[-1], trained[0], count)
        timesteps = timestep_at(sigmas, trained)
        if not options["use_exponential_sigmas"] and options["beta_schedule"] != "squaredcos_cap_v2":
            timesteps = timesteps.round()
    return _joined(timesteps.astype(np.int64), sigmas, _end(options, trained), start)


def _ddim_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    asked = _whole(options, trained, count)[start:]
    step = len(trained) // count
    return _between(options, trained, asked, [(timestep, timestep - step) for timestep in asked])


def _pndm_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    if not options["skip_prk_steps"]:
        return _runge_kutta_plan(options, trained, count, start)
    timesteps = _whole(options, trained, count)
    step = len(trained) // count
    asked = [*timesteps[:2], *timesteps[1:]][start:]
    strides = [(timestep, timestep - step) for timestep in asked]
    if len(asked) > 1:  # the second call takes the first stride again, knowing both its ends
        strides[1] = asked[1] + step, asked[1]
    return _between(options, trained, asked, strides)


def _runge_kutta_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    if start:
        raise RequestError("PNDM with Runge-Kutta steps can only start at 0", hint="use skip_prk_steps")
    timesteps = _whole(options, trained, count)
    step = len(trained) // count
    asked: list[int] = []
    strides: list[tuple[int, int]] = []
    for here, below in islice(pairwise(timesteps), RUNGE_KUTTA_STEPS):
        half = below + step // 2
        asked += [here, half, half, below]
        strides += [(here, here - step // 2), (here, half), (here, below), (here, below)]
    rest = timesteps[len(asked) // 4 :]
    return _between(options, trained, asked + rest, strides + [(timestep, timestep - step) for timestep in rest])


def _spaced(options: Options, trained: Sigmas, count: int) -> NDArray[np.float64]:
    return spaced_timesteps(options["timestep_spacing"], count, len(trained), options["steps_offset"])


def _whole(options: Options, trained: Sigmas, count: int) -> list[int]:
    return [int(timestep) for timestep in _spaced(options, trained, count).round()]


def _joined(timesteps: Timesteps, sigmas: Sigmas, end: float, start: int) -> Plan:
    """Every stride lands where the next one leaves."""
    stops: list[float] = [*sigmas.tolist(), end]
    return Plan(timesteps[start:], stops[start:-1], list(pairwise(stops[start:])))


def _between(options: Options, trained: Sigmas, asked: list[int], strides: list[tuple[int, int]]) -> Plan:
    """Strides from timestep to timestep; all below 0 is the end, and nothing is above the last."""
    end = 0.0 if options["set_alpha_to_one"] else float(trained[0])

    def sigma(timestep: int) -> float:
        return float(trained[min(timestep, len(trained) - 1)]) if timestep >= 0 else end

    sigmas = [sigma(timestep) for timestep in asked]
    return Plan(np.array(asked, np.int64), sigmas, [(sigma(leave), sigma(land)) for leave, land in strides])


def _ladder(options: Options) -> Callable[[float, float, int], Sigmas] | None:
    return next((ladder for option, ladder in LADDERS.items() if options.get(option)), None)


def _end(options: Options, trained: Sigmas) -> float:
    return float(trained[0]) if options.get("final_sigmas_type") == "sigma_min" else 0.0


# Which solver each class walks with, for a number of steps and an eta.


def _euler_solver(options: Options, count: int, eta: float) -> Solver:
    return solvers.euler


def _ancestral_solver(options: Options, count: int, eta: float) -> Solver:
    return solvers.euler_ancestral


def _ddim_solver(options: Options, count: int, eta: float) -> Solver:
    return partial(solvers.ddim, eta=eta, clip=_clip(options))


def _pndm_solver(options: Options, count: int, eta: float) -> Solver:
    warm_up = 0 if options["skip_prk_steps"] else min(RUNGE_KUTTA_STEPS, count - 1)
    return partial(solvers.pndm, scalings=PREDICTIONS[options["prediction_type"]], warm_up=warm_up)


def _dpm_solver(options: Options, count: int, eta: float) -> Solver:
    euler_at_end = options["euler_at_final"] or (options["lower_order_final"] and count < 15)
    clip = _clip(options)

    def solve(denoise: Denoise, x: Latents, strides: Strides, noise: Noise) -> Iterator[Latents]:
        def clipped(x: Latents, sigma: float) -> Latents:
            return clip(denoise(x, sigma))

        return solvers.dpmpp_2m(clipped, x, strides, noise, euler_at_end=euler_at_end)

    return solve


def _clip(options: Options) -> Callable[[Latents], Latents]:
    if options["thresholding"]:
        return partial(threshold, quantile=options["dynamic_thresholding_ratio"], limit=options["sample_max_value"])
    if options.get("clip_sample"):
        limit = options["clip_sample_range"]
        return lambda x0: np.clip(x0, -limit, limit)
    return lambda x0: x0


# What a scheduler_config.json may say.  A tuple holds the values known here, the default first; any other rule is a
# default, and every value of its type will do that is within BOUNDS.

_TRAINING: Options = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": None,  # or as many numbers as there are timesteps
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "rescale_betas_zero_snr": (False, True),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False,),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "steps_offset": 0,
}
_LEADING: Options = {"timestep_spacing": ("leading", "linspace", "trailing")}
_NOT_SAMPLE: Options = {"prediction_type": ("epsilon", "v_prediction")}
_NEVER_PURE_NOISE: Options = {"rescale_betas_zero_snr": (False,)}
_THRESHOLDING: Options = {"thresholding": (False, True), "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_RESPACED: Options = {
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_beta_sigmas": (False,),
    "final_sigmas_type": ("zero", "sigma_min"),
}
BOUNDS = {
    "num_train_timesteps": (1, 100_000),
    "steps_offset": (0, 100_000),
    "beta_start": (0.0, 1.0),
    "beta_end": (0.0, 1.0),
    "dynamic_thresholding_ratio": (0.0, 1.0),
}


class Kind(NamedTuple):
    """A diffusers scheduler class, taken apart."""

    plan: Callable[[Options, Sigmas, int, int], Plan]  # of options, training, number of steps and start
    solver: Callable[[Options, int, float], Solver]
    unit_variance: bool  # its latents are x / root(sigma)
    eta: float | None  # how much noise a step adds; None: as much as asked
    rules: Options


KINDS = {
    "DDIMScheduler": Kind(
        plan=_ddim_plan,
        solver=_ddim_solver,
        unit_variance=True,
        eta=None,
        rules={
            **_TRAINING,
            **_LEADING,
            **_NEVER_PURE_NOISE,
            **_THRESHOLDING,
            "clip_sample": (True, False),
            "clip_sample_range": 1.0,
            "set_alpha_to_one": (True, False),
        },
    ),
    "PNDMScheduler": Kind(
        plan=_pndm_plan,
        solver=_pndm_solver,
        unit_variance=True,
        eta=0.0,
        rules={
            **_TRAINING,
            **_LEADING,
            **_NEVER_PURE_NOISE,
            **_NOT_SAMPLE,
            "skip_prk_steps": (False, True),
            "set_alpha_to_one": (False, True),
        },
    ),
    "EulerDiscreteScheduler": Kind(
        plan=_euler_plan,
        solver=_euler_solver,
        unit_variance=False,
        eta=0.0,
        rules={
            **_TRAINING,
            **_RESPACED,
            "interpolation_type": ("linear",),
            "sigma_min": (None,),
            "sigma_max": (None,),
        },
    ),
    "EulerAncestralDiscreteScheduler": Kind(
        plan=_euler_plan,
        solver=_ancestral_solver,
        unit_variance=False,
        eta=1.0,
        rules={**_TRAINING, **_NOT_SAMPLE},
    ),
    "DPMSolverMultistepScheduler": Kind(
        plan=_dpm_plan,
        solver=_dpm_solver,
        unit_variance=True,
        eta=0.0,
        rules={
            **_TRAINING,
            **_THRESHOLDING,
            **_RESPACED,
            "algorithm_type": ("dpmsolver++",),
            "solver_type": ("midpoint",),
            "solver_order": (2,),
            "lower_order_final": (True, False),
            "euler_at_final": (False, True),
            "use_lu_lambdas": (False, True),
            "lambda_min_clipped": (-math.inf, "-inf"),
            "variance_type": (None, "fixed_small", "fixed_large"),
            "use_dynamic_shifting": (False,),
        },
    ),
}

# Options of other diffusers classes stay in a config when its class is changed.  A class does not read them.
_ELSEWHERE = {option for kind in KINDS.values() for option in kind.rules} | {
    "disable_corrector",
    "flow_shift",
    "original_inference_steps",
    "predict_x0",
    "solver_p",
    "time_shift_type",
    "timestep_scaling",
}


def _read_options(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    rules = KINDS[class_name].rules
    for option, value in config.items():
        # An option that nobody here knows does no harm as long as it is off.
        if not option.startswith("_") and option not in _ELSEWHERE and value not in (None, False):
            raise ModelError(f"{class_name} option {option!r:.60} is not known", hint=f"known: {', '.join(rules)}")
    options = {option: _read_option(class_name, option, config.get(option), rule) for option, rule in rules.items()}
    if sum(bool(options.get(option)) for option in LADDERS) > 1:
        raise ModelError(f"{class_name}: only one of {', '.join(LADDERS)} can be set")
    return options


def _read_option(class_name: str, option: str, value: Any, rule: Any) -> Any:
    if value is None:
        return rule[0] if isinstance(rule, tuple) else rule
    if option == "trained_betas":
        return _read_betas(class_name, value)
    refusal = f"{class_name} option {option} = {value!r:.60} is not supported"
    if isinstance(rule, tuple):
        if value not in rule:
            raise ModelError(refusal, hint=f"known: {', '.join(map(repr, rule))}")
        return rule[rule.index(value)]
    low, high = BOUNDS.get(option, (0.0, math.inf))
    if isinstance(value, bool) or not isinstance(value, int | type(rule)) or not low <= value <= high:
        raise ModelError(refusal, hint=f"known: {'whole ' if isinstance(rule, int) else ''}numbers in {low}..{high}")
    return value


def _read_betas(class_name: str, value: Any) -> Floats:
    try:
        return np.array(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{class_name} option trained_betas is not a list of numbers") from error
