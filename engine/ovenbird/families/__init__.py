"""Families differ in what they tell the U-Net about the request; the loop is the same.  One file each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning, rows
from ovenbird.embeddings import NO_EMBEDDINGS, Embeddings, Wanted
from ovenbird.errors import RequestError
from ovenbird.families import sd, sdxl
from ovenbird.families.texts import Encoders, check_length
from ovenbird.noise import slerp
from ovenbird.request import CONDITIONS, Request
from ovenbird.text import checked_tokenizer, vocabulary

ROWS = 49408
"""Tokens that a text encoder knows whose config is missing: those of CLIP."""


@dataclass(frozen=True)
class Family:
    """How one family is told about a request."""

    condition: Callable[[Bundle, Encoders, Request, bool, Embeddings], Conditioning]
    """(bundle, text encoders, settled request, whether to guide, words that were added) -> inputs of the U-Net, a row
    for each text."""
    deepest_skip: Callable[[Bundle], int]
    """The largest ``clip_skip`` that its text encoders can do."""
    vectors: Mapping[str, str]
    """Tensor of a file of textual inversion -> the text encoder that it is for."""
    at: Callable[[Conditioning, int, int], Conditioning] = lambda told, top, left: told
    """(inputs of the U-Net, top, left) -> those for a tile of the picture that begins at these pixels."""


FAMILIES = {
    "sd": Family(sd.condition, sd.deepest_skip, sd.VECTORS),
    "sdxl": Family(sdxl.condition, sdxl.deepest_skip, sdxl.VECTORS, sdxl.at),
}
"""By ``Bundle.family``."""


def read_embeddings(bundle: Bundle, wanted: Wanted) -> Embeddings:
    """Words for the model's text encoders, from files.  Raises ``RequestError`` and ``ModelError``."""
    return Embeddings.open(bundle, FAMILIES[bundle.family].vectors, wanted)


def with_tokenizer(bundle: Bundle, folder: Path) -> Bundle:
    """The model with the words of another tokenizer; for a family with two, ``tokenizer`` and ``tokenizer_2`` in it.

    Raises ``RequestError`` where it does not fit the text encoders, ``ModelError`` where it cannot be read.
    """
    changed = replace(bundle, words=checked_tokenizer(folder))
    for component in FAMILIES[bundle.family].vectors.values():
        part = component.removeprefix("text_encoder")
        if part and changed.tokenizer(part) == folder:
            raise RequestError(f"tokenizer: {folder} has no tokenizer{part}, and {bundle.name} has two tokenizers")
        rows = int(bundle.config(component).get("vocab_size", ROWS))
        found = max(vocabulary(changed.tokenizer(part)).values())
        if found >= rows:
            raise RequestError(
                f"tokenizer: {folder} counts to {found}, and the {component} of {bundle.name} knows {rows} tokens",
                hint="it was made for another model: leave it out",
            )
    return changed


def check(bundle: Bundle, wish: Request, embeddings: Embeddings = NO_EMBEDDINGS) -> None:
    """Raises ``RequestError`` for what the model's text encoders cannot do; nothing is compiled.

    Warns of a negative prompt that nothing comes of.
    """
    _check_conditions(bundle, wish)
    _check_texts(bundle, wish, embeddings)
    deepest = FAMILIES[bundle.family].deepest_skip(bundle) if wish.clip_skip else 0
    if wish.clip_skip > deepest:
        able = f"can leave out {deepest}" if deepest else "gives nothing but what its last layer makes"
        again = "" if deepest else "; a new export may give more: ovenbird export SOURCE FOLDER"
        raise RequestError(
            f"clip_skip: {wish.clip_skip} is too many: a text encoder of {bundle.name} {able}",
            hint=f"the nearest is {deepest}{again}",
        )


def _check_texts(bundle: Bundle, wish: Request, embeddings: Embeddings) -> None:
    guided = guides(bundle, wish)
    if not guided and any(wish.negative_prompt):
        why = "guidance_scale is not above 1" if wish.guidance_scale <= 1 else f"{bundle.name} has learned guidance"
        warnings.warn(f"negative_prompt: it has no effect, for {why}", stacklevel=4)
    if wish.strict:
        parts = [name.removeprefix("text_encoder") for name in FAMILIES[bundle.family].vectors.values()]
        prompts = [text for single in wish.singles() for text in (single.texts if guided else single.texts[1:])]
        check_length(bundle, parts, list(dict.fromkeys(prompts)), wish, embeddings)


def _check_conditions(bundle: Bundle, wish: Request) -> None:
    for name, default in CONDITIONS.items():
        if bundle.family != "sdxl" and getattr(wish, name) != default:
            raise RequestError(f"{name}: {bundle.name} is not told of sizes", hint="leave it out; it is for SDXL alone")


def guides(bundle: Bundle, wish: Request) -> bool:
    """Whether the U-Net runs for the negative prompt, too."""
    return wish.guidance_scale > 1 and not bundle.config("unet").get("time_cond_proj_dim")


def condition(
    bundle: Bundle, encoders: Encoders, wish: Request, embeddings: Embeddings = NO_EMBEDDINGS
) -> Conditioning:
    """Every input of the U-Net but latents and timestep: a row for each text, the negative first, if there is guidance.

    A distilled model (LCM, Luo et al., 2023) has learned guidance: it is told the scale, and its one row is enough.
    """
    width = bundle.config("unet").get("time_cond_proj_dim")
    told = FAMILIES[bundle.family].condition(bundle, encoders, wish, guides(bundle, wish), embeddings)
    if not width:
        return told
    return {**told, "timestep_cond": np.repeat(guidance_embedding(wish.guidance_scale, width), rows(told), axis=0)}


def blended(told: Conditioning, blend: float | None) -> Conditioning:
    """One row of the last two: what is told about a picture between two prompts, token by token on a sphere's arc."""
    if blend is None:
        return told
    return {
        name: np.concatenate([array[:-2], slerp(array[-2:-1], array[-1:], blend, axis=-1)])
        for name, array in told.items()
    }


def halves(told: Conditioning) -> tuple[Conditioning, Conditioning]:
    """The negative rows of what is told with guidance, and the others."""
    half = rows(told) // 2
    return {name: array[:half] for name, array in told.items()}, {name: array[half:] for name, array in told.items()}


def together(pictures: Sequence[Conditioning]) -> Conditioning:
    """What is told about several pictures that are drawn side by side: all the negative rows, then all the others."""
    halves = range(rows(pictures[0]))
    return {
        name: np.concatenate([told[name][half : half + 1] for half in halves for told in pictures])
        for name in pictures[0]
    }


def guidance_embedding(guidance_scale: float, width: int) -> NDArray[np.float32]:
    """The scale above 1 as sines and cosines (1, width), float32."""
    half = width // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1))
    angles = (guidance_scale - 1) * 1000 * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)])
    return np.asarray(embedding[None], np.float32)
