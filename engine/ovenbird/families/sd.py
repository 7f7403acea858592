"""Stable Diffusion 1.x and 2.x: one hidden state of the text encoder, and nothing else."""

from __future__ import annotations

import numpy as np

from ovenbird.backends import Arrays
from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning
from ovenbird.embeddings import Embeddings
from ovenbird.families.texts import Encoders, States, encode, read, weighed
from ovenbird.request import Request

VECTORS = {"emb_params": "text_encoder"}
"""Tensor of a file of textual inversion -> the text encoder that it is for."""
SKIP = "clip_skip."
"""Outputs of our own exports: the state so many layers before the last, with the norm that is behind the last one."""


def deepest_skip(bundle: Bundle) -> int:
    """What the export says.  Where it says nothing, or another tool wrote the folder, there is the last state alone."""
    return bundle.clip_skip


def condition(bundle: Bundle, encoders: Encoders, wish: Request, guide: bool, embeddings: Embeddings) -> Conditioning:
    """``encoder_hidden_states`` (N, 77 a chunk, D), a row a text."""
    prompts = wish.texts if guide else wish.texts[1:]
    tokens = [tokens for (tokens,) in read(bundle, [""], prompts, wish, embeddings)]
    # In diffusers, too, the negative prompt goes through every layer.
    skips = [0] * guide + [wish.clip_skip] * len(wish.texts[1:])
    encoder = encoders("text_encoder")
    states = [
        weighed([_state(outputs, skip) for outputs in encode(encoder, each)], each)
        for each, skip in zip(tokens, skips, strict=True)
    ]
    return {"encoder_hidden_states": np.concatenate(states)}


def _state(outputs: Arrays, skip: int) -> States:
    return outputs[f"{SKIP}{skip}" if skip else "last_hidden_state"]
