"""Pictures that are given: decoded, upright, opaque, in sRGB, or refused; and cut to size."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from ovenbird.disk import is_file
from ovenbird.errors import RequestError

Pixels = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W), true where something new is wanted

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 16 << 20
HALF = 128  # of 255, from where a mask counts as white


def read(name: str, path: Path) -> Image.Image:
    """The picture in a PNG, JPEG or WebP file; of several in one file, the first, with a warning.

    ``name`` is the setting that errors speak of.  Raises ``RequestError``.
    """
    if not is_file(path):
        raise RequestError(f"{name}: {str(path)[:100]} is not a file")
    with _refusing(name, f"{path} is not a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"):
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(name, image)
            if getattr(image, "n_frames", 1) > 1:
                warnings.warn(f"{name}: {path} holds several pictures; the first is taken", stacklevel=2)
            image.load()
        return image


def picture(name: str, image: object) -> Image.Image:
    """A PIL image in RGB without metadata: upright, over white where it is transparent, by its profile in sRGB.

    Raises ``RequestError`` for anything else, or when it is too large or cannot be decoded.
    """
    return _plain(name, image, lambda image: _in_srgb(name, _opaque(image), image.info.get("icc_profile")))


def mask(name: str, image: object) -> Image.Image:
    """A PIL image in shades of gray without metadata, upright: black stays, white is made anew.

    Raises ``RequestError`` as ``picture`` does, and when it has transparent parts, which could mean either.
    """
    return _plain(name, image, lambda image: _without_transparency(name, image).convert("L"))


def of_size(name: str, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask as large as its picture.  Warns if it must be resized; RequestError if its sides have another ratio."""
    if image.size == size:
        return image
    (width, height), told = size, f"{image.width}x{image.height} for a picture of {size[0]}x{size[1]}"
    if abs(image.width * height - image.height * width) > max(*size, *image.size):
        raise RequestError(f"{name}: {told} is another shape", hint="use a mask of the picture's size")
    warnings.warn(f"{name}: {told} is resized", stacklevel=4)
    return image.resize(size, Image.Resampling.LANCZOS)


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture, of the wished ratio of sides, resized (Lanczos); of the same size, the same pixels."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def digest(image: Image.Image) -> str:
    """What tells one picture's pixels from another's."""
    size = f"{image.mode} {image.width}x{image.height} ".encode()
    return f"sha256:{hashlib.sha256(size + image.tobytes()).hexdigest()}"


def _plain(name: str, image: object, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise RequestError(
            f"{name}: {type(image).__name__} is not a PIL image",
            hint="PIL.Image.open reads files, PIL.Image.fromarray takes arrays (H, W, 3) of uint8",
        )
    _check_pixels(name, image)
    with _refusing(name, "the picture cannot be decoded"):
        image.load()
        return Image.fromarray(np.array(convert(_eight_bits(name, ImageOps.exif_transpose(image)))))


@contextmanager
def _refusing(name: str, problem: str) -> Iterator[None]:
    """Whatever a decoder stumbles over, in files that may be hostile, is the picture's fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (RequestError, UserWarning):
        raise
    except Exception as error:
        raise RequestError(f"{name}: {problem}: {str(error)[:100]}") from error


def _check_pixels(name: str, image: Image.Image) -> None:
    """By the header, before anything is decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise RequestError(
            f"{name}: {image.width}x{image.height} pixels are more than {MOST_PIXELS >> 20} million",
            hint="make it smaller first",
        )


def _eight_bits(name: str, image: Image.Image) -> Image.Image:
    """Pillow would clip 16 bits, not scale them."""
    if image.mode.startswith("I;16"):
        scaled = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        scaled.info = image.info
        return scaled
    if image.mode in ("I", "F"):
        raise RequestError(f"{name}: mode {image.mode} has no white", hint="convert it to 8 bits a channel first")
    return image


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")


def _without_transparency(name: str, image: Image.Image) -> Image.Image:
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise RequestError(
            f"{name}: it has transparent parts", hint="a mask is black where the picture stays, white where it changes"
        )
    return image


def _in_srgb(name: str, image: Image.Image, profile: bytes | None) -> Image.Image:
    if not profile:
        return image.convert("RGB")
    image = image if image.mode in ("L", "CMYK") else image.convert("RGB")
    try:
        given, wanted = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, given, wanted, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        warnings.warn(f"{name}: its colour profile cannot be used ({error}); it is taken for sRGB", stacklevel=5)
        return image.convert("RGB")
    assert converted is not None
    return converted
