"""Kinds: the scheduler classes of diffusers, taken apart into options, plan and solver.

``KINDS`` has a row for each class that a ``scheduler_config.json`` may name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ovenbird import averages, plans, solvers
from ovenbird import scheduler_config as rules
from ovenbird.errors import ModelError
from ovenbird.noise import PURE_NOISE, Sigmas
from ovenbird.plans import Options, Plan
from ovenbird.predictions import PREDICTIONS, anchored, clipped, over, threshold
from ovenbird.scheduler_config import reading
from ovenbird.solvers import LAWS, Latents, Solver, root


class Frame(NamedTuple):
    """What latents are divided by, of what sigma is: as a class keeps them, and as the network sees them."""

    kept: Callable[[float], float]
    shown: Callable[[float], float]


SIGMA = Frame(lambda sigma: 1.0, root)
UNIT = Frame(root, root)
FLOW = Frame(lambda sigma: 1 + sigma, lambda sigma: 1 + sigma)


class Run(NamedTuple):
    """What a solver is made for."""

    options: Options
    trained: Sigmas
    plan: Plan
    eta: float

    @property
    def total(self) -> int:
        """The calls of the model from the very top, wherever this run starts."""
        return len(self.plan.above) + len(self.plan.strides)


class Kind(NamedTuple):
    """A diffusers scheduler class, taken apart."""

    plan: Callable[[Options, Sigmas, int, int], Plan]  # of options, training, number of steps and start
    solver: Callable[[Run], Solver]
    rules: Options
    frame: Frame = UNIT
    draws: Callable[[Options, float], bool] = lambda options, eta: False  # whether it needs noise
    takes_eta: bool = False
    calls: int = 1  # of the model in one step
    training: Callable[[Options], Sigmas] = plans.diffusion_training


# Which solver each class walks with.


def _plain(solver: Solver) -> Callable[[Run], Solver]:
    return lambda run: _clipping(run, solver)


def _ddim(run: Run) -> Solver:
    return partial(solvers.ddim, eta=run.eta, clip=_clip(run.options) or (lambda x0: x0))


def _ddpm(run: Run) -> Solver:
    wide = run.options["variance_type"] == "fixed_large"
    return _clipping(run, partial(solvers.ddpm, lowest=float(run.trained[0]), wide=wide))


def _pndm(run: Run) -> Solver:
    warm_up = 0 if run.options["skip_prk_steps"] else min(plans.RUNGE_KUTTA_STEPS, (run.total - 1) // 4)
    return partial(solvers.pndm, scalings=PREDICTIONS[run.options["prediction_type"]], warm_up=warm_up)


def _lms(run: Run) -> Solver:
    return partial(solvers.lms, above=run.plan.above)


def _dpm_multistep(run: Run) -> Solver:
    pair = averages.midpoint if run.options["solver_type"] == "midpoint" else averages.exact
    rule = averages.published(pair, stochastic=_stochastic(run.options, run.eta))
    law = LAWS[run.options["algorithm_type"]]
    return _clipping(run, partial(solvers.multistep, law=law, rule=rule, orders=_multistep_orders(run)))


def _deis(run: Run) -> Solver:
    law = LAWS["dpmsolver"]
    return _clipping(run, partial(solvers.multistep, law=law, rule=averages.exact, orders=_multistep_orders(run)))


def _multistep_orders(run: Run) -> list[int]:
    """How many answers each stride uses: fewer towards the end of short runs, one to get to 0."""
    short = run.options["lower_order_final"] and run.total < 15
    orders = _lower_and_lower(run) if short else [run.options["solver_order"]] * len(run.plan.strides)
    if run.options.get("euler_at_final") or run.plan.strides[-1][1] == 0:
        orders[-1] = 1
    return orders


def _lower_and_lower(run: Run) -> list[int]:
    return [min(run.options["solver_order"], left) for left in range(len(run.plan.strides), 0, -1)]


def _dpm_singlestep(run: Run) -> Solver:
    rule = averages.chord if run.options["solver_type"] == "midpoint" else averages.exact
    law, most = LAWS[run.options["algorithm_type"]], run.options["solver_order"]
    orders = [1 + call % most for call in range(run.total)]
    if run.plan.strides[-1][1] == 0 or (run.options["lower_order_final"] and run.total % most == 0):
        orders[-1] = 1
    orders = orders[len(run.plan.above) :]
    return _clipping(run, partial(solvers.singlestep, law=law, rule=rule, orders=orders))


def _unipc(run: Run) -> Solver:
    options = run.options
    constant = [options["solver_order"]] * len(run.plan.strides)
    solver = partial(
        solvers.unipc,
        law=LAWS["dpmsolver++" if options["predict_x0"] else "dpmsolver"],
        rule=averages.midpoint if options["solver_type"] == "bh2" else averages.leaning,
        orders=_lower_and_lower(run) if options["lower_order_final"] else constant,
        uncorrected=[step - len(run.plan.above) for step in options["disable_corrector"]],
    )
    return _clipping(run, solver)


def _lcm(run: Run) -> Solver:
    shares = {}
    for sigma, timestep in zip(run.plan.sigmas, run.plan.timesteps.tolist(), strict=True):
        square = (2 * timestep * run.options["timestep_scaling"]) ** 2
        shares[sigma] = 1 / (square + 1), math.sqrt(square / (square + 1))
    return _clipping(run, over(partial(anchored, shares=shares), solvers.lcm))


def _tcd(run: Run) -> Solver:
    return partial(solvers.tcd, depths=plans.tcd_depths(run.plan, run.trained, run.eta))


def _flow(run: Run) -> Solver:
    return solvers.lcm if run.options["stochastic_sampling"] else solvers.euler


def _clipping(run: Run, solver: Solver) -> Solver:
    clip = _clip(run.options)
    return over(partial(clipped, clip=clip), solver) if clip else solver


def _clip(options: Options) -> Callable[[Latents], Latents] | None:
    if options.get("thresholding"):
        return partial(threshold, quantile=options["dynamic_thresholding_ratio"], limit=options["sample_max_value"])
    if options.get("clip_sample"):
        limit = options["clip_sample_range"]
        return lambda x0: np.clip(x0, -limit, limit)
    return None


# Whether a run needs noise.


def _always(options: Options, eta: float) -> bool:
    return True


def _with_eta(options: Options, eta: float) -> bool:
    return eta > 0


def _stochastic(options: Options, eta: float) -> bool:
    return bool(options.get("algorithm_type", "").startswith("sde") or options.get("stochastic_sampling"))


_pure = partial(plans.diffusion_training, pure=PURE_NOISE)  # diffusers' other classes stop at a sigma of 4096
_dpm2_rules = reading(
    rules.TRAINING, rules.LATENT_BETAS, rules.NEVER_PURE_NOISE, rules.NOT_SAMPLE, rules.SPACED, rules.RESPACED
)

KINDS = {
    "DDIMScheduler": Kind(
        plan=plans.ddim_plan,
        solver=_ddim,
        draws=_with_eta,
        takes_eta=True,
        training=_pure,
        rules=reading(rules.TRAINING, rules.LEADING, rules.CLIPPING, set_alpha_to_one=(True, False)),
    ),
    "DDPMScheduler": Kind(
        plan=plans.ddpm_plan,
        solver=_ddpm,
        draws=_always,
        training=_pure,
        rules=reading(
            rules.TRAINING,
            rules.LEADING,
            rules.CLIPPING,
            variance_type=("fixed_small", "fixed_small_log", "fixed_large"),
        ),
    ),
    "PNDMScheduler": Kind(
        plan=plans.pndm_plan,
        solver=_pndm,
        rules=reading(
            rules.TRAINING,
            rules.NEVER_PURE_NOISE,
            rules.NOT_SAMPLE,
            rules.LEADING,
            skip_prk_steps=(False, True),
            set_alpha_to_one=(False, True),
        ),
    ),
    "LMSDiscreteScheduler": Kind(
        plan=plans.euler_plan,
        solver=_lms,
        frame=SIGMA,
        rules=reading(rules.TRAINING, rules.NEVER_PURE_NOISE, rules.SPACED, rules.RESPACED),
    ),
    "EulerDiscreteScheduler": Kind(
        plan=plans.euler_plan,
        solver=_plain(solvers.euler),
        frame=SIGMA,
        rules=reading(
            rules.TRAINING,
            rules.SPACED,
            rules.RESPACED,
            rules.RANGE,
            rules.FINAL,
            interpolation_type=("linear",),
        ),
    ),
    "EulerAncestralDiscreteScheduler": Kind(
        plan=plans.euler_plan,
        solver=_plain(solvers.euler_ancestral),
        frame=SIGMA,
        draws=_always,
        rules=reading(rules.TRAINING, rules.NOT_SAMPLE, rules.SPACED),
    ),
    "HeunDiscreteScheduler": Kind(
        plan=plans.heun_plan,
        solver=_plain(solvers.heun),
        frame=SIGMA,
        calls=2,
        rules=reading(
            rules.TRAINING,
            rules.LATENT_BETAS,
            rules.NEVER_PURE_NOISE,
            rules.SPACED,
            rules.RESPACED,
            clip_sample=(False, True),
            clip_sample_range=1.0,
        ),
    ),
    "KDPM2DiscreteScheduler": Kind(
        plan=plans.dpm2_plan,
        solver=_plain(solvers.dpm2),
        frame=SIGMA,
        calls=2,
        rules=_dpm2_rules,
    ),
    "KDPM2AncestralDiscreteScheduler": Kind(
        plan=partial(plans.dpm2_plan, eta=1.0),
        solver=_plain(partial(solvers.dpm2, eta=1.0)),
        frame=SIGMA,
        draws=_always,
        calls=2,
        rules=_dpm2_rules,
    ),
    "DPMSolverMultistepScheduler": Kind(
        plan=partial(plans.multistep_plan, cosine_rounds=False, flow=plans.shares_below_one),
        solver=_dpm_multistep,
        draws=_stochastic,
        rules=reading(
            rules.DPM,
            rules.SPACED,
            algorithm_type=(*rules.DPM["algorithm_type"], "sde-dpmsolver"),
            euler_at_final=(False, True),
            use_lu_lambdas=(False, True),
        ),
    ),
    "DPMSolverSinglestepScheduler": Kind(
        plan=partial(plans.multistep_plan, flow=plans.shares_below_one),
        solver=_dpm_singlestep,
        draws=_stochastic,
        rules=reading(rules.DPM, rules.NEVER_PURE_NOISE, lower_order_final=(False, True)),
    ),
    "DEISMultistepScheduler": Kind(
        plan=partial(plans.multistep_plan, holds=True, flow=plans.shares_below_one),
        solver=_deis,
        rules=reading(
            rules.MULTISTEP,
            rules.NEVER_PURE_NOISE,
            rules.SPACED,
            algorithm_type=("deis",),
            solver_type=("logrho",),
        ),
    ),
    "UniPCMultistepScheduler": Kind(
        plan=partial(plans.multistep_plan, holds=True, flow=plans.shares_from_one),
        solver=_unipc,
        rules=reading(
            rules.MULTISTEP,
            rules.SPACED,
            rules.RANGE,
            rules.FINAL,
            solver_type=("bh2", "bh1"),
            predict_x0=(True, False),
            disable_corrector=(),  # or the steps that are not corrected
            solver_p=(None,),
            shift_terminal=(None,),
        ),
    ),
    "LCMScheduler": Kind(
        plan=plans.lcm_plan,
        solver=_lcm,
        draws=_always,
        training=_pure,
        rules=reading(rules.DISTILLED, rules.CLIPPING, clip_sample=(False, True), timestep_scaling=10.0),
    ),
    "TCDScheduler": Kind(
        plan=plans.tcd_plan,
        solver=_tcd,
        draws=_with_eta,
        takes_eta=True,
        training=_pure,
        rules=reading(rules.DISTILLED, clip_sample=(False,), thresholding=(False,)),
    ),
    "FlowMatchEulerDiscreteScheduler": Kind(
        plan=plans.flow_plan,
        solver=_flow,
        frame=FLOW,
        draws=_stochastic,
        training=plans.flow_training,
        rules=reading(
            rules.RESPACED,
            num_train_timesteps=1000,
            prediction_type=("flow_prediction",),
            shift=1.0,
            shift_terminal=(None,),
            invert_sigmas=(False,),
            use_dynamic_shifting=(False,),
            stochastic_sampling=(False, True),
        ),
    ),
}

# Classes that are not here, and what is nearest to them.
NEAREST = {"DPMSolverSDEScheduler": "the sampler dpmpp_2s_sde; this one draws its noise from torchsde"}

# Options that are in diffusers' configs and change nothing here.
_IDLE = ("solver_p", "time_shift_type", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
_ELSEWHERE = {option for kind in KINDS.values() for option in kind.rules} | {*_IDLE}


def read_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class that a config names, and every option that the class reads.  ModelError for anything not known here."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in KINDS:
        near = NEAREST.get(str(name))
        hint = f"nearest is {near}" if near else f"known: {', '.join(KINDS)}"
        raise ModelError(f"scheduler class {name!r:.80} is not known", hint=hint)
    return name, rules.read(name, config, KINDS[name].rules, _ELSEWHERE)
