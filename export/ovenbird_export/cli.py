"""The command ``ovenbird export``; light to import: torch is read when the command runs."""

from __future__ import annotations

from pathlib import Path

import click

from ovenbird.errors import RequestError
from ovenbird_export.precisions import PRECISIONS, Precision


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
@click.option("--name", help="What the model is called; the source folder's name unless given.")
@click.option("--force", is_flag=True, help="Replace variants that exist.")
def export(source: Path, folder: Path, precision: str, name: str | None, force: bool) -> None:
    """Convert the diffusers folder SOURCE to ONNX and OpenVINO IR, once for each precision, in FOLDER/<precision>.

    Every part is loaded back through both runtimes and compared with torch; nothing is published that differs.
    """
    chosen = parse_precisions(precision)
    from ovenbird_export.export import export_folder

    for path in export_folder(source, folder, chosen, name=name, force=force):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        click.echo(f"{path} ({size / 1e6:.1f} MB)")


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Comma-separated names, in the table's order and without repeats.  Raises ``RequestError``."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PRECISIONS:
            raise RequestError(f"precision: {name!r} is not one of {', '.join(PRECISIONS)}")
    return tuple(precision for name, precision in PRECISIONS.items() if name in names)
