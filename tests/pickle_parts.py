"""Pickles and torch's archives, put together opcode by opcode: neither torch nor what they name is needed."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stack_name(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def entries(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(key: str, count: int, kind: str = "FloatStorage", more: bytes = b"") -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), number(count), more) + b"Q"


def tensor(
    stored: bytes, shape: Sequence[int] = (2,), stride: Sequence[int] = (1,), offset: int = 0, more: bytes = b""
) -> bytes:
    hooks = name("collections", "OrderedDict") + b")R"
    sizes, steps = (tuple_of(*map(number, numbers)) for numbers in (shape, stride))
    return call(name("torch._utils", "_rebuild_tensor_v2"), stored, number(offset), sizes, steps, b"\x89", hooks, more)


GOOD = tensor(storage("0", 2))
"""Two numbers of storage 0; ``NUMBERS`` are its bytes."""
NUMBERS = struct.pack("<2f", 1.5, -2.0)


def program(items: Mapping[str, bytes]) -> bytes:
    """A pickled dictionary, in protocol 2."""
    return b"\x80\x02" + entries(items) + b"."


def write_zip(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None, **more: bytes) -> Path:
    """A checkpoint as torch writes it; ``more`` are further files in its folder."""
    files = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"} | more
    files |= {f"data/{key}": content for key, content in (storages or {"0": NUMBERS}).items()}
    write_archive(path, {f"archive/{file}": content for file, content in files.items()})
    return path


def write_archive(path: Path, files: Mapping[str, bytes], packing: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for file, content in files.items():
            archive.writestr(zipfile.ZipInfo(file), content, packing)


def legacy(pickled: bytes, storages: Mapping[str, bytes] | None = None, size: int = 4) -> bytes:
    """The same before torch 1.6."""
    stored = {"0": NUMBERS} if storages is None else storages
    system = entries({"protocol_version": b"M\xe9\x03", "little_endian": b"\x88"})
    keys = b"](" + b"".join(map(text, stored)) + b"e"
    parts = [LEGACY_MAGIC, b"\x80\x02M\xe9\x03.", b"\x80\x02" + system + b".", pickled, b"\x80\x02" + keys + b"."]
    return b"".join([*parts, *(struct.pack("<q", len(data) // size) + data for data in stored.values())])
