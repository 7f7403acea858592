"""The order of things: a source folder in, one proven and published folder for each precision out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ovenbird import __version__
from ovenbird.bundle import MANIFEST_FORMAT
from ovenbird.errors import MissingExtraError, RequestError
from ovenbird_export import publish
from ovenbird_export.image_processor import write_image_processor
from ovenbird_export.job import Job
from ovenbird_export.precisions import Precision
from ovenbird_export.progress import note, stage
from ovenbird_export.recipes import FREE, Shapes
from ovenbird_export.source import NONE, Changes, Source
from ovenbird_export.tokenizer import write_tokenizer

TOOLS = ("torch", "diffusers", "transformers", "optimum", "optimum-onnx", "onnx", "openvino", "onnxruntime")
LONGEST_NAME = 64
SPARE_BYTES = 64 << 20
"""For everything that is not weights: graphs, tokenizer, rounding up to blocks."""


def export_folder(
    source: Path,
    folder: Path,
    precisions: Sequence[Precision],
    *,
    name: str | None = None,
    force: bool = False,
    changes: Changes = NONE,
    shapes: Shapes = FREE,
) -> list[Path]:
    """Export the diffusers folder ``source`` to ``folder/<precision>``; the folders that were published.

    Raises ``RequestError`` and ``ModelError`` before anything is written, ``ResourceError`` when disk or folder cannot
    do it, ``NumericError`` when a component differs from torch; nothing is published then.
    """
    origin = Source.open(source, changes)
    name = _checked_name(name if name is not None else origin.name)
    tools = tool_versions()
    with publish.workspace(folder, [precision.name for precision in precisions], force=force) as workspace:
        job = Job(origin, tuple(precisions), workspace, shapes)
        publish.require_space(folder, predicted_bytes(job))
        for component in origin.left_out:
            note(f"{component} is left out")
        with stage("tools: loading"):
            from ovenbird_export.convert import convert
        for precision in precisions:
            write_rest(job, precision)
        facts = _facts(job, name, tools)
        figures = {part.name: convert(job, part) for part in origin.parts}
        for precision in precisions:
            with stage(f"{precision.name}: manifest"):
                proof = {part: by_precision[precision.name] for part, by_precision in figures.items()}
                facts |= {"precision": precision.name, "verification": proof}
                publish.write_manifest(workspace.variant(precision.name), facts)
        with stage("publishing"):
            return workspace.publish()


def write_rest(job: Job, precision: Precision) -> None:
    """Everything that has no weights: index, scheduler, tokenizer, model card, licence."""
    folder, source = job.workspace.variant(precision.name), job.source
    with stage(f"{precision.name}: index, scheduler, tokenizer"):
        for name in ("scheduler", *source.recipe.tokenizers):
            (folder / name).mkdir(parents=True)
        publish.write_json(folder / "model_index.json", {**source.index(), "_diffusers_version": version("diffusers")})
        publish.write_json(folder / "scheduler" / "scheduler_config.json", source.scheduler())
        for name, encoder in source.recipe.tokenizers.items():
            write_tokenizer(source.folder / name, folder / name, source.vocabulary(encoder))
        if "feature_extractor" in source.classes:
            write_image_processor(source.folder / "feature_extractor", folder / "feature_extractor")
        for name, content in source.card().items():
            (folder / name).write_bytes(content)


def predicted_bytes(job: Job) -> int:
    """The most that the export holds on the disk at once: both graphs of every variant, and one component as traced."""
    counts = {origin: job.source.weight_count(origin) for origin in job.source.origins}
    published = sum(counts[part.origin] for part in job.source.parts)
    stored = sum(2 * precision.bytes_per_weight for precision in job.precisions)
    return published * stored + max(counts.values()) * 4 + SPARE_BYTES


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


def _facts(job: Job, name: str, tools: dict[str, str]) -> dict[str, Any]:
    source = job.source
    with stage("source: sha256 of its weights"):
        digest = source.digest()
    return {
        "format": MANIFEST_FORMAT,
        "name": name,
        "family": source.recipe.family,
        "source": {
            "name": source.name,
            "class": source.recipe.pipeline,
            "sha256": digest,
            "licence": source.licence(),
            **source.merged(),
        },
        "tools": tools,
        **({"shapes": asdict(job.shapes)} if job.shapes.axes else {}),
    }
