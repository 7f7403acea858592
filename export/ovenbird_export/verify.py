"""Verification of what was published: its bytes and, where torch and the source are, its numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovenbird.bundle import MANIFEST, PRECISIONS, Bundle, find, read_json
from ovenbird.errors import MissingExtraError, ModelError, RequestError
from ovenbird.progress import note, stage
from ovenbird_export import precisions, publish, sources
from ovenbird_export.export import SPARE_BYTES, can_draw, tool_versions, write_rest
from ovenbird_export.job import Job
from ovenbird_export.recipes import Shapes
from ovenbird_export.source import NONE, Changes, Source
from ovenbird_export.sources import Wanted

REFERENCE_BYTES = 4
"""For every weight of the source, since the reference is in float32."""


def variants(folder: str | Path) -> list[Path]:
    """The exported folders in a model given by path or by name: itself, or one for each precision."""
    model = find(folder)
    return [path for path in (model / name for name in PRECISIONS) if (path / MANIFEST).is_file()] or [model]


def verify_bytes(folder: Path, *, full: bool) -> dict[str, Any]:
    """Compare the files with the manifest, by size or in ``full``; how many there are, and their bytes.

    Raises ``ModelError`` for the first file that differs, and without a manifest.
    """
    bundle = Bundle.open(folder)
    if bundle.manifest is None:
        raise ModelError(f"{folder} has no {MANIFEST} to compare with", hint="export the model again")
    bundle.verify(full=full)
    listed = {folder / name for name in bundle.manifest["files"]} | {folder / MANIFEST}
    for path in sorted(set(folder.rglob("*")) - listed):
        if path.is_file():
            note(f"{path} is not named by the manifest")
    sizes = [facts["size"] for facts in bundle.manifest["files"].values()]
    return {"files": len(sizes), "bytes": sum(sizes), "compared": "sha256" if full else "sizes"}


def verify_numbers(folder: Path, asked: tuple[Wanted, Changes] | None) -> dict[str, Any] | None:
    """Repeat the checks of the export: its ``verification`` anew, or None where that cannot be done, with a note.

    Unless one is ``asked`` for, the source is the one that the manifest names, where that can be had without a
    download.  Raises ``NumericError`` when a gate is missed, ``RequestError`` when another source is asked for than
    the folder was made from.
    """
    manifest = read_json(folder / MANIFEST)
    found = sources.recorded(manifest["source"])
    source = asked or (found and (found, NONE))
    if not source:
        note(
            f"{folder}: numbers are not checked: the manifest tells no place to find the source at; give it as --source"
        )
        return None
    try:
        tool_versions()
        with publish.workspace(Path(tempfile.gettempdir()), (), force=False) as workspace:
            workspace.scratch.mkdir()
            return _check(_job(folder, manifest, *source, workspace.scratch))
    except (RequestError, MissingExtraError) as error:
        if asked:
            raise
        note(f"{folder}: numbers are not checked: {error}")
        return None


def _job(folder: Path, manifest: Mapping[str, Any], wanted: Wanted, changes: Changes, scratch: Path) -> Job:
    origin = sources.locate(wanted, scratch)
    source = Source.open(origin.folder, changes)
    verification = manifest.get("verification", {}).get("components", {})
    with stage(f"{origin.name}: sha256 of its weights"):
        _refuse_another(folder, manifest["source"], verification, source)
    publish.require_space(scratch, REFERENCE_BYTES * sum(map(source.weight_count, source.origins)) + SPARE_BYTES)
    precision = precisions.PRECISIONS[manifest["precision"]]
    fixed = manifest.get("shapes", {})
    return Job(
        source=source,
        precisions=(precision,),
        variants={precision.name: folder},
        scratch=scratch,
        shapes=Shapes(fixed.get("batch"), fixed.get("height"), fixed.get("width")),
        runtimes=tuple(verification["unet"]),
    )


def _refuse_another(folder: Path, told: Mapping[str, Any], parts: Mapping[str, Any], source: Source) -> None:
    found = {"sha256": source.digest(), "loras": source.merged().get("loras", [])}
    for key, value in found.items():
        if told.get(key, []) != value:
            raise RequestError(
                f"source: {folder} was made from something else: {key} {told.get(key)}, not {value}",
                hint="give the same --source, --lora and --vae as to the export",
            )
    names = {part.name for part in source.parts}
    if names != set(parts):
        raise RequestError(
            f"source: {folder} was made of {', '.join(sorted(parts))}, not of {', '.join(sorted(names))}",
            hint="give the same --tiny-vae and --no-safety-checker as to the export",
        )


def _check(job: Job) -> dict[str, Any]:
    with stage("tools: loading"):
        from ovenbird_export import convert, proof
    write_rest(job, job.reference)
    (precision,) = job.precisions
    figures: dict[str, Any] = {}
    quantised = [part for part in job.source.parts if part.name in precision.quantised]
    for part in job.source.parts:
        exact, rounded = convert.trace(job, part)
        if part not in quantised:
            with stage(f"{part.name}: proving {precision.name}"):
                figures[part.name] = proof.prove(job, part, precision, exact, rounded[precision.name])
    if not can_draw(job):
        return {"components": figures, "pictures": None}
    drawn = proof.draw_reference(job)
    for part in quantised:
        with stage(f"{part.name}: proving {precision.name}"):
            figures[part.name] = proof.prove(job, part, precision, drawn.calls, drawn.calls)
    pictures = proof.prove_pictures(job, drawn.runs)[precision.name]
    return {"components": figures, "pictures": {"gate_db": precision.psnr_db, **pictures}}


def lines(verification: Mapping[str, Any]) -> list[str]:
    """What ``verify_numbers`` found, to be read: a line for every component and runtime."""
    found = []
    for part, figures in verification["components"].items():
        for runtime, row in figures.items():
            ((measure, gate),) = row["gate"].items()
            found.append(f"{part} on {runtime}: differs from torch by {row[measure]:.2g} ({measure}; gate {gate:g})")
    pictures = dict(verification["pictures"] or {})
    gate = pictures.pop("gate_db", None)
    for runtime, row in pictures.items():
        found.append(
            f"pictures on {runtime}: {row['psnr_db']:.1f} dB against float32 (gate {gate:g}), SSIM {row['ssim']:.3f}"
        )
    return found
