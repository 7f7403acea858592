"""Proof: what was written is loaded back through the engine's own runtimes and compared with torch."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovenbird.backends import CompiledModel, create, short_of_memory
from ovenbird.errors import NumericError
from ovenbird.progress import stage
from ovenbird_export import attributes, fidelity, layers
from ovenbird_export.calibration import Recorder
from ovenbird_export.fidelity import Run
from ovenbird_export.graphs import ONNX_FILE
from ovenbird_export.job import Job
from ovenbird_export.precisions import Precision
from ovenbird_export.recipes import Arrays, Cases, Part

Figures = dict[str, dict[str, object]]
"""Runtime -> how far it is from torch, as it stands in the manifest."""

POINTS_UNDER_FP32 = 1.0
"""What the share of attributes that pictures show may lose in any variant, in points of a hundred.

A point is 20 of the 1,977 answers that nestling gives, three standard errors of its score: less may be luck, more is a
loss.
"""

ADDED_UP = "every component passed alone, so errors add up on the way"
MEASURED_ELSEWHERE = "; take --calibration FILE with prompts of the model's own kind"


@dataclass(frozen=True)
class Difference:
    """How far outputs are from the expected ones: the largest element, and the norm over the norm."""

    max_abs: float
    relative: float

    def record(self) -> dict[str, float]:
        """Three significant digits, for the manifest."""
        return {"max_abs": float(f"{self.max_abs:.3g}"), "relative": float(f"{self.relative:.3g}")}


def prove(job: Job, part: Part, precision: Precision, exact: Cases, rounded: Cases) -> Figures:
    """Run a component of a variant with every runtime.

    ``exact`` comes from the source's weights, ``rounded`` from those that the variant stores.  The gate is on the
    largest difference from the second, because arithmetic is float32; where it is in eight bits, on the relative error.
    Raises ``NumericError`` when a gate is missed.
    """
    folder = job.variants[precision.name] / part.name
    figures: Figures = {}
    for runtime in job.runtimes:
        outputs = run(folder, runtime, [inputs for inputs, _ in rounded])
        found = difference(outputs, [expected for _, expected in rounded])
        if part.name in precision.quantised:
            measure, gate = "relative", precision.quantised[part.name]
        else:
            measure, gate = "max_abs", part.gate
        if not getattr(found, measure) <= gate:  # written so that a NaN misses it
            raise NumericError(
                f"{part.name} on {runtime} differs from torch by {getattr(found, measure):.3g} ({measure}); "
                f"its gate is {gate:g}; the error begins in {_where(job, part, folder, exact)}",
                hint="please report this with the source's name and the versions of the tools",
            )
        unrounded = difference(outputs, [expected for _, expected in exact])
        figures[runtime] = {**found.record(), "gate": {measure: gate}, "unrounded": unrounded.record()}
    return figures


def _where(job: Job, part: Part, folder: Path, cases: Cases) -> str:
    if not (folder / ONNX_FILE).is_file():
        return "a layer that is not known without the ONNX"
    return layers.worst_group(job.reference / part.name / ONNX_FILE, folder / ONNX_FILE, cases[0][0])


@dataclass(frozen=True)
class Drawn:
    """Pictures, and what the U-Net was given and answered while they were made."""

    runs: Sequence[Run]
    calls: Cases


def draw_reference(job: Job) -> Drawn:
    """Make the pictures that those of every variant are compared with."""
    recorder = Recorder(create("openvino"), "unet")
    with stage("reference: drawing"):
        return Drawn(fidelity.runs(job.reference, recorder, job.shapes), recorder.calls)


def prove_pictures(job: Job, expected: Sequence[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Make pictures with every variant and every runtime: precision -> runtime -> how like the ``expected`` they are.

    Raises ``NumericError`` when a variant misses its gate.
    """
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for precision in job.precisions:
        with stage(f"{precision.name}: drawing"):
            figures[precision.name] = {
                runtime: fidelity.compare(_draw(job, precision, runtime), expected) for runtime in job.runtimes
            }
        for runtime, found in figures[precision.name].items():
            if not found["psnr_db"] >= precision.psnr_db:
                raise NumericError(
                    f"{precision.name} on {runtime}: pictures have {found['psnr_db']:.1f} dB against float32; "
                    f"the gate is {precision.psnr_db:g}",
                    hint=ADDED_UP + (MEASURED_ELSEWHERE if precision.quantised else ""),
                )
    return figures


def prove_attributes(job: Job) -> dict[str, dict[str, object]]:
    """Score the pictures of the reference and of every variant, on the first runtime: precision -> what was found.

    Empty without an exam.  Raises ``NumericError`` when a variant misses its gate.
    """
    if job.exam is None:
        return {}
    runtime, count = job.runtimes[0], len(job.exam.captions)
    with stage(f"reference: drawing {count} captions on {runtime}, and reading off what they show"):
        reference = attributes.measure(job.reference, runtime, job.exam)
    records: dict[str, dict[str, object]] = {}
    for precision in job.precisions:
        with stage(f"{precision.name}: drawing {count} captions on {runtime}, and reading off what they show"):
            scores = attributes.measure(job.variants[precision.name], runtime, job.exam)
        lost = round(100 * (reference[attributes.ALL] - scores[attributes.ALL]), 6)  # one point is not 1.0000000001
        if not lost <= POINTS_UNDER_FP32:
            raise NumericError(
                f"{precision.name} on {runtime}: pictures show {scores[attributes.ALL]:.1%} of what captions ask, "
                f"{lost:.2f} points under float32; the gate is {POINTS_UNDER_FP32:g}",
                hint="int8 is measured on the prompts of --calibration, which should be of this kind",
            )
        records[precision.name] = {
            "sha256": job.exam.digests(),
            "captions": count,
            "runtime": runtime,
            "reference": reference,
            "scores": scores,
            "gate": {"points_under_fp32": POINTS_UNDER_FP32},
        }
    return records


def _draw(job: Job, precision: Precision, runtime: str) -> list[Run]:
    return fidelity.runs(job.variants[precision.name], create(runtime), job.shapes)


def run(folder: Path, runtime: str, calls: Sequence[Arrays]) -> list[Arrays]:
    """Load a component as the engine does, once for all calls of the same shapes, and call it."""
    backend, models = create(runtime), dict[str, CompiledModel]()
    outputs = []
    for inputs in calls:
        shapes = {name: array.shape for name, array in inputs.items()}
        with short_of_memory(folder.name):
            if str(shapes) not in models:
                models.clear()  # one at a time: each holds the weights
                gc.collect()
                models[str(shapes)] = backend.compile(folder, shapes, precision="f32", cache_key=None)
            outputs.append(models[str(shapes)](inputs))
    return outputs


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
