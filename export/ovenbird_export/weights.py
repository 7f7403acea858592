"""Weights in one file: what it says it holds, and tensors that are read when somebody asks for them."""

from __future__ import annotations

import json
import mmap
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovenbird.errors import ModelError

if TYPE_CHECKING:
    import torch

LARGEST_HEADER = 16 << 20
LONGEST_NAME = 256
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
}
"""safetensors' names of the types that are read -> torch's."""


@dataclass(frozen=True)
class Entry:
    """One tensor in the header of a safetensors file."""

    dtype: str
    """As safetensors writes it."""
    shape: tuple[int, ...]
    start: int
    """Where its first byte lies in the file."""


@dataclass(frozen=True)
class Header:
    """All that a safetensors file says before its numbers."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class LazyTensor:
    """Numbers in a file that is mapped into memory."""

    pages: mmap.mmap = field(repr=False)
    start: int
    """Where its first byte lies in the file."""
    dtype: str
    """As torch writes it."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In elements."""

    def read(self) -> torch.Tensor:
        """The tensor.  It lies in the pages of the file if it can: do not write to it."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        buffer, start = self.pages, self.start
        if start % dtype.itemsize:
            buffer, start = bytearray(self.pages[start : start + span * dtype.itemsize]), 0  # type: ignore[assignment]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the file cannot be written to
            flat = torch.frombuffer(buffer, dtype=dtype, count=span, offset=start)
        return flat.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file by name, whatever its format."""

    format: str
    tensors: Mapping[str, LazyTensor]
    ignored: tuple[str, ...] = ()
    """What a pickle names beside tensors, and nobody imported."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def release(self) -> None:
        """Give back the memory of what was read so far; whoever looks at it again has it read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for pages in {id(tensor.pages): tensor.pages for tensor in self.tensors.values()}.values():
                pages.madvise(mmap.MADV_DONTNEED)


def open_safetensors(path: Path) -> Checkpoint:
    """A safetensors file with tensors of ``DTYPES`` only.  Raises ``ModelError``."""
    header = read_header(path)
    for name, entry in header.tensors.items():
        if entry.dtype not in DTYPES:
            raise ModelError(f"{path}: {name} is {entry.dtype}; known: {', '.join(DTYPES)}")
    pages = map_file(path)
    tensors = {
        name: LazyTensor(pages, entry.start, DTYPES[entry.dtype], entry.shape, contiguous(entry.shape))
        for name, entry in header.tensors.items()
    }
    return Checkpoint("safetensors", tensors, metadata=header.metadata)


def read_header(path: Path) -> Header:
    """What a safetensors file holds.

    The library sees to it that all tensors lie in the file, side by side.  Refused here, because it does not: a name
    that comes twice, one that is no printable ASCII, and a header that is too large.  Raises ``ModelError``.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"its header would have {length} bytes")
            text = file.read(length)
        with safe_open(path, framework="numpy"):
            pass
        header = json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error
    metadata = header.pop("__metadata__", None) or {}
    check_names(path, header)
    return Header({name: _entry(facts, 8 + length) for name, facts in header.items()}, metadata)


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file, in memory as they are looked at.  Raises ``ModelError``."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is empty") from error


def check_names(path: Path, names: Iterable[str]) -> None:
    """Raise ``ModelError`` for the first name of a tensor that is not printable ASCII, short, and without spaces."""
    for name in names:
        if not 0 < len(name) <= LONGEST_NAME or not all("!" <= letter <= "~" for letter in name):
            raise ModelError(f"{path}: {name[:LONGEST_NAME]!a} is not the name of a tensor")


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps, in elements, of a tensor without gaps."""
    stride = [1]
    for size in reversed(shape[1:]):
        stride.append(stride[-1] * size)
    return tuple(reversed(stride)) if shape else ()


def _entry(facts: Mapping[str, Any], data: int) -> Entry:
    return Entry(facts["dtype"], tuple(facts["shape"]), data + facts["data_offsets"][0])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:LONGEST_NAME]!a} comes twice")
        found[name] = value
    return found
