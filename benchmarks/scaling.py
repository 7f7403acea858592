"""Threads, pictures side by side, and sizes; and whether anything became slower since an earlier record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import children
from benchmarks.adapters import Wish
from benchmarks.children import Answer
from benchmarks.compare import PROMPT, Ask, environment
from benchmarks.contestants import Contestant, job
from ovenbird.bundle import Bundle
from ovenbird.errors import RequestError

LEAST_NOISE = 0.03
"""Of a median: what a machine does that looks quiet."""


class Case(NamedTuple):
    """One row."""

    threads: int
    batch: int
    size: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.threads} threads, batch {self.batch}, {self.size}x{self.size}"


def up_to(cores: int) -> list[int]:
    """1, 2, 4 ... and all."""
    return [*(n for n in (2**k for k in range(cores.bit_length())) if n < cores), cores]


def cases(threads: Sequence[int], batches: Sequence[int], sizes: Sequence[int], usual: Case) -> list[Case]:
    """One thing at a time differs from the usual."""
    found = [usual._replace(threads=count) for count in threads]
    found += [usual._replace(batch=count) for count in batches]
    found += [usual._replace(size=side) for side in sizes]
    return list(dict.fromkeys(found))


def measure(
    bundle: Bundle, wanted: Sequence[Case], steps: int, *, rounds: int, scratch: Path, ask: Ask = children.ask
) -> dict[str, Any]:
    """Minutes a picture and pictures an hour for each thread, after a picture of one step."""
    known = {case.label: case for case in wanted}

    def run(label: str, number: int) -> Answer:
        case = known[label]
        settings = {"threads": case.threads, "batch_size": case.batch}
        wish = Wish(PROMPT, steps, case.size, pictures=case.batch)
        told = environment(None) | {"OVENBIRD_CACHE": str(scratch / "cache")}
        contestant = Contestant(label, "ovenbird", bundle.precision, settings)
        return ask("benchmarks.adapters", job(contestant, bundle.path, [wish], warm_up=True), told)

    answers = children.in_turn(known, rounds, run)
    rows = {label: _row(known[label], found) for label, found in answers.items()}
    return {"settings": {"steps": steps, "rounds": rounds}, "weights": bundle.precision, "rows": rows}


def _row(case: Case, answers: list[Answer]) -> dict[str, Any]:
    if error := children.failed(answers):
        return {**case._asdict(), "error": error}
    seconds = children.spread(answer["pictures_s"][0] / case.batch for answer in answers)
    return {
        **case._asdict(),
        "seconds": seconds,
        "minutes": seconds["median"] / 60,
        "pictures_an_hour_a_core": 3600 / seconds["median"] / case.threads,
        "peak_mib": children.spread(answer["peak_mib"] for answer in answers),
        "precision": answers[-1]["precision"],
    }


def baseline(path: Path, title: str, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of an earlier record.  Raises ``RequestError`` for one of another machine, or without this model."""
    earlier = json.loads(path.read_text(encoding="utf-8"))["figures"]
    if title not in earlier:
        raise RequestError(f"baseline: {path} has no {title!r}", hint=f"it has: {'; '.join(earlier) or 'nothing'}")
    for name in ("cpu", "cores"):
        if earlier[title]["machine"][name] != machine[name]:
            raise RequestError(f"baseline: {path} is of {earlier[title]['machine'][name]!r}, not of {machine[name]!r}")
    rows: dict[str, Any] = earlier[title]["rows"]
    return rows


def regressions(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[str]:
    """What became slower by more than the noise: the ranges of both, one after the other, or ``LEAST_NOISE``.

    A row that was drawn and fails now is one, too; rows that only one of them has are passed over.
    """
    for label, row in now.items():
        if "seconds" not in then.get(label, {}):
            continue
        if "error" in row:
            yield f"{label}: {row['error']}"
            continue
        new, old = row["seconds"], then[label]["seconds"]
        noise = max(sum(each["max"] - each["min"] for each in (new, old)), LEAST_NOISE * old["median"])
        slower = new["median"] - old["median"]
        if slower > noise:
            yield f"{label}: {old['median']:.2f} s a picture became {new['median']:.2f}; the noise is {noise:.2f}"
