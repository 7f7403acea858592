"""What a picture says of how it was made: read with suspicion, for anybody may have written it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.ExifTags import IFD, Base
from PIL.Image import Image

from ovenbird import images, infotext
from ovenbird.errors import RequestError
from ovenbird.metadata import OURS, UNICODE

LARGEST_TEXT = 2 << 20
WEB_UI = "stable-diffusion-webui"
CHANGED = "another program may have changed it"

_TEXT = ("a text", str)
_WHOLE = ("a whole number", int)
_NUMBER = ("a number", float)
_FLAG = ("true or false", bool)
_WHOLES = ("a pair of whole numbers", (int, int))
_NUMBERS = ("a pair of numbers", (float, float))
_WORDS = ("a list of texts", [str])
_TABLE = ("an object", dict)
_TABLES = ("a list of objects", [dict])
FACTS: Mapping[str, tuple[str, Any]] = {
    **dict.fromkeys(("prompt", "negative_prompt", "prompt_syntax", "scheduler", "to_prompt", "hires_upscaler"), _TEXT),
    **dict.fromkeys(("num_inference_steps", "seed", "variation_seed", "height", "width", "clip_skip"), _WHOLE),
    **dict.fromkeys(("num_images_per_prompt", "hires_steps", "tile_size"), _WHOLE),
    **dict.fromkeys(("guidance_scale", "eta", "strength", "variation_strength", "blend"), _NUMBER),
    **dict.fromkeys(("hires_scale", "hires_strength"), _NUMBER),
    **dict.fromkeys(("original_size", "crops_coords_top_left", "target_size"), _WHOLES),
    **dict.fromkeys(("negative_original_size", "negative_crops_coords_top_left", "negative_target_size"), _WHOLES),
    "guidance_interval": _NUMBERS,
    **dict.fromkeys(("image", "mask_image", "tokenizer"), _TEXT),  # hashes
    **dict.fromkeys(("sampler", "model", "model_key", "weights", "backend", "device", "inference_precision"), _TEXT),
    **dict.fromkeys(("shortcuts", "pool_attention", "decoder", "vae_precision", "safety_checker", "ovenbird"), _TEXT),
    **dict.fromkeys(("threads", "reuse_every", "reuse_depth", "vae_tile", "batch_size"), _WHOLE),
    **dict.fromkeys(("nsfw_content_detected", "vae_retried", "strict"), _FLAG),
    "exact": _WORDS,
    "embeddings": _TABLES,
    "scheduler_config": _TABLE,
}
"""What our JSON may hold, and of which kind; null is no value of any kind."""


@dataclass(frozen=True)
class Recalled:
    """The settings of one picture, by the names of ``FACTS``: of the right kinds, though they may be out of range."""

    path: Path
    settings: Mapping[str, Any]
    by: str
    """The program that made it."""


def read(path: Path, name: str = "params-from") -> Recalled:
    """The settings in a PNG, JPEG or WebP of ours, or of stable-diffusion-webui; ours go first.

    ``name`` is the setting that errors speak of.  Raises ``RequestError``; opens no file but this one.
    """
    ours, theirs = _texts(name, path, images.read(name, path))
    for text in (ours, theirs):
        if text is not None and len(text) > LARGEST_TEXT:
            raise _refused(name, path, f"holds a text of {len(text)} characters, more than {LARGEST_TEXT}")
    if ours is not None:
        settings = _ours(name, path, ours)
        return Recalled(path, settings, f"ovenbird {settings.get('ovenbird', '')}".strip())
    parsed = infotext.parse(theirs) if theirs is not None else None
    if parsed is None:
        raise RequestError(
            f"{name}: {path} does not say how it was made",
            hint="pictures of ovenbird and of stable-diffusion-webui do, unless a program in between removed it",
        )
    return Recalled(path, _checked(name, path, parsed), WEB_UI)


def _texts(name: str, path: Path, image: Image) -> tuple[str | None, str | None]:
    """Our JSON and the web UI's text, where there are any."""
    written = getattr(image, "text", {})
    if "ovenbird" in written or "parameters" in written:
        return written.get("ovenbird"), written.get("parameters")
    try:
        exif = image.getexif()
        description, comment = exif.get(Base.ImageDescription), exif.get_ifd(IFD.Exif).get(Base.UserComment)
    except Exception as error:  # Pillow raises whatever it stumbles over
        raise _refused(name, path, f"has EXIF that cannot be read ({str(error)[:60]})") from error
    ours = description if isinstance(description, str) and description.startswith(OURS) else None
    theirs = comment if isinstance(comment, bytes) else b""
    return ours and ours.removeprefix(OURS), _decoded(theirs)


def _decoded(comment: bytes) -> str | None:
    if not comment.startswith(UNICODE):
        return None
    return comment.removeprefix(UNICODE).decode("utf-16-be", errors="replace").rstrip("\0")


def _ours(name: str, path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(name, path, f"holds settings that are not JSON ({str(error)[:60]})") from error
    if not isinstance(found, dict):
        raise _refused(name, path, f"holds settings that are {type(found).__name__}, not an object")
    unknown = sorted(set(found) - set(FACTS))
    if unknown:
        raise _refused(name, path, f"has a setting {unknown[0]!a:.40} that is not known; a newer ovenbird may know it")
    if not isinstance(found.get("prompt"), str):
        raise _refused(name, path, "has no prompt")
    return _checked(name, path, {fact: value for fact, value in found.items() if value is not None})


def _checked(name: str, path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    for fact, value in settings.items():
        label, shape = FACTS[fact]
        if not _fits(value, shape):
            raise _refused(name, path, f"says {fact} is {value!a:.40}, which is not {label}")
    return {fact: _paired(value, FACTS[fact][1]) for fact, value in settings.items()}


def _fits(value: object, shape: Any) -> bool:
    """Whether a value from JSON is of a kind: a type, a pair of types, or a list of one."""
    if isinstance(shape, tuple):
        return isinstance(value, list) and len(value) == len(shape) and all(map(_fits, value, shape))
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(each, shape[0]) for each in value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole if shape is int else whole or isinstance(value, float) if shape is float else isinstance(value, shape)


def _paired(value: Any, shape: Any) -> Any:
    return tuple(value) if isinstance(shape, tuple) else value


def _refused(name: str, path: Path, problem: str) -> RequestError:
    return RequestError(f"{name}: {path} {problem}", hint=CHANGED)
