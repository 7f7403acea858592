"""Pictures too big for one call of an autoencoder: overlapping tiles of one size, blended, with colours of the whole.

Tiles alone drift apart in colour, for what looks at everything sees a part: the statistics of group norms, and the
attention in the middle.  One more call sees the whole picture, made as small as a tile.  What is coarse is taken from
there, as far as the tiles contradict one another, what is fine from the tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovenbird.backends import Arrays
from ovenbird.denoiser import spread

Field = NDArray[np.float32]  # (N, C, H, W)
Component = Callable[[Arrays], Arrays]

COARSE = 8
"""Blocks along a tile's side, the finest of what the small picture decides: of 4, 6, 8 and 12 the nearest to whole
pictures by nestling in tiles of half their side.  Wider overlaps than ``spread`` has bring nothing there."""


def tile_shape(shape: tuple[int, ...], side: int | None) -> tuple[int, ...]:
    """Of every tile of a field (N, C, H, W): at most ``side`` high and wide; None leaves the field whole."""
    return shape if side is None else (*shape[:2], *(min(length, side) for length in shape[2:]))


def tiled(component: Component, tile: tuple[int, ...], unit: int = 1) -> Component:
    """The component, which has one input, on tiles of the shape ``tile``; they begin at multiples of ``unit``."""
    height, width = tile[2:]

    def run(inputs: Arrays) -> Arrays:
        [(name, whole)] = inputs.items()
        small = component({name: _resized(whole, height, width, Image.Resampling.BOX)})
        blends = {port: _Blend(seen, whole.shape[2] / height, whole.shape[3] / width) for port, seen in small.items()}
        places = (spread(full // unit, part // unit) for full, part in zip(whole.shape[2:], tile[2:], strict=True))
        for top, left in ((down * unit, along * unit) for down, along in product(*places)):
            part = {name: whole[:, :, top : top + height, left : left + width]}
            for port, made in component(part).items():
                blends[port].add(made, top * made.shape[2] // height, left * made.shape[3] // width)
        return {port: blend.with_colours_of(small[port]) for port, blend in blends.items()}

    return run


class _Blend:
    """Tiles side by side, weighted less towards their rims; and how far those that overlap contradict one another."""

    def __init__(self, tile: Field, taller: float, wider: float) -> None:
        count, channels, height, width = tile.shape
        self._window = np.outer(_rising_and_falling(height), _rising_and_falling(width))
        self._weights = np.zeros((round(height * taller), round(width * wider)), np.float32)
        self._mean = np.zeros((count, channels, *self._weights.shape), np.float32)
        self._gap = self._shared = 0.0

    def add(self, tile: Field, top: int, left: int) -> None:
        place = np.s_[..., top : top + tile.shape[2], left : left + tile.shape[3]]
        mean, weights = self._mean[place], self._weights[place]
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so; the caller looks
            apart = tile - mean
            both = self._window * weights
            self._gap += float((both * apart**2).sum())
            self._shared += float(both.sum()) * tile.shape[0] * tile.shape[1]
            weights += self._window
            mean += apart * (self._window / weights)

    def with_colours_of(self, small: Field) -> Field:
        """The blend, its coarsest part moved towards that of a small picture of the same.

        All the way if the tiles differ from one another as much as from the small picture, else so much less: a decoder
        whose tiles agree knows better than one that is shown a shrunk picture.
        """
        height, width = self._mean.shape[2:]
        blocks = (round(COARSE * height / small.shape[2]), round(COARSE * width / small.shape[3]))
        box, smooth = Image.Resampling.BOX, Image.Resampling.BILINEAR
        with np.errstate(invalid="ignore", over="ignore"):
            drift = _resized(small, *blocks, box) - _resized(self._mean, *blocks, box)
            contradiction, difference = self._gap / self._shared, float((drift**2).mean())
            share = contradiction / max(contradiction, difference, 1e-30)
            found: Field = self._mean + np.float32(share) * _resized(drift, height, width, smooth)
        return found


def _rising_and_falling(length: int) -> NDArray[np.float32]:
    """Where two tiles of this length overlap by up to a half, their weights fade into one another in a line."""
    away = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return (away / length).astype(np.float32)


def _resized(field: Field, height: int, width: int, filter: Image.Resampling) -> Field:
    planes = np.ascontiguousarray(field, np.float32).reshape(-1, *field.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize((width, height), filter)) for plane in planes]
    return np.stack(resized).reshape(*field.shape[:2], height, width)
