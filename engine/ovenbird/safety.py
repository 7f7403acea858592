"""The safety checker: pictures as CLIP wants them, flagged or not, and what is shown in place of a flagged one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ovenbird.backends import Arrays
from ovenbird.bundle import Bundle, read_json
from ovenbird.errors import ModelError, NumericError

Prepared = NDArray[np.float32]  # (1, 3, H, W)

FOLDER = "safety_checker"
INPUT, FLAGGED, SCORES = "clip_input", "has_nsfw_concepts", ("concept_scores", "special_scores")
ON, OFF, NONE, NOT_USED = "on", "off", "none", "not used"
"""Pictures are checked; nobody wants it; the folder has no checker; it has one that cannot be used here."""
WITHOUT = "go without the checker: --no-safety-checker, safety_checker=False"
GRAPHS = ("openvino_model.xml", "model.onnx")
LONGEST_SIDE = 4096
NOTICE = "not shown:\nflagged by the\nsafety checker"
GRAY, LIGHT = (128, 128, 128), (235, 235, 235)


class Checker(NamedTuple):
    """A compiled checker and the names of its inputs."""

    run: Callable[[Arrays], Arrays]
    inputs: frozenset[str]


class SafetyChecker:
    """The checker of a model folder; ``state`` says whether pictures are checked.

    A folder of another tool may hold a checker in another form.  It is not used then, with a warning.
    """

    def __init__(self, bundle: Bundle, wanted: bool, compile: Callable[[tuple[int, ...]], Checker]) -> None:
        folder = bundle.path
        self._compile, self._foreign = compile, bundle.manifest is None
        self.state = NONE if not (folder / FOLDER).is_dir() else ON if wanted else OFF
        if self.state == ON and not any((folder / FOLDER / name).is_file() for name in GRAPHS):
            self._cannot(f"{folder / FOLDER} holds no graph ({', '.join(GRAPHS)})")
        settings = folder / "feature_extractor" / "preprocessor_config.json"
        if self.state == ON and not settings.is_file():
            self._cannot(f"{settings}, which says how to prepare pictures, is missing")
        if self.state == ON:
            self._prepare = Preparation.read(settings)

    def __call__(self, image: Image.Image) -> bool | None:
        """Whether the picture is flagged; None if nothing can say so.  Raises ``NumericError``, ``ModelError``."""
        if self.state != ON:
            return None
        prepared = self._prepare(image)
        try:
            checker = self._compile(prepared.shape)
        except ModelError as error:
            if not self._foreign:
                raise
            self._cannot(str(error))
            return None
        if checker.inputs != {INPUT}:
            self._cannot(f"its inputs are {', '.join(sorted(checker.inputs))}, not {INPUT}")
            return None
        found = checker.run({INPUT: prepared})
        if FLAGGED not in found:
            self._cannot(f"its outputs are {', '.join(sorted(found))}; {FLAGGED} is not among them")
            return None
        if not all(np.isfinite(found[name]).all() for name in SCORES if name in found):
            raise NumericError(f"{FOLDER}: its scores are not finite", hint=WITHOUT)
        return bool(np.ravel(found[FLAGGED])[0])

    def _cannot(self, reason: str) -> None:
        self.state = NOT_USED
        warnings.warn(f"{FOLDER}: pictures are not checked: {reason}", stacklevel=4)


def notice(size: tuple[int, int]) -> Image.Image:
    """What stands in for a flagged picture of this width and height: words on gray."""
    image = Image.new("RGB", size, GRAY)
    font = ImageFont.load_default(max(8, min(size) // 10))
    middle = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(image).multiline_text(middle, NOTICE, LIGHT, font, anchor="mm", align="center")
    return image


@dataclass(frozen=True)
class Preparation:
    """What transformers' ``CLIPImageProcessor`` does to a picture, bit for bit."""

    shortest: int | None
    """The length of the shorter side, if the picture is resized to its own ratio of sides."""
    resized: tuple[int, int] | None
    """Width and height, if it is resized to that."""
    cropped: tuple[int, int] | None
    resample: Image.Resampling
    scale: float | None
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def read(cls, path: Path) -> Preparation:
        """From a ``preprocessor_config.json``, also in its older spelling.  Raises ``ModelError``."""
        given = read_json(path)
        settings = DEFAULTS | {name: value for name, value in given.items() if name in DEFAULTS and value is not None}
        kind = str(given.get("image_processor_type", given.get("feature_extractor_type", "CLIP")))
        if not kind.startswith("CLIP"):
            raise ModelError(f"{path}: {kind:.60} is not CLIP's image processor", hint=WITHOUT)
        try:
            return cls._of(settings)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(
                f"{path} has settings that no CLIPImageProcessor has: {error!r:.100}", hint=WITHOUT
            ) from error

    @classmethod
    def _of(cls, settings: Mapping[str, Any]) -> Preparation:
        size, resize = settings["size"], settings["do_resize"]
        square = isinstance(size, Mapping) and "shortest_edge" not in size
        shortest = None if square else _side(size["shortest_edge"] if isinstance(size, Mapping) else size)
        mean, deviation = (settings["image_mean"], settings["image_std"]) if settings["do_normalize"] else (0.0, 1.0)
        return cls(
            shortest if resize else None,
            _sides(size) if resize and square else None,
            _sides(settings["crop_size"]) if settings["do_center_crop"] else None,
            Image.Resampling(settings["resample"]),
            float(settings["rescale_factor"]) if settings["do_rescale"] else None,
            _of_channels(mean),
            _of_channels(deviation),
        )

    def __call__(self, image: Image.Image) -> Prepared:
        """Of a picture in RGB."""
        if self.shortest or self.resized:
            image = image.resize(self.resized or self._in_ratio(image.size), self.resample)
        if self.cropped:
            width, height = self.cropped
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black where there is nothing
        values = np.asarray(image).astype(np.float64) * (self.scale or 1.0)
        prepared: Prepared = (values.astype(np.float32) - self.mean) / self.deviation
        return np.ascontiguousarray(prepared.transpose(2, 0, 1)[None])

    def _in_ratio(self, size: tuple[int, int]) -> tuple[int, int]:
        assert self.shortest
        long = int(self.shortest * max(size) / min(size))
        return (self.shortest, long) if size[0] <= size[1] else (long, self.shortest)


DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": 224,
    "resample": Image.Resampling.BICUBIC,
    "do_center_crop": True,
    "crop_size": 224,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def _sides(size: Mapping[str, int] | int) -> tuple[int, int]:
    """Width and height."""
    return (_side(size["width"]), _side(size["height"])) if isinstance(size, Mapping) else (_side(size), _side(size))


def _side(value: Any) -> int:
    if not 1 <= int(value) <= LONGEST_SIDE:
        raise ValueError(f"{value!r:.40} is no side of a picture")
    return int(value)


def _of_channels(value: Any) -> NDArray[np.float32]:
    """One number, or one for each of three colours."""
    numbers = np.array(value, np.float32)
    if numbers.shape not in ((), (3,)) or not np.isfinite(numbers).all():
        raise ValueError(f"{value!r:.40} is not one for each colour")
    return numbers
