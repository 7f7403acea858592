"""The tokenizer: CLIP's byte-pair encoding, rebuilt from its vocabulary and merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ovenbird.bundle import read_json
from ovenbird.errors import ModelError
from ovenbird.text import byte_pairs
from ovenbird_export.source import read_text

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
TOKEN = ("content", "lstrip", "normalized", "rstrip", "single_word")
IGNORED = (
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "backend",
    "chat_template",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "errors",
    "extra_special_tokens",
    "is_local",
    "local_files_only",
    "model_max_length",
    "name_or_path",
    "processor_class",
    "special_tokens_map_file",
    "tokenizer_class",
    "tokenizer_file",
    "use_fast",
)
"""Keys of ``tokenizer_config.json`` that are read elsewhere or change no token."""


def write_tokenizer(source: Path, target: Path, vocabulary: int) -> Any:
    """Rebuild the tokenizer in ``source`` with transformers, save it with its ``tokenizer.json``, and give it back.

    Of the source's ``tokenizer.json``, which may hold any regular expression, nothing is read but vocabulary and
    merges, and these only where they do not lie beside it.  Raises ``ModelError`` for unknown settings, and for a token
    that the text encoder, with its ``vocabulary``, has no row for.
    """
    from transformers import CLIPTokenizerFast

    settings = _settings(source / "tokenizer_config.json")
    special = {**settings, **_optional(source / "special_tokens_map.json")}
    tokens = {name: _token(source, name, special[name]) for name in SPECIAL if special.get(name) is not None}
    write_byte_pairs(source, target)
    make: Any = CLIPTokenizerFast
    try:
        tokenizer = make(
            str(target / "vocab.json"),
            str(target / "merges.txt"),
            model_max_length=settings.get("model_max_length", 77),
            **tokens,
        )
    except Exception as error:  # the Rust library has no exceptions of its own
        raise ModelError(f"{source} is not a CLIP tokenizer: {error}") from error
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocabulary:
        raise ModelError(f"{source}: token {highest} has no row in a text encoder for {vocabulary}")
    tokenizer.save_pretrained(str(target))
    write_byte_pairs(source, target)  # transformers may have written them in another way, or removed them
    return tokenizer


def write_byte_pairs(source: Path, target: Path) -> None:
    """``vocab.json`` and ``merges.txt`` of a tokenizer, which may have them in ``tokenizer.json``.

    Raises ``ModelError``.
    """
    vocab, pairs = byte_pairs(source)
    if (source / "vocab.json").is_file():
        merges = read_text(source / "merges.txt")
    else:
        merges = "\n".join(["#version: 0.2", *map(" ".join, pairs), ""])
    target.mkdir(parents=True, exist_ok=True)
    (target / "vocab.json").write_bytes(json.dumps(vocab, ensure_ascii=False).encode())
    (target / "merges.txt").write_bytes(merges.encode())


def _settings(path: Path) -> dict[str, Any]:
    settings = _optional(path)
    for key in settings:
        if key not in SPECIAL and key not in IGNORED:
            raise ModelError(f"{path}: {key!r} is not known, so its effect would be lost")
    if settings.get("tokenizer_class", "CLIPTokenizer") not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise ModelError(f"{path}: a {settings['tokenizer_class']} is not a CLIP tokenizer")
    return settings


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token(source: Path, name: str, value: Any) -> Any:
    from transformers import AddedToken

    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ModelError(f"{source}: {name} is {value!r}, not a token")
    return AddedToken(**{key: value[key] for key in TOKEN if key in value})
