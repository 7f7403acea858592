"""What is asked for."""

from __future__ import annotations

import copy
import math
import reprlib
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
LATENT = "latent"
UPSCALERS = (LATENT, "lanczos")
HIRES_STRENGTH, MAX_HIRES_SCALE = 0.7, 4.0  # the web UI's default, and the end of its slider


@dataclass(frozen=True, kw_only=True)
class Request:
    """A wish in diffusers' words.  It checks itself: ``RequestError`` names the field, the value and the rule.

    ``height`` and ``width`` in pixels, None for the model's own size, or the image's, rounded down to a multiple of 8;
    ``seed=None`` draws one, which is recorded.  ``prompt`` may be a list, and ``negative_prompt`` then one of the same
    length; each prompt has ``num_images_per_prompt`` pictures, one after the other, and picture k of all ``seed + k``.
    With ``guidance_scale <= 1`` the U-Net runs once a step, without the negative prompt; so it does outside of the
    ``guidance_interval`` of training's timesteps, which counts from 0, pure noise, to 1, the picture.  None is (0, 1)
    unless a preset says otherwise.  ``scheduler=None`` is the one that the model folder names.
    ``prompt_syntax``, a row of ``prompts.SYNTAXES``, is for both prompts: ``plain`` takes every character for itself,
    as diffusers does, and 75 tokens; ``webui`` knows weights and takes long prompts in chunks.  ``clip_skip`` is
    diffusers': how many of the text encoder's last layers are left out, for the prompt and not for the negative one;
    the web UI's number is one more.

    What is beyond a prompt's chunks is cut, with a warning that quotes it; with ``strict`` it is refused.

    With an ``image`` (PIL) the run starts from it: ``strength`` says how far up, and of the steps only that share is
    run, rounded down.  Its middle is cut to the wished ratio of sides and resized.  With a ``mask_image`` too, only
    what is white there is made anew, half gray and lighter; all black leaves the picture as it was.  ``strength=None``
    is 0.8, with a mask 1.

    The noise that a run starts with may lie between that of ``seed`` and that of ``variation_seed``, as far as
    ``variation_strength`` says; noise that a sampler adds stays that of ``seed``.  Above 0, picture k has
    ``variation_seed + k`` and the same ``seed``, as in the web UI.  So may the prompt lie between ``prompt`` and
    ``to_prompt``, as far as ``blend`` says, None for half way; with an end of either the picture is that of the end.

    With ``hires_scale`` the picture is made, enlarged by that factor (each side down to a multiple of 8) as latents or
    as pixels (``hires_upscaler``, ``latent`` or ``lanczos``) and made anew from there like an ``image``, by
    ``hires_strength``, None for 0.7, and ``hires_steps``, None for as many as before.  With a ``tile_size`` in pixels
    the U-Net sees no more at once, and what it says of overlapping tiles is averaged.

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
    guidance_interval: tuple[float, float] | None = None
    eta: float = 0.0
    seed: int | None = None
    num_images_per_prompt: int = 1
    scheduler: str | None = None
    prompt_syntax: str = "plain"
    clip_skip: int = 0
    strict: bool = False
    image: Image | None = None
    mask_image: Image | None = None
    strength: float | None = None
    variation_seed: int | None = None
    variation_strength: float = 0.0
    to_prompt: str | None = None
    blend: float | None = None
    hires_scale: float | None = None
    hires_upscaler: str | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    tile_size: int | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair = (0, 0)
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair = (0, 0)
    negative_target_size: Pair | None = None

    def __post_init__(self) -> None:
        self._settle(**_texts(self.prompt, self.negative_prompt))
        for name in ("height", "width", "tile_size"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        _check_int("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _check_int("num_images_per_prompt", self.num_images_per_prompt, 1, MAX_IMAGES // len(self._prompts))
        _check_float("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE)
        if self.guidance_interval is not None:
            check_interval("guidance_interval", self.guidance_interval)
        _check_float("eta", self.eta, 0.0, 1.0)
        for name in ("seed", "variation_seed"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0, MAX_SEED)
        _check_float("variation_strength", self.variation_strength, 0.0, 1.0)
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            raise RequestError(f"scheduler: {_short(self.scheduler)} is not a name")
        if not isinstance(self.prompt_syntax, str) or self.prompt_syntax not in SYNTAXES:
            raise RequestError(f"prompt_syntax: {_short(self.prompt_syntax)} is not one of {', '.join(SYNTAXES)}")
        _check_int("clip_skip", self.clip_skip, 0, MAX_CLIP_SKIP)
        if not isinstance(self.strict, bool):
            raise RequestError(f"strict: {_short(self.strict)} is neither True nor False")
        for name in CONDITIONS:
            if getattr(self, name) is not None:
                _check_pair(name, getattr(self, name))
        self._check_negative_sizes()
        if self.image is not None:
            self._settle(**self._of_image(images.picture("image", self.image)))
        elif self.mask_image is not None or self.strength is not None:
            name = "strength" if self.mask_image is None else "mask_image"
            raise RequestError(f"{name}: there is no image that it could be for", hint="give an image, too")
        self._settle(**self._of_ends(), **self._of_hires())

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
        _check_strength("strength", strength, self.num_inference_steps)
        width, height = _size_of(image, self.width, self.height)
        if mask is not None:
            mask = images.of_size("mask_image", images.mask("mask_image", mask), image.size)
        return {"image": image, "mask_image": mask, "strength": strength, "width": width, "height": height}

    def _of_ends(self) -> dict[str, Any]:
        """The fields that are filled in of a picture between two prompts."""
        if self.to_prompt is None:
            if self.blend is not None:
                raise RequestError("blend: there is no prompt to blend with", hint="give to_prompt, too")
            return {}
        _check_text("to_prompt", self.to_prompt)
        blend = 0.5 if self.blend is None else self.blend
        _check_float("blend", blend, 0.0, 1.0)
        return {"blend": blend}

    def _of_hires(self) -> dict[str, Any]:
        """The fields that are filled in of a picture that is made twice."""
        given = [
            name for name in ("hires_upscaler", "hires_strength", "hires_steps") if getattr(self, name) is not None
        ]
        if self.hires_scale is None:
            if given:
                raise RequestError(f"{given[0]}: nothing is enlarged", hint="give hires_scale, too")
            return {}
        if self.image is not None:
            raise RequestError(
                "hires_scale: it enlarges what was made of noise, not an image",
                hint="leave it out; with an image, width and height say how large it becomes",
            )
        _check_float("hires_scale", self.hires_scale, 1.0, MAX_HIRES_SCALE)
        self._check_larger()
        upscaler = LATENT if self.hires_upscaler is None else self.hires_upscaler
        if upscaler not in UPSCALERS:
            raise RequestError(f"hires_upscaler: {_short(upscaler)} is not one of {', '.join(UPSCALERS)}")
        steps = self.num_inference_steps if self.hires_steps is None else self.hires_steps
        _check_int("hires_steps", steps, 1, MAX_STEPS)
        strength = HIRES_STRENGTH if self.hires_strength is None else self.hires_strength
        _check_strength("hires_strength", strength, steps)
        return {"hires_upscaler": upscaler, "hires_steps": steps, "hires_strength": strength}

    def _check_larger(self) -> None:
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and self._larger(side) > MAX_SIZE:
                raise RequestError(
                    f"hires_scale: {self.hires_scale:g} makes a {name} of {self._larger(side)}, more than {MAX_SIZE}",
                    hint=f"the most is {MAX_SIZE / side:g}",
                )

    def _larger(self, side: int) -> int:
        """A side after it was enlarged, rounded as the web UI rounds it."""
        assert self.hires_scale is not None
        return int(side * self.hires_scale) // SIZE_STEP * SIZE_STEP

    def _settle(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def texts(self) -> tuple[str, ...]:
        """Negative prompt and prompt of a request for one prompt, and the other one that it is blended with."""
        [texts] = self._prompts
        return texts if self.to_prompt is None else (*texts, self.to_prompt)

    @property
    def _prompts(self) -> list[tuple[str, str]]:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        given = self.negative_prompt
        negative = [given] * len(prompts) if isinstance(given, str) else given
        return list(zip(negative, prompts, strict=True))

    def settled(self, default_size: int) -> Request:
        """The same wish with nothing left open: seeds and size are filled in.

        Raises ``RequestError`` when the model's own size is one that cannot be enlarged so much, or no size at all.
        """
        if None in (self.height, self.width) and not 1 <= default_size <= MAX_SIZE:
            raise RequestError(
                f"height: the model's own size, {default_size}, is not in 1 .. {MAX_SIZE}", hint="give height and width"
            )
        settled = self._seeded()._with(height=self.height or default_size, width=self.width or default_size)
        if self.hires_scale is not None:
            settled._check_larger()
        return settled

    def singles(self) -> list[Request]:
        """Of a settled request: one for each picture, which makes that picture alone."""
        assert self.seed is not None
        texts = [texts for texts in self._prompts for _ in range(self.num_images_per_prompt)]
        counting = "variation_seed" if self.variation_strength else "seed"
        first = getattr(self, counting)
        return [
            self._with(prompt=prompt, negative_prompt=negative, num_images_per_prompt=1)
            ._with(**{counting: (first + k) % 2**64})
            ._at_end()
            for k, (negative, prompt) in enumerate(texts)
        ]

    def frames(self, count: int) -> list[Request]:
        """Requests for pictures on the way to ``to_prompt`` and to the noise of ``variation_seed``, with both ends.

        Raises ``RequestError`` when neither is given, or several pictures are asked for.
        """
        _check_int("frames", count, 2, MAX_IMAGES)
        if self.to_prompt is None and self.variation_seed is None:
            raise RequestError("to_prompt: there is nowhere to go", hint="give to_prompt, variation_seed or both")
        if not isinstance(self.prompt, str) or self.num_images_per_prompt > 1:
            raise RequestError("frames: they lead from one picture to one other", hint="give one prompt")
        start = self._seeded()
        ways = ["blend"] * (self.to_prompt is not None) + ["variation_strength"] * (self.variation_seed is not None)
        return [start._with(**dict.fromkeys(ways, k / (count - 1))) for k in range(count)]

    @property
    def passes(self) -> tuple[Request, ...]:
        """What is drawn for a settled single: itself, or, to be enlarged, first the small picture, then the large one.

        The large one starts from the small one: its ``image`` is yet to be made.
        """
        if self.hires_scale is None:
            return (self,)
        assert self.height and self.width
        small = self._with(hires_scale=None, hires_upscaler=None, hires_strength=None, hires_steps=None)
        large = small._with(
            height=self._larger(self.height),
            width=self._larger(self.width),
            strength=self.hires_strength,
            num_inference_steps=self.hires_steps,
        )
        return small, large

    def sized(self, height: int, width: int) -> Request:
        """The same wish for pictures of another size."""
        return self._with(height=height, width=width)

    def guided_within(self, interval: tuple[float, float]) -> Request:
        """The same wish, with that interval if it has none."""
        return self if self.guidance_interval is not None else self._with(guidance_interval=interval)

    def starting_from(self, image: Image) -> Request:
        """The second of the ``passes``, with the first picture."""
        return self._with(image=image)

    def _seeded(self) -> Request:
        """With the seeds that are used and not given."""
        varied = _seed(self.variation_seed) if self.variation_strength else self.variation_seed
        return self._with(seed=_seed(self.seed), variation_seed=varied)

    def _at_end(self) -> Request:
        """A picture at either end of the way between two prompts is a plain one."""
        if self.blend not in (0, 1):
            return self
        return self._with(prompt=self.to_prompt if self.blend else self.prompt, to_prompt=None, blend=None)

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


def _seed(given: int | None) -> int:
    return secrets.randbits(32) if given is None else given


def _short(value: object) -> str:
    try:
        # A list may have millions of entries, which take a second to write out.
        text = reprlib.repr(value) if isinstance(value, list | tuple | dict) else repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits are not shown by Python
        return f"{type(value).__name__} without end"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _texts(prompt: object, negative_prompt: object) -> dict[str, Any]:
    """The two fields, lists of any kind as tuples."""
    fields = {"prompt": prompt, "negative_prompt": negative_prompt}
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list | tuple)}
    prompts = lists.get("prompt")
    if "negative_prompt" in lists and (prompts is None or len(lists["negative_prompt"]) != len(prompts)):
        raise RequestError("negative_prompt: a list goes with a list of as many prompts")
    if prompts is not None and not 1 <= len(prompts) <= MAX_IMAGES:
        raise RequestError(f"prompt: {len(prompts)} prompts are not in 1 .. {MAX_IMAGES}")
    for name, value in fields.items():
        for text in lists.get(name, (value,)):
            _check_text(name, text)
    return lists


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name}: {_short(value)} is not a string")
    try:
        # Of text that is far too long not even a copy is made.
        size = len(value) if len(value) > MAX_PROMPT_BYTES else len(value.encode())
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
        hint = f"the nearest is {nearest}" + ("; or leave it out for a random one" if name.endswith("seed") else "")
        raise RequestError(f"{name}: {_short(value)} is not in {least} .. {most}", hint=hint)


def _check_float(name: str, value: object, least: float, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestError(f"{name}: {_short(value)} is not a number")
    if not least <= value <= most:
        nearest = least if value < least else most if value > most else None  # NaN is near nothing
        hint = None if nearest is None else f"the nearest is {nearest:g}"
        raise RequestError(f"{name}: {_short(value)} is not in {least:g} .. {most:g}", hint=hint)


def check_count(name: str, value: object) -> None:
    """Raises ``RequestError`` unless it is a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError(f"{name}: {_short(value)} is not a whole number from 1")


