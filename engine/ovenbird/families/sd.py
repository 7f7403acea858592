"""Stable Diffusion 1.x and 2.x: the text encoder's last hidden state, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ovenbird.backends import Arrays
from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning
from ovenbird.request import Request
from ovenbird.text import PromptTokenizer


def condition(
    bundle: Bundle, encoders: Callable[[str], Callable[[Arrays], Arrays]], wish: Request, guide: bool
) -> Conditioning:
    """``encoder_hidden_states`` (1 or 2, 77, D)."""
    tokenize, encode = PromptTokenizer.open(bundle.path / "tokenizer"), encoders("text_encoder")
    texts = [wish.negative_prompt, wish.prompt] if guide else [wish.prompt]
    # One at a time: the compiled shape is then the same with and without guidance.
    states = [encode({"input_ids": tokenize(text)})["last_hidden_state"] for text in texts]
    return {"encoder_hidden_states": np.concatenate(states)}
