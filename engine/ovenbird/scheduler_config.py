"""What a diffusers ``scheduler_config.json`` may say, and reading it with suspicion.

Each class has rules, one for every option it reads.  A tuple holds the values known here, the default first.  Any other
rule is a default: every value of its type will do that is within ``BOUNDS``, or that its own reader takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ovenbird.errors import ModelError
from ovenbird.noise import Floats
from ovenbird.plans import LADDERS, Options

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TRAINING: Options = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": BETA_SCHEDULES,
    "trained_betas": None,  # or as many numbers as there are timesteps
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "rescale_betas_zero_snr": (False, True),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False,),
}
LATENT_BETAS: Options = {"beta_start": 0.00085, "beta_end": 0.012}
NEVER_PURE_NOISE: Options = {"rescale_betas_zero_snr": (False,)}
NOT_SAMPLE: Options = {"prediction_type": ("epsilon", "v_prediction")}
SPACED: Options = {"timestep_spacing": ("linspace", "leading", "trailing"), "steps_offset": 0}
LEADING: Options = {"timestep_spacing": ("leading", "linspace", "trailing"), "steps_offset": 0}
RESPACED: Options = {
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_beta_sigmas": (False, True),
}
RANGE: Options = {"sigma_min": None, "sigma_max": None}  # or numbers
FINAL: Options = {"final_sigmas_type": ("zero", "sigma_min")}
THRESHOLDING: Options = {"thresholding": (False, True), "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
CLIPPING: Options = {**THRESHOLDING, "clip_sample": (True, False), "clip_sample_range": 1.0}
MULTISTEP: Options = {
    **TRAINING,
    **RESPACED,
    **THRESHOLDING,
    "prediction_type": (*TRAINING["prediction_type"], "flow_prediction"),
    "use_flow_sigmas": (False, True),
    "flow_shift": 1.0,
    "use_dynamic_shifting": (False,),
    "solver_order": (2, 1, 3),
    "lower_order_final": (True, False),
}
DPM: Options = {
    **MULTISTEP,
    **FINAL,
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver"),
    "solver_type": ("midpoint", "heun"),
    "lambda_min_clipped": -math.inf,
    "variance_type": (None, "fixed_small", "fixed_large"),
}
DISTILLED: Options = {
    **TRAINING,
    **LATENT_BETAS,
    "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
    "original_inference_steps": 50,
}

BOUNDS = {
    "num_train_timesteps": (1, 100_000),
    "original_inference_steps": (1, 100_000),
    "steps_offset": (0, 100_000),
    "beta_start": (0.0, 1.0),
    "beta_end": (0.0, 1.0),
    "dynamic_thresholding_ratio": (0.0, 1.0),
    "shift": (1e-3, 1e3),
    "flow_shift": (1e-3, 1e3),
}


def reading(*groups: Options, **own: Any) -> Options:
    """Rules of several groups, later ones first, and a class's own."""
    return {option: rule for group in (*groups, own) for option, rule in group.items()}


def read(class_name: str, config: Mapping[str, Any], rules: Options, elsewhere: Collection[str]) -> dict[str, Any]:
    """Every option that a class reads.  ModelError for a value, or a combination, that cannot be honoured.

    Options of other classes, which are ``elsewhere``, stay in a config when its class is changed; they are not read.
    """
    for option, value in config.items():
        # An option that nobody here knows does no harm as long as it is off.
        if not option.startswith("_") and option not in elsewhere and value not in (None, False):
            raise ModelError(f"{class_name} option {option!r:.60} is not known", hint=f"known: {', '.join(rules)}")
    options = {option: _read(class_name, option, config.get(option), rule) for option, rule in rules.items()}
    for classes, found, problem, hint in CONTRADICTIONS:
        if (not classes or class_name.removesuffix("Scheduler") in classes.split()) and found(options):
            raise ModelError(f"{class_name}: {problem}", hint=hint)
    return options


def default(rule: Any) -> Any:
    """The value of an option that a config leaves out."""
    return rule[0] if isinstance(rule, tuple) and rule else rule


