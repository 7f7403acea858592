"""Ways to be quicker than the model would have it, one by one and together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ovenbird.backends import EXACT, SHALLOW, Edits
from ovenbird.errors import RequestError
from ovenbird.request import check_interval

WHOLE = (0.0, 1.0)
POOLED = ("off", "shallow", "all")
"""Nowhere, in the steps in which only the outermost layers run, or in all."""
MOST_REUSE = 10


@dataclass(frozen=True)
class Shortcuts:
    """What is left out, or done more cheaply; the defaults are what the model was trained for.

    Raises ``RequestError`` that names the field.
    """

    exact: tuple[str, ...] = EXACT
    """Changes of graphs that only round otherwise."""
    pool_attention: str = "off"
    """Where the U-Net's widest self-attentions look at means of 2x2 cells, a quarter as many: a word of ``POOLED``."""
    reuse_every: int = 1
    """At every so many steps the whole U-Net runs, and in between its outermost layers (DeepCache, Ma et al., 2024)."""
    reuse_depth: int = 2
    """How many layers of the U-Net's way up run at every step."""
    guidance_interval: tuple[float, float] = WHOLE
    """Where there is guidance, if a request does not say: see ``Request``."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.exact if name not in EXACT]
        if unknown:
            raise RequestError(f"exact: {unknown[0]!r:.40} is not one of {', '.join(EXACT)}")
        for name in ("reuse_every", "reuse_depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_REUSE:
                raise RequestError(f"{name}: {value!r:.40} is not a whole number from 1 to {MOST_REUSE}")
        if self.pool_attention not in POOLED:
            raise RequestError(f"pool_attention: {self.pool_attention!r:.40} is not one of {', '.join(POOLED)}")
        if self.pool_attention == "shallow" and not self.reuses:
            raise RequestError("pool_attention: no step is shallow", hint="give reuse_every, or another word")
        check_interval("guidance_interval", self.guidance_interval)

    @property
    def reuses(self) -> bool:
        """Whether there are steps in which only the outermost layers run."""
        return self.reuse_every > 1

    @property
    def exactly(self) -> bool:
        """Whether graphs stay as they are, but for what only rounds otherwise."""
        return not self.reuses and self.pool_attention == "off"

    def edits(self, component: str) -> Edits:
        """What becomes of its graph."""
        if component == "unet":
            return Edits(self.exact, self.pool_attention == "all", self.reuse_depth if self.reuses else 0)
        if component == SHALLOW:
            return Edits(self.exact, self.pool_attention != "off", self.reuse_depth, shallow=True)
        return Edits(self.exact)

    def __str__(self) -> str:
        told = []
        if self.reuses:
            told.append(f"{self.reuse_depth} layers at every step, all at every {self.reuse_every}")
        if self.pool_attention != "off":
            told.append("pooled attention" + " in between" * (self.pool_attention == "shallow"))
        if self.guidance_interval != WHOLE:
            told.append("guidance from {:g} to {:g}".format(*self.guidance_interval))
        return ", ".join(told) or "none"


NO_SHORTCUTS = Shortcuts()


@dataclass(frozen=True)
class Preset:
    """A name for settings that go well together."""

    shortcuts: Shortcuts
    eight_bits: bool
    """Whether the variant in eight bits is taken where there is one and the processor is quick at it."""
    tiny_decoder: bool = False
    """Whether the tiny decoder is taken where there is one."""


PRESETS: Mapping[str, Preset] = {
    "exact": Preset(Shortcuts(), eight_bits=False),
    "balanced": Preset(Shortcuts(reuse_every=2), eight_bits=True),
    "fast": Preset(
        Shortcuts(pool_attention="shallow", reuse_every=4, guidance_interval=(0.1, 0.9)),
        eight_bits=True,
        tiny_decoder=True,
    ),
}
DEFAULT_PRESET = "exact"


def preset(name: str) -> Preset:
    """Raises ``RequestError`` for an unknown name."""
    if name not in PRESETS:
        raise RequestError(f"preset: {name!r:.40} is not one of {', '.join(PRESETS)}")
    return PRESETS[name]


def shortcuts(name: str, wanted: Mapping[str, Any]) -> Shortcuts:
    """Those of a preset, and what is wanted instead; None leaves what the preset has.  Raises ``RequestError``."""
    assert wanted.keys() <= {field.name for field in fields(Shortcuts)}
    return replace(preset(name).shortcuts, **{key: value for key, value in wanted.items() if value is not None})
