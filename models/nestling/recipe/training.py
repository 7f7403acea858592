"""What the three trainings share: an optimiser, an average of the weights, checkpoints that resume exactly."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices and convolutions, AdamW for all else (Jordan et al., 2024).

    ``torch.optim.Muon`` takes matrices only; here a kernel (out, in, 3, 3) counts as a matrix (out, 9 in).
    """

    def __init__(
        self, modules: Iterable[nn.Module], lr: float, adam_lr: float, embeddings: set[int] | None = None
    ) -> None:
        matrices, others = [], []
        for module in modules:
            for parameter in module.parameters():
                small = parameter.ndim < 2 or min(parameter.shape[0], parameter[0].numel()) < 8
                other = small or id(parameter) in (embeddings or set())
                (others if other else matrices).append(parameter)
        groups = [dict(params=matrices, kind="muon", base=lr), dict(params=others, kind="adam", base=adam_lr)]
        super().__init__(groups, dict(lr=lr))

    def set_progress(self, share: float, level: float = 0.4, warmup: float = 0.02) -> None:
        """Warm up, stay level up to a share of the training, then fall straight to nothing."""
        factor = min(1.0, share / warmup, max(0.0, (1 - share) / (1 - level)))
        for group in self.param_groups:
            group["lr"] = group["base"] * factor

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["kind"] == "adam":
                for parameter in moved:
                    self._adam(parameter, self.state[parameter], group["lr"])
                continue
            alike: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in moved:
                alike.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
            for parameters in alike.values():  # matrices of one size go through the iteration together
                self._muon(parameters, group["lr"])

    def _muon(self, parameters: list[Tensor], lr: float) -> None:
        directions = torch.stack([self._direction(parameter, self.state[parameter]) for parameter in parameters])
        rows, columns = directions.shape[1:]
        scale = math.sqrt(max(1.0, rows / columns))
        for parameter, update in zip(parameters, orthogonalise(directions), strict=True):
            parameter.mul_(1 - 0.01 * lr).add_(update.view(parameter.shape), alpha=-lr * scale)

    def _direction(self, parameter: Tensor, state: dict[str, Any]) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 0.05)
        return parameter.grad.lerp(state["momentum"], 0.95).flatten(1)

    def _adam(self, parameter: Tensor, state: dict[str, Any], lr: float) -> None:
        if not state:
            state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
        state["step"] += 1
        state["first"].lerp_(parameter.grad, 0.1)
        state["second"].lerp_(parameter.grad.square(), 0.01)
        first = state["first"] / (1 - 0.9 ** state["step"])
        second = state["second"] / (1 - 0.99 ** state["step"])
        parameter.addcdiv_(first, second.sqrt().add_(1e-8), value=-lr)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices (N, rows, columns), roughly, by a quintic Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Average:
    """An exponential moving average of the weights, quick to follow at first."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.decay, self.count = decay, 0
        self.live = [p for m in modules for p in m.parameters()]
        self.mean = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        weight = 1 - min(self.decay, self.count / (self.count + 10))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Put the average where the live weights are, and keep those; a second call undoes it."""
        for live, mean in zip(self.live, self.mean, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)


class Checkpoint:
    """Saves everything a training needs to go on, by replacing one file."""

    def __init__(self, path: Path, modules: list[nn.Module], optimiser: Muon, average: Average) -> None:
        self.path, self.modules, self.optimiser, self.average = path, modules, optimiser, average

    def save(self, step: int, **extra: Any) -> None:
        state = dict(
            step=step,
            modules=[m.state_dict() for m in self.modules],
            optimiser=self.optimiser.state_dict(),
            average=(self.average.count, self.average.mean),
            rng=torch.get_rng_state(),
            **extra,
        )
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)

    def load(self) -> int:
        """The step to go on from; 0 when there is nothing to resume."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for module, weights in zip(self.modules, state["modules"], strict=True):
            module.load_state_dict(weights)
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.count, self.average.mean = state["average"]
        torch.set_rng_state(state["rng"])
        return int(state["step"])


class Log:
    """Prints a line now and then: the step, the smoothed losses, the speed."""

    def __init__(self, name: str, steps: int, every: int) -> None:
        self.name, self.steps, self.every = name, steps, every
        self.start, self.sums, self.count = time.monotonic(), {}, 0  # type: ignore[var-annotated]

    def add(self, step: int, **values: float) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1
        if step % self.every == 0:
            means = "  ".join(f"{key} {total / self.count:.4f}" for key, total in self.sums.items())
            each = (time.monotonic() - self.start) / self.count
            print(f"{self.name} {step}/{self.steps}  {means}  {each:.3f} s/step", flush=True)
            self.start, self.sums, self.count = time.monotonic(), {}, 0
