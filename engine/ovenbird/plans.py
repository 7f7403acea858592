"""Plans: at which levels a run asks the network on its way down, and where each answer takes it.

Each plan is that of one or several diffusers classes, and is made of their options, the levels of training, a number of
steps, and the call to start with: 0 for noise, a later one for an image with noise added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird.errors import ModelError, RequestError
from ovenbird.noise import (
    PURE_NOISE,
    Sigmas,
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
from ovenbird.solvers import Strides

Timesteps = NDArray[np.int64] | NDArray[np.float32]
Options = Mapping[str, Any]  # every option its class reads
Ladder = Callable[[float, float, int], Sigmas]

LADDERS: dict[str, Ladder] = {
    "use_karras_sigmas": karras_sigmas,
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
    "use_lu_lambdas": exponential_sigmas,  # Lu et al. 2022 space log sigma evenly; their timesteps are rounded
}
RUNGE_KUTTA_STEPS = 3  # with the present output, these give the multistep formula the four it needs


class Plan(NamedTuple):
    """One way down: an entry of each for every model call."""

    timesteps: Timesteps
    sigmas: list[float]  # the level at which the model is asked
    strides: Strides
    above: Sequence[float] = ()  # the levels asked by the calls before the start

    @property
    def known(self) -> list[float]:
        """The level of what inpainting keeps, for every call: amid a step that of its end, as in diffusers."""
        return [
            sigma if sigma == leaves else lands
            for sigma, (leaves, lands) in zip(self.sigmas, self.strides, strict=True)
        ]


def diffusion_training(options: Options, pure: float = 4096.0) -> Sigmas:
    """Sigma of every training timestep, and ``pure`` where nothing but noise is left.

    ModelError if the betas are not those of a diffusion.
    """
    count, given = options["num_train_timesteps"], options["trained_betas"]
    betas = given
    if given is None:
        betas = training_betas(options["beta_schedule"], options["beta_start"], options["beta_end"], count)
    if betas.shape != (count,) or not np.all((betas > 0) & (betas < 1)):
        raise ModelError(f"the scheduler's betas are not {count} numbers between 0 and 1")
    sigmas = training_sigmas(zero_terminal_snr(betas) if options["rescale_betas_zero_snr"] else betas, pure)
    if sigmas[0] == 0:
        raise ModelError("the scheduler's first beta is so small that its level has no noise")
    return sigmas


# Classes that scale latents by sigma: timesteps need not be whole.


def euler_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    """A stride from each level to the next, and at last to the end."""
    timesteps, sigmas = _levels(options, trained, count)
    return _joined(timesteps.astype(np.float32), sigmas, _end(options, trained), start)


def heun_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    """The second call of a step is where the step lands."""
    timesteps, sigmas = _levels(options, trained, count)
    return _two_calls(timesteps, sigmas, timesteps[1:], sigmas[1:], start)


def dpm2_plan(options: Options, trained: Sigmas, count: int, start: int, *, eta: float = 0.0) -> Plan:
    """The second call of a step is halfway, in log sigma, to where the step lands before fresh noise is added."""
    timesteps, sigmas = _levels(options, trained, count)
    if options["use_karras_sigmas"]:
        timesteps = timesteps.round()
    lower = sigmas[1:]
    between = np.sqrt(sigmas[:-1] * lower) if not eta else lower
    return _two_calls(timesteps, sigmas, timestep_at(between, trained), between, start)


def _levels(options: Options, trained: Sigmas, count: int) -> tuple[NDArray[np.float64], Sigmas]:
    timesteps = _spaced(options, trained, count).astype(np.float32).astype(np.float64)
    sigmas = sigma_at(timesteps, trained)
    if ladder := _ladder(options):
        sigmas = ladder(*_range(options, sigmas), count)
        timesteps = timestep_at(sigmas, trained)
    return timesteps, sigmas


def _two_calls(
    timesteps: NDArray[np.float64],
    sigmas: Sigmas,
    between_timesteps: NDArray[np.float64],
    between: Sigmas,
    start: int,
) -> Plan:
    """Each step but the last: first to the level between, asked there, then again from its beginning to its end."""
    asked_timesteps, asked, lands = (np.empty(2 * len(sigmas) - 1) for _ in range(3))
    asked_timesteps[::2], asked_timesteps[1::2] = timesteps, between_timesteps
    asked[::2], asked[1::2] = sigmas, between
    lands[:-1:2], lands[1::2], lands[-1] = between, sigmas[1:], 0.0
    leaves = np.repeat(sigmas, 2)[:-1]
    strides = list(zip(leaves.tolist(), lands.tolist(), strict=True))
    return _from(start, asked_timesteps.astype(np.float32), asked.tolist(), strides)


# Classes that keep latents at unit variance: timesteps are whole.


def multistep_plan(
    options: Options,
    trained: Sigmas,
    count: int,
    start: int,
    *,
    flow: Callable[[int, int], NDArray[np.float64]],
    holds: bool = False,
    cosine_rounds: bool = True,
) -> Plan:
    """The DPM-Solver classes, UniPC and DEIS, each with a difference of its own.

    ``flow`` gives the shares of noise that a flow asks at, of a number of timesteps, in a number of steps.  With
    ``holds``, runs that do not end at 0 stay at a ladder's last level for their last stride.  With ``cosine_rounds``,
    the timestep of a ladder's level is the nearest, not the one below, for cosine betas too.
    """
    options = {"final_sigmas_type": "sigma_min", **options}
    if ladder := _ladder(options):
        sigmas = ladder(*_range(options, trained[::-1]), count)
        timesteps = _timesteps_of(sigmas, options, trained, cosine_rounds)
    elif options["use_flow_sigmas"]:
        shares = np.minimum(_shifted(flow(len(trained), count), options["flow_shift"]), 1 - 1e-6)
        timesteps, sigmas = shares * len(trained), _sigma_of(shares)
    else:
        timesteps, holds = _inner(options, trained, count), False
        sigmas = sigma_at(timesteps, trained)
    end = _end(options, sigmas[::-1] if holds else trained)
    return _joined(timesteps.astype(np.int64), sigmas, end, start)


def _timesteps_of(sigmas: Sigmas, options: Options, trained: Sigmas, cosine_rounds: bool) -> NDArray[np.float64]:
    if options["use_flow_sigmas"]:
        return sigmas / (1 + sigmas) * len(trained)
    rounds = options["use_karras_sigmas"] or options.get("use_lu_lambdas")
    if rounds and (cosine_rounds or options["beta_schedule"] != "squaredcos_cap_v2"):
        return timestep_at(sigmas, trained).round()
    return timestep_at(sigmas, trained)


def _inner(options: Options, trained: Sigmas, count: int) -> NDArray[np.float64]:
    """Trailing spacing ends above 0 by itself; of the others one more is made, and the last left out."""
    reach = int((-np.log(trained) >= options.get("lambda_min_clipped", -np.inf)).sum())
    if not reach:
        raise ModelError(f"lambda_min_clipped = {options['lambda_min_clipped']} leaves no level of the training")
    extra = 0 if options.get("timestep_spacing") == "trailing" else 1
    return _spaced(options, trained, count + extra, reach)[:count].round()


def ddim_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    """Every stride is as many timesteps long, and need not land where the next one leaves."""
    asked = _whole(options, trained, count)[start:]
    step = len(trained) // count
    return _between(options, trained, asked, [(timestep, timestep - step) for timestep in asked])


def ddpm_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    """A stride from each timestep to the next, and at last to a clean picture."""
    timesteps = np.array(_whole(options, trained, count), np.int64)
    return _joined(timesteps, _known(timesteps, trained), 0.0, start)


def pndm_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    """As DDIM's, but the second call takes the first stride again, wherever a run starts."""
    if not options["skip_prk_steps"]:
        return _runge_kutta_plan(options, trained, count, start)
    timesteps = _whole(options, trained, count)
    step = len(trained) // count
    asked = [*timesteps[:2], *timesteps[1:]][start:]
    strides = [(timestep, timestep - step) for timestep in asked]
    if len(asked) > 1:
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


