"""Small safetensors files, such as those of textual inversion, read whole and with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird.errors import ModelError

MOST_TENSORS = 1000
MOST_AXES = 8
LONGEST_REASON = 200
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""safetensors' names of the numbers that are read -> numpy's, which has none for the upper half of a float32."""
PICKLES = (b"PK\x03\x04", b"\x80")
"""How the files of ``torch.save`` begin, the newer and the older ones."""

Tensors = dict[str, NDArray[np.float32]]


def parse(path: Path, content: bytes) -> Tensors:
    """Every tensor of a safetensors file by its name, in float32.

    The tensors lie side by side and fill the file, and every name comes once.  Raises ``ModelError``, for a pickle,
    which is known by its content, with the way out.
    """
    if content.startswith(PICKLES) and content[8:9] != b"{":  # the length of a header may be 0x80
        raise ModelError(
            f"{path} is a pickle, which can run any code when it is read",
            hint="save its tensors as .safetensors, with a program that you trust it to",
        )
    try:
        return _parsed(content)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = str(error)[:LONGEST_REASON]
        raise ModelError(f"{path} is not a safetensors file of floats: {reason}") from error


def _parsed(content: bytes) -> Tensors:
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise ValueError(f"its header would have {length} bytes")
    data = memoryview(content)[8 + length :]
    header = json.loads(content[8 : 8 + length].decode(), object_pairs_hook=_once)
    header.pop("__metadata__", None)
    if len(header) > MOST_TENSORS:
        raise ValueError(f"{len(header)} tensors are more than {MOST_TENSORS}")
    tensors: Tensors = {}
    filled = 0
    for name, facts in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = facts["data_offsets"]
        if begin != filled or not begin <= end <= len(data):
            raise ValueError(f"{name!a} does not lie behind the tensor before it, or in the file")
        tensors[name], filled = _tensor(name, facts, data[begin:end]), end
    if filled != len(data):
        raise ValueError("there is more behind its last tensor")
    return tensors


def _tensor(name: str, facts: Mapping[str, Any], data: memoryview) -> NDArray[np.float32]:
    kind, shape = facts["dtype"], facts["shape"]
    if kind not in DTYPES:
        raise ValueError(f"{name!a} is {kind!a}; known: {', '.join(DTYPES)}")
    if len(shape) > MOST_AXES or any(not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError(f"{name!a} has the shape {shape}")
    dtype = np.dtype(DTYPES[kind])
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name!a} of the shape {shape} has {len(data)} bytes")
    numbers = np.frombuffer(data, dtype).reshape(shape)
    if kind == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # infinity then, which is seen where numbers are judged
        return numbers.astype(np.float32)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found
