"""Files in memory, page by page: what was read of them, or written to them, can be given back while they are in use."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

DROP_EVERY_S = 0.02


class Mapped(NamedTuple):
    """A file, or memory that no file stands behind."""

    bytes: NDArray[np.uint8]
    """It must live as long as whatever was made of it."""
    mapping: mmap.mmap
    in_file: bool

    def drop_pages(self) -> None:
        """Give the memory back; a page that is wanted again comes from the file."""
        if self.in_file and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)


def whole(file: IO[bytes], offset: int = 0) -> Mapped:
    """All of a file, to be read from there on; whoever writes to its pages loses that when they are dropped.

    Locks on the file stay as long as the mapping, which holds it open.
    """
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return Mapped(np.frombuffer(mapping, np.uint8, offset=offset), mapping, in_file=True)


def room(size: int, file: IO[bytes] | None) -> Mapped:
    """So many bytes to be written, in an empty file that nobody else reads, or in memory.  Raises ``OSError``."""
    if file is None or not hasattr(os, "posix_fallocate"):
        mapping = mmap.mmap(-1, size)
        return Mapped(np.frombuffer(mapping, np.uint8), mapping, in_file=False)
    os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full is an error here, and a crash later
    mapping = mmap.mmap(file.fileno(), size)
    return Mapped(np.frombuffer(mapping, np.uint8), mapping, in_file=True)


@contextmanager
def dropping(held: Iterable[Mapped]) -> Iterator[None]:
    """Drop their pages again and again meanwhile: what is copied from a file needs no memory twice."""
    done = threading.Event()

    def drop() -> None:
        while not done.wait(DROP_EVERY_S):
            drop_all()

    def drop_all() -> None:
        for mapped in tuple(held):
            mapped.drop_pages()

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drop_all()
