"""The command ``ovenbird export``; light to import: torch is read when the command runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ovenbird.bundle import MANIFEST, read_json
from ovenbird.errors import RequestError
from ovenbird_export.precisions import PRECISIONS

FORMATS = {"ir": "openvino", "onnx": "onnxruntime"}
"""What a folder may hold, and the runtime that reads it."""


@click.command()
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
@click.option("--height", type=int, help="Fix the height of pictures, in pixels.  [default: free]")
@click.option("--width", type=int, help="Fix the width of pictures, in pixels.  [default: free]")
@click.option("--batch", type=int, help="Fix how many pictures are made at once.  [default: free]")
@click.option("--vae", type=click.Path(path_type=Path), help="Another autoencoder: a diffusers folder or a file.")
@click.option("--tiny-vae", type=click.Path(path_type=Path), help="An AutoencoderTiny to go beside the full one.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:SCALE]", help="A LoRA to merge; may be given again.")
@click.option("--no-safety-checker", is_flag=True, help="Leave the safety checker out.")
@click.option("--revision", help="Branch, tag or commit of a model of the Hub.  [default: main]")
@click.option("--offline", is_flag=True, help="Take a model of the Hub from what was downloaded before.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="CLIP's vocab.json and merges.txt, for a single file."
)
@click.option(
    "--prediction-type",
    type=click.Choice(("epsilon", "v_prediction")),
    help="What the U-Net of a single file predicts, where the file does not tell.",
)
@click.option("--name", help="What the model is called.  [default: the source's name]")
@click.option("--force", is_flag=True, help="Replace variants that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about what was made, and nothing else.")
def export(
    source: str,
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
    revision: str | None,
    offline: bool,
    tokenizer: Path | None,
    prediction_type: str | None,
    name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE to ONNX and OpenVINO IR, once for each precision, in FOLDER/<precision>.

    SOURCE is a folder that diffusers saved, OWNER/NAME on the Hugging Face Hub, one .safetensors or .ckpt file in the
    original layout, or synthetic:NAME for random weights (sd15, sd21, sdxl, sd15-inpaint, lcm, tiny).

    Every part is loaded back through both runtimes and compared with torch, and pictures are compared with those of
    float32; nothing is published that differs.
    """
    from ovenbird_export.export import Wish, export_folder
    from ovenbird_export.lora import Lora
    from ovenbird_export.recipes import Shapes
    from ovenbird_export.source import Changes
    from ovenbird_export.sources import Wanted

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
    began = time.monotonic()
    paths = export_folder(Wanted(source, revision, offline, tokenizer, prediction_type), folder, wish)
    made = [_summary(path) for path in paths]
    if as_json:
        click.echo(json.dumps({"folders": made, "seconds": round(time.monotonic() - began, 1)}, indent=2))
    else:
        for facts in made:
            click.echo(f"{facts['path']} ({facts['bytes'] / 1e6:.1f} MB)")


def _summary(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    told = {key: manifest[key] for key in ("name", "family", "precision", "source", "verification")}
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"path": str(folder), "bytes": size, **told}


def parse_names(option: str, text: str, table: Iterable[str]) -> list[str]:
    """Comma-separated names, in the table's order and without repeats.  Raises ``RequestError``."""
    known, names = list(table), {name.strip() for name in text.split(",")}
    for name in sorted(names - set(known)):
        raise RequestError(f"{option}: {name!r} is not one of {', '.join(known)}")
    return [name for name in known if name in names]
