"""What is asked for, and what comes back."""

from __future__ import annotations

import dataclasses
import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovenbird.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ovenbird.timing import TimingReport

MAX_PROMPT_BYTES = 64 << 10
MIN_SIZE, MAX_SIZE, SIZE_STEP = 64, 4096, 8
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_IMAGES = 1000
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """A wish in diffusers' words.  It checks itself: ``RequestError`` names the field, the value and the rule.

    ``height`` and ``width`` in pixels, None for the model's own size; ``seed=None`` draws one, which is recorded.
    Picture k of ``num_images_per_prompt`` uses ``seed + k``.  With ``guidance_scale <= 1`` the U-Net runs once a
    step and the negative prompt has no effect.  ``scheduler=None`` is the one that the model folder names.
    """

    prompt: str
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    eta: float = 0.0
    seed: int | None = None
    num_images_per_prompt: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            _check_text(name, getattr(self, name))
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                _check_size(name, getattr(self, name))
        _check_int("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _check_int("num_images_per_prompt", self.num_images_per_prompt, 1, MAX_IMAGES)
        _check_float("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE)
        _check_float("eta", self.eta, 0.0, 1.0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, MAX_SEED)
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            raise RequestError(f"scheduler: {_short(self.scheduler)} is not a name")

    def settled(self, default_size: int) -> Request:
        """The same wish with nothing left open: seed and size are filled in."""
        return dataclasses.replace(
            self,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            height=self.height or default_size,
            width=self.width or default_size,
        )


@dataclass(frozen=True)
class Result:
    """The pictures of one request, the seed of each, and where the time went."""

    images: list[Image]
    seeds: list[int]
    timings: TimingReport


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name}: {_short(value)} is not a string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise RequestError(f"{name}: {_short(value)} holds half a character (a lone surrogate)") from None
    if size > MAX_PROMPT_BYTES:
        raise RequestError(f"{name}: {size} bytes are more than {MAX_PROMPT_BYTES}", hint="77 tokens are used at most")


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name}: {_short(value)} is not a whole number")
    if not least <= value <= most:
        nearest = min(max(value, least), most)
        raise RequestError(f"{name}: {_short(value)} is not in {least} .. {most}", hint=f"the nearest is {nearest}")


def _check_float(name: str, value: object, least: float, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestError(f"{name}: {_short(value)} is not a number")
    if not math.isfinite(value) or not least <= value <= most:
        hint = f"the nearest is {min(max(value, least), most):g}" if math.isfinite(value) else None
        raise RequestError(f"{name}: {value} is not in {least:g} .. {most:g}", hint=hint)


def _check_size(name: str, value: object) -> None:
    _check_int(name, value, MIN_SIZE, MAX_SIZE)
    assert isinstance(value, int)
    if value % SIZE_STEP:
        below = value - value % SIZE_STEP
        raise RequestError(
            f"{name}: {value} is not a multiple of {SIZE_STEP}", hint=f"use {below} or {below + SIZE_STEP}"
        )
