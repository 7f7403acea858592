"""The commands that measure speed: ``compare``, ``variants``, ``cold`` and ``scaling``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks import cold, compare, contestants, edits, plot, record, scaling, speed_tables, variants
from benchmarks.adapters import Wish
from ovenbird import machine

FOLDER = "models/sd15"
"""Made by ``ovenbird export synthetic:sd15 models/sd15 --precision fp16,int8``."""
folder = click.option("--folder", default=FOLDER, show_default=True, help="An exported model.")
folders = click.option(
    "--folder",
    "folders",
    multiple=True,
    default=[FOLDER],
    show_default=True,
    help="An exported model, or a folder of its variants; may be repeated.",
)
size = click.option("--size", type=int, help="Of both sides, in pixels.  [default: the model's own]")
rounds = click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)


def steps(default: int) -> Any:
    """Fewer tell less of a picture and more of what surrounds it."""
    return click.option("--steps", type=click.IntRange(2), default=default, show_default=True)


@contextmanager
def scratch(keep: Path | None = None) -> Iterator[Path]:
    """A folder for pictures and compiled models, which goes again unless it is given."""
    if keep is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    else:
        keep.mkdir(parents=True)
        yield keep.resolve()


def _keep(name: str, title: str, figures: dict[str, Any]) -> None:
    """Beside what was measured of other models, maybe on another machine."""
    record.write(name, {**record.read(name), title: {**figures, "machine": record.machine_facts()}})


@click.command("compare")
@folders
@steps(20)
@size
@rounds
@click.option("--contestant", "labels", multiple=True, help="Only this one; may be repeated.  [default: all]")
@click.option("--reference", default=compare.REFERENCE, show_default=True, help="The contestant that ratios are to.")
@click.option("--isa", help="ONEDNN_MAX_CPU_ISA of all of them, AVX2_VNNI say: what a lesser processor would see.")
@click.option("--source", type=click.Path(path_type=Path), help="The torch weights, for diffusers.")
@click.option("--keep", type=click.Path(path_type=Path), help="A new folder for the pictures.")
@click.option("--plot/--no-plot", "plotted", default=True, show_default=True, help="Draw docs/compare-MODEL.png.")
def compare_(
    folders: tuple[str, ...],
    steps: int,
    size: int | None,
    rounds: int,
    labels: tuple[str, ...],
    reference: str,
    isa: str | None,
    source: Path | None,
    keep: Path | None,
    plotted: bool,
) -> None:
    """Seconds, memory and pictures of ovenbird and its peers, in turn, a fresh process each."""
    if plotted:
        plot.check()
    bundles, wanted = compare.variants(folders), contestants.by_label(labels)
    contestants.by_label([reference])
    wish = Wish(compare.PROMPT, steps, size or bundles[0].default_size)
    title = compare.title(bundles[0], wish, isa)
    with scratch(keep) as place:
        torch = any(contestant.precision == contestants.SOURCE for contestant in wanted)
        weights = compare.torch_weights(source, bundles[0], place) if torch else None
        figures = compare.measure(
            bundles, wanted, wish, rounds=rounds, scratch=place, reference=reference, isa=isa, source=weights
        )
    click.echo(speed_tables.comparison(figures))
    _keep("compare", title, figures)
    if plotted:
        plot.draw(title, figures["rows"], plot.path_of(title))
        click.echo(f"plot: {plot.path_of(title)}", err=True)


@click.command("variants")
@folders
@steps(20)
@size
@rounds
@click.option("--pictures", type=click.IntRange(1), default=4, show_default=True)
@click.option("--preset", "presets", multiple=True, help="Of each variant, too; may be repeated.")
@click.option("--attributes", is_flag=True, help="Also nestling's attribute score, over 300 captions each.")
@click.option("--keep", type=click.Path(path_type=Path), help="A new folder for the pictures.")
def variants_(
    folders: tuple[str, ...],
    steps: int,
    size: int | None,
    rounds: int,
    pictures: int,
    presets: tuple[str, ...],
    attributes: bool,
    keep: Path | None,
) -> None:
    """Every variant of a model and preset: seconds by stage, memory, size, and what is lost."""
    bundles = compare.variants(folders)
    wishes = variants.wishes(pictures, steps, size or bundles[0].default_size)
    captions = 300 if attributes else 0
    with scratch(keep) as place:
        figures = variants.measure(bundles, wishes, rounds=rounds, scratch=place, presets=presets, captions=captions)
    click.echo(speed_tables.variants(figures))
    _keep("variants", compare.title(bundles[0], wishes[0], None), figures)


@click.command("cold")
@folder
@steps(20)
@size
@rounds
def cold_(folder: str, steps: int, size: int | None, rounds: int) -> None:
    """From the start of a process to its first step and to its PNG, with an empty cache and a filled one."""
    bundle = compare.variants([folder])[0]
    wish = Wish(compare.PROMPT, steps, size or bundle.default_size)
    with scratch() as place:
        figures = cold.measure(bundle, wish, rounds=rounds, scratch=place)
    click.echo(speed_tables.starts(figures))
    _keep("cold", compare.title(bundle, wish, None), figures)


@click.command("edits")
@folder
@size
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def edits_(folder: str, size: int | None, rounds: int) -> None:
    """What each edit of the U-Net's graph and the decoder's gains, a call beside a call."""
    bundle = compare.variants([folder])[0]
    with scratch() as place:
        figures = edits.measure(bundle, size or bundle.default_size, rounds, place)
    click.echo(speed_tables.edited(figures))
    _keep("edits", f"{bundle.name} {bundle.precision}", figures)


@click.command("scaling")
@folder
@steps(20)
@rounds
@click.option("--threads", type=click.IntRange(1), multiple=True, help="May be repeated.  [default: 1, 2, 4 ... all]")
@click.option("--batch", type=click.IntRange(1), multiple=True, default=[1, 2, 4], show_default=True)
@click.option("--size", type=int, multiple=True, help="May be repeated.  [default: the model's own, 3/4 and half]")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, exists=True),
    help="An earlier record to compare with: exit 1 if anything is slower beyond the noise; no record is written.",
)
def scaling_(
    folder: str,
    steps: int,
    rounds: int,
    threads: tuple[int, ...],
    batch: tuple[int, ...],
    size: tuple[int, ...],
    baseline: Path | None,
) -> None:
    """Minutes a picture, and pictures an hour for each core, by threads, batch and size."""
    bundle = compare.variants([folder])[0]
    side, cores = bundle.default_size, machine.usable_cores()
    wanted = scaling.cases(
        threads or scaling.up_to(cores),
        batch,
        size or [side // 2, side * 3 // 4, side],
        scaling.Case(cores, 1, side),
    )
    title = f"{bundle.name} {bundle.precision}, {steps} steps"
    then = scaling.baseline(baseline, title, record.machine_facts()) if baseline else None
    with scratch() as place:
        figures = scaling.measure(bundle, wanted, steps, rounds=rounds, scratch=place)
    click.echo(speed_tables.scales(figures))
    if then is None:
        _keep("scaling", title, figures)
    elif slower := list(scaling.regressions(figures["rows"], then)):
        raise click.ClickException("slower than the baseline\n" + "\n".join(slower))
