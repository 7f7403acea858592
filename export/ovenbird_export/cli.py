"""The commands ``ovenbird export`` and ``ovenbird verify``; light to import: torch is read when the command runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovenbird import progress
from ovenbird.bundle import MANIFEST, read_json
from ovenbird.errors import RequestError
from ovenbird.pages import QUIET, Page
from ovenbird_export.precisions import PRECISIONS

if TYPE_CHECKING:
    from ovenbird_export.source import Changes
    from ovenbird_export.sources import Wanted

FORMATS = {"ir": "openvino", "onnx": "onnxruntime"}
"""What a folder may hold, and the runtime that reads it."""
SOURCE = (
    click.option("--vae", type=click.Path(path_type=Path), help="Another autoencoder: a diffusers folder or a file."),
    click.option("--tiny-vae", type=click.Path(path_type=Path), help="An AutoencoderTiny to go beside the full one."),
    click.option("--lora", "loras", multiple=True, metavar="FILE[:SCALE]", help="A LoRA to merge; may be given again."),
    click.option("--no-safety-checker", is_flag=True, help="Leave the safety checker out."),
    click.option("--revision", help="Branch, tag or commit of a model of the Hub.  [default: main]"),
    click.option("--offline", is_flag=True, help="Take a model of the Hub from what was downloaded before."),
    click.option(
        "--tokenizer",
        metavar="FOLDER",
        help="CLIP's vocab.json and merges.txt for a single file, or OWNER/NAME on the Hub."
        "  [default: openai/clip-vit-large-patch14]",
    ),
    click.option(
        "--prediction-type",
        type=click.Choice(("epsilon", "v_prediction")),
        help="What the U-Net of a single file predicts, where the file does not tell.",
    ),
)
"""Options that say more about a source than its name, and what is changed of it."""


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ``SOURCE``."""
    for option in reversed(SOURCE):
        command = option(command)
    return command


@click.command(
    cls=Page,
    short_help="Convert a checkpoint to ONNX and OpenVINO IR, proven.",
    examples=(
        "ovenbird export path/to/stable-diffusion-v1-5 models/sd15",
        "ovenbird export OWNER/NAME models/name --precision fp16,int8",
        "ovenbird export v1-5.safetensors models/sd15 --lora style.safetensors:0.8",
        "ovenbird export synthetic:tiny models/tiny --precision fp32",
    ),
)
@click.argument("source")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    default="fp16",
    show_default=True,
    metavar="NAMES",
    help=f"Variants to make, separated by commas: {', '.join(PRECISIONS)}.",
)
@click.option(
    "--format",
    "formats",
    default="ir,onnx",
    show_default=True,
    metavar="NAMES",
    help="What to write: ir for OpenVINO, onnx for ONNX Runtime.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Prompts, one a line, that int8 is measured on.  [default: a list of ovenbird's own]",
)
@click.option(
    "--attributes",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Score pictures with the attribute reader in FOLDER.",
)
@click.option("--height", type=int, help="Fix the height of pictures, in pixels.  [default: free]")
@click.option("--width", type=int, help="Fix the width of pictures, in pixels.  [default: free]")
@click.option("--batch", type=int, help="Fix how many pictures are made at once.  [default: free]")
@source_options
@click.option("--name", help="What the model is called.  [default: the source's name]")
@click.option("--force", is_flag=True, help="Replace variants that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about what was made, and nothing else.")
@QUIET
def export(
    source: str,
    folder: Path,
    precision: str,
    formats: str,
    calibration: Path | None,
    attributes: Path | None,
    height: int | None,
    width: int | None,
    batch: int | None,
    name: str | None,
    force: bool,
    as_json: bool,
    **of_source: Any,
) -> None:
    """Convert SOURCE to ONNX and OpenVINO IR, once for each precision, in FOLDER/<precision>.

    SOURCE is a folder that diffusers saved, OWNER/NAME on the Hugging Face Hub, one .safetensors or .ckpt file in the
    original layout, or synthetic:NAME for random weights (sd15, sd21, sdxl, sd15-inpaint, lcm, tiny).

    Every part is loaded back through both runtimes and compared with torch, and pictures are compared with those of
    float32; nothing is published that differs.
    """
    progress.begin()
    from ovenbird_export.export import Wish, export_folder
    from ovenbird_export.recipes import Shapes

    wanted, changes = _source(source, **of_source)
    wish = Wish(
        precisions=tuple(PRECISIONS[name] for name in parse_names("precision", precision, PRECISIONS)),
        runtimes=tuple(FORMATS[name] for name in parse_names("format", formats, FORMATS)),
        shapes=Shapes(batch, height, width),
        changes=changes,
        calibration=calibration,
        attributes=attributes,
        name=name,
        force=force,
    )
    paths = export_folder(wanted, folder, wish)
    made = [_summary(path) for path in paths]
    progress.end(sum(facts["bytes"] for facts in made))
    if as_json:
        click.echo(json.dumps({"folders": made, "seconds": round(progress.elapsed(), 1)}, indent=2))
    else:
        for facts in made:
            click.echo(f"{facts['path']} ({progress.amount(facts['bytes'])})")


