"""Seconds, memory and likeness in one picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).resolve().parents[1] / "docs"
MOST_DB = 60
"""Beyond that nobody sees, nor is interested in, a difference."""


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = {label: row for label, row in rows.items() if "seconds" in row}
    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        title=title, xlabel="seconds a picture (median, and the range of the rounds)", ylabel="peak memory, GiB"
    )
    axes.grid(visible=True, alpha=0.3)
    colours = None
    for label, row in drawn.items():
        seconds, memory = row["seconds"], row["again"]["peak_mib"]["median"] / 1024
        sides = [[seconds["median"] - seconds["min"]], [seconds["max"] - seconds["median"]]]
        axes.errorbar(seconds["median"], memory, xerr=sides, fmt="none", ecolor="gray", zorder=1)
        decibels = min(row.get("psnr_db", 0), MOST_DB)
        marker = "o" if row["library"] == "ovenbird" else "s"
        colours = axes.scatter(
            seconds["median"], memory, 90, [decibels], marker, vmin=10, vmax=MOST_DB, edgecolors="black", zorder=2
        )
        axes.annotate(label, (seconds["median"], memory), (7, 6), textcoords="offset points", fontsize=9)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.15)
    if colours is not None:
        figure.colorbar(colours, label=f"PSNR against float32, dB; {MOST_DB} and more look alike")
    figure.savefig(path, metadata={"Software": None})
