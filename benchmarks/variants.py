"""What the variants of a model, and its presets, cost and lose."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import children
from benchmarks.adapters import Wish
from benchmarks.children import ROOT, Answer
from benchmarks.compare import EXACT, Ask, bytes_of, environment, likeness
from benchmarks.contestants import Contestant, job
from ovenbird.bundle import Bundle

PROMPTS = ROOT / "models" / "nestling" / "calibration.txt"


def wishes(count: int, steps: int, size: int) -> list[Wish]:
    """Of one seed each."""
    lines = [line for line in PROMPTS.read_text(encoding="utf-8").splitlines() if line]
    return [Wish(line, steps, size, seed) for seed, line in enumerate(islice(cycle(lines), count))]


def rows(bundles: Sequence[Bundle], presets: Sequence[str]) -> dict[str, tuple[Bundle, Contestant]]:
    """Every variant as it is, then with each preset."""
    settings: list[dict[str, str]] = [{}, *({"preset": preset} for preset in presets)]
    found = {}
    for bundle in bundles:
        for setting in settings:
            label = ", ".join([bundle.precision, *setting.values()])
            found[label] = bundle, Contestant(label, "ovenbird", bundle.precision, setting)
    return found


def measure(
    bundles: Sequence[Bundle],
    wanted: Sequence[Wish],
    *,
    rounds: int,
    scratch: Path,
    presets: Sequence[str] = (),
    captions: int = 0,
    ask: Ask = children.ask,
) -> dict[str, Any]:
    """Time, memory, size and likeness to the best variant in float32; attribute scores over ``captions``, if any."""
    entries = rows(bundles, presets)

    def run(bundle: Bundle, contestant: Contestant, number: int) -> Answer:
        pictures = scratch / contestant.label / str(number)
        pictures.mkdir(parents=True)
        told = environment(None) | {"OVENBIRD_CACHE": str(scratch / "cache")}
        given = job(contestant, bundle.path, list(wanted), warm_up=contestant is not EXACT, pictures=pictures)
        return ask("benchmarks.adapters", given, told)

    def pngs(label: str) -> list[Path]:
        return [scratch / label / "0" / f"{number}.png" for number in range(len(wanted))]

    exact = run(bundles[0], EXACT, 0)
    answers = children.in_turn(entries, rounds, lambda label, number: run(*entries[label], number))
    found: dict[str, Any] = {}
    for label, (bundle, contestant) in entries.items():
        if error := children.failed(answers[label]):
            found[label] = {"error": error}
            continue
        found[label] = summary(answers[label]) | {"bytes": bytes_of(bundle)}
        if "error" not in exact:
            found[label] |= likeness(pngs(label), pngs(EXACT.label))
        if captions:
            asked = {"folder": str(bundle.path), "settings": dict(contestant.settings), "captions": captions}
            found[label]["attributes"] = ask("benchmarks.attributes", asked, {"OVENBIRD_CACHE": str(scratch / "cache")})
    settings = {
        "pictures": len(wanted),
        "steps": wanted[0].steps,
        "size": wanted[0].size,
        "rounds": rounds,
        "captions": captions,
    }
    return {"settings": settings, "exact": bundles[0].precision, "rows": found}


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of a variant: a round's picture is the median of its pictures."""
    reports = [answer["report"] for answer in answers]
    return {
        "seconds": children.spread(median(answer["pictures_s"]) for answer in answers),
        "stages_s": {name: median(each["stages_s"][name] for each in answers) for name in answers[0]["stages_s"]},
        "first_step_s": median(report["first_step_s"] for report in reports),
        "median_step_s": median(report["median_step_s"] for report in reports),
        "peak_mib": children.spread(answer["peak_mib"] for answer in answers),
        "drawing_peak_mib": answers[-1]["drawing_peak_mib"],
        "precision": answers[-1]["precision"],
    }
