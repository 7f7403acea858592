"""From the start of a process to its first step and to its PNG, with an empty cache and a filled one."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import children
from benchmarks.adapters import Wish
from benchmarks.children import Answer
from benchmarks.compare import Ask, environment
from benchmarks.contestants import Contestant, job
from ovenbird.bundle import Bundle

OURS = Contestant("ovenbird", "ovenbird")
THEIRS = Contestant("openvino-genai", "openvino-genai")
THEIRS_KEPT = Contestant("openvino-genai with its cache", "openvino-genai", settings={"cache": True})
STARTS = {
    "ovenbird, first start": OURS,
    "ovenbird, second start": OURS,
    "openvino-genai": THEIRS,
    "openvino-genai with its cache, first start": THEIRS_KEPT,
    "openvino-genai with its cache, second start": THEIRS_KEPT,
}
"""A round: each cache is empty at a contestant's first start, and filled by that for the second."""
SECOND = "second start"
POINTS = ("loaded_s", "first_step_s", "png_s")


def measure(bundle: Bundle, wish: Wish, *, rounds: int, scratch: Path, ask: Ask = children.ask) -> dict[str, Any]:
    """Seconds from the start of the process, for each of ``STARTS``."""

    def run(name: str, number: int) -> Answer:
        contestant = STARTS[name]
        place = scratch / contestant.label
        if not name.endswith(SECOND):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        told = environment(None) | {"OVENBIRD_CACHE": str(place / "cache")}
        return ask("benchmarks.adapters", job(contestant, bundle.path, [wish], warm_up=False, pictures=place), told)

    able = [name for name, contestant in STARTS.items() if isinstance(contestant.folder([bundle], None), Path)]
    answers = children.in_turn(able, rounds, run)
    rows = {name: _row(found) for name, found in answers.items()}
    return {"settings": {**asdict(wish), "rounds": rounds}, "weights": bundle.precision, "rows": rows}


def _row(answers: list[Answer]) -> dict[str, Any]:
    if error := children.failed(answers):
        return {"error": error}
    found = {name: children.spread(answer[name] for answer in answers) for name in (*POINTS, "peak_mib")}
    return {**found, "precision": answers[-1]["precision"], "cache": answers[-1].get("cache")}
