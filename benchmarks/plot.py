"""Seconds, memory and likeness in one picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).resolve().parents[1] / "docs"
LEAST_DB, MOST_DB = 10, 60
"""Of the colours; beyond the most nobody sees a difference."""


def path_of(title: str) -> Path:
    """Where the plot of a comparison is."""
    return FOLDER / f"compare-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}.png"


def check() -> None:
    """Raise ``ClickException`` where there is no matplotlib, before anything is measured."""
    try:
        import matplotlib as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise click.ClickException(
            "plot: matplotlib is not installed; pip install -e '.[bench]', or --no-plot"
        ) from error


def draw(title: str, rows: Mapping[str, Any], path: Path) -> None:
    """Seconds to the right, memory upwards, PSNR as colour; who failed is not there."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), dpi=100, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="seconds a picture: median and range", ylabel="peak memory, GiB")
    axes.grid(visible=True, alpha=0.3)
    axes.margins(0.1)
    drawn = {label: row for label, row in rows.items() if "seconds" in row}
    for number, (label, row) in enumerate(drawn.items(), 1):
        seconds, memory = row["seconds"], _peak_mib(row) / 1024
        place = (seconds["median"], memory)
        axes.plot([seconds["min"], seconds["max"]], [memory, memory], color="gray", zorder=1)
        look = {"marker": "o" if row["library"] == "ovenbird" else "s", "edgecolors": "black", "s": 80}
        decibels = [min(row["psnr_db"], MOST_DB)] if "psnr_db" in row else [LEAST_DB]
        colours = axes.scatter(
            *place, c=decibels, vmin=LEAST_DB, vmax=MOST_DB, **look, label=f"{number}  {label}", zorder=2
        )
        side = -1 if number % 2 else 1  # neighbours of one place do not hide each other
        axes.annotate(str(number), place, (0, 9 * side), textcoords="offset points", ha="center", va="center")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    if drawn:
        figure.colorbar(colours, label=f"PSNR against float32, dB; above {MOST_DB} all look alike")
        figure.legend(loc="outside right upper", fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def _peak_mib(row: Mapping[str, Any]) -> float:
    """With compiled models in the cache, where a second round had them."""
    return float(row["again"]["peak_mib"]["median"] if row["again"] else row["first"]["peak_mib"])
