"""The order of things: a source folder in, one proven and published folder for each precision out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ovenbird import __version__, schedulers
from ovenbird.backends import BACKENDS, create
from ovenbird.bundle import MANIFEST_FORMAT
from ovenbird.errors import MissingExtraError, ModelError, RequestError
from ovenbird.progress import note, stage
from ovenbird_export import calibration, publish
from ovenbird_export.attributes import Exam, Reader
from ovenbird_export.image_processor import write_image_processor
from ovenbird_export.job import Job
from ovenbird_export.precisions import Precision
from ovenbird_export.recipes import FREE, Shapes
from ovenbird_export.source import NONE, Changes, Source
from ovenbird_export.sources import Origin, Wanted, locate
from ovenbird_export.tokenizer import write_tokenizer

TOOLS = ("torch", "diffusers", "transformers", "optimum", "optimum-onnx", "onnx", "nncf", "openvino", "onnxruntime")
LONGEST_NAME = 64
SPARE_BYTES = 64 << 20
"""For everything that is not weights: graphs, tokenizer, rounding up to blocks."""


@dataclass(frozen=True)
class Wish:
    """What is wanted of an export, beside the source and the folder."""

    precisions: tuple[Precision, ...]
    runtimes: tuple[str, ...] = tuple(BACKENDS)
    shapes: Shapes = FREE
    changes: Changes = NONE
    calibration: Path | None = None
    """Prompts to measure ranges on, one a line; None for the project's own."""
    attributes: Path | None = None
    """The folder of an attribute reader that scores pictures."""
    name: str | None = None
    force: bool = False


def export_folder(wanted: Wanted, folder: Path, wish: Wish) -> list[Path]:
    """Export a source to ``folder/<precision>``; the folders that were published.

    Raises ``RequestError`` and ``ModelError`` before anything is written, ``ResourceError`` when disk or folder cannot
    do it, ``NumericError`` when a component differs from torch or pictures differ; nothing is published then.
    """
    prompts = calibration.read_prompts(wish.calibration)
    exam = Exam.open(wish.attributes) if wish.attributes is not None else None
    tools = tool_versions()
    with publish.workspace(folder, [precision.name for precision in wish.precisions], force=wish.force) as workspace:
        workspace.scratch.mkdir()
        origin = locate(wanted, workspace.scratch)
        source = Source.open(origin.folder, wish.changes)
        name = _checked_name(wish.name if wish.name is not None else origin.name)
        variants = {precision.name: workspace.variant(precision.name) for precision in wish.precisions}
        job = Job(source, wish.precisions, variants, workspace.scratch, wish.shapes, wish.runtimes, prompts, exam)
        _refuse_what_cannot_be_drawn(job)
        _refuse_what_cannot_be_scored(job)
        publish.require_space(folder, predicted_bytes(job))
        for component in source.left_out:
            note(f"{component} is left out")
        with stage("tools: loading"):
            from ovenbird_export import convert, proof
        folders = (job.reference, *variants.values())
        with stage("index, scheduler, tokenizer", *folders):
            for target in folders:
                write_rest(job, target)
        facts = _facts(job, origin, name, tools)
        figures = {part.name: convert.convert(job, part) for part in source.parts}
        pictures: dict[str, Any] = {}
        if can_draw(job):
            drawn = proof.draw_reference(job)
            figures["unet"] |= convert.quantise_unet(job, drawn.calls)
            pictures = proof.prove_pictures(job, drawn.runs)
        else:
            note("no pictures are compared: the engine cannot draw with this model yet; every component was")
        scores = proof.prove_attributes(job)
        for precision in wish.precisions:
            with stage(f"{precision.name}: sha256 of its files"):
                found = {part: by_precision[precision.name] for part, by_precision in figures.items()}
                alike = {"gate_db": precision.psnr_db, **pictures[precision.name]} if pictures else None
                verification: dict[str, Any] = {"components": found, "pictures": alike}
                if scores:
                    verification["attributes"] = scores[precision.name]
                manifest = facts | {"precision": precision.name, "verification": verification}
                publish.write_manifest(variants[precision.name], manifest)
        with stage("publishing"):
            return workspace.publish()


