"""Tables in the documents, rendered from the records: nobody types a number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import FOLDER
from ovenbird.schedulers import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]


def record(name: str) -> Any:
    """The figures of a record."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["figures"]


def samplers() -> str:
    """Every sampler by its two names."""
    return _table(["name", "in web UIs"], [[f"`{row.name}`", row.label] for row in SAMPLERS.values()])


def figures() -> str:
    """The bars of the project, and the command that prints each."""
    start, parity, vae, scores = record("start"), record("parity"), record("vae"), record("attributes")
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
        ["reconstruction of held-out pictures", f"{vae['mean_db']:.1f} dB", "`python -m benchmarks vae`"],
    ]
    return _table(["what", "measured", "by"], rows)


def scores() -> str:
    """nestling's scores per attribute."""
    found = record("attributes")
    rows = ["default settings", "without guidance", "shuffled captions", "reader on rendered pictures"]
    names = list(found[rows[0]])
    table = _table(["", *names], [[row, *(f"{found[row][name]:.3f}" for name in names)] for row in rows])
    night = found["share of night pictures"]
    said = "; ".join(f"{name}: {share:.0%}" for name, share in night.items())
    return f"{table}\n\nShare of night pictures among prompts that leave the time open: {said}."


PARTS: dict[str, Callable[[], str]] = {"samplers": samplers, "figures": figures, "scores": scores}
DOCUMENTS = (ROOT / "README.md", ROOT / "models" / "nestling" / "README.md")


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


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
