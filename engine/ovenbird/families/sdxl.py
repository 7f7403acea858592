"""Stable Diffusion XL (Podell et al., 2023): two text encoders, a summary of the text, and the picture's size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays
from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning
from ovenbird.embeddings import Embeddings
from ovenbird.errors import ModelError
from ovenbird.families.texts import Encoders, States, encode, read, weighed
from ovenbird.request import Request
from ovenbird.text import Tokens

Encoded = tuple[States, NDArray[np.float32]]  # hidden states (1, 77 a chunk, D), summary (1, P)
HIDDEN = "hidden_states."
PARTS = ("", "_2")
VECTORS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Tensor of a file of textual inversion -> the text encoder that it is for."""


def deepest_skip(bundle: Bundle) -> int:
    """Down to the first layer of the encoder that has fewer."""
    return min(int(bundle.config(f"text_encoder{part}")["num_hidden_layers"]) for part in PARTS) - 1


def condition(bundle: Bundle, encoders: Encoders, wish: Request, guide: bool, embeddings: Embeddings) -> Conditioning:
    """``encoder_hidden_states`` (N, 77 a chunk, D1 + D2), ``text_embeds`` (N, P), ``time_ids`` (N, 6); a row a text.

    Without a negative prompt its half is all zeros, as the model was trained, unless ``model_index.json`` says no.
    """
    zeros = not wish.texts[0] and bool(bundle.index.get("force_zeros_for_empty_prompt", True))
    prompts = wish.texts if guide and not zeros else wish.texts[1:]
    tokens = read(bundle, PARTS, prompts, wish, embeddings)
    # In diffusers, too, the negative prompt goes through every layer.
    skips = [0] * (guide and not zeros) + [wish.clip_skip] * len(wish.texts[1:])
    rows = [encoded(encoders, each, skip) for each, skip in zip(tokens, skips, strict=True)]
    if guide and zeros:
        rows = [_zeros(rows[0]), *rows]
    negative, given = time_ids(wish)
    return {
        "encoder_hidden_states": np.concatenate([hidden for hidden, _ in rows]),
        "text_embeds": np.concatenate([summary for _, summary in rows]),
        "time_ids": np.array([negative] * guide + [given] * len(wish.texts[1:]), np.float32),
    }


def at(told: Conditioning, top: int, left: int) -> Conditioning:
    """What is told about a tile that begins so many pixels down and across: it was cropped there from the whole.

    DemoFusion (Du et al., 2024) does so.
    """
    return {**told, "time_ids": told["time_ids"] + np.array([0, 0, top, left, 0, 0], np.float32)}


def time_ids(wish: Request) -> list[list[int]]:
    """Of the negative prompt and of the prompt: original size, corner of the crop, target size."""
    assert wish.height and wish.width
    size = (wish.height, wish.width)
    given = [*(wish.original_size or size), *wish.crops_coords_top_left, *(wish.target_size or size)]
    original, target = wish.negative_original_size, wish.negative_target_size
    if original is None or target is None:
        return [given, given]
    return [[*original, *wish.negative_crops_coords_top_left, *target], given]


def encoded(encoders: Encoders, tokens: Sequence[Tokens], skip: int) -> Encoded:
    """Both encoders' last hidden state but one, or ``skip`` layers earlier, side by side.

    The summary is the second one's, of the first chunk and without weights, as in the web UI.
    """
    pairs = [
        (list(encode(encoders(f"text_encoder{part}"), each)), each) for part, each in zip(PARTS, tokens, strict=True)
    ]
    states = [weighed([_state(outputs, skip) for outputs in chunks], each) for chunks, each in pairs]
    (first, *_), _ = pairs[1]
    return np.concatenate(states, axis=-1), first["text_embeds"]


def _state(outputs: Arrays, skip: int) -> States:
    """diffusers counts ``clip_skip`` from the last state but one, which has no norm behind it."""
    states = sorted((name for name in outputs if name.startswith(HIDDEN)), key=lambda name: int(name[len(HIDDEN) :]))
    if len(states) < 2 + skip:
        raise ModelError("a text encoder of this SDXL model gives no hidden states", hint="export the model again")
    return outputs[states[-2 - skip]]


def _zeros(encoded: Encoded) -> Encoded:
    return np.zeros_like(encoded[0]), np.zeros_like(encoded[1])
