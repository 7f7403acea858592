"""How a picture carries the words and settings that made it, and gets to disk whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ovenbird.disk import FULL
from ovenbird.errors import RequestError, ResourceError
from ovenbird.prompts import escape


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
        **({"Denoising strength": f"{facts['strength']:g}"} if facts["strength"] is not None else {}),
        "Model": facts["model"],
        "Version": f"ovenbird {facts['ovenbird']}",
    }
    return f"{prompt}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in pairs.items())


def save_png(image: Image, path: Path, facts: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write beside the target, sync, then put in place; the text chunks are ``parameters`` and ``ovenbird`` (JSON).

    Raises ``RequestError`` when the file exists and must not be replaced, ``ResourceError`` when it cannot be written.
    """
    text = PngInfo()
    text.add_itxt("parameters", parameters(facts))
    text.add_itxt("ovenbird", json.dumps(dict(facts), ensure_ascii=False, sort_keys=True))
    part = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".ovenbird-", suffix=".png", delete=False) as file:
            part = Path(file.name)
            image.save(file, format="PNG", pnginfo=text)
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
