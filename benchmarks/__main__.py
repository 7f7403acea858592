"""The commands: ``python -m benchmarks --help``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks import (
    attributes,
    cache,
    export,
    gallery,
    matrix,
    memory,
    parity,
    record,
    roofline,
    soak,
    speed,
    start,
    tables,
    tiling,
)
from ovenbird import Pipeline
from ovenbird.backends import BACKENDS
from ovenbird.bundle import COMPONENTS
from ovenbird.errors import OvenbirdError


class Commands(click.Group):
    """What is wrong with what was asked for needs no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OvenbirdError as error:
            raise click.ClickException(f"{error}\nhint: {error.hint}" if error.hint else str(error)) from error


@click.group(cls=Commands)
def main() -> None:
    """Measure, print a table, and keep a JSON record in benchmarks/records."""


@main.command("attributes")
@click.option(
    "--captions", type=click.IntRange(1, 300), default=300, show_default=True, help="Held-out captions to generate."
)
@click.option("--guidance-scale", type=float, help="Try another guidance scale; prints its scores only.")
@click.option("--model", default="nestling", show_default=True)
@click.option("--precision", help="Score this variant of the model; its record is named after it.")
def attributes_(captions: int, guidance_scale: float | None, model: str, precision: str | None) -> None:
    """Attribute scores of nestling at the default settings, without guidance and with shuffled captions."""
    pipeline = Pipeline.open(model, precision=precision)
    if guidance_scale is not None:
        scores = attributes.at_guidance(pipeline, captions, guidance_scale)
        _table({f"guidance {guidance_scale:g}": scores})
        return
    figures = attributes.measure(pipeline, captions, lambda stage: click.echo(f"{stage} ...", err=True))
    _table({name: value for name, value in figures.items() if isinstance(value, dict) and "all" in value})
    for name, share in figures["share of night pictures"].items():
        click.echo(f"share of night pictures, {name}: {share:.2f}")
    record.write("attributes" if precision is None else f"attributes-{precision}", figures)


def _table(rows: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    click.echo(f"{'':<28}" + "".join(f"{column:>10}" for column in columns))
    for name, values in rows.items():
        click.echo(f"{name:<28}" + "".join(f"{values[column]:10.3f}" for column in columns))


@main.command("vae")
@click.option("--pictures", default=100, show_default=True)
def vae_(pictures: int) -> None:
    """PSNR of held-out pictures through nestling's exported autoencoder."""
    values = attributes.reconstruction(Pipeline.open("nestling"), pictures)
    figures = {"pictures": pictures, "mean_db": sum(values) / len(values), "min_db": min(values)}
    click.echo(
        f"PSNR over {pictures} held-out pictures: mean {figures['mean_db']:.2f} dB, least {figures['min_db']:.2f}"
    )
    record.write("vae", figures)


@main.command("start")
@click.option("--rounds", default=5, show_default=True)
def start_(rounds: int) -> None:
    """Seconds from process start to PNG: first run, second run."""
    figures = start.measure(rounds)
    for name in ("first run", "second run"):
        row = figures[name]
        click.echo(f"{name:<12} {row['median_s']:.2f} s  ({row['min_s']:.2f} .. {row['max_s']:.2f})")
    record.write("start", figures)


@main.command("cache")
def cache_() -> None:
    """Peak memory of compiling a large model without the cache, keeping it there, and loading it."""
    figures = cache.measure()
    click.echo("  ".join(f"{name} {peak:.0f} MiB" for name, peak in figures["peak_mib"].items()))
    record.write("cache", figures)


@main.command("parity")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="An fp32 export of nestling.")
def parity_(folder: Path) -> None:
    """Pixel differences to diffusers in torch, fp32, for every scheduler and both runtimes."""
    figures: dict[str, Any] = parity.measure(folder)
    for backend, rows in figures.items():
        for scheduler, row in rows.items():
            click.echo(f"{backend:<12} {scheduler:<16} mean {row['mean']:.4f}/255  max {row['max']}/255")
    record.write("parity", figures)


@main.command("export")
@click.option("--source", default="synthetic:sd15", show_default=True)
@click.option("--only", type=click.Choice(list(export.EXPORTS)), multiple=True, help="May be repeated.  [default: all]")
def export_(source: str, only: tuple[str, ...]) -> None:
    """Seconds, peak memory and sizes of exports at full size; needs 30 GB of disk and half an hour."""
    figures = record.read("export")
    for name in only or export.EXPORTS:
        row = export.measure(source, export.EXPORTS[name])
        sizes = ", ".join(f"{precision} {size / 1e9:.2f} GB" for precision, size in row["bytes"].items())
        click.echo(f"{source}, {name}: {row['seconds'] / 60:.1f} min, {row['peak_bytes'] / 1e9:.1f} GB memory; {sizes}")
        figures.setdefault(source, {})[name] = row
    record.write("export", figures)


