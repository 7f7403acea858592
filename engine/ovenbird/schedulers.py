"""Schedulers: which noise levels, which solver, and what the network's answer means.

Three axes, held together by two tables.  ``SAMPLERS`` has the names that people type; ``kinds.KINDS`` has the classes
that a diffusers ``scheduler_config.json`` names.  A new sampler is a generator in ``solvers.py`` and a row in each.
"""

from __future__ import annotations

import difflib
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ovenbird.errors import ModelError, RequestError
from ovenbird.kinds import FLOW, KINDS, SIGMA, Frame, Kind, Run, read_config
from ovenbird.noise import PURE_NOISE, Sigmas
from ovenbird.plans import LADDERS, Options, Plan, Timesteps
from ovenbird.predictions import PREDICTIONS, Known, Remembering, clean_estimate, keep_known, over
from ovenbird.scheduler_config import TRAINING, default
from ovenbird.solvers import Denoise, Latents, Noise, Solver, root

Model = Callable[[Latents, float], Latents]  # (scaled latents, timestep) -> what the network predicts


class Call(NamedTuple):
    """What one call of the model has led to."""

    latents: Latents
    """Where the run is now, and begins the next call, as the diffusers class keeps them."""
    clean: Latents
    """What the model took the latents before for: the clean ones, as it estimates them, ready to be decoded."""


class Sampler(NamedTuple):
    """A name to ask for, its label in web UIs, and the scheduler options it stands for."""

    name: str
    label: str
    options: Options

    @property
    def class_name(self) -> str:
        """The diffusers class."""
        return str(self.options["_class_name"])

    @property
    def suffixes(self) -> list[str]:
        """What may follow this name, to choose other noise levels."""
        return [suffix for suffix, option in SUFFIXES.items() if option in KINDS[self.class_name].rules]

    def on(self, suffix: str) -> Sampler:
        """The same on other noise levels: ``euler`` on ``karras`` is ``euler_karras``, which UIs call Euler Karras."""
        options = {**self.options, SUFFIXES[suffix]: True}
        return Sampler(f"{self.name}_{suffix}", f"{self.label} {suffix.capitalize()}", options)


def _row(name: str, label: str, class_name: str, **options: Any) -> Sampler:
    return Sampler(name, label, {"_class_name": f"{class_name}Scheduler", **dict.fromkeys(LADDERS, False), **options})


