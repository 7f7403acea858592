"""Stable Diffusion 1.x and 2.x: the text encoder's last hidden state, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ovenbird.backends import Arrays
from ovenbird.bundle import Bundle
from ovenbird.denoiser import Conditioning
from ovenbird.text import PromptTokenizer

TextEncoder = Callable[[Arrays], Arrays]


def condition(bundle: Bundle, text_encoder: TextEncoder, prompt: str, negative_prompt: str | None) -> Conditioning:
    """``encoder_hidden_states`` (2, 77, D), the negative prompt first; (1, 77, D) where there is none."""
    tokenize = PromptTokenizer.open(bundle.path / "tokenizer")
    texts = [prompt] if negative_prompt is None else [negative_prompt, prompt]
    # One at a time: the compiled shape is then the same with and without guidance.
    states = [text_encoder({"input_ids": tokenize(text)})["last_hidden_state"] for text in texts]
    return {"encoder_hidden_states": np.concatenate(states)}