def can_draw(job: Job) -> bool:
    """Whether the engine makes pictures with this model from a text alone, one at a time, and with its own sampler."""
    try:
        schedulers.from_config(job.source.scheduler())
    except ModelError:
        return False
    return job.source.latents_alone and job.shapes.batch in (None, 1)


def _refuse_what_cannot_be_drawn(job: Job) -> None:
    for precision in job.precisions:
        if precision.quantised and not can_draw(job):
            raise RequestError(
                f"precision: {precision.name} is measured while the model draws, which the engine cannot with this one",
                hint="use int8-weights, and no --batch above 1",
            )


def _refuse_what_cannot_be_scored(job: Job) -> None:
    if job.exam is None:
        return
    if not can_draw(job):
        raise RequestError(
            "attributes: they are read off pictures, which the engine cannot draw with this model",
            hint="leave --attributes out, and --batch above 1",
        )
    schedulers.from_config(job.source.scheduler()).timesteps(job.exam.steps)
    reader, own = Reader(job.exam, create(job.runtimes[0])), job.source.default_size
    height, width = job.shapes.height or own, job.shapes.width or own
    if (height, width) != (reader.height, reader.width):
        raise RequestError(
            f"attributes: the model draws {width}x{height} pixels, the reader reads {reader.width}x{reader.height}",
            hint="give a reader of the model's own size",
        )


def write_rest(job: Job, folder: Path) -> None:
    """Everything that has no weights: index, scheduler, tokenizer, model card, licence."""
    from ovenbird_export import graphs

    source = job.source
    for name in ("scheduler", *source.recipe.tokenizers):
        (folder / name).mkdir(parents=True)
    publish.write_json(folder / "model_index.json", {**source.index(), "_diffusers_version": version("diffusers")})
    publish.write_json(folder / "scheduler" / "scheduler_config.json", source.scheduler())
    for name, encoder in source.recipe.tokenizers.items():
        tokenizer = write_tokenizer(source.folder / name, folder / name, source.vocabulary(encoder))
        if "openvino" in job.runtimes:
            graphs.write_tokenizer(tokenizer, folder / name)
    if "feature_extractor" in source.classes:
        write_image_processor(source.folder / "feature_extractor", folder / "feature_extractor")
    for name, content in source.card().items():
        (folder / name).write_bytes(content)


def predicted_bytes(job: Job) -> int:
    """The most that the export holds on the disk at once: the reference, and the graphs of every variant."""
    counts = {origin: job.source.weight_count(origin) for origin in job.source.origins}
    published = sum(counts[part.origin] for part in job.source.parts)
    stored = sum(len(job.runtimes) * precision.bytes_per_weight for precision in job.precisions)
    # An IR alone is made from an ONNX that goes again.
    passing = max(counts.values()) * 4 if len(job.runtimes) < len(BACKENDS) else 0
    return published * (stored + 4) + passing + SPARE_BYTES


def tool_versions() -> dict[str, str]:
    """The version of every package that takes part.  Raises ``MissingExtraError`` for the first that is absent."""
    return {name: _version(name) for name in TOOLS} | {"ovenbird": __version__}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise MissingExtraError(name, "export") from error


def _checked_name(name: str) -> str:
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or "/" in name or "\\" in name:
        raise RequestError(
            f"name: {name[:LONGEST_NAME]!r} is not 1 to {LONGEST_NAME} printable characters without slashes",
            hint="choose one with --name",
        )
    return name


def _facts(job: Job, origin: Origin, name: str, tools: dict[str, str]) -> dict[str, Any]:
    source = job.source
    with stage("source: sha256 of its weights"):
        digest = source.digest()
    return {
        "format": MANIFEST_FORMAT,
        "name": name,
        "family": source.recipe.family,
        "clip_skip": source.clip_skip,
        "source": {
            "name": origin.name,
            **origin.provenance,
            "class": source.recipe.pipeline,
            "sha256": digest,
            "licence": source.licence(),
            **source.merged(),
        },
        "tools": tools,
        **({"shapes": asdict(job.shapes)} if job.shapes.axes else {}),
    }
