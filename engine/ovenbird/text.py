"""From a prompt to token ids, as CLIP's tokenizer does it (Radford et al., 2021)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ovenbird.bundle import read_json
from ovenbird.errors import ModelError

TokenIds = NDArray[np.int64]  # (N, length)

# CLIP's own pattern, fixed here: a regular expression is never taken from a model folder.
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
LARGEST_VOCABULARY = 1_000_000


@dataclass(frozen=True)
class PromptTokenizer:
    """Byte-pair encoding with a start, an end, and padding up to ``length``."""

    tokenizer: Tokenizer
    start: int
    end: int
    pad: int
    length: int

    @classmethod
    def open(cls, folder: Path) -> PromptTokenizer:
        """Read ``vocab.json`` and ``merges.txt`` (or ``tokenizer.json``).  Raises ``ModelError``."""
        config = _optional_json(folder / "tokenizer_config.json")
        vocabulary, merges = _vocabulary(folder)
        names = {key: _token(config, key, "<|endoftext|>") for key in ("eos_token", "pad_token", "unk_token")}
        names["bos_token"] = _token(config, "bos_token", "<|startoftext|>")
        for key, token in names.items():
            if token not in vocabulary:
                raise ModelError(f"{folder}: the {key} {token!r} is not in the vocabulary")
        length = min(int(config.get("model_max_length", 77)), 77)
        tokenizer = _clip(vocabulary, merges, names)
        ids = {key: vocabulary[token] for key, token in names.items()}
        return cls(tokenizer, ids["bos_token"], ids["eos_token"], ids["pad_token"], length)

    def __call__(self, prompt: str) -> TokenIds:
        """Ids (1, length); what does not fit is cut, with a warning that names the lost text."""
        encoding: Encoding = self.tokenizer.encode(prompt, add_special_tokens=False)
        room = self.length - 2
        if len(encoding.ids) > room:
            lost = prompt[encoding.offsets[room][0] :]
            warnings.warn(f"the prompt is longer than {room} tokens; this was cut off: {lost!r}", stacklevel=2)
        ids = [self.start, *encoding.ids[:room], self.end]
        return np.array([ids + [self.pad] * (self.length - len(ids))], np.int64)


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]], names: dict[str, str]) -> Tokenizer:
    model = models.BPE(vocabulary, merges, unk_token=names["unk_token"], end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    special = sorted(set(names.values()))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if (folder / "vocab.json").is_file():
        vocabulary: dict[str, Any] = read_json(folder / "vocab.json")
        lines = _lines(folder / "merges.txt")
    elif (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model", {})
        vocabulary, lines = model.get("vocab", {}), model.get("merges", [])
    else:
        raise ModelError(f"{folder} holds neither vocab.json nor tokenizer.json", hint="export the model again")
    merges = [tuple(line.split()) if isinstance(line, str) else tuple(line) for line in lines]
    merges = [pair for pair in merges if len(pair) == 2]
    if not vocabulary or len(vocabulary) > LARGEST_VOCABULARY or len(merges) > LARGEST_VOCABULARY:
        raise ModelError(f"{folder}: a vocabulary of {len(vocabulary)} tokens is not plausible")
    return vocabulary, merges  # type: ignore[return-value]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="export the model again") from error
    return [line for line in lines if line and not line.startswith("#version")]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token(config: dict[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    return str(value["content"] if isinstance(value, dict) else value)