def lcm_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    """Some of the timesteps that the distillation knew, and at last a clean picture."""
    timesteps = _distilled(options, trained, count)
    return _joined(timesteps, trained[timesteps], 0.0, start)


def tcd_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    """As LCM's, but the lowest level of training is the last."""
    timesteps = _distilled(options, trained, count)
    return _joined(timesteps, trained[timesteps], float(trained[0]), start)


def tcd_depths(plan: Plan, trained: Sigmas, gamma: float) -> list[float]:
    """How deep each stride goes before noise is added: to ``1 - gamma`` times the timestep of its end."""
    lower = np.append(plan.timesteps[1:], 0).astype(np.float32)
    deeper = np.floor(np.float32(1 - gamma) * lower).astype(np.int64)  # in single precision, as torch multiplies
    depths: list[float] = trained[deeper].tolist()
    return depths


def _distilled(options: Options, trained: Sigmas, count: int) -> NDArray[np.int64]:
    known = options["original_inference_steps"]
    spread = np.linspace(0, known, count, endpoint=False).astype(np.int64)
    return np.asarray((known - spread) * (len(trained) // known) - 1, np.int64)


# Flows: the noise has a share of the latents, and what is clean the rest.


def flow_plan(options: Options, trained: Sigmas, count: int, start: int) -> Plan:
    """Shares evenly spaced and then shifted (Esser et al. 2024).

    The lowest is shifted twice, as in diffusers 0.39, where shift 3 ends at 0.00893 instead of 0.00299.
    """
    ends = _shifted(np.array([1.0, 1 / len(trained)]), options["shift"])
    shares = _shifted(np.linspace(ends[0], ends[1], count), options["shift"])
    if ladder := _ladder(options):
        shares = ladder(shares[0], shares[-1], count)
    return _joined((shares * len(trained)).astype(np.float32), _sigma_of(shares), 0.0, start)


def flow_training(options: Options) -> Sigmas:
    """Sigma of every training timestep of a flow; the last is pure noise."""
    count = options["num_train_timesteps"]
    return _sigma_of(_shifted(np.arange(1, count + 1) / count, options["shift"]))


def shares_below_one(trained: int, count: int) -> NDArray[np.float64]:
    """From the second highest share down: the DPM-Solver classes and DEIS."""
    return 1 - np.linspace(1 / trained, 1, count + 1)[:-1]


def shares_from_one(trained: int, count: int) -> NDArray[np.float64]:
    """From pure noise down: UniPC."""
    return np.linspace(1, 1 / trained, count + 1)[:-1]


def _shifted(shares: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    return shift * shares / (1 + (shift - 1) * shares)


def _sigma_of(shares: NDArray[np.float64]) -> Sigmas:
    return np.minimum(shares / np.maximum(1 - shares, 0.5 / PURE_NOISE), PURE_NOISE)


# What plans have in common.


def _spaced(options: Options, trained: Sigmas, count: int, reach: int | None = None) -> NDArray[np.float64]:
    spacing, offset = options.get("timestep_spacing", "linspace"), options.get("steps_offset", 0)
    return spaced_timesteps(spacing, count, len(trained), offset, reach=reach)


def _whole(options: Options, trained: Sigmas, count: int) -> list[int]:
    return [int(timestep) for timestep in _spaced(options, trained, count).round()]


def _known(timesteps: NDArray[np.int64], trained: Sigmas) -> Sigmas:
    """Nothing is above the last level of training."""
    return trained[np.minimum(timesteps, len(trained) - 1)]


def _joined(timesteps: Timesteps, sigmas: Sigmas, end: float, start: int) -> Plan:
    """Every stride lands where the next one leaves."""
    stops: list[float] = [*sigmas.tolist(), end]
    return _from(start, timesteps, stops[:-1], list(pairwise(stops)))


def _from(start: int, timesteps: Timesteps, sigmas: list[float], strides: Strides) -> Plan:
    return Plan(timesteps[start:], sigmas[start:], strides[start:], sigmas[:start])


def _between(options: Options, trained: Sigmas, asked: list[int], strides: list[tuple[int, int]]) -> Plan:
    """Strides from timestep to timestep; all below 0 is the end."""
    end = 0.0 if options["set_alpha_to_one"] else float(trained[0])

    def sigma(timestep: int) -> float:
        return float(trained[min(timestep, len(trained) - 1)]) if timestep >= 0 else end

    sigmas = [sigma(timestep) for timestep in asked]
    return Plan(np.array(asked, np.int64), sigmas, [(sigma(leave), sigma(land)) for leave, land in strides])


def _ladder(options: Options) -> Ladder | None:
    return next((ladder for option, ladder in LADDERS.items() if options.get(option)), None)


def _range(options: Options, sigmas: Sigmas) -> tuple[float, float]:
    """The ends of a ladder: those of descending levels, if the options do not set others."""
    highest, lowest = options.get("sigma_max"), options.get("sigma_min")
    return sigmas[0] if highest is None else highest, sigmas[-1] if lowest is None else lowest


def _end(options: Options, levels: Sigmas) -> float:
    """0, or else the first of ascending levels."""
    return 0.0 if options.get("final_sigmas_type", "zero") == "zero" else float(levels[0])
