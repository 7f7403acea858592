"""What is asked for."""

from __future__ import annotations

import copy
import math
import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ovenbird import images
from ovenbird.errors import RequestError
from ovenbird.prompts import MOST_CHUNKS, SYNTAXES

if TYPE_CHECKING:
    from PIL.Image import Image

Pair = tuple[int, int]
CONDITIONS: Mapping[str, Pair | None] = {
    "original_size": None,
    "crops_coords_top_left": (0, 0),
    "target_size": None,
    "negative_original_size": None,
    "negative_crops_coords_top_left": (0, 0),
    "negative_target_size": None,
}
"""Field -> its default."""
LARGEST_CONDITION = 1 << 14
MAX_PROMPT_BYTES = 64 << 10
MIN_SIZE, MAX_SIZE, SIZE_STEP = 64, 4096, 8
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_IMAGES = 1000
MAX_CLIP_SKIP = 22  # the text encoder of SD 2.x has 23 layers
MAX_SEED = 2**64 - 1
STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0  # diffusers' defaults


@dataclass(frozen=True, kw_only=True)
class Request:
    """A wish in diffusers' words.  It checks itself: ``RequestError`` names the field, the value and the rule.

    ``height`` and ``width`` in pixels, None for the model's own size, or the image's, rounded down to a multiple of 8;
    ``seed=None`` draws one, which is recorded.  ``prompt`` may be a list, and ``negative_prompt`` then one of the same
    length; each prompt has ``num_images_per_prompt`` pictures, one after the other, and picture k of all ``seed + k``.
    With ``guidance_scale <= 1`` the U-Net runs once a step, without the negative prompt.  ``scheduler=None`` is
    the one that the model folder names.
    ``prompt_syntax``, a row of ``prompts.SYNTAXES``, is for both prompts: ``plain`` takes every character for itself,
    as diffusers does, and 75 tokens; ``webui`` knows weights and takes long prompts in chunks.  ``clip_skip`` is
    diffusers': how many of the text encoder's last layers are left out, for the prompt and not for the negative one;
    the web UI's number is one more.

    With an ``image`` (PIL) the run starts from it: ``strength`` says how far up, and of the steps only that share is
    run, rounded down.  Its middle is cut to the wished ratio of sides and resized.  With a ``mask_image`` too, only
    what is white there is made anew, half gray and lighter; all black leaves the picture as it was.  ``strength=None``
    is 0.8, with a mask 1.

    The last six fields are for SDXL alone, which was told of each picture it learned from how large it had been and
    what was cut off; pairs of pixels, height or top first.  None is the size of the picture.  The negative prompt has
    the same as the prompt, or both sizes of its own.
    """

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] = ""
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    eta: float = 0.0
    seed: int | None = None
    num_images_per_prompt: int = 1
    scheduler: str | None = None
    prompt_syntax: str = "plain"
    clip_skip: int = 0
    image: Image | None = None
    mask_image: Image | None = None
    strength: float | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair = (0, 0)
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair = (0, 0)
    negative_target_size: Pair | None = None

    def __post_init__(self) -> None:
        self._settle(**_texts(self.prompt, self.negative_prompt))
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                _check_size(name, getattr(self, name))
        _check_int("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _check_int("num_images_per_prompt", self.num_images_per_prompt, 1, MAX_IMAGES // len(self._prompts))
        _check_float("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE)
        _check_float("eta", self.eta, 0.0, 1.0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, MAX_SEED)
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            raise RequestError(f"scheduler: {_short(self.scheduler)} is not a name")
        if not isinstance(self.prompt_syntax, str) or self.prompt_syntax not in SYNTAXES:
            raise RequestError(f"prompt_syntax: {_short(self.prompt_syntax)} is not one of {', '.join(SYNTAXES)}")
        _check_int("clip_skip", self.clip_skip, 0, MAX_CLIP_SKIP)
        for name in CONDITIONS:
            if getattr(self, name) is not None:
                _check_pair(name, getattr(self, name))
        self._check_negative_sizes()
        if self.image is not None:
            self._settle(**self._of_image(images.picture("image", self.image)))
        elif self.mask_image is not None or self.strength is not None:
            name = "strength" if self.mask_image is None else "mask_image"
            raise RequestError(f"{name}: there is no image that it could be for", hint="give an image, too")

    def _check_negative_sizes(self) -> None:
        sizes = ("negative_original_size", "negative_target_size")
        given = [name for name in CONDITIONS if "negative" in name and getattr(self, name) != CONDITIONS[name]]
        if given and not set(sizes) <= set(given):
            raise RequestError(f"{given[0]}: alone it has no effect", hint=f"give {' and '.join(sizes)}, too")

    def _of_image(self, image: Image) -> dict[str, Any]:
        """The fields that an image fills in or changes."""
        strength, mask = self.strength, self.mask_image
        if strength is None:
            strength = STRENGTH if mask is None else STRENGTH_WITH_MASK
        _check_strength(strength, self.num_inference_steps)
        width, height = _size_of(image, self.width, self.height)
        if mask is not None:
            mask = images.of_size("mask_image", images.mask("mask_image", mask), image.size)
        return {"image": image, "mask_image": mask, "strength": strength, "width": width, "height": height}

    def _settle(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def texts(self) -> tuple[str, str]:
        """Negative prompt and prompt of a request for one prompt."""
        [texts] = self._prompts
        return texts

    @property
    def _prompts(self) -> list[tuple[str, str]]:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        given = self.negative_prompt
        negative = [given] * len(prompts) if isinstance(given, str) else given
        return list(zip(negative, prompts, strict=True))

    def settled(self, default_size: int) -> Request:
        """The same wish with nothing left open: seed and size are filled in."""
        return self._with(
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            height=self.height or default_size,
            width=self.width or default_size,
        )

    def singles(self) -> list[Request]:
        """Of a settled request: one for each picture, which makes that picture alone."""
        assert self.seed is not None
        texts = [texts for texts in self._prompts for _ in range(self.num_images_per_prompt)]
        return [
            self._with(prompt=prompt, negative_prompt=negative, seed=(self.seed + k) % 2**64, num_images_per_prompt=1)
            for k, (negative, prompt) in enumerate(texts)
        ]

    def like(self, *without: str) -> Hashable:
        """What is equal for requests that differ only in these fields; pictures are equal if they are the same one."""
        values = (getattr(self, field.name) for field in fields(self) if field.name not in without)
        return tuple(value if isinstance(value, Hashable) else _Same(value) for value in values)

    def _with(self, **changes: Any) -> Request:
        """A copy with changes that need no check; its pictures are the very ones."""
        changed = copy.copy(self)
        changed._settle(**changes)
        return changed


class _Same:
    """Equal to itself alone."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _texts(prompt: object, negative_prompt: object) -> dict[str, Any]:
    """The two fields, lists of any kind as tuples."""
    fields = {"prompt": prompt, "negative_prompt": negative_prompt}
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list | tuple)}
    if "negative_prompt" in lists and len(lists["negative_prompt"]) != len(lists.get("prompt", ())):
        raise RequestError("negative_prompt: a list goes with a list of as many prompts")
    if not 1 <= len(lists.get("prompt", (0,))) <= MAX_IMAGES:
        raise RequestError(f"prompt: {len(lists['prompt'])} prompts are not in 1 .. {MAX_IMAGES}")
    for name, value in fields.items():
        for text in lists.get(name, (value,)):
            _check_text(name, text)
    return lists


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name}: {_short(value)} is not a string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise RequestError(f"{name}: {_short(value)} holds half a character (a lone surrogate)") from None
    if size > MAX_PROMPT_BYTES:
        raise RequestError(
            f"{name}: {size} bytes are more than {MAX_PROMPT_BYTES}", hint=f"{MOST_CHUNKS * 75} tokens are used at most"
        )


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


def _check_pair(name: str, value: object) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise RequestError(f"{name}: {_short(value)} is not a pair of whole numbers", hint="for example (1024, 1024)")
    for number in value:
        _check_int(name, number, 0 if "crops" in name else 1, LARGEST_CONDITION)


def _check_strength(strength: object, steps: int) -> None:
    _check_float("strength", strength, 0.0, 1.0)
    assert isinstance(strength, int | float)
    if int(steps * strength) < 1:
        raise RequestError(
            f"strength: {strength:g} of {steps} steps is less than one step",
            hint=f"the least is {math.ceil(1000 / steps) / 1000:g}",
        )


def _size_of(image: Image, width: int | None, height: int | None) -> tuple[int, int]:
    """The wished size; a side that is left open keeps the image's ratio, and with both open its size."""
    scale = width / image.width if width else height / image.height if height else 1.0
    width, height = width or _below(image.width * scale), height or _below(image.height * scale)
    _check_size("width", width)
    _check_size("height", height)
    return width, height


def _below(pixels: float) -> int:
    return round(pixels) // SIZE_STEP * SIZE_STEP
