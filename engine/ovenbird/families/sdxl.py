"""Stable Diffusion XL (Podell et al., 2023): two text encoders, a summary of the text, and the picture's size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays
from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning
from ovenbird.errors import ModelError
from ovenbird.request import Request
from ovenbird.text import PromptTokenizer

Encoders = Callable[[str], Callable[[Arrays], Arrays]]
Encoded = tuple[NDArray[np.float32], NDArray[np.float32]]  # hidden states (1, 77, D), summary (1, P)
HIDDEN = "hidden_states."


def condition(bundle: Bundle, encoders: Encoders, wish: Request, guide: bool) -> Conditioning:
    """``encoder_hidden_states`` (N, 77, D1 + D2), ``text_embeds`` (N, P) and ``time_ids`` (N, 6); N is 1 or 2.

    Without a negative prompt its half is all zeros where ``model_index.json`` says so, as the model was trained.
    """
    assert wish.height and wish.width
    encoded = encode(bundle, encoders, wish.prompt)
    rows = [encoded]
    if guide:
        zeros = not wish.negative_prompt and bool(bundle.index.get("force_zeros_for_empty_prompt"))
        rows = [_zeros(encoded) if zeros else encode(bundle, encoders, wish.negative_prompt), encoded]
    # Original size, corner of the crop, target size: a picture that was made as it is asked for.
    time_ids = np.array([[wish.height, wish.width, 0, 0, wish.height, wish.width]], np.float32)
    return {
        "encoder_hidden_states": np.concatenate([hidden for hidden, _ in rows]),
        "text_embeds": np.concatenate([summary for _, summary in rows]),
        "time_ids": np.repeat(time_ids, len(rows), axis=0),
    }


def encode(bundle: Bundle, encoders: Encoders, text: str) -> Encoded:
    """Both encoders' last hidden state but one, side by side, and the second one's summary."""
    outputs = [
        encoders(f"text_encoder{suffix}")({"input_ids": PromptTokenizer.open(bundle.path / f"tokenizer{suffix}")(text)})
        for suffix in ("", "_2")
    ]
    return np.concatenate([_last_but_one(found) for found in outputs], axis=-1), outputs[1]["text_embeds"]


def _last_but_one(outputs: Arrays) -> NDArray[np.float32]:
    states = sorted((name for name in outputs if name.startswith(HIDDEN)), key=lambda name: int(name[len(HIDDEN) :]))
    if len(states) < 2:
        raise ModelError("a text encoder of this SDXL model gives no hidden states", hint="export the model again")
    return outputs[states[-2]]


def _zeros(encoded: Encoded) -> Encoded:
    return np.zeros_like(encoded[0]), np.zeros_like(encoded[1])
