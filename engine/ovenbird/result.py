"""What comes back: events while it happens, and everything at the end."""

from __future__ import annotations

from dataclasses import dataclass

from PIL.Image import Image

from ovenbird.denoiser import Latents
from ovenbird.request import Request
from ovenbird.timing import TimingReport


@dataclass(frozen=True)
class Step:
    """One step of the sampler is done, for the pictures that are drawn side by side."""

    pictures: range
    """Their numbers."""
    index: int
    count: int
    latents: Latents


@dataclass(frozen=True)
class Picture:
    """One picture is done."""

    picture: int
    """Its number, from 0."""
    request: Request
    """That would make it alone."""
    image: Image

    @property
    def seed(self) -> int:
        """Of its noise."""
        assert self.request.seed is not None
        return self.request.seed


@dataclass(frozen=True)
class Result:
    """Pictures, and where the time went."""

    pictures: list[Picture]
    timings: TimingReport

    @property
    def images(self) -> list[Image]:
        """As PIL images."""
        return [picture.image for picture in self.pictures]

    @property
    def seeds(self) -> list[int]:
        """Of each picture."""
        return [picture.seed for picture in self.pictures]
