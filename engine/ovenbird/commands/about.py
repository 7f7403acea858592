"""What there is to say of a model: its variants, how they were proven, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ovenbird import progress, schedulers
from ovenbird.backends import BACKENDS
from ovenbird.bundle import COMPONENTS, FORMATS, Bundle
from ovenbird.choice import NEEDED, Leeway
from ovenbird.errors import ModelError, OvenbirdError
from ovenbird.sizes import show_size

FAMILIES = {
    "sd": "Stable Diffusion with one text encoder (SD 1.x, 2.x and their like)",
    "sdxl": "Stable Diffusion XL, with two text encoders",
}
LACKS = {
    "vae_encoder": "vae_encoder: --init-image, --mask and upscale are refused",
    "safety_checker": "safety_checker: pictures are not checked",
    "tiny_vae_decoder": "tiny_vae_decoder: --decoder tiny is refused, and previews take the full one",
}
"""Component -> what goes without it."""


def about(bundles: Sequence[Bundle]) -> dict[str, Any]:
    """Facts of a model by its variants, for JSON."""
    first = bundles[0]
    source = (first.manifest or {}).get("source")
    source = source if isinstance(source, dict) else {}
    choice = Leeway().among({bundle.precision: bundle.path for bundle in bundles})
    return {
        "name": first.name,
        "family": first.family,
        "kind": ", ".join(_kind(first)),
        "default_size": first.default_size,
        "scheduler": _scheduler(first),
        "source": source,
        "licence": "Apache-2.0" if first.embedded else source.get("licence"),
        "recommended": {"precision": choice.precision, "why": str(choice)},
        "variants": [_variant(bundle) for bundle in bundles],
    }


def components(bundle: Bundle) -> list[str]:
    """Those that have a graph which a runtime reads."""
    graphs = [kind[0] for kinds in FORMATS.values() for kind in kinds]
    return [name for name in COMPONENTS if any((bundle.path / name / graph).is_file() for graph in graphs)]


def size(bundle: Bundle) -> int:
    """Bytes of the files that belong to it."""
    files = bundle.manifest["files"].values() if bundle.manifest else ()
    return sum(facts["size"] for facts in files) or progress.size(bundle.path)


def runtimes(bundle: Bundle) -> list[str]:
    """Those that could read it, whether they are installed or not."""
    parts = [bundle.path / part for part in NEEDED]
    return [
        name for name in BACKENDS if all(any((part / kind[0]).is_file() for kind in FORMATS[name]) for part in parts)
    ]


def _kind(bundle: Bundle) -> Iterator[str]:
    yield FAMILIES[bundle.family]
    unet = bundle.config("unet")
    if unet.get("in_channels") == 9:
        yield "for inpainting: it needs --init-image and --mask"
    if unet.get("time_cond_proj_dim"):
        yield "distilled (LCM): 4 to 8 steps"
    with suppress(ModelError):
        if bundle.scheduler_config.get("prediction_type") == "v_prediction":
            yield "v-prediction"


def _scheduler(bundle: Bundle) -> str:
    try:
        found = schedulers.from_config(bundle.scheduler_config)
    except OvenbirdError as error:
        return f"refused: {error}; choose one with --scheduler"
    return f"{found.label} ({found.class_name})"


def _variant(bundle: Bundle) -> dict[str, Any]:
    return {
        "precision": bundle.precision,
        "path": str(bundle.path),
        "bytes": size(bundle),
        "runtimes": runtimes(bundle),
        "components": components(bundle),
        "state": _state(bundle),
        "verification": (bundle.manifest or {}).get("verification"),
        "lacks": list(_lacks(bundle)),
    }


def _state(bundle: Bundle) -> str:
    if bundle.manifest is None:
        return "unverified: it has no ovenbird.json"
    try:
        bundle.verify(full=False)
    except ModelError as error:
        return f"damaged: {error}"
    return f"{len(bundle.manifest['files'])} files of the right sizes; ovenbird verify compares every byte"


def _lacks(bundle: Bundle) -> Iterator[str]:
    there, readers = components(bundle), runtimes(bundle)
    yield from (what for name, what in LACKS.items() if name not in there)
    if not bundle.clip_skip and bundle.family == "sd":
        yield "clip_skip: --clip-skip is refused"
    if "onnxruntime" not in readers:
        yield "ONNX: --backend onnxruntime is refused"
    if "int8" not in bundle.precision and bundle.manifest is None:
        yield "ovenbird.json: nothing is known of how it was made"


def rows_of(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The same for people."""
    side = told["default_size"]
    yield "model", str(told["name"])
    yield "family", told["kind"]
    yield "size", f"{side}x{side} pixels, unless --width and --height say otherwise"
    yield "scheduler", f"{told['scheduler']}, unless --scheduler says otherwise"
    facts = [
        str(told["source"][name]) for name in ("repo", "commit", "name", "file", "class") if told["source"].get(name)
    ]
    yield "source", ", ".join(facts) or "not known"
    yield "licence", str(told["licence"] or "not known")
    for variant in told["variants"]:
        yield "variant", f"{variant['precision']}, {show_size(variant['bytes'])}, {variant['path']}"
        yield "  files", variant["state"]
        yield "  runtimes", ", ".join(variant["runtimes"]) or "none"
        yield "  components", ", ".join(variant["components"])
        yield "  proven", "\n".join(proofs(variant["verification"])) or "nothing is known"
        yield "  lacks", "\n".join(variant["lacks"]) or "nothing"
    yield "auto", f"{told['recommended']['why'] or told['recommended']['precision']}"


def proofs(verification: Any) -> list[str]:
    """What an export found, in words; of what is not understood nothing."""
    found: list[str] = []
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        found += _components(verification["components"])
        found += _pictures(dict(verification["pictures"]))
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        scores = verification["attributes"]
        all_of, of_fp32 = float(scores["scores"]["all"]), float(scores["reference"]["all"])
        found.append(
            f"attributes right in {all_of:.1%} of {int(scores['captions'])} pictures, in float32 {of_fp32:.1%}"
        )
    return found


def _components(figures: Mapping[str, Any]) -> Iterator[str]:
    for name, rows in figures.items():
        worst = max(rows.values(), key=lambda row: float(row[next(iter(row["gate"]))]))
        ((measure, gate),) = worst["gate"].items()
        what = "largest difference" if measure == "max_abs" else "relative error"
        yield f"{name}: {what} from torch {float(worst[measure]):.1e}, {float(gate):.0e} allowed ({', '.join(rows)})"


def _pictures(figures: dict[str, Any]) -> Iterator[str]:
    gate = float(figures.pop("gate_db"))
    for runtime, row in figures.items():
        alike = f"{float(row['psnr_db']):.0f} dB, SSIM {float(row['ssim']):.3f}"
        yield f"pictures on {runtime}: {alike} against float32, {gate:.0f} dB asked for"
