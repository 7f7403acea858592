"""What a component's ``config.json`` may say of the things that are read here, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ovenbird.errors import ModelError

MOST = 1 << 20
"""Of channels, tokens, layers or cells; no model comes near."""
MOST_LEVELS = 12


class Rule(NamedTuple):
    """What a value may be, and how that is said."""

    holds: Callable[[Any], bool]
    said: str


def _whole(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST


def _each(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and 1 <= len(value) <= MOST_LEVELS and all(map(holds, value))


def _scale(value: Any) -> bool:
    return type(value) in (int, float) and 1e-6 < abs(value) < 1e6


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6


WHOLE = Rule(_whole, f"a whole number from 1 to {MOST}")
LEVELS = Rule(lambda value: _each(value, _whole), f"1 to {MOST_LEVELS} whole numbers from 1 to {MOST}")
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("in_channels", "latent_channels", "vocab_size", "hidden_size", "num_hidden_layers"), WHOLE),
    **dict.fromkeys(("cross_attention_dim", "time_cond_proj_dim", "addition_time_embed_dim"), WHOLE),
    "projection_class_embeddings_input_dim": WHOLE,
    "block_out_channels": LEVELS,
    "sample_size": Rule(lambda value: _whole(value) or _each(value, _whole), "one or several whole numbers from 1"),
    "scaling_factor": Rule(_scale, "a number other than 0"),
    "shift_factor": Rule(_number, "a number"),
    **dict.fromkeys(("latents_mean", "latents_std"), Rule(lambda _: False, "null, which is all that is known here")),
}
"""Setting -> its rule.  What has none is not read here, or only to foresee memory, which may fail."""


def checked(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what is null, which is as if it were not there.  Raises ``ModelError``."""
    given = {name: value for name, value in config.items() if value is not None}
    for name, rule in RULES.items():
        if name in given and not rule.holds(given[name]):
            raise ModelError(f"{path}: {name} is {_short(given[name])}, not {rule.said}", hint="export the model again")
    return given


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) > MOST:
        return f"a number beyond {MOST}"
    return f"{value!r:.60}"
