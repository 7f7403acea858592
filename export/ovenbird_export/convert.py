"""One component: from the source's weights to proven graphs in every precision."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

from ovenbird_export import graphs, modules, proof, publish
from ovenbird_export.job import Job
from ovenbird_export.progress import stage
from ovenbird_export.proof import Figures
from ovenbird_export.recipes import CHECKS, TRACE, Cases, Config, Part, Probe


def convert(job: Job, part: Part) -> dict[str, Figures]:
    """Write and prove one component in every precision: precision -> figures.  Only this one is in memory."""
    traced = job.workspace.scratch / part.name
    exact, rounded = _trace(job, part, traced)
    gc.collect()
    figures = {}
    for precision in job.precisions:
        folder = job.workspace.variant(precision.name) / part.name
        with stage(f"{part.name}: writing {precision.name}"):
            graphs.write_onnx(traced, precision, folder)
            graphs.write_ir(precision, folder)
        with stage(f"{part.name}: proving {precision.name}"):
            figures[precision.name] = proof.prove(folder, part, exact, rounded[precision.name])
    shutil.rmtree(traced)
    return figures


def _trace(job: Job, part: Part, folder: Path) -> tuple[Cases, dict[str, Cases]]:
    """All that needs torch: configurations, the traced graph, and what each precision's weights must give."""
    with stage(f"{part.name}: reading the weights"):
        module = modules.read_module(job.source, part.origin)
        modules.adapt(module, part)
    _write_configuration(job, part, modules.configuration_json(module))
    config = modules.configuration(module)
    names = graphs.onnx_config(module, part).torch_to_onnx_output_map
    with stage(f"{part.name}: exporting to ONNX"):
        graphs.trace(module, part, part.inputs(config, TRACE), folder)
    with stage(f"{part.name}: running torch"):
        inputs = [part.inputs(config, _fitted(job, part, config, probe)) for probe in CHECKS]
        exact = modules.run(module, names, inputs)
        rounded = {}
        for precision in job.precisions:
            precision.round_module(module)
            rounded[precision.name] = modules.run(module, names, inputs)
    if job.shapes.axes:
        graphs.fix_axes(folder, {**exact[0][0], **exact[0][1]}, job.shapes.axes)
    return exact, rounded


def _fitted(job: Job, part: Part, config: Config, probe: Probe) -> Probe:
    source = job.source
    return job.shapes.fit(probe, part.rows(config), source.pixels_per_cell, source.text_length)


def _write_configuration(job: Job, part: Part, text: str) -> None:
    for precision in job.precisions:
        folder = job.workspace.variant(precision.name) / part.name
        folder.mkdir(parents=True)
        publish.write_text(folder / "config.json", text)
