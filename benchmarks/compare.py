"""ovenbird beside its peers: the same weights, prompt, seed, size, sampler and steps, a process each, in turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import children
from benchmarks.adapters import Wish
from benchmarks.children import Answer
from benchmarks.contestants import Contestant, job
from ovenbird.bundle import COMPONENTS, Bundle, find
from ovenbird.errors import ModelError
from ovenbird_export.fidelity import psnr, ssim

REFERENCE = "openvino-genai"
PROMPT = "a large red house in the snow at night under the stars"
EXACT = Contestant("exact", "ovenbird", settings={"inference_precision": "f32"})
"""Who draws what all are compared with: the best weights that are given, in float32."""
BEST = ("fp32", "fp16", "int8-weights", "int8")
"""Weights, those with the least loss first."""
Ask = Callable[[str, object, Mapping[str, str]], Answer]


def variants(folders: Iterable[str | Path]) -> list[Bundle]:
    """Each folder, or all the variants in it, best weights first.  Raises what ``Bundle.open`` does."""
    found = []
    for folder in map(find, folders):
        inside = [folder / name for name in BEST if (folder / name / "model_index.json").is_file()]
        found += [Bundle.open(path) for path in inside or [folder]]
    return sorted(found, key=lambda bundle: BEST.index(bundle.precision) if bundle.precision in BEST else len(BEST))


def title(bundle: Bundle, wish: Wish, isa: str | None) -> str:
    """What a comparison is called in the record."""
    return f"{bundle.name}, {wish.size}x{wish.size}, {wish.steps} steps" + (f", at most {isa}" if isa else "")


def environment(isa: str | None) -> dict[str, str]:
    """Of every child: a processor with less than this one has, and nothing from the network."""
    return {"HF_HUB_OFFLINE": "1", **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}


def measure(
    bundles: Sequence[Bundle],
    contestants: Sequence[Contestant],
    wish: Wish,
    *,
    rounds: int,
    scratch: Path,
    reference: str = REFERENCE,
    isa: str | None = None,
    source: Path | None = None,
    ask: Ask = children.ask,
) -> dict[str, Any]:
    """A row for each contestant, whatever becomes of it; pictures and caches of compiled models go to ``scratch``."""

    def run(contestant: Contestant, folder: Path, number: int) -> Answer:
        pictures = _pictures(scratch, contestant.label, number)
        pictures.mkdir(parents=True)
        told = environment(isa) | {"OVENBIRD_CACHE": str(scratch / "cache" / contestant.label)}
        return ask(
            "benchmarks.adapters",
            job(contestant, folder, [wish], warm_up=contestant is not EXACT, pictures=pictures),
            told,
        )

    exact = run(EXACT, bundles[0].path, 0)
    shutil.rmtree(scratch / "cache", ignore_errors=True)  # gigabytes that nobody needs again
    places = {each.label: each.folder(bundles, source) for each in contestants}
    able = {each.label: each for each in contestants if isinstance(places[each.label], Path)}
    answers = children.in_turn(able, rounds, lambda label, k: run(able[label], Path(places[label]), k))
    rows: dict[str, Any] = {}
    for contestant in contestants:
        label = contestant.label
        row = {"library": contestant.library, "weights": contestant.precision, "settings": dict(contestant.settings)}
        if label not in able:
            rows[label] = {**row, "absent": places[label]}
        elif error := children.failed(answers[label]):
            rows[label] = {**row, "error": error}
        else:
            rows[label] = row | summary(answers[label], answers.get(reference, []))
            if "error" not in exact:
                last, truth = _pictures(scratch, label, rounds - 1), _pictures(scratch, EXACT.label, 0)
                rows[label] |= likeness([last / "0.png"], [truth / "0.png"])
    settings = {**asdict(wish), "rounds": rounds, "reference": reference, "isa": isa}
    exact = {"weights": bundles[0].precision, **{name: exact[name] for name in ("error", "precision") if name in exact}}
    return {"settings": settings, "exact": exact, "rows": rows}


def summary(answers: Sequence[Answer], reference: Sequence[Answer]) -> dict[str, Any]:
    """Medians and spreads; ratios are of one round each, since what disturbs a machine comes and goes.

    The first round, which may find nothing in a cache, is apart from those ``again``: None of one round.
    """
    seconds, theirs = _seconds(answers), _seconds(reference)
    points, again = ("warm_s", "peak_mib"), answers[1:]
    return {
        "seconds": children.spread(seconds),
        "ratio": children.spread(a / b for a, b in zip(seconds, theirs, strict=False)) if theirs else None,
        "precision": answers[-1]["precision"],
        "first": {name: answers[0][name] for name in points},
        "again": {name: children.spread(each[name] for each in again) for name in points} if again else None,
        "drawing_peak_mib": answers[-1]["drawing_peak_mib"],
        "report": answers[-1].get("report"),
        "rounds": [{name: value for name, value in each.items() if name != "report"} for each in answers],
    }


def likeness(pictures: Sequence[Path], exact: Sequence[Path]) -> dict[str, float]:
    """Mean and worst PSNR in dB and SSIM of PNGs against others."""
    pairs = [(_pixels(ours), _pixels(theirs)) for ours, theirs in zip(pictures, exact, strict=True)]
    decibels, structure = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
    return {
        "psnr_db": mean(decibels),
        "least_psnr_db": min(decibels),
        "ssim": mean(structure),
        "least_ssim": min(structure),
    }


def torch_weights(given: Path | None, bundle: Bundle, scratch: Path) -> Path | None:
    """A diffusers folder of the weights that were exported: given, named by the manifest, or, random ones, made."""
    if given is not None:
        if not (given / "model_index.json").is_file():
            raise ModelError(f"source: {given} is not a diffusers folder: no model_index.json")
        return given
    name = str((bundle.manifest or {}).get("source", {}).get("name", ""))
    if name.startswith("synthetic:"):
        from ovenbird_export import synthetic

        (scratch / "source").mkdir()
        synthetic.write(name.removeprefix(synthetic.PREFIX), scratch / "source")
        return scratch / "source"
    return Path(name) if name and (Path(name) / "model_index.json").is_file() else None


def bytes_of(bundle: Bundle) -> int:
    """Of what one runtime reads: its IR, or its ONNX where there is no other."""
    found = 0
    for component in COMPONENTS:
        folder = bundle.path / component
        kinds = ("openvino_model.*",) if (folder / "openvino_model.xml").is_file() else ("model.onnx*",)
        found += sum(path.stat().st_size for kind in kinds for path in folder.glob(kind))
    return found


def _seconds(answers: Sequence[Answer]) -> list[float]:
    return [answer["pictures_s"][0] for answer in answers if "error" not in answer]


def _pictures(scratch: Path, label: str, number: int) -> Path:
    return scratch / "pictures" / label / str(number)


def _pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
