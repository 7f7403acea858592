"""What families share: prompts through a text encoder, chunk by chunk, and weights onto what comes out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays
from ovenbird.bundle import Bundle
from ovenbird.embeddings import Embeddings
from ovenbird.errors import NumericError, RequestError
from ovenbird.request import Request
from ovenbird.text import CutOff, PromptTokenizer, Tokens, Weights, tokenize

Encoder = Callable[[Arrays], Arrays]
Encoders = Callable[[str], Encoder]
"""A text encoder by the name of its component."""
States = NDArray[np.float32]  # (1, tokens, D)


def read(
    bundle: Bundle, parts: Sequence[str], prompts: Sequence[str], wish: Request, embeddings: Embeddings
) -> list[list[Tokens]]:
    """For each prompt its tokens by each of the folder's tokenizers, all in equally many chunks.

    A part is how the names of tokenizer and text encoder end.
    """
    opened = [PromptTokenizer.open(bundle.tokenizer(part), embeddings.tokens(f"text_encoder{part}")) for part in parts]
    return tokenize(opened, prompts, wish.prompt_syntax)


def check_length(
    bundle: Bundle, parts: Sequence[str], prompts: Sequence[str], wish: Request, embeddings: Embeddings
) -> None:
    """Raises ``RequestError`` if one of these is longer than what would be read of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", CutOff)
        try:
            read(bundle, parts, prompts, wish, embeddings)
        except CutOff as lost:
            hint = "make it shorter" + (", or take --prompt-syntax webui" if wish.prompt_syntax == "plain" else "")
            raise RequestError(f"prompt: {str(lost).replace('was cut', 'would be cut', 1)}", hint=hint) from None


def encode(encoder: Encoder, tokens: Tokens) -> Iterator[Arrays]:
    """The encoder's outputs for each chunk.

    One at a time: the compiled shape is then the same for every prompt, with and without guidance.
    """
    for ids in tokens.ids:
        yield encoder({"input_ids": ids[None]})


def weighed(chunks: Sequence[States], tokens: Tokens) -> States:
    """The chunks one behind the other, each weighed by itself."""
    return np.concatenate([weigh(chunk, row) for chunk, row in zip(chunks, tokens.weights, strict=True)], axis=1)


def weigh(states: States, weights: Weights) -> States:
    """Each token's states times its weight, then all of them times what restores their mean, as in the web UI.

    The mean is that of the whole chunk: of every channel of every token, start, end and padding among them, which have
    the weight 1.  Without weights, the very states.  Raises ``NumericError`` when they take the mean to zero.
    """
    if (weights == 1).all():
        return states
    with np.errstate(all="ignore"):
        heavy = states * weights[None, :, None]
        found = heavy * np.float32(states.mean(dtype=np.float64) / heavy.mean(dtype=np.float64))
    if not np.isfinite(found).all():
        raise NumericError("text encoder: under these weights its states have no mean", hint="use weights nearer to 1")
    return found
