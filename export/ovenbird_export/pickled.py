"""torch's checkpoints (.ckpt, .pt, .bin), read without running them; there is no fallback to ``torch.load``."""

from __future__ import annotations

import io
import mmap
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovenbird.errors import ModelError
from ovenbird_export.opcodes import Machine, Malformed, View
from ovenbird_export.weights import Checkpoint, check_names, map_file, open_safetensors

ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""torch's magic number as a pickle of its own; files from before torch 1.6 begin with it."""
LEGACY_VERSION = 1001
LARGEST_PICKLE = 4 << 20
"""Bytes.  The numbers lie outside the pickle, and it describes 10,000 tensors in 2 MiB."""
LARGEST_DIRECTORY = 4 << 20
DEEPEST = 4
"""How many dictionaries called ``state_dict`` may lie in each other."""
MEMBER = re.compile(r"(?!\.\.?/)[^/\\]+(/\.?\w[\w-]*(\.[\w-]+)*)+", re.ASCII)
"""A file in torch's zip archives.  All lie in one folder, named after the file that was once saved."""
DAMAGE = (
    *(ValueError, LookupError, TypeError, OverflowError, OSError, NotImplementedError),
    *(zipfile.BadZipFile, struct.error),
)
"""What is raised for files that are not as they should be, by zipfile, by pickletools, and by programs that take one
thing for another."""


def open_file(path: Path) -> Checkpoint:
    """The tensors of a safetensors file or a checkpoint of torch: which it is, its first bytes say.

    Raises ``ModelError`` for anything else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if start.startswith((ZIP_START, LEGACY_START)):
        return open_checkpoint(path)
    if start[8:9] == b"{":
        return open_safetensors(path)
    raise ModelError(f"{path} is neither a safetensors file nor a checkpoint of torch: it begins with {start[:8]!r}")


def open_checkpoint(path: Path) -> Checkpoint:
    """The tensors in a checkpoint of torch, by what it holds and not by its name; nothing in it is run or imported.

    Dictionaries under ``state_dict`` are looked into.  Raises ``ModelError`` for anything else, for damage, and when
    there are no tensors with names.
    """
    pages = map_file(path)
    machine = Machine()
    try:
        form, read = _format(pages)
        found, starts = read(path, pages, machine)
        views = _named_views(found)
        tensors = {name: view.place(pages, starts[view.storage.key]) for name, view in views.items()}
    except DAMAGE as error:
        raise ModelError(f"{path} is not a checkpoint that torch wrote: {str(error)[:200]}") from error
    check_names(path, tensors)
    if not tensors:
        named = f"; it names {', '.join(machine.ignored)}"[:200] if machine.ignored else ""
        raise ModelError(f"{path} holds no tensors with names{named}")
    return Checkpoint(form, tensors, tuple(machine.ignored))


def _named_views(found: Any) -> dict[str, View]:
    for _ in range(DEEPEST):
        if not isinstance(found, dict):
            return {}
        inner = found.get("state_dict")
        if not isinstance(inner, dict):
            return {name: value for name, value in found.items() if isinstance(value, View)}
        found = inner
    raise Malformed("dictionaries called state_dict lie in each other")


Reader = Callable[[Path, mmap.mmap, Machine], tuple[Any, dict[str, int]]]
"""Gives the pickled object, and where each of its storages begins in the file."""


def _format(pages: mmap.mmap) -> tuple[str, Reader]:
    for start, name, read in ((ZIP_START, "torch zip", _read_zip), (LEGACY_START, "torch legacy", _read_legacy)):
        if pages[: len(start)] == start:
            return name, read
    raise Malformed(f"it begins with {pages[:8]!r}")


def _read_zip(path: Path, pages: mmap.mmap, machine: Machine) -> tuple[Any, dict[str, int]]:
    """The format since torch 1.6: ``data.pkl``, and each storage in ``data/KEY``."""
    members = _members(path, pages)
    if "constants.pkl" in members:
        raise Malformed("it is a TorchScript program")
    if "byteorder" in members and _content(pages, members["byteorder"]) != b"little":
        raise Malformed("its numbers are big-endian")
    found = machine.run(io.BytesIO(_content(pages, members["data.pkl"])))
    starts = {}
    for key, storage in machine.storages.items():
        starts[key], size = members[f"data/{key}"]
        if size != storage.nbytes:
            raise Malformed(f"storage {key!a} has {size} bytes, not {storage.nbytes}")
    return found, starts


def _content(pages: mmap.mmap, member: tuple[int, int]) -> bytes:
    start, size = member
    if size > LARGEST_PICKLE:
        raise Malformed(f"its pickle has {size} bytes")
    return pages[start : start + size]


def _members(path: Path, pages: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Name without the folder -> first byte and size.  Nothing is unpacked, so a name leads nowhere."""
    with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
        infos, free = sorted(archive.infolist(), key=lambda info: info.header_offset), 0
        end = archive.start_dir
    members: dict[str, tuple[int, int]] = {}
    for info in infos:
        folder, _, name = info.filename.partition("/")
        if not MEMBER.fullmatch(info.filename) or name in members or folder != infos[0].filename.split("/")[0]:
            raise Malformed(f"it has a file {info.filename[:100]!a}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Malformed(f"{info.filename[:100]!a} is packed or encrypted")
        if info.header_offset < free or info.header_offset > end:
            raise Malformed("its files lie over each other")
        start_of_name, extra = struct.unpack_from("<26xHH", pages, info.header_offset)
        start = info.header_offset + 30 + start_of_name + extra
        free = start + info.file_size
        if free > end:
            raise Malformed("its files lie over each other")
        members[name] = (start, info.file_size)
    return members


class _Bounded(io.FileIO):
    """A file of which only small pieces are read: a zip archive's directory may claim to be all of it."""

    def read(self, size: int | None = -1, /) -> bytes:
        limit = LARGEST_DIRECTORY + 1
        data = super().read(limit if size is None or size < 0 else min(size, limit))
        if len(data) == limit:
            raise Malformed("its directory is too large")
        return data


def _read_legacy(path: Path, pages: mmap.mmap, machine: Machine) -> tuple[Any, dict[str, int]]:
    """The format before torch 1.6: magic number, version, system, object, storage keys; then the storages in turn."""
    file = io.BytesIO(pages[:LARGEST_PICKLE])
    _, version, system, found, keys = (machine.run(file) for _ in range(5))
    if version != LEGACY_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Malformed("it is of another version, or big-endian")
    place, starts = file.tell(), {}
    for key in keys:
        if type(key) is not str:
            raise Malformed("the key of a storage is not a text")
        storage = machine.storages[key]
        (count,) = struct.unpack_from("<q", pages, place)
        starts[key], place = place + 8, place + 8 + storage.nbytes
        if count != storage.count or place > len(pages):
            raise Malformed(f"storage {key!a} is cut off")
    return found, starts
