"""Tables in the documents, rendered from the records: nobody types a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import speed_tables
from benchmarks.markdown import table
from benchmarks.memory import what as memory_label
from benchmarks.record import read
from benchmarks.roofline import GROUPS, REST
from ovenbird.schedulers import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]


def samplers() -> str:
    """Every sampler by its names, and the noise levels it can have."""
    rows = [
        [f"`{row.name}`", row.label, f"`{row.class_name}`", " ".join(f"`_{suffix}`" for suffix in row.suffixes)]
        for row in SAMPLERS.values()
    ]
    notes = (
        "Labels are those of web UIs, where they have the sampler. A suffix chooses the noise levels: `euler_karras`,\n"
        "labelled Euler Karras. A label or a class will do as NAME, too."
    )
    return f"{table(['name', 'label', 'in diffusers', 'also with'], rows)}\n\n{notes}"


def figures() -> str:
    """The bars of the project, and the command that prints each."""
    start, parity, vae, scores = (read(name) for name in ("start", "parity", "vae", "attributes"))
    cache, soak = read("cache"), read("soak")
    gaps = [row for rows in parity.values() for row in rows.values()]
    default = scores["default settings"]
    least = min((value, name) for name, value in default.items() if name != "all")
    rows = [
        ["first run, process start to PNG", _seconds(start["first run"]), "`python -m benchmarks start`"],
        ["second run", _seconds(start["second run"]), "the same"],
        [
            f"fp32 pixels against diffusers, {len(parity)} runtimes, {len(next(iter(parity.values())))} samplers",
            f"mean {max(g['mean'] for g in gaps):.4f}/255, max {max(g['max'] for g in gaps)}/255",
            "`python -m benchmarks parity --folder FP32_FOLDER`",
        ],
        [
            f"attributes right over {scores['captions']} held-out captions",
            f"{default['all']:.1%}; least: {least[1]} {least[0]:.1%}",
            "`python -m benchmarks attributes`",
        ],
        ["the same without guidance", f"{scores['without guidance']['all']:.1%}", "the same"],
        ["the same against shuffled captions", f"{scores['shuffled captions']['all']:.1%}", "the same"],
        [
            f"peak memory of compiling {cache['model_bytes'] / 1e6:.0f} MB of weights, of keeping that, of loading it",
            ", ".join(f"{cache['peak_mib'][name]:.0f}" for name in ("off", "miss", "hit")) + " MiB",
            "`python -m benchmarks cache`",
        ],
        [
            f"growth of memory over {soak['pictures'] - soak['warm_up']} small pictures of random sizes, for each 100",
            f"{soak['mib_per_100']:+.2f} MiB",
            "`python -m benchmarks soak`",
        ],
        ["reconstruction of held-out pictures", f"{vae['mean_db']:.1f} dB", "`python -m benchmarks vae`"],
    ]
    return table(["what", "measured", "by"], rows)


def scores() -> str:
    """nestling's scores per attribute."""
    found = read("attributes")
    rows = ["default settings", "without guidance", "shuffled captions", "reader on rendered pictures"]
    names = list(found[rows[0]])
    shares = table(["", *names], [[row, *(f"{found[row][name]:.3f}" for name in names)] for row in rows])
    night = found["share of night pictures"]
    said = "; ".join(f"{name}: {share:.0%}" for name, share in night.items())
    return f"{shares}\n\nShare of night pictures among prompts that leave the time open: {said}."


FAMILIES = {
    "sd15": "SD 1.x",
    "sd20": "SD 2.x, epsilon",
    "sd21": "SD 2.x, v-prediction",
    "turbo": "Turbo",
    "sdxl": "SDXL",
    "lcm": "LCM",
    "inpaint": "inpainting, 9 channels",
}
"""How the tests call a family -> how people do."""
LAYOUTS = {"sd15": "SD 1.x", "sd21": "SD 2.x", "sdxl": "SDXL"}
"""Family -> how the reader of single files calls its layout."""


def matrix() -> str:
    """Family by source, and the variants: what passed."""
    passed = {(row["source"], row["family"]): row["variants"].split(",") for row in read("matrix")["passed"]}
    rows = []
    for family, label in FAMILIES.items():
        variants = passed.get(("folder", family), [])
        files = [suffix for suffix in (".safetensors", ".ckpt") if (suffix, LAYOUTS.get(family)) in passed]
        sources = ["folder"] * bool(variants) + ["Hub"] * (("OWNER/NAME", family) in passed)
        rows.append([label, ", ".join([*sources, *(f"`{suffix}`" for suffix in files)]), ", ".join(variants)])
    return table(["family", "from", "variants, each as IR and ONNX"], rows)


