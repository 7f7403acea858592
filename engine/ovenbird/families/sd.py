"""Stable Diffusion 1.x and 2.x: the text encoder's last hidden state, and nothing else."""

from __future__ import annotations

import numpy as np

from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning
from ovenbird.families.texts import Encoders, encode, read, weighed
from ovenbird.request import Request


def deepest_skip(bundle: Bundle) -> int:
    """None can be skipped: the states of earlier layers lack the norm behind the last one, which is in the graph."""
    return 0


def condition(bundle: Bundle, encoders: Encoders, wish: Request, guide: bool) -> Conditioning:
    """``encoder_hidden_states`` (N, 77 a chunk, D), a row a text."""
    prompts = wish.texts if guide else wish.texts[1:]
    encoder = encoders("text_encoder")
    states = [
        weighed([outputs["last_hidden_state"] for outputs in encode(encoder, tokens)], tokens)
        for (tokens,) in read(bundle, ["tokenizer"], prompts, wish)
    ]
    return {"encoder_hidden_states": np.concatenate(states)}
