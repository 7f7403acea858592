"""What a run starts from: noise; a picture under noise; a picture of which a part is made anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird.denoiser import Latents
from ovenbird.images import HALF, Mask, Pixels, fitted
from ovenbird.noise import Draw, Floats
from ovenbird.predictions import Known
from ovenbird.request import Request
from ovenbird.schedulers import Scheduler
from ovenbird.vae import Encoded, Values, from_uint8


class Start(NamedTuple):
    """Of one picture, or of several that are drawn side by side."""

    latents: Latents
    known: Known | None
    """What an ordinary model is to keep."""
    beside: Latents | None
    """The mask, and what it leaves of the picture, which a model for inpainting sees (N, 1 + 4, H/8, W/8)."""

    @classmethod
    def together(cls, starts: Sequence[Start]) -> Start:
        """Of pictures with the same mask."""
        latents, known, more = zip(*starts, strict=True)
        return cls(
            np.concatenate(latents),
            None if known[0] is None else Known(*map(np.concatenate, zip(*known, strict=True))),
            None if more[0] is None else np.concatenate(more),
        )


@dataclass(frozen=True)
class Canvas:
    """The picture and the mask of a request, as pixels and as the autoencoder sees them; of a text alone, nothing."""

    shape: tuple[int, ...]
    """Of one picture's latents."""
    pixels: Pixels | None = None
    new: Mask | None = None
    picture: Encoded | None = None
    rest: Encoded | None = None
    """The picture with gray where something new is wanted."""
    covered: bool = True
    """Whether the run starts from noise alone."""
    shown: bool = False
    """Whether the model sees mask and rest."""

    @classmethod
    def of(cls, wish: Request, shape: tuple[int, ...], shown: bool, encode: Callable[[Values], Encoded]) -> Canvas:
        """Encode what is needed of a settled request, for a model that is ``shown`` the mask or not."""
        if wish.image is None:
            return cls(shape)
        assert wish.width and wish.height
        pixels = np.asarray(fitted(wish.image, wish.width, wish.height))
        values = from_uint8(pixels)
        if wish.mask_image is None:
            return cls(shape, pixels, picture=encode(values), covered=False)
        new = np.asarray(fitted(wish.mask_image, wish.width, wish.height)) >= HALF
        covered = wish.strength == 1
        picture = None if shown and covered else encode(values)
        # An ordinary model has no use for the rest, but diffusers draws for it, so the picture takes its place.
        return cls(shape, pixels, new, picture, encode(values * ~new) if shown else picture, covered, shown)

    @classmethod
    def enlarged(cls, latents: Latents, height: int, width: int) -> Canvas:
        """Of finished latents (1, 4, h, w): the same, enlarged to so many cells, to be made anew in part."""
        latents = bilinear(latents, height, width)
        return cls(latents.shape, picture=Encoded(latents, None), covered=False)

    def start(self, scheduler: Scheduler, steps: int, first: int, noise: Draw) -> Start:
        """The start of one picture at call ``first``; draws in the order in which diffusers' pipelines do."""
        clean = self.picture.draw(noise) if self.picture else None
        drawn = noise(self.shape)
        rest = self.rest.draw(noise) if self.rest else None
        if self.covered or clean is None:
            latents = drawn * np.float32(scheduler.init_noise_sigma(steps))
        else:
            latents = scheduler.add_noise(clean, drawn, steps, first)
        return Start(latents, self._known(clean, drawn), self._beside(rest))

    def finish(self, made: Pixels) -> Pixels:
        """What was made, where it was wanted; elsewhere the given pixels, bit for bit."""
        if self.new is None or self.pixels is None:
            return made
        return np.where(self.new[..., None], made, self.pixels)

    def _known(self, clean: Latents | None, drawn: Latents) -> Known | None:
        if self.new is None or clean is None or self.shown:
            return None
        return Known(clean, drawn, self._cells(self.new))

    def _beside(self, rest: Latents | None) -> Latents | None:
        if self.new is None or rest is None or not self.shown:
            return None
        return np.concatenate([self._cells(self.new).astype(np.float32), rest], axis=1)

    def _cells(self, new: Mask) -> NDArray[np.bool_]:
        """The mask (1, 1, H/8, W/8): of every cell its first pixel, as in diffusers."""
        factor = new.shape[0] // self.shape[2]
        return new[None, None, ::factor, ::factor]


def bilinear(latents: Latents, height: int, width: int) -> Latents:
    """The web UI's "Latent" upscaler: every cell from its four neighbours, as torch's ``interpolate`` has it."""
    down, across = _shares(latents.shape[2], height), _shares(latents.shape[3], width)
    return np.asarray(down @ latents @ across.T, np.float32)


def _shares(cells: int, wanted: int) -> Floats:
    """What each of the old cells gives to each of the new ones (wanted, cells); centres keep their place."""
    centres = np.clip((np.arange(wanted) + 0.5) * (cells / wanted) - 0.5, 0, cells - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(cells))), np.float32)
