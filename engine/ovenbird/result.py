"""What comes back: events while it happens, and everything at the end."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from typing import NamedTuple

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
    previews: tuple[Image, ...] = ()
    """What the model takes each of them for by now, if this is a step that is to be seen."""


class Developing(NamedTuple):
    """How latents became a picture."""

    decoder: str
    """``full`` or ``tiny``."""
    vae_tile: int | None
    """The side of the tiles in pixels; None for a picture made in one piece."""
    vae_precision: str
    vae_retried: bool
    """Whether that is f32 because what came out in less was not finite."""
    safety_checker: str
    """``on``, ``off``, ``none`` (the folder has no checker) or ``not used`` (it has one in another form)."""


@dataclass(frozen=True)
class Picture:
    """One picture is done."""

    picture: int
    """Its number, from 0."""
    request: Request
    """That would make it alone."""
    image: Image
    """Words on gray if it is flagged."""
    nsfw_content_detected: bool | None = None
    """Whether the safety checker flagged it; None if it was not checked."""
    developing: Developing | None = None

    @property
    def seed(self) -> int:
        """Of its noise."""
        assert self.request.seed is not None
        return self.request.seed

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.image.save(file, format="PNG")
        return file.getvalue()


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
    def nsfw_content_detected(self) -> list[bool] | None:
        """Of each picture; None if they were not checked."""
        flags = [picture.nsfw_content_detected for picture in self.pictures]
        return None if None in flags else [bool(flag) for flag in flags]

    @property
    def seeds(self) -> list[int]:
        """Of each picture."""
        return [picture.seed for picture in self.pictures]

    def _repr_html_(self) -> str:
        """What a notebook shows: the pictures side by side, each over its seed."""
        return "".join(map(_figure, self.pictures))


def _figure(picture: Picture) -> str:
    source = f"data:image/png;base64,{base64.b64encode(picture._repr_png_()).decode()}"
    shown = f'<img src="{source}" title="{html.escape(str(picture.request.prompt))}">'
    flagged = ", flagged" if picture.nsfw_content_detected else ""
    caption = f"<figcaption>seed {picture.seed}{flagged}</figcaption>"
    return f'<figure style="display: inline-block; margin: 4px">{shown}{caption}</figure>'
