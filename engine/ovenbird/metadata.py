"""How a picture carries the words and settings that made it, and gets to disk whole or not at all.

``recall`` reads them back.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL.ExifTags import IFD, Base
from PIL.Image import Exif, Image
from PIL.PngImagePlugin import PngInfo

from ovenbird.disk import FULL, NO_LINKS
from ovenbird.errors import RequestError, ResourceError
from ovenbird.infotext import AUTOMATIC
from ovenbird.prompts import escape

_WEBP: Mapping[str, Any] = {"format": "WEBP", "quality": 90}
ANIMATIONS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    ".webp": ({**_WEBP, "loop": 1}, {**_WEBP, "loop": 0}),
    ".gif": ({"format": "GIF"}, {"format": "GIF", "loop": 0}),  # of GIFs, one that says nothing is shown once
}
"""The end of a name -> how Pillow writes it, to be shown once, and again and again."""
_JPEG: Mapping[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"}
PICTURES: Mapping[str, Mapping[str, Any]] = {".png": {"format": "PNG"}, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP}
"""The end of a name -> how Pillow writes a picture."""
LARGEST_EXIF = 65_000
"""Bytes; a JPEG has room for 65,533."""
OTHER_FACTS = 12_000
"""Bytes of them, room for many embeddings among it, that do not grow with the prompts."""
UNICODE = b"UNICODE\0"
"""What begins a comment in EXIF that is in UTF-16; the web UI reads no other order of bytes than the highest first."""
OURS = "ovenbird "
"""What begins a description in EXIF that is our JSON."""


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
        **_told_apart(facts),
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


def _told_apart(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the web UI takes to be otherwise where it is not told."""
    return {
        **({"Schedule type": "Uniform"} if facts["sampler"] in AUTOMATIC else {}),
        **({"Clip skip": facts["clip_skip"] + 1} if facts["clip_skip"] else {}),
        **({"Eta DDIM": f"{facts['eta']:g}"} if facts["eta"] and facts["sampler"] == "DDIM" else {}),
    }


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


def save_picture(image: Image, path: Path, facts: Mapping[str, Any] | None, *, overwrite: bool = False) -> None:
    """A PNG, JPEG or WebP, by the name's end, with the web UI's words and our JSON, if there are facts.

    They are the text chunks ``parameters`` and ``ovenbird`` of a PNG; elsewhere UserComment and, behind the word
    ``ovenbird``, ImageDescription in EXIF.  Nothing else is written there.  Raises what ``whole`` raises, and
    ``RequestError`` for another end, and for facts that a JPEG has no room for.
    """
    how = format_of(path)
    told: dict[str, Any] = {}
    if facts is not None:
        told = {"pnginfo": _text(facts)} if how["format"] == "PNG" else {"exif": _exif(facts)}
    if how is _JPEG and len(told.get("exif", b"")) > LARGEST_EXIF:
        raise _no_room(path)
    with whole(path, overwrite) as file:
        image.save(file, **how, **told)


def format_of(path: Path) -> Mapping[str, Any]:
    """How Pillow writes a file of that name.  Raises ``RequestError`` for an end that is none of ``PICTURES``."""
    if path.suffix.lower() not in PICTURES:
        hint = f"use {path.with_suffix('.png')}" if path.name.strip(".-") else "use output.png"
        raise RequestError(f"output: {path} does not end in {', '.join(PICTURES)}", hint=hint)
    return PICTURES[path.suffix.lower()]


def check_room(path: Path, *prompts: str) -> None:
    """Raises ``RequestError`` for prompts that a file of that name has no room for."""
    most = OTHER_FACTS + sum(2 * len(text) + len(json.dumps(text)) for text in map(escape, prompts))
    if PICTURES[path.suffix.lower()] is _JPEG and most > LARGEST_EXIF:
        raise _no_room(path)


def _no_room(path: Path) -> RequestError:
    return RequestError(
        f"output: {path.name} has no room for prompts as long as these: 64 KB are all that EXIF has in a JPEG",
        hint=f"use {path.with_suffix('.png').name}",
    )


def _text(facts: Mapping[str, Any]) -> PngInfo:
    text = PngInfo()
    text.add_itxt("parameters", parameters(facts))
    text.add_itxt("ovenbird", json.dumps(dict(facts), ensure_ascii=False, sort_keys=True))
    return text


def _exif(facts: Mapping[str, Any]) -> bytes:
    exif = Exif()
    exif[Base.ImageDescription] = OURS + json.dumps(dict(facts), sort_keys=True)  # which is ASCII, as EXIF wants it
    exif.get_ifd(IFD.Exif)[Base.UserComment] = UNICODE + parameters(facts).encode("utf-16-be")
    return exif.tobytes()


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
        if not path.is_symlink() and path.exists() and not path.is_file():
            raise RequestError(f"output: {path} is no file that could be replaced", hint="choose another name")
        os.replace(part, path)
        return
    try:
        _put_where_nothing_is(part, path)
    except FileExistsError:
        hint = "choose another name, or add --overwrite; in Python overwrite=True"
        raise RequestError(f"output: {path} exists", hint=hint) from None


def _put_where_nothing_is(part: Path, path: Path) -> None:
    """Raises ``FileExistsError`` where a file, or a link, already is."""
    try:
        os.link(part, path, follow_symlinks=False)
        return
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    # Without hard links an empty file, which can be made only where nothing is, and is replaced at once.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        os.replace(part, path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