def check_size(name: str, value: object) -> None:
    """Raises ``RequestError`` unless a picture could have a side of so many pixels."""
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


def check_interval(name: str, value: object) -> None:
    """Raises ``RequestError`` unless it is a pair from 0 to 1, the lower number first."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise RequestError(f"{name}: {_short(value)} is not a pair of numbers", hint="for example (0.0, 0.7)")
    for number in value:
        _check_float(name, number, 0.0, 1.0)
    if value[0] >= value[1]:
        raise RequestError(f"{name}: {value[0]:g} is not less than {value[1]:g}")


def _check_strength(name: str, strength: object, steps: int) -> None:
    _check_float(name, strength, 0.0, 1.0)
    assert isinstance(strength, int | float)
    if int(steps * strength) < 1:
        raise RequestError(
            f"{name}: {strength:g} of {steps} steps is less than one step",
            hint=f"the least is {math.ceil(1000 / steps) / 1000:g}",
        )


def _size_of(image: Image, width: int | None, height: int | None) -> tuple[int, int]:
    """The wished size; a side that is left open keeps the image's ratio, and with both open its size."""
    scale = width / image.width if width else height / image.height if height else 1.0
    width, height = width or _below(image.width * scale), height or _below(image.height * scale)
    check_size("width", width)
    check_size("height", height)
    return width, height


def _below(pixels: float) -> int:
    return round(pixels) // SIZE_STEP * SIZE_STEP
