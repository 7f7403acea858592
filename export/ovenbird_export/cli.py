"""The command ``ovenbird export``; light to import: torch is read when the command runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from ovenbird.errors import RequestError
from ovenbird_export.precisions import PRECISIONS

FORMATS = {"ir": "openvino", "onnx": "onnxruntime"}
"""What a folder may hold, and the runtime that reads it."""


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
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
@click.option("--height", type=int, help="Fix the height of pictures, in pixels.  [default: free]")
@click.option("--width", type=int, help="Fix the width of pictures, in pixels.  [default: free]")
@click.option("--batch", type=int, help="Fix how many pictures are made at once.  [default: free]")
@click.option("--vae", type=click.Path(path_type=Path), help="Another autoencoder: a diffusers folder or a file.")
@click.option("--tiny-vae", type=click.Path(path_type=Path), help="An AutoencoderTiny to go beside the full one.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:SCALE]", help="A LoRA to merge; may be given again.")
@click.option("--no-safety-checker", is_flag=True, help="Leave the safety checker out.")
@click.option("--name", help="What the model is called; the source folder's name unless given.")
@click.option("--force", is_flag=True, help="Replace variants that exist.")
def export(
    source: Path,
    folder: Path,
    precision: str,
    formats: str,
    calibration: Path | None,
    height: int | None,
    width: int | None,
    batch: int | None,
    vae: Path | None,
    tiny_vae: Path | None,
    loras: tuple[str, ...],
    no_safety_checker: bool,
    name: str | None,
    force: bool,
) -> None:
    """Convert the diffusers folder SOURCE to ONNX and OpenVINO IR, once for each precision, in FOLDER/<precision>.

    Every part is loaded back through both runtimes and compared with torch, and pictures are compared with those of
    float32; nothing is published that differs.
    """
    from ovenbird_export.export import Wish, export_folder
    from ovenbird_export.lora import Lora
    from ovenbird_export.recipes import Shapes
    from ovenbird_export.source import Changes

    wish = Wish(
        precisions=tuple(PRECISIONS[name] for name in parse_names("precision", precision, PRECISIONS)),
        runtimes=tuple(FORMATS[name] for name in parse_names("format", formats, FORMATS)),
        shapes=Shapes(batch, height, width),
        changes=Changes(
            vae=vae,
            tiny_vae=tiny_vae,
            loras=tuple(Lora.parse(text) for text in loras),
            without=("safety_checker", "feature_extractor") if no_safety_checker else (),
        ),
        calibration=calibration,
        name=name,
        force=force,
    )
    for path in export_folder(source, folder, wish):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        click.echo(f"{path} ({size / 1e6:.1f} MB)")


def parse_names(option: str, text: str, table: Iterable[str]) -> list[str]:
    """Comma-separated names, in the table's order and without repeats.  Raises ``RequestError``."""
    known, names = list(table), {name.strip() for name in text.split(",")}
    for name in sorted(names - set(known)):
        raise RequestError(f"{option}: {name!r} is not one of {', '.join(known)}")
    return [name for name in known if name in names]