def _read(class_name: str, option: str, value: Any, rule: Any) -> Any:
    if value is None:
        return default(rule)
    refusal = f"{class_name} option {option} = {value!r:.60} is not supported"
    if option in READERS:
        try:
            return READERS[option](value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(refusal) from error
    if isinstance(rule, tuple):
        if value not in rule:
            raise ModelError(refusal, hint=f"known: {', '.join(map(repr, rule))}")
        return rule[rule.index(value)]
    low, high = BOUNDS.get(option, (0.0, math.inf))
    if isinstance(value, bool) or not isinstance(value, int | type(rule)) or not low <= value <= high:
        raise ModelError(refusal, hint=f"known: {'whole ' if isinstance(rule, int) else ''}numbers in {low}..{high}")
    return value


def _betas(value: Any) -> Floats:
    return np.array(value, np.float32)


def _level(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 <= value <= 1e6:
        raise ValueError(value)
    return float(value)


def _lambda(value: Any) -> float:
    if isinstance(value, bool) or math.isnan(number := float(value)):
        raise ValueError(value)
    return number


def _steps(value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or not all(type(step) is int for step in value):
        raise ValueError(value)
    return [*value]


READERS: dict[str, Callable[[Any], Any]] = {
    "trained_betas": _betas,
    "sigma_min": _level,
    "sigma_max": _level,
    "lambda_min_clipped": _lambda,  # also "-inf", which JSON has no number for
    "disable_corrector": _steps,
}


def _laddered(options: Options) -> list[str]:
    return [option for option in LADDERS if options.get(option)]


class Contradiction(NamedTuple):
    """What no class of diffusers does, or none does right: options that cannot go together, in some classes."""

    classes: str  # without "Scheduler"; none are all
    found: Callable[[Options], bool]
    problem: str
    hint: str | None = None


CONTRADICTIONS = (
    Contradiction("", lambda o: len(_laddered(o)) > 1, f"only one of {', '.join(LADDERS)} can be set"),
    Contradiction(
        "LCM TCD",
        lambda o: o["original_inference_steps"] > o["num_train_timesteps"],
        "original_inference_steps are more than num_train_timesteps",
    ),
    Contradiction(
        "DPMSolverMultistep DPMSolverSinglestep",
        lambda o: o["algorithm_type"].endswith("dpmsolver") and o["final_sigmas_type"] == "zero",
        "algorithm_type 'dpmsolver' cannot end at zero",
        "use final_sigmas_type 'sigma_min', or algorithm_type 'dpmsolver++'",
    ),
    Contradiction(
        "DPMSolverMultistep",
        lambda o: o["algorithm_type"] == "sde-dpmsolver" and o["solver_order"] == 3,
        "algorithm_type 'sde-dpmsolver' has no solver_order 3",
        "use solver_order 2, or algorithm_type 'sde-dpmsolver++'",
    ),
    Contradiction(
        "DPMSolverSinglestep",
        lambda o: (o["algorithm_type"], o["solver_order"], o["solver_type"]) == ("sde-dpmsolver++", 3, "heun"),
        "algorithm_type 'sde-dpmsolver++' of solver_order 3 leaves noise with solver_type 'heun'",
        "use solver_type 'midpoint'",
    ),
    Contradiction(
        "UniPCMultistep",
        lambda o: o["final_sigmas_type"] == "zero" and not o["lower_order_final"],
        "it cannot end at zero without lower_order_final",
        "use final_sigmas_type 'sigma_min'",
    ),
    Contradiction(
        "UniPCMultistep", lambda o: o["thresholding"] and not o["predict_x0"], "thresholding needs predict_x0"
    ),
    Contradiction(
        "DPMSolverMultistep DPMSolverSinglestep DEISMultistep UniPCMultistep",
        lambda o: o["use_flow_sigmas"] != (o["prediction_type"] == "flow_prediction"),
        "use_flow_sigmas and prediction_type 'flow_prediction' need each other",
    ),
    Contradiction(
        "DPMSolverMultistep DPMSolverSinglestep",
        lambda o: o["use_flow_sigmas"] and o["final_sigmas_type"] == "sigma_min",
        "use_flow_sigmas needs final_sigmas_type 'zero'",
    ),
    Contradiction(
        "DPMSolverMultistep DPMSolverSinglestep DEISMultistep",
        lambda o: o["use_flow_sigmas"] and any(_laddered(o)),
        "use_flow_sigmas goes with no other levels",
    ),
    Contradiction(
        "UniPCMultistep",
        lambda o: o["use_flow_sigmas"] and _laddered(o) not in ([], ["use_karras_sigmas"]),
        "use_flow_sigmas goes with no other levels than use_karras_sigmas",
    ),
)
