"""Compiled models on the disk: checksummed, mapped into memory instead of read, those used longest ago removed first.

A file is the sha256 of the rest, a line of JSON that says what was compiled, padded to whole pages, and what the
runtime exported.  Whoever writes or maps one holds a lock on it, so that nobody takes it for removal.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird import cache
from ovenbird.cache import DIGEST_BYTES, PART
from ovenbird.sizes import parse_size, show_size

LIMIT = "OVENBIRD_CACHE_LIMIT"
DEFAULT_LIMIT = "20GiB"
NAME = re.compile(r"[0-9a-f]{64}\.blob")
PAGE_BYTES = 4096
LONGEST_HEADER = 1 << 20
DROP_EVERY_S = 0.02

Facts = Mapping[str, Any]
Blob = NDArray[np.uint8]


@dataclass(frozen=True)
class Entry:
    """A file that was kept."""

    path: Path
    size: int
    last_used: float
    """Seconds since 1970."""
    facts: Facts | None
    """What was compiled; None where the file does not say."""


class Loaded(NamedTuple):
    """An entry in memory."""

    facts: Facts
    blob: Blob
    """Backed by the file: it must live as long as whatever was made of it."""
    mapping: mmap.mmap

    def drop_pages(self) -> None:
        """Give the memory back; a page that is read again comes from the file, so that nobody may have written one."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Give it back again and again meanwhile: what is copied from the file needs no memory twice."""
        done = threading.Event()

        def drop() -> None:
            while not done.wait(DROP_EVERY_S):
                self.drop_pages()

        thread = threading.Thread(target=drop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.drop_pages()


class Cleared(NamedTuple):
    """What was removed, and what could not be."""

    removed: int
    size: int
    left: int


def limit() -> int:
    """``$OVENBIRD_CACHE_LIMIT`` in bytes.  Raises ``RequestError``."""
    return parse_size(LIMIT, os.environ.get(LIMIT) or DEFAULT_LIMIT)


def folder() -> Path | None:
    """Where entries lie, and nothing else; None where there is no cache."""
    root = cache.root()
    return None if root is None else root / "compiled"


def name(facts: Facts) -> str:
    """The name of an entry: a hash of everything that it depends on."""
    return cache.digest(facts) + ".blob"


def load(key: str) -> Loaded | None:
    """What was kept under a name, or None.  A damaged entry is removed, with a warning."""
    home = folder()
    if home is None:
        return None
    path = home / key
    try:
        with path.open("rb") as file:
            _lock(file, exclusive=False)
            loaded = _mapped(file)
    except ValueError:
        discard(key)
        return None
    except OSError:  # absent, or not for us to read
        return None
    with suppress(OSError):
        os.utime(path)
    return loaded


def keep(key: str, facts: Facts, export: Callable[[IO[bytes]], None]) -> None:
    """Keep under a name what ``export`` writes, whole or not at all; what cannot be kept costs one warning.

    Entries that were used longest ago make room for it.
    """
    home, most = folder(), limit()
    if home is None:
        return
    try:
        with cache.part(home) as file:
            _lock(file, exclusive=True)
            _write(file, facts, export)
            size = os.fstat(file.fileno()).st_size
            if _make_room(home, most - size, key):
                file.close()
                os.replace(file.name, home / key)
            else:
                cache.warn_once(
                    f"a compiled model of {show_size(size)} is not kept: the cache {home} is limited to "
                    f"{show_size(most)} by {LIMIT}"
                )
    except OSError as error:
        cache.complain(error)


def discard(key: str) -> None:
    """Remove a damaged entry, with a warning."""
    home = folder()
    if home is None:
        return
    cache.warn_once(f"{home / key} is damaged; the model is compiled again")
    with suppress(OSError):
        (home / key).unlink()


def entries() -> list[Entry]:
    """All of them, the one that was used last first; none where the folder cannot be read, with a warning."""
    home = folder()
    try:
        found = _ours(home, NAME) if home else {}
    except OSError as error:
        cache.warn_once(f"the cache {home} cannot be read: {error.strerror}")
        return []
    listed = [Entry(path, status.st_size, status.st_mtime, _facts(path)) for path, status in found.items()]
    return sorted(listed, key=lambda entry: entry.last_used, reverse=True)


def clear() -> Cleared:
    """Remove every entry, and what killed writers left, unless it is in use; nothing else is touched."""
    home = folder()
    found = {**_ours(home, NAME), **_ours(home, PART)} if home else {}
    sizes = [status.st_size for path, status in found.items() if _remove(path)]
    return Cleared(len(sizes), sum(sizes), len(found) - len(sizes))


def _mapped(file: IO[bytes]) -> Loaded:
    """Raises ``ValueError`` for what is not an entry, or not as it was written."""
    digest, header = file.read(DIGEST_BYTES), file.readline(LONGEST_HEADER)
    file.seek(DIGEST_BYTES)
    if hashlib.file_digest(file, "sha256").digest() != digest:  # type: ignore[arg-type]
        raise ValueError("the checksum differs")
    # The lock stays with the mapping, which holds the file open.  A copy is made of pages that are written to: of none.
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return Loaded(json.loads(header), np.frombuffer(mapping, np.uint8, offset=DIGEST_BYTES + len(header)), mapping)


def _write(file: IO[bytes], facts: Facts, export: Callable[[IO[bytes]], None]) -> None:
    header = json.dumps(facts).encode()
    padding = -(DIGEST_BYTES + len(header) + 1) % PAGE_BYTES
    file.write(bytes(DIGEST_BYTES) + header + b" " * padding + b"\n")
    export(file)
    file.seek(DIGEST_BYTES)
    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    file.seek(0)
    file.write(digest)
    file.flush()


def _make_room(home: Path, room: int, key: str) -> bool:
    """Remove entries until the others fit into ``room``; whether they do.  ``key`` is about to be replaced."""
    others = {path: status for path, status in _ours(home, NAME).items() if path.name != key}
    used = sum(status.st_size for status in others.values())
    for path in sorted(others, key=lambda path: others[path].st_mtime_ns):
        if used <= room or room < 0:
            break
        if _remove(path):
            used -= others[path].st_size
    return used <= room


def _ours(home: Path, names: re.Pattern[str]) -> dict[Path, os.stat_result]:
    """Files of such names.  Raises ``OSError`` when the folder is there and cannot be read."""
    found = {}
    try:
        for path in home.iterdir():
            with suppress(FileNotFoundError):  # somebody else removed it
                if names.fullmatch(path.name) and path.is_file():
                    found[path] = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    return found


def _facts(path: Path) -> Facts | None:
    try:
        with path.open("rb") as file:
            file.seek(DIGEST_BYTES)
            facts = json.loads(file.readline(LONGEST_HEADER))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def _remove(path: Path) -> bool:
    """Remove a file unless somebody uses it, or we may not."""
    try:
        with path.open("rb") as file:
            if not _lock(file, exclusive=True):
                return False
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _lock(file: IO[bytes], *, exclusive: bool) -> bool:
    """Whether nobody stands against it.  Where there are no locks, a file that is open can be removed without harm, or
    cannot be removed."""
    try:
        import fcntl
    except ImportError:  # Windows, which does not remove what is open
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where what is removed stays until it is closed
        pass
    return True
