"""One component: from the source's weights to proven graphs in every precision."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence

import onnx

from ovenbird.progress import stage
from ovenbird_export import calibration, graphs, modules, proof, publish, quantise
from ovenbird_export.job import Job
from ovenbird_export.precisions import Precision
from ovenbird_export.proof import Figures
from ovenbird_export.recipes import CHECKS, TRACE, Arrays, Cases, Config, Part, Probe

CONFIG = "config.json"


def convert(job: Job, part: Part) -> dict[str, Figures]:
    """Write one component to the reference, and to every variant in which its arithmetic is float32, and prove those.

    Gives precision -> figures.  Only this component is in memory.
    """
    exact, rounded = trace(job, part)
    figures: dict[str, Figures] = {}
    for precision in job.precisions:
        if part.name in precision.quantised:
            continue
        twin = next((other for other in job.precisions if other.name in figures and precision.stores_like(other)), None)
        if twin:
            shutil.copytree(job.variants[twin.name] / part.name, job.variants[precision.name] / part.name)
            figures[precision.name] = figures[twin.name]
        else:
            model = onnx.load(job.reference / part.name / graphs.ONNX_FILE, load_external_data=False)
            _write(job, part, precision, model)
            with stage(f"{part.name}: proving {precision.name}"):
                figures[precision.name] = proof.prove(job, part, precision, exact, rounded[precision.name])
    return figures


def quantise_unet(job: Job, trial: Cases) -> dict[str, Figures]:
    """Write the U-Net of every variant that has its arithmetic in eight bits, and prove it: precision -> figures.

    Ranges are measured on what the U-Net is given while the reference draws, and so is the ``trial``: numbers from a
    hat would lie where no ranges were measured.
    """
    wanted = [precision for precision in job.precisions if precision.quantised]
    if not wanted:
        return {}
    with stage(f"unet: drawing {len(job.prompts)} prompts to measure on"):
        samples = calibration.record(job.reference, job.prompts)
    part = next(part for part in job.source.parts if part.name == "unet")
    return {precision.name: _quantise(job, part, precision, samples, trial) for precision in wanted}


def _quantise(job: Job, part: Part, precision: Precision, samples: Sequence[Arrays], trial: Cases) -> Figures:
    with stage(f"{part.name}: measuring ranges over {len(samples)} calls for {precision.name}"):
        model = quantise.quantise(job.reference / part.name / graphs.ONNX_FILE, samples)
    _write(job, part, precision, model)
    with stage(f"{part.name}: proving {precision.name}"):
        return proof.prove(job, part, precision, trial, trial)


def _write(job: Job, part: Part, precision: Precision, model: onnx.ModelProto) -> None:
    folder = job.variants[precision.name] / part.name
    folder.mkdir(parents=True)
    with stage(f"{part.name}: writing {precision.name}", folder):
        shutil.copy(job.reference / part.name / CONFIG, folder)
        graphs.write_onnx(model, job.reference / part.name, precision, folder)
        if "openvino" in job.runtimes:
            graphs.write_ir(precision, folder)
        if "onnxruntime" not in job.runtimes:
            graphs.remove_onnx(folder)


def trace(job: Job, part: Part) -> tuple[Cases, dict[str, Cases]]:
    """All that needs torch: the reference's graph, and what the source's weights and each precision's must give."""
    with stage(f"{part.name}: reading the weights"):
        module = modules.read_module(job.source, part.origin)
        modules.adapt(module, part)
    folder = job.reference / part.name
    folder.mkdir(parents=True)
    publish.write_text(folder / CONFIG, modules.configuration_json(module))
    config = modules.configuration(module)
    names = graphs.onnx_config(module, part).torch_to_onnx_output_map
    with stage(f"{part.name}: exporting to ONNX", folder):
        graphs.trace(module, part, part.inputs(config, TRACE), folder)
    with stage(f"{part.name}: running torch"):
        inputs = [part.inputs(config, _fitted(job, part, config, probe)) for probe in CHECKS]
        exact = modules.run(module, names, inputs)
        rounded = {}
        for precision in job.precisions:  # in the table's order each rounds more than the one before
            precision.round_module(module)
            rounded[precision.name] = modules.run(module, names, inputs)
    if job.shapes.axes:
        graphs.fix_axes(folder, {**exact[0][0], **exact[0][1]}, job.shapes.axes)
    del module
    gc.collect()
    return exact, rounded


def _fitted(job: Job, part: Part, config: Config, probe: Probe) -> Probe:
    source = job.source
    return job.shapes.fit(probe, part.rows(config), source.pixels_per_cell, source.text_length)