@main.command("memory")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="An exported model.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="openvino", show_default=True)
@click.option("--precision", "kinds", multiple=True, help="Arithmetic; may be repeated.  [default: f32]")
@click.option("--only", type=click.Choice(["pictures", *COMPONENTS]), multiple=True, help="May be repeated.")
def memory_(folder: Path, backend: str, kinds: tuple[str, ...], only: tuple[str, ...]) -> None:
    """The most memory of components and of whole pictures, next to what was foreseen: half an hour at full size."""
    figures = record.read("memory")
    pipeline = Pipeline.open(folder, backend)
    known = figures.setdefault(f"{pipeline.bundle.name} {pipeline.bundle.precision}, {backend}", {"runs": {}})
    known["components"] = memory.facts(pipeline)
    for kind in kinds or ("f32",):
        for case in memory.cases(pipeline):
            if not only or case.get("component", "pictures") in only:
                for found in memory.measure(folder, backend, kind, case):
                    label = memory.label(found)
                    known["runs"][label] = found
                    measured = f"{found['measured_mib']:6d} MiB {found['ratio']:6.2f}" if "ratio" in found else "-"
                    click.echo(f"{label:<90} {found['foreseen_mib']:6d} {measured}")
                record.write("memory", figures)


@main.command("roofline")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="An exported variant of a model, as IR.")
@click.option("--precision", "kinds", multiple=True, help="Arithmetic; may be repeated.  [default: the best]")
@click.option("--calls", type=click.IntRange(1), default=5, show_default=True, help="Of each component, in a row.")
def roofline_(folder: Path, kinds: tuple[str, ...], calls: int) -> None:
    """Arithmetic and bytes of every component, the share of the machine's peak, and where the time goes."""
    figures = record.read("roofline")
    for kind in kinds or (None,):
        label, found = roofline.measure(folder, kind, calls)
        figures[label] = found
        click.echo(f"{label}\n\n{tables.shares({label: found})}\n\n{tables.groups({label: found})}\n")
        record.write("roofline", figures)


@main.command("matrix")
def matrix_() -> None:
    """Every source, family and variant exported, proven, verified and drawn with, at tiny size: minutes."""
    figures = matrix.measure()
    for row in figures["passed"]:
        click.echo(f"{row['source']:<14} {row['family']:<10} {row['variants']}")
    record.write("matrix", figures)
    if figures["failed"]:
        raise click.ClickException(f"{figures['failed']} cells failed")


@main.command("gallery")
def gallery_() -> None:
    """Draw the pictures of the README, in float32, which differs least between processors."""
    pipeline = Pipeline.open("nestling", inference_precision="f32")
    for name, picture in gallery.GALLERY.items():
        path = gallery.DOCS / f"{name}.png"
        picture(pipeline).save(path)
        click.echo(f"{path}  {path.stat().st_size // 1024} KiB")


@main.command("tiling")
@click.option("--pictures", default=8, show_default=True)
def tiling_(pictures: int) -> None:
    """Differences between pictures decoded in tiles and in one piece."""
    rows = tiling.measure(pictures, lambda row: click.echo(row, err=True))
    record.write("tiling", {"pictures": pictures, "rows": rows})


@main.command("soak")
@click.option("--pictures", type=click.IntRange(100), default=2000, show_default=True)
@click.option("--warm-up", type=click.IntRange(0), default=300, show_default=True, help="Pictures that do not count.")
@click.option("--threads", type=click.IntRange(1), help="[default: the runtime's own number]")
def soak_(pictures: int, warm_up: int, threads: int | None) -> None:
    """Whether memory grows over small pictures of random sizes, all in this process; fails above 1 MiB per 100."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OVENBIRD_CACHE"] = folder
        pipeline = Pipeline.open("nestling", threads=threads)
        figures = soak.measure(pipeline, pictures, warm_up, lambda line: click.echo(line, err=True))
    click.echo(f"{figures['mib_per_100']:+.2f} MiB per 100 pictures, standard error {figures['standard_error']:.2f}")
    record.write("soak", figures)
    if figures["mib_per_100"] > soak.MOST_MIB:
        raise click.ClickException(f"more than {soak.MOST_MIB:g} MiB per 100 pictures")


@main.command("tables")
def tables_() -> None:
    """Write the tables of the documents anew from the records."""
    tables.write()


for command in (speed.compare_, speed.variants_, speed.edits_, speed.cold_, speed.scaling_):
    main.add_command(command)

if __name__ == "__main__":
    main()
