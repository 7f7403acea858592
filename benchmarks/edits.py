"""What each edit of a graph gains: calls of one component with it and without, in turn, in one process."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import children
from ovenbird import tuning
from ovenbird.backends import EXACT, Arrays, CompiledModel, Edits, Shapes, create
from ovenbird.bundle import Bundle

DEPTH = 2
NONE = "as exported"
OF_ALL: Mapping[str, Edits] = {
    NONE: Edits(()),
    **{name: Edits((name,)) for name in EXACT},
    "exact": Edits(),
}
OF_UNET: Mapping[str, Edits] = {
    "exact, pooled attention": Edits(pooled=True),
    "outermost layers": Edits(depth=DEPTH, shallow=True),
    "outermost layers, pooled attention": Edits(pooled=True, depth=DEPTH, shallow=True),
}


def measure(bundle: Bundle, side: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """Seconds of a call, and how they compare with those of the graph as it was exported, round by round."""
    os.environ["OVENBIRD_CACHE"] = str(scratch)
    cells = side // bundle.vae_scale_factor
    found = {
        "unet": timed(bundle, "unet", tuning.shapes(bundle, side), {**OF_ALL, **OF_UNET}, rounds),
        "vae_decoder": timed(bundle, "vae_decoder", {"latent_sample": (1, 4, cells, cells)}, OF_ALL, rounds),
    }
    return {"side": side, "rounds": rounds, "rows": found}


def timed(bundle: Bundle, component: str, shapes: Shapes, wanted: Mapping[str, Edits], rounds: int) -> dict[str, Any]:
    """A row for each edit."""
    runtime = create("openvino")
    precision = runtime.best_precision(bundle.precision)

    def compiled(edits: Edits) -> CompiledModel:
        return runtime.compile(bundle.path / component, shapes, precision=precision, cache_key=bundle.key, edits=edits)

    for edits in wanted.values():
        compiled(edits)  # what is loaded from the cache is a third of what was just compiled
        gc.collect()
    models = {label: compiled(edits) for label, edits in wanted.items()}
    seconds: dict[str, list[float]] = {label: [] for label in models}
    for turn in range(-1, rounds):
        for label, model in models.items():
            taken = _clocked(model, _inputs(model))
            if turn >= 0:
                seconds[label].append(taken)
    return {
        label: {
            "precision": model.precision,
            "flop": model.flop and model.flop.total,
            "seconds": children.spread(seconds[label]),
            "ratio": children.spread(a / b for a, b in zip(seconds[label], seconds[NONE], strict=True)),
        }
        for label, model in models.items()
    }


def _inputs(model: CompiledModel) -> Arrays:
    made = np.random.default_rng(1)
    return {
        name: np.array(500.0) if name == "timestep" else made.standard_normal([size or 1 for size in port.shape])
        for name, port in model.inputs.items()
    }


def _clocked(model: Callable[[Arrays], object], inputs: Arrays) -> float:
    began = time.perf_counter()
    model(inputs)
    return time.perf_counter() - began