def exports() -> str:
    """What full-size exports took."""
    rows = [
        [
            f"`{source}`, {what}",
            f"{row['seconds'] / 60:.1f} min",
            f"{row['peak_bytes'] / 1e9:.1f} GB",
            ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in row["bytes"].items()),
        ]
        for source, exports in read("export").items()
        for what, row in exports.items()
    ]
    return table(["export", "time", "memory", "on disk"], rows)


def memory() -> str:
    """Whole pictures: what was foreseen, and what was measured."""
    rows = [
        [
            f"{model}, {row['precision']}",
            memory_label(row),
            row["cache"],
            f"{row['foreseen_mib'] / 1024:.2f} GiB",
            f"{row['measured_mib'] / 1024:.2f} GiB",
        ]
        for model, found in read("memory").items()
        for row in found["runs"].values()
        if "keep" in row and "measured_mib" in row
    ]
    return table(["model", "run", "cache", "foreseen", "measured"], rows)


def roofline() -> str:
    """How near components come to what the machine can do, and where their time goes."""
    found = read("roofline")
    return f"{shares(found)}\n\n{groups(found)}"


def shares(models: dict[str, Any]) -> str:
    """Arithmetic and bytes of components, and the share of the peak."""
    rows = []
    for name, row in _components(models):
        mixed = f", {row['int8_share']:.0%} in int8" if row["int8_share"] else ""
        rows.append(
            [
                name,
                f"{_digits(row['gflop'])}{mixed}",
                f"{row['bytes'] / 1e6:.0f}",
                f"{row['flop_per_byte']:.0f}",
                _milliseconds(row["floor_arithmetic_s"]),
                _milliseconds(row["floor_memory_s"]),
                _milliseconds(row["seconds"]),
                f"{row['share']:.0%} of {row['peak_of']}",
            ]
        )
    header = ["model", "GFLOP", "MB", "FLOP a byte", "ms at the peak", "ms to move the bytes", "ms measured", "share"]
    said = [
        f"{model}, {found['side']}x{found['side']}: {found['threads']} threads of {found['cpu']}; "
        + ", ".join(f"{kind} {_digits(peak)}" for kind, peak in found["peak_gflop_per_s"].items())
        + f" GFLOP/s; {found['gb_per_s']:.1f} GB/s."
        for model, found in models.items()
    ]
    return table(header, rows) + "\n\nMeasured peaks. " + "\n".join(said)


def groups(models: dict[str, Any]) -> str:
    """Where the time of components goes."""
    names = list(dict.fromkeys([*GROUPS, REST]))
    rows = [
        [name, *(f"{row['groups'].get(group, {'seconds': 0})['seconds'] / row['mean_s']:.0%}" for group in names)]
        for name, row in _components(models)
    ]
    return table(["share of a call", *names], rows)


def _components(models: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{model}: {name}", row) for model, found in models.items() for name, row in found["components"].items()]


def _milliseconds(seconds: float) -> str:
    return _digits(seconds * 1e3)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tiling() -> str:
    """How far pictures in tiles are from whole ones."""
    rows = [
        [
            f"{row['size']}",
            f"{row['tile']}",
            f"{row['seams_mean']:.1f}",
            f"{row['seams_worst_mean']:.1f}",
            str(row["seams_most"]),
            f"{row['alone']['seams_mean']:.1f}",
        ]
        for row in read("tiling")["rows"]
    ]
    return table(["picture", "tile", "mean", "worst picture", "largest", "mean of tiles alone"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "tiling": tiling,
    "samplers": samplers,
    "figures": figures,
    "scores": scores,
    "matrix": matrix,
    "exports": exports,
    "memory": memory,
    "roofline": roofline,
    **speed_tables.PARTS,
}
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "models" / "nestling" / "README.md")
"""A table is written wherever its markers are."""


def rendered(text: str) -> str:
    """A document with everything between ``<!-- NAME -->`` and ``<!-- /NAME -->`` made anew."""
    for name, make in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if pattern.search(text):
            content = make()
            text = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text


def write() -> None:
    """Bring every document up to date."""
    for path in DOCUMENTS:
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")


def _seconds(row: dict[str, float]) -> str:
    return f"{row['median_s']:.1f} s ({row['min_s']:.1f} to {row['max_s']:.1f})"
