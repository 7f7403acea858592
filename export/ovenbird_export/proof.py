"""Proof: what was written is loaded back through the engine's own runtimes and compared with torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovenbird.backends import BACKENDS, create
from ovenbird.errors import NumericError
from ovenbird_export.recipes import Arrays, Cases, Part

Figures = dict[str, dict[str, object]]
"""Runtime -> how far it is from torch, as it stands in the manifest."""


@dataclass(frozen=True)
class Difference:
    """How far outputs are from the expected ones: the largest element, and the norm over the norm."""

    max_abs: float
    relative: float

    def record(self) -> dict[str, float]:
        """Three significant digits, for the manifest."""
        return {"max_abs": float(f"{self.max_abs:.3g}"), "relative": float(f"{self.relative:.3g}")}


def prove(folder: Path, part: Part, exact: Cases, rounded: Cases) -> Figures:
    """Run the component in ``folder`` with every runtime.

    ``exact`` comes from the source's weights, ``rounded`` from those that the variant stores.  The gate is on the
    second, because arithmetic is float32 everywhere.  Raises ``NumericError`` when a gate is missed.
    """
    figures: Figures = {}
    for runtime in BACKENDS:
        outputs = [run(folder, runtime, inputs) for inputs, _ in rounded]
        found = difference(outputs, [expected for _, expected in rounded])
        if not found.max_abs <= part.gate:  # written so that a NaN misses it
            raise NumericError(
                f"{part.name} on {runtime} differs from torch by {found.max_abs:.3g}; its gate is {part.gate:g}",
                hint="nothing was published; please report this with the source's name and the versions of the tools",
            )
        unrounded = difference(outputs, [expected for _, expected in exact])
        figures[runtime] = {**found.record(), "gate": part.gate, "unrounded": unrounded.record()}
    return figures


def run(folder: Path, runtime: str, inputs: Arrays) -> Arrays:
    """Load a component as the engine does, and call it once."""
    shapes = {name: array.shape for name, array in inputs.items()}
    return create(runtime).compile(folder, shapes, precision="f32", cache_key=None)(inputs)


def difference(found: Sequence[Arrays], expected: Sequence[Arrays]) -> Difference:
    """The worst over all cases and outputs; infinite when one is missing or has another shape."""
    worst = Difference(0.0, 0.0)
    for ours, theirs in zip(found, expected, strict=True):
        for name, array in theirs.items():
            if name not in ours or ours[name].shape != array.shape:
                return Difference(np.inf, np.inf)
            off = ours[name].astype(np.float64) - array
            norm = float(np.linalg.norm(array.astype(np.float64))) or 1.0
            # In this order a NaN stays: max() would drop it.
            worst = Difference(
                float(np.maximum(worst.max_abs, np.abs(off).max())),
                float(np.maximum(worst.relative, np.linalg.norm(off) / norm)),
            )
    return worst