@click.command(
    cls=Page,
    short_help="Check an exported model against manifest and source.",
    examples=(
        "ovenbird verify models/sd15",
        "ovenbird verify models/sd15 --bytes",
        "ovenbird verify models/sd15 --source path/to/stable-diffusion-v1-5",
    ),
)
@click.argument("folder")
@click.option("--quick", is_flag=True, help="Compare the sizes of the files and nothing else.")
@click.option("--bytes", "bytes_alone", is_flag=True, help="Compare the bytes of the files and nothing else.")
@click.option("--source", help="What FOLDER was made from.  [default: what its manifest names]")
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about what was found, and nothing else.")
@QUIET
def verify(folder: str, quick: bool, bytes_alone: bool, source: str | None, as_json: bool, **of_source: Any) -> None:
    """Check an exported FOLDER, or every variant in it, against its manifest and against its source.

    First the sha256 of every file.  Then, where torch is installed and the source is at hand, the numbers: every part
    against torch and pictures against float32, as when it was exported, with the same gates.
    """
    from ovenbird_export import verify as verification

    if source is None and (given := [name for name, value in of_source.items() if value]):
        raise RequestError(f"--{given[0].replace('_', '-')} has no effect without --source")
    if source is not None and (quick or bytes_alone):
        raise RequestError("--source has no effect with --quick or --bytes", hint="leave one out")
    progress.begin()
    made = []
    for path in verification.variants(folder):
        facts: dict[str, Any] = {"path": str(path), **verification.verify_bytes(path, full=not quick)}
        if not as_json:
            size = progress.amount(facts["bytes"])
            click.echo(f"{path}: {facts['compared']} of {facts['files']} files agree ({size})")
        if not (quick or bytes_alone):
            asked = _source(source, **of_source) if source is not None else None
            facts["verification"] = found = verification.verify_numbers(path, asked)
            if found and not as_json:
                click.echo("\n".join(f"  {line}" for line in verification.lines(found)))
        made.append(facts)
    if as_json:
        click.echo(json.dumps({"folders": made}, indent=2))


def _source(
    source: str,
    vae: Path | None,
    tiny_vae: Path | None,
    loras: tuple[str, ...],
    no_safety_checker: bool,
    revision: str | None,
    offline: bool,
    tokenizer: str | None,
    prediction_type: str | None,
) -> tuple[Wanted, Changes]:
    from ovenbird_export.lora import Lora
    from ovenbird_export.source import Changes
    from ovenbird_export.sources import Wanted

    changes = Changes(
        vae=vae,
        tiny_vae=tiny_vae,
        loras=tuple(Lora.parse(text) for text in loras),
        without=("safety_checker", "feature_extractor") if no_safety_checker else (),
    )
    return Wanted(source, revision, offline, tokenizer, prediction_type), changes


def _summary(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    told = {key: manifest[key] for key in ("name", "family", "precision", "source", "verification")}
    return {"path": str(folder), "bytes": progress.size(folder), **told}


def parse_names(option: str, text: str, table: Iterable[str]) -> list[str]:
    """Comma-separated names, in the table's order and without repeats.  Raises ``RequestError``."""
    known, names = list(table), {name.strip() for name in text.split(",")}
    for name in sorted(names - set(known)):
        raise RequestError(f"{option}: {name!r} is not one of {', '.join(known)}")
    return [name for name in known if name in names]
