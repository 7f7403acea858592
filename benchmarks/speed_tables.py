"""The tables of ``compare``, ``variants``, ``cold`` and ``scaling``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import plot
from benchmarks.markdown import table
from benchmarks.record import read

Row = dict[str, Any]


def comparison(figures: Row) -> str:
    """Of one comparison."""
    reference = figures["settings"]["reference"]
    header = ["", "weights", "floats in", "seconds a picture", f"of {reference}'s", "ready after", "peak memory"]
    rows = [[label, row["weights"], *_drawn(row, _contestant)] for label, row in figures["rows"].items()]
    return table([*header, "PSNR", "SSIM"], rows)


def headlines(figures: Row) -> str:
    """Of one comparison, what fits into a few lines."""
    header = ["", "seconds a picture", f"of {figures['settings']['reference']}'s", "most memory", "like float32: SSIM"]
    return table(header, [[label, *_drawn(row, _headline)] for label, row in figures["rows"].items()])


def _headline(row: Row) -> list[str]:
    ratio = f"{row['ratio']['median']:.2f}" if row["ratio"] else ""
    return [f"{row['seconds']['median']:.0f}", ratio, f"{_gib(row['first']['peak_mib'])} GiB", *_likeness(row, "ssim")]


def _contestant(row: Row) -> list[str]:
    first, again = row["first"], row["again"]
    return [
        row["precision"],
        _spread(row["seconds"]),
        _spread(row["ratio"]) if row["ratio"] else "",
        f"{first['warm_s']:.1f}" + (f", then {again['warm_s']['median']:.1f} s" if again else " s"),
        _gib(first["peak_mib"]) + (f", then {_gib(again['peak_mib']['median'])} GiB" if again else " GiB"),
        *_likeness(row, "psnr_db", "ssim"),
    ]


def variants(figures: Row) -> str:
    """Of one model's variants and presets."""
    header = ["", "floats in", "seconds a picture", "text, steps, VAE", "first, median step", "peak memory", "on disk"]
    header += ["PSNR", "least", "SSIM", "least", *["attributes"] * bool(figures["settings"]["captions"])]
    return table(header, [[label, *_drawn(row, _variant)] for label, row in figures["rows"].items()])


def _variant(row: Row) -> list[str]:
    scores = row.get("attributes")
    return [
        row["precision"],
        _spread(row["seconds"]),
        ", ".join(f"{seconds:.2f}" for seconds in row["stages_s"].values()),
        f"{row['first_step_s']:.2f}, {row['median_step_s']:.2f}",
        f"{_gib(row['peak_mib']['median'])} GiB",
        f"{row['bytes'] / 1e9:.2f} GB",
        *_likeness(row, "psnr_db", "least_psnr_db", "ssim", "least_ssim"),
        *([f"{scores['scores']['all']:.1%}" if "scores" in scores else scores["error"]] if scores else []),
    ]


def edited(figures: Row) -> str:
    """Of the edits of one model's graphs."""
    header = ["", "component", "floats in", "GFLOP a call", "seconds a call", "of the time as exported"]
    rows = [
        [
            label,
            component,
            row["precision"],
            f"{row['flop'] / 1e9:,.0f}",
            _spread(row["seconds"]),
            _spread(row["ratio"]),
        ]
        for component, edits in figures["rows"].items()
        for label, row in edits.items()
    ]
    return table(header, rows)


def starts(figures: Row) -> str:
    """Of the starts with one model."""
    header = ["seconds from the start of the process", "floats in", "loaded", "first step", "PNG", "peak memory"]
    return table(header, [[label, *_drawn(row, _start)] for label, row in figures["rows"].items()])


def _start(row: Row) -> list[str]:
    points = [_spread(row[name]) for name in ("loaded_s", "first_step_s", "png_s")]
    return [row["precision"], *points, f"{_gib(row['peak_mib']['median'])} GiB"]


def scales(figures: Row) -> str:
    """Of threads, batches and sizes with one model."""
    header = ["threads", "batch", "size", "floats in", "seconds a picture", "minutes", "pictures an hour a thread"]
    cases = [
        [str(row["threads"]), str(row["batch"]), f"{row['size']}x{row['size']}", *_drawn(row, _scale)]
        for row in figures["rows"].values()
    ]
    return table([*header, "peak memory"], cases)


def _scale(row: Row) -> list[str]:
    pace = [f"{row['minutes']:.2f}", f"{row['pictures_an_hour_a_core']:.0f}"]
    return [row["precision"], _spread(row["seconds"]), *pace, f"{_gib(row['peak_mib']['median'])} GiB"]


def _drawn(row: Row, cells: Callable[[Row], list[str]]) -> list[str]:
    """The cells, or why there are none."""
    if "absent" in row:
        return ["-", f"not run: {row['absent']}"]
    return ["-", f"failed: {row['error']}"] if "error" in row else cells(row)


def _likeness(row: Row, *names: str) -> list[str]:
    """Nothing where there was no picture to compare with."""
    return [f"{row[name]:.1f} dB" if name.endswith("db") else f"{row[name]:.3f}" for name in names if name in row]


def _gib(mib: float) -> str:
    return f"{mib / 1024:.2f}"


def _spread(row: dict[str, float]) -> str:
    return f"{row['median']:.2f} ({row['min']:.2f} to {row['max']:.2f})"


def _longest(comparisons: Row) -> Row:
    """Those of the most steps, in which all else but drawing weighs least."""
    most = max((figures["settings"]["steps"] for figures in comparisons.values()), default=0)
    return {title: figures for title, figures in comparisons.items() if figures["settings"]["steps"] == most}


def _by_title(name: str, rendered: Callable[[Row], str], chosen: Callable[[Row], Row] = dict) -> str:
    """A table for each model in a record, where that was measured, and its plot, if one was drawn."""
    parts = []
    for title, figures in chosen(read(name)).items():
        machine = figures["machine"]
        parts.append(f"{title}; {machine['cores']} threads of {machine['cpu']}:\n\n{rendered(figures)}")
        if rendered is comparison and plot.path_of(title).is_file():
            # beside the document that has it
            parts.append(f"![{title}: seconds, memory and likeness]({plot.path_of(title).name})")
    return "\n\n".join(parts) or f"Not measured yet: `python -m benchmarks {name}`."


PARTS: dict[str, Callable[[], str]] = {
    "headlines": lambda: _by_title("compare", headlines, _longest),
    "compare": lambda: _by_title("compare", comparison),
    "variants": lambda: _by_title("variants", variants),
    "edits": lambda: _by_title("edits", edited),
    "cold": lambda: _by_title("cold", starts),
    "scaling": lambda: _by_title("scaling", scales),
}
"""Between their markers, one table for each model that was measured."""
