"""What the U-Net is given while the model itself samples: the data that quantisation measures ranges on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Backend, CompiledModel, Shapes, create
from ovenbird.bundle import Bundle
from ovenbird.errors import RequestError
from ovenbird.pipeline import Pipeline
from ovenbird.request import MIN_SIZE, Request
from ovenbird_export.recipes import Arrays, Cases

STEPS = (4, 5, 6)
KEEP = 2
"""One U-Net call in so many is kept, another one for each prompt, so that together they meet every noise level."""
LARGEST_SIDE = 256
"""Pixels.  A smaller picture meets the same ranges in a fraction of the time."""
MOST_PROMPTS = 64


def read_prompts(path: Path | None) -> list[str]:
    """One prompt a line, empty lines skipped; the project's own list when there is no ``path``.

    Raises ``RequestError`` when the file cannot be read or holds none, or too many.
    """
    source = path if path is not None else files("ovenbird_export") / "calibration.txt"
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"calibration: {path} cannot be read as text: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise RequestError(f"calibration: {path} holds {len(prompts)} prompts, not 1 to {MOST_PROMPTS}")
    return prompts


def record(folder: Path, prompts: Sequence[str]) -> list[Arrays]:
    """Inputs of the U-Net in ``folder``, in float32 on OpenVINO, while it makes a picture of each prompt."""
    recorder = Recorder(create("openvino"), "unet")
    pipeline = Pipeline(Bundle.open(folder), recorder, inference_precision="f32")
    side = min(max(pipeline.bundle.default_size, MIN_SIZE), LARGEST_SIDE)
    samples: list[Arrays] = []
    for number, prompt in enumerate(prompts):
        wish = Request(
            prompt=prompt, seed=number, num_inference_steps=STEPS[number % len(STEPS)], height=side, width=side
        )
        pipeline.generate(wish)
        samples += [inputs for inputs, _ in recorder.calls[number % KEEP :: KEEP]]
        recorder.calls.clear()
    return samples


class Recorder:
    """A runtime that keeps what one component is called with, and what it answers."""

    def __init__(self, backend: Backend, component: str) -> None:
        self.backend, self.component = backend, component
        self.name, self.version = backend.name, backend.version
        self.device, self.threads = backend.device, backend.threads
        self.calls: Cases = []

    def best_precision(self, stored: str) -> str:
        """See ``Backend``."""
        return self.backend.best_precision(stored)

    def compile(self, folder: Path, shapes: Shapes, **how: Any) -> CompiledModel:
        """See ``Backend``."""
        model = self.backend.compile(folder, shapes, **how)
        return Recorded(model, self.calls.append) if folder.name == self.component else model


class Recorded:
    """A component that tells of its calls."""

    def __init__(self, model: CompiledModel, tell: Callable[[tuple[Arrays, Arrays]], None]) -> None:
        self._model, self._tell = model, tell
        self.inputs, self.precision, self.cache, self.device = model.inputs, model.precision, model.cache, model.device
        self.flop = model.flop

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See ``CompiledModel``."""
        given = {name: np.array(inputs[name], port.dtype) for name, port in self.inputs.items()}
        outputs = self._model(inputs)
        self._tell((given, outputs))
        return outputs
