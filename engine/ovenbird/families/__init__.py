"""Families differ in what they tell the U-Net about the prompt; the loop is the same.  One file each."""

from __future__ import annotations

from collections.abc import Callable

from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning
from ovenbird.families import sd

Family = Callable[[Bundle, "sd.TextEncoder", str, str | None], Conditioning]

FAMILIES: dict[str, Family] = {"sd": sd.condition}
"""``Bundle.family`` -> (bundle, text encoder, prompt, negative prompt or None) -> conditioning."""
