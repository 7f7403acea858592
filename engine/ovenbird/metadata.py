"""How a picture carries the words and settings that made it, and gets to disk whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ovenbird.disk import FULL
from ovenbird.errors import RequestError, ResourceError
from ovenbird.prompts import escape

_WEBP: Mapping[str, Any] = {"format": "WEBP", "quality": 90}
ANIMATIONS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    ".webp": ({**_WEBP, "loop": 1}, {**_WEBP, "loop": 0}),
    ".gif": ({"format": "GIF"}, {"format": "GIF", "loop": 0}),  # of GIFs, one that says nothing is shown once
}
"""The end of a name -> how Pillow writes it, to be shown once, and again and again."""


def parameters(facts: Mapping[str, Any]) -> str:
    """The prompts and the line of settings that stable-diffusion-webui writes and reads, in its own syntax."""
    prompt, negative = (
        escape(facts[name]) if facts["prompt_syntax"] == "plain" else facts[name]
        for name in ("prompt", "negative_prompt")
    )
    negative = f"\nNegative prompt: {negative}" if negative else ""
    pairs = {
        "Steps": facts["num_inference_steps"],
        "Sampler": facts["sampler"],
        "CFG scale": f"{facts['guidance_scale']:g}",
        "Seed": facts["seed"],
        "Size": f"{facts['width']}x{facts['height']}",
        **_varied(facts),
        **({"Denoising strength": f"{facts['strength']:g}"} if facts["strength"] is not None else {}),
        **_enlarged(facts),
        "Model": facts["model"],
        "Version": f"ovenbird {facts['ovenbird']}",
    }
    return f"{prompt}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in pairs.items())


def _varied(facts: Mapping[str, Any]) -> dict[str, Any]:
    strength = facts["variation_strength"]
    return {"Variation seed": facts["variation_seed"], "Variation seed strength": f"{strength:g}"} if strength else {}


def _enlarged(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The web UI counts the steps that are run, and not those from noise."""
    if facts["hires_scale"] is None:
        return {}
    return {
        "Denoising strength": f"{facts['hires_strength']:g}",
        "Hires upscale": f"{facts['hires_scale']:g}",
        "Hires steps": int(facts["hires_steps"] * facts["hires_strength"]),
        "Hires upscaler": facts["hires_upscaler"].capitalize(),
    }


def save_png(image: Image, path: Path, facts: Mapping[str, Any] | None, *, overwrite: bool = False) -> None:
    """A PNG with the text chunks ``parameters`` and ``ovenbird`` (JSON), if there are facts.

    Raises what ``whole`` raises.
    """
    text = PngInfo()
    if facts is not None:
        text.add_itxt("parameters", parameters(facts))
        text.add_itxt("ovenbird", json.dumps(dict(facts), ensure_ascii=False, sort_keys=True))
    with whole(path, overwrite) as file:
        image.save(file, format="PNG", pnginfo=text)


def save_animation(
    frames: Sequence[Image], path: Path, *, fps: float, loop: bool = True, overwrite: bool = False
) -> None:
    """A WebP or GIF of the frames, by the name's end; raises what ``whole`` raises."""
    how = ANIMATIONS[path.suffix.lower()]
    first, *others = frames
    with whole(path, overwrite) as file:
        first.save(file, save_all=True, append_images=others, duration=round(1000 / fps), **how[loop])


@contextmanager
def whole(path: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file to write, beside the target; when all is written it is synced and put in place.

    Raises ``RequestError`` when the target exists and must stay, ``ResourceError`` when it cannot be written.
    """
    part = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".ovenbird-", suffix=path.suffix, delete=False
        ) as file:
            part = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        _put_in_place(part, path, overwrite)
    except OSError as error:
        if isinstance(error, RequestError):
            raise
        reason = "the disk is full" if error.errno in FULL else error.strerror
        raise ResourceError(f"{path} cannot be written: {reason}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _put_in_place(part: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path, follow_symlinks=False)  # fails where a file, or a link, already is
    except FileExistsError:
        raise RequestError(f"output: {path} exists", hint="choose another name, or add --overwrite") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
