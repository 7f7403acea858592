"""What stable-diffusion-webui writes into its pictures, in our words."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ovenbird.request import HIRES_STRENGTH, MAX_STEPS, UPSCALERS

Pairs = Mapping[str, str]
# Keys and repeats are short, so that time grows with the length and no faster.
_PAIR = re.compile(r'\s{0,8}+(\w[\w \-/]{1,60}+):\s{0,8}+("(?:\\.|[^\\"])++"|[^,]*+)(?:,|$)')
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_NEGATIVE = "Negative prompt:"
LONGEST_LINE = 64 << 10
_LEAST_PAIRS = 3
"""A last line with fewer is a part of the prompt."""
AUTOMATIC = {
    "DPM++ 2M": "Karras",
    "DPM++ SDE": "Karras",
    "DPM++ 2M SDE": "Exponential",
    "DPM++ 2M SDE Heun": "Exponential",
    "DPM++ 2S a": "Karras",
    "DPM++ 3M SDE": "Exponential",
    "DPM2": "Karras",
    "DPM2 a": "Karras",
}
"""Sampler -> the schedule type that the web UI's ``Automatic`` is; it is none for the others."""
USED = {
    "Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Clip skip", "Variation seed",
    "Variation seed strength", "Denoising strength", "Hires upscale", "Hires resize", "Hires steps", "Hires upscaler",
    "Eta", "Eta DDIM", "Model", "Model hash", "VAE", "VAE hash", "RNG", "Version", "Lora hashes", "TI hashes", "TI",
    "Batch size", "Batch pos", "User",
}  # fmt: skip
"""Keys that are understood, or make no difference."""


def parse(text: str) -> dict[str, Any] | None:
    """Our settings of a text, a number or a size that cannot be read as it stands; None if there are no settings.

    ``image`` is ``""`` for a picture that was made from another, of which it says no more.  Warns of what has no
    counterpart here.
    """
    *lines, last = text.strip().split("\n")
    if len(last) > LONGEST_LINE:
        return None
    pairs = {key.strip(): _unquoted(value.strip()) for key, value in _PAIR.findall(last)}
    if len(pairs) < _LEAST_PAIRS:
        return None
    prompt, negative = _prompts(lines)
    unknown = sorted(key for key in pairs if key not in USED)
    if not _takes_eta(pairs) and _number(float, pairs, "Eta") not in (None, 1.0):
        unknown.append("Eta")
    if unknown:
        warnings.warn(f"settings of the web UI that have no counterpart here: {', '.join(unknown):.200}", stacklevel=2)
    found = {
        "prompt": prompt,
        "negative_prompt": negative,
        "prompt_syntax": "webui",
        "num_inference_steps": _number(int, pairs, "Steps"),
        "guidance_scale": _number(float, pairs, "CFG scale"),
        "seed": _number(int, pairs, "Seed"),
        "variation_seed": _number(int, pairs, "Variation seed"),
        "variation_strength": _number(float, pairs, "Variation seed strength"),
        "scheduler": _sampler(pairs),
        "eta": _number(float, pairs, "Eta DDIM" if "Eta DDIM" in pairs else "Eta") if _takes_eta(pairs) else None,
        "clip_skip": _clip_skip(pairs),
        "model": pairs.get("Model"),
        **_size(pairs),
        **_again(pairs),
    }
    return {name: value for name, value in found.items() if value is not None}


def _prompts(lines: list[str]) -> tuple[str, str]:
    """The prompt, and the negative one that begins at a line of its own."""
    at = next((place for place, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(line.strip() for line in lines[at:]).removeprefix(_NEGATIVE)
    return "\n".join(line.strip() for line in lines[:at]), negative.strip()


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except (ValueError, RecursionError):
        return value


def _number(kind: Callable[[str], float], pairs: Pairs, key: str) -> float | str | None:
    """The text itself if it is none, to be refused by who knows the field."""
    if key not in pairs:
        return None
    try:
        return kind(pairs[key])
    except ValueError:
        return pairs[key]


def _sampler(pairs: Pairs) -> str | None:
    label = pairs.get("Sampler")
    if label is None:
        return None
    kind = pairs.get("Schedule type", "Uniform")
    if kind == "Automatic":
        kind = AUTOMATIC.get(label, "Uniform")
    return label if kind == "Uniform" else f"{label} {kind}"


def _takes_eta(pairs: Pairs) -> bool:
    return pairs.get("Sampler") == "DDIM"


def _clip_skip(pairs: Pairs) -> float | str | None:
    """The web UI's number is one more."""
    value = _number(int, pairs, "Clip skip")
    return value if value is None or isinstance(value, str) else value - 1


def _size(pairs: Pairs) -> dict[str, Any]:
    found = _SIZE.fullmatch(pairs.get("Size", ""))
    return {"width": int(found[1]), "height": int(found[2])} if found else {}


def _again(pairs: Pairs) -> dict[str, Any]:
    """Of a picture that was enlarged and made anew, or made from another, how much could change.

    The web UI counts the steps that are run, we those from noise, of which that share is run.
    """
    strength = _number(float, pairs, "Denoising strength")
    if not any(key.startswith("Hires ") for key in pairs):
        return {"strength": strength, "image": ""} if strength else {}
    scale = _number(float, pairs, "Hires upscale") if "Hires upscale" in pairs else _resized(pairs)
    if scale is None:
        warnings.warn("the web UI enlarged this picture to another shape; here it is not enlarged", stacklevel=3)
        return {}
    strength = HIRES_STRENGTH if strength is None else strength
    steps = _number(int, pairs, "Hires steps") or _number(int, pairs, "Steps")
    if isinstance(steps, int) and isinstance(strength, float) and _is_possible(steps, strength):
        steps = math.ceil(round(steps / strength, 6))
    upscaler = pairs.get("Hires upscaler", "Latent")
    if upscaler.lower() not in UPSCALERS:
        warnings.warn(f"the web UI enlarged with {upscaler:.40}; here it is latent", stacklevel=3)
        upscaler = "latent"
    return {
        "hires_scale": scale,
        "hires_strength": strength,
        "hires_steps": steps,
        "hires_upscaler": upscaler.lower(),
    }


def _resized(pairs: Pairs) -> float | None:
    """How much larger the size is that was asked for; a side of 0 is whatever the other one makes of it."""
    sizes = [_SIZE.fullmatch(pairs.get(key, "")) for key in ("Size", "Hires resize")]
    before, after = ((int(found[1]), int(found[2])) if found else (0, 0) for found in sizes)
    scales = {round(new / old, 6) for old, new in zip(before, after, strict=True) if old and new}
    return scales.pop() if len(scales) == 1 else None


def _is_possible(steps: int, strength: float) -> bool:
    """What is not is left as it stands, to be refused by who knows the field."""
    return 1 <= steps <= MAX_STEPS and 1 / MAX_STEPS <= strength <= 1