SUFFIXES = {option.split("_")[1]: option for option in LADDERS}  # karras -> use_karras_sigmas
_MULTI = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "solver_order": 2}
_SDE = {**_MULTI, "algorithm_type": "sde-dpmsolver++"}
_ROWS = (  # without DPM++ 3M SDE: the formula that diffusers has for it is not that of web UIs
    # Latents are not confined to [-1, 1]; some classes clip them there unless told not to.
    _row("ddim", "DDIM", "DDIM", clip_sample=False),
    _row("ddpm", "DDPM", "DDPM", clip_sample=False, variance_type="fixed_small"),
    _row("pndm", "PLMS", "PNDM", skip_prk_steps=True),
    _row("lms", "LMS", "LMSDiscrete"),
    _row("euler", "Euler", "EulerDiscrete"),
    _row("euler_a", "Euler a", "EulerAncestralDiscrete"),
    _row("heun", "Heun", "HeunDiscrete", clip_sample=False),
    _row("dpm2", "DPM2", "KDPM2Discrete"),
    _row("dpm2_a", "DPM2 a", "KDPM2AncestralDiscrete"),
    _row("dpmpp_2m", "DPM++ 2M", "DPMSolverMultistep", **_MULTI),
    _row("dpmpp_2m_sde", "DPM++ 2M SDE", "DPMSolverMultistep", **_SDE),
    _row("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun", "DPMSolverMultistep", **{**_SDE, "solver_type": "heun"}),
    _row("dpmpp_3m", "DPM++ 3M", "DPMSolverMultistep", **{**_MULTI, "solver_order": 3}),
    _row("dpmpp_2s", "DPM++ 2S", "DPMSolverSinglestep", **_MULTI),
    _row("dpmpp_2s_sde", "DPM++ 2S SDE", "DPMSolverSinglestep", **_SDE),
    _row("dpmpp_3s", "DPM++ 3S", "DPMSolverSinglestep", **{**_MULTI, "solver_order": 3}),
    _row(
        "unipc", "UniPC", "UniPCMultistep", solver_order=2, solver_type="bh2", predict_x0=True, lower_order_final=True
    ),
    _row("deis", "DEIS", "DEISMultistep", solver_order=2, solver_type="logrho", algorithm_type="deis"),
    _row("lcm", "LCM", "LCM", clip_sample=False),
    _row("tcd", "TCD", "TCD", clip_sample=False, thresholding=False),
    _row("flow_euler", "Flow Euler", "FlowMatchEulerDiscrete"),
)
SAMPLERS = {row.name: row for row in _ROWS}
_NAMED = {named.name: named for row in _ROWS for named in (row, *map(row.on, row.suffixes))}
NAMES = tuple(_NAMED)
_SPELLED = {row.class_name.lower(): row for row in reversed(_ROWS)}  # a class stands for its first row
_SPELLED |= {spelled.lower(): row for row in _NAMED.values() for spelled in (row.label, row.name)}


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a diffusers ``scheduler_config.json`` describes; ModelError for anything not known here."""
    return Scheduler(*read_config(config))


def from_name(name: str, config: Mapping[str, Any]) -> Scheduler:
    """A sampler by its name, for the model whose own scheduler config is given.

    Everything that the named row does not set stays as the model has it.  RequestError for an unknown name, or if this
    model cannot be sampled so; ModelError for a config that is wrong by itself.
    """
    own = KINDS.get(str(config.get("_class_name")))
    trained = {option: default(own.rules[option]) for option in TRAINING if option in own.rules} if own else {}
    row = sampler(name)
    try:
        return from_config({**trained, **config, **row.options})
    except ModelError as error:
        from_config(config)  # raises where it is the model that is wrong
        raise RequestError(f"scheduler: {row.name} is not for this model: {error}", hint="leave it out") from error


def sampler(name: str) -> Sampler:
    """The row of a name, of a web UI's label, or of a diffusers class, in any case.

    RequestError, with the nearest name there is, for any other.
    """
    spelled = str(name).strip().lower()
    if spelled in _SPELLED:
        return _SPELLED[spelled]
    near = difflib.get_close_matches(spelled, _SPELLED, n=1, cutoff=0.4)
    hint = f"did you mean {_SPELLED[near[0]].name!r}?" if near else None
    known = f"{', '.join(SAMPLERS)}; many also with _{', _'.join(SUFFIXES)}"
    raise RequestError(f"scheduler: {name!r:.60} is not one of {known}", hint=hint)


@dataclass(frozen=True, eq=False)
class Scheduler:
    """A way down from noise to a picture; it holds nothing of any run.

    Latents are in the coordinates of the diffusers class: clean + sigma * noise, or the same scaled to unit variance,
    or the mixture of a flow.  ``start`` is an index into ``timesteps``, a multiple of ``calls_per_step``: at 0 a run
    begins with noise, later with an image that ``add_noise`` took there.  RequestError for a number of steps outside
    1..num_train_timesteps (for LCM and TCD, original_inference_steps), or a ``start`` that leaves no step.
    """

    class_name: str
    options: Options
    trained: Sigmas = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Freeze the options and work out the levels of training, once."""
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        object.__setattr__(self, "trained", self._kind.training(self.options))
        self.trained.flags.writeable = False

    @property
    def label(self) -> str:
        """What web UIs call it; the class, if no name stands for these options."""
        whole = {**dict.fromkeys(LADDERS, False), **self.options, "_class_name": self.class_name}
        return next((row.label for row in _NAMED.values() if row.options.items() <= whole.items()), self.class_name)

    @property
    def calls_per_step(self) -> int:
        """How often a step asks the model: 2 for Heun and DPM2, whose last step asks once."""
        return self._kind.calls

    def timesteps(self, num_inference_steps: int) -> Timesteps:
        """The timestep of every model call, in order."""
        return self._plan(num_inference_steps, 0).timesteps

    def calls(self, num_inference_steps: int, start: int = 0) -> int:
        """How often a run asks the model; for PLMS once more than it has steps."""
        return len(self._plan(num_inference_steps, start).strides)

    def init_noise_sigma(self, num_inference_steps: int) -> float:
        """What to multiply standard normal noise with to have the latents a run begins with."""
        highest = max(self._plan(num_inference_steps, 0).sigmas)
        if self._frame is not SIGMA:
            return 1.0
        return root(highest) if self.options["timestep_spacing"] == "leading" else highest

    def start_at(self, num_inference_steps: int, strength: float) -> int:
        """The ``start`` of a run of the last ``strength`` of the steps, rounded as diffusers rounds it."""
        return (num_inference_steps - int(num_inference_steps * strength)) * self.calls_per_step

    def add_noise(self, latents: Latents, noise: Latents, num_inference_steps: int, start: int) -> Latents:
        """Clean latents, taken up to where a run from ``start`` begins."""
        sigma = self._plan(num_inference_steps, start).sigmas[0]
        return np.asarray((latents + noise * sigma) / self._frame.kept(sigma), np.float32)

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
        """The latents after the last of ``steps``."""
        calls = self.steps(model, latents, num_inference_steps, noise=noise, start=start, eta=eta)
        return deque(calls, maxlen=1)[0].latents

    def check_eta(self, eta: float) -> None:
        """RequestError unless ``eta`` is from 0 to 1, and 0 for a sampler that would ignore it.

        It goes from DDIM to DDPM; for TCD it is gamma, from no fresh noise to as much as LCM's.
        """
        if not 0 <= eta <= 1:
            raise RequestError(f"eta {eta!r:.40} is not between 0 and 1")
        if eta and not self._kind.takes_eta:
            raise RequestError(f"eta {eta} is for DDIM and TCD; {self.label} would ignore it", hint="leave eta at 0")

    def steps(
        self,
        model: Model,
        latents: Latents,
        num_inference_steps: int,
        *,
        noise: Noise | None = None,
        start: int = 0,
        eta: float = 0.0,
        known: Known | None = None,
    ) -> Iterator[Call]:
        """Every call of the model, and the latents after it.

        ``model(model_input, timestep)`` stands for the U-Net in a diffusers loop: scaled latents in, raw prediction
        out.  ``noise()`` gives the next standard normal array of the latents' shape; samplers that add fresh noise need
        it.  What is ``known`` is put back at the level of every call but the first, clean at the end.  RequestError
        comes from the call itself, not from the first step.  Warns of a run from noise that will not lead to a picture,
        as a single step of most spacings.
        """
        self.check_eta(eta)
        if noise is None and self._kind.draws(self.options, eta):
            raise RequestError(f"{self.label} adds noise at every step: noise= must be given")
        plan = self._plan(num_inference_steps, start)
        first, last = plan.sigmas[0], plan.strides[-1][1]
        if not start and not first > 1 > last:
            warnings.warn(
                f"{num_inference_steps} steps of {self.label} lead from level {first:.3g} to {last:.3g}, not from "
                "noise to a picture: take another number, or another timestep_spacing",
                stacklevel=2,
            )
        solver = self._kind.solver(Run(self.options, self.trained, plan, eta))
        if known is not None:
            solver = over(partial(keep_known, known=known, levels=plan.known), solver)
        walk = self._walk(solver, plan, model, np.asarray(latents, np.float32), noise or _no_noise)
        return walk if known is None else self._keeping(walk, plan, known)

    def _keeping(self, walk: Iterator[Call], plan: Plan, known: Known) -> Iterator[Call]:
        for call, sigma in zip(walk, [*plan.known[1:], 0.0], strict=True):
            latents = known.into(call.latents, sigma, self._frame.kept(sigma))
            yield Call(latents.astype(np.float32), known.into(call.clean, 0.0).astype(np.float32))

    def _walk(self, solver: Solver, plan: Plan, model: Model, latents: Latents, noise: Noise) -> Iterator[Call]:
        kept, denoise = self._frame.kept, Remembering(self._denoiser(model, plan))
        walk = solver(denoise, latents * kept(plan.strides[0][0]), plan.strides, noise)
        for x, (_, lower) in zip(walk, plan.strides, strict=True):
            yield Call(np.asarray(x / kept(lower), np.float32), np.asarray(denoise.latest, np.float32))

    def _denoiser(self, model: Model, plan: Plan) -> Denoise:
        calls = zip(plan.sigmas, plan.timesteps.tolist(), strict=True)
        scalings, shown = PREDICTIONS[self.options["prediction_type"]], self._frame.shown

        def denoise(x: Latents, sigma: float) -> Latents:
            planned, timestep = next(calls)
            assert sigma == planned, "a solver asked at another level than planned"
            output = model(np.asarray(x / shown(sigma), np.float32), timestep)
            return clean_estimate(np.asarray(output, np.float32), x, *scalings(sigma))

        return denoise

    def _plan(self, num_inference_steps: int, start: int) -> Plan:
        most = self.options.get("original_inference_steps", len(self.trained))
        if not _is_whole(num_inference_steps) or not 1 <= num_inference_steps <= most:
            raise RequestError(f"num_inference_steps {num_inference_steps!r:.40} is not a whole number in 1..{most}")
        if not _is_whole(start) or start < 0:
            raise RequestError(f"start {start!r:.40} is not an index into the timesteps")
        if start % self.calls_per_step:
            raise RequestError(f"start {start} is amid a step of {self.label}", hint=f"use {start - 1} or {start + 1}")
        plan = self._kind.plan(self.options, self.trained, int(num_inference_steps), int(start))
        if not plan.strides:
            raise RequestError(f"start {start} leaves nothing of {num_inference_steps} steps")
        if max(plan.sigmas) >= PURE_NOISE and self.options["prediction_type"] == "epsilon":
            raise ModelError(
                "the first level is pure noise, of which a prediction of noise says nothing",
                hint="rescale_betas_zero_snr goes with prediction_type 'v_prediction', or timestep_spacing 'leading'",
            )
        return plan

    @property
    def _kind(self) -> Kind:
        return KINDS[self.class_name]

    @property
    def _frame(self) -> Frame:
        return FLOW if self.options.get("use_flow_sigmas") else self._kind.frame


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _no_noise() -> Latents:
    raise AssertionError("a solver drew noise that its kind does not declare")
