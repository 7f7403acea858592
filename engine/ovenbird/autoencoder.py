"""A model's decoders and its encoder: in tiles where a picture is bigger than one, again in f32 where need be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from ovenbird import vae
from ovenbird.backends import Shapes
from ovenbird.bundle import Bundle
from ovenbird.denoiser import Latents
from ovenbird.errors import ModelError, NumericError, RequestError
from ovenbird.images import Pixels
from ovenbird.request import check_size
from ovenbird.stages import Ran
from ovenbird.tiles import Component, tile_shape, tiled

T = TypeVar("T")

DECODERS = {"full": "vae_decoder", "tiny": "tiny_vae_decoder"}
EXACT = "f32"


class Decoded(NamedTuple):
    """A picture's pixels, and how they were made."""

    pixels: Pixels
    tile: int | None
    precision: str
    retried: bool


class Autoencoder:
    """Of a folder, with a way to get its components and a list of those that ran.

    ``tile`` is the side in pixels of the largest piece that goes through in one call; None sets no limit.  Raises
    ``RequestError`` for a tile that is no size and for a ``decoder`` that is not there.
    """

    def __init__(
        self,
        bundle: Bundle,
        component: Callable[[str, Shapes, str | None], Component],
        ran: Mapping[str, Ran],
        *,
        tile: int | None,
        decoder: str,
    ) -> None:
        if tile is not None:
            check_size("vae_tile", tile)
        if decoder not in DECODERS:
            raise RequestError(f"decoder: {decoder!r:.40} is not one of {', '.join(DECODERS)}")
        self.tile, self.decoder = tile, decoder
        self.tiled, self.retries = False, 0  # up to now
        self._bundle, self._component, self._ran = bundle, component, ran
        if decoder == "tiny":
            self._check_tiny()

    @cached_property
    def quickest(self) -> str:
        """The decoder for pictures that are only glanced at: the tiny one, where there is one."""
        if not self._has_tiny:
            return self.decoder
        self._check_tiny()
        return "tiny"

    def decode(self, latents: Latents, decoder: str, when: str) -> Decoded:
        """One picture.  Raises ``NumericError``, with ``when`` it was, if it is not finite in f32 either."""
        name, retries = DECODERS[decoder], self.retries
        config = self._bundle.config(name)
        pixels = self._finite(
            name, {"latent_sample": latents.shape}, 1, lambda run: vae.decode(run, latents, config), when
        )
        in_tiles = self._tile(latents.shape, 1) != latents.shape
        return Decoded(pixels, self.tile if in_tiles else None, self._ran[name].precision, self.retries > retries)

    def encode(self, values: vae.Values) -> vae.Encoded:
        """What the encoder makes of one picture.  Raises ``NumericError`` as ``decode`` does."""
        config, cell = self._bundle.config("vae_encoder"), self._bundle.vae_scale_factor
        return self._finite(
            "vae_encoder", {"sample": values.shape}, cell, lambda run: vae.encode(run, values, config), "of the image"
        )

    def _finite(self, name: str, shapes: Shapes, cell: int, use: Callable[[Component], T], when: str) -> T:
        """What comes of using the component; a second time in f32 if the first was not finite and ran in less."""
        [(port, shape)] = shapes.items()
        tile = self._tile(shape, cell)
        self.tiled |= tile != shape
        for precision in (None, EXACT):
            component = self._component(name, {port: tile}, precision)
            try:
                return use(component if tile == shape else tiled(component, tile, cell))
            except NumericError as error:
                ran = self._ran[name].precision
                if EXACT in (ran, precision):
                    raise NumericError(f"{name}: {error} {when}, in {ran}", hint=self._remedy) from error
                warnings.warn(f"{name}: {error} {when}, in {ran}; it is made again in {EXACT}", stacklevel=4)
                self.retries += 1
        raise AssertionError

    def _tile(self, shape: tuple[int, ...], cell: int) -> tuple[int, ...]:
        """For inputs of this shape, with so many elements to a cell's side."""
        return tile_shape(shape, self.tile and self.tile // self._bundle.vae_scale_factor * cell)

    @property
    def _remedy(self) -> str:
        if self._bundle.precision == "fp32":
            return "the weights lead to numbers that are too large; another VAE: ovenbird export --vae FOLDER"
        return f"the {self._bundle.precision} weights may be at fault: --precision fp32"

    @property
    def _has_tiny(self) -> bool:
        return (self._bundle.path / DECODERS["tiny"]).is_dir()

    def _check_tiny(self) -> None:
        if not self._has_tiny:
            raise RequestError(
                f"decoder: {self._bundle.path} has no {DECODERS['tiny']}",
                hint="export it with one: ovenbird export SOURCE FOLDER --tiny-vae FOLDER_OF_AN_AUTOENCODERTINY",
            )
        tiny, full = (_latents(self._bundle.config(DECODERS[kind])) for kind in ("tiny", "full"))
        if tiny != full:
            raise ModelError(
                f"{self._bundle.path / DECODERS['tiny']} is for latents of another VAE",
                hint="export the model again, with another --tiny-vae or none",
            )


def _latents(config: Mapping[str, Any]) -> tuple[int, int]:
    """Their channels, and how often a decoder doubles their sides."""
    return int(config.get("latent_channels", 4)), len(config.get("block_out_channels", ()))
