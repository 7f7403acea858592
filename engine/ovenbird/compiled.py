"""Compiled models on the disk: checksummed, mapped into memory instead of read, those used longest ago removed first.

A file is the sha256 of the rest, a line of JSON that says what was compiled, padded to whole pages, and what the
runtime exported.  A note beside it says that the sum was right, and of which file: what nobody has touched since then
is not read again only to be summed.  Whoever writes or maps a file holds a lock on it, so that nobody takes it for
removal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from ovenbird import cache, mapped
from ovenbird.cache import DIGEST_BYTES, PART
from ovenbird.mapped import Mapped
from ovenbird.sizes import parse_size, show_size

LIMIT = "OVENBIRD_CACHE_LIMIT"
DEFAULT_LIMIT = "20GiB"
NAME = re.compile(r"[0-9a-f]{64}\.blob")
PAGE_BYTES = 4096
LONGEST_HEADER = 1 << 20

Facts = Mapping[str, Any]


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
    blob: Mapped
    """From behind the header on; nobody may write to its pages."""


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
            loaded = _mapped(file, seen=_is_as_seen(path))
    except (ValueError, RecursionError):
        discard(key)
        return None
    except OSError:  # absent, or not for us to read
        return None
    with suppress(OSError):
        os.utime(path)
    _see(path)
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
                _see(home / key)
            else:
                cache.warn_once(
                    f"a compiled model of {show_size(size)} is not kept: the cache {home} is limited to "
                    f"{show_size(most)} by {LIMIT}"
                )
    except OSError as error:
        cache.complain(error)


def scratch(size: int) -> Mapped:
    """Room for so many bytes, in a file that is gone as soon as nobody maps it; in memory where that cannot be."""
    home = folder()
    if home is not None and 0 < size <= limit():
        with suppress(OSError), cache.part(home) as file:
            return mapped.room(size, file)
    return mapped.room(max(size, 1), None)


def discard(key: str) -> None:
    """Remove a damaged entry, with a warning."""
    home = folder()
    if home is None:
        return
    cache.warn_once(f"{home / key} is damaged; the model is compiled again")
    with suppress(OSError):
        _unlink(home / key)


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


def _mapped(file: IO[bytes], *, seen: bool) -> Loaded:
    """Raises ``ValueError`` for what is not an entry, or, unless it was ``seen``, not as it was written."""
    digest, header = file.read(DIGEST_BYTES), file.readline(LONGEST_HEADER)
    file.seek(DIGEST_BYTES)
    if not seen and hashlib.file_digest(file, "sha256").digest() != digest:  # type: ignore[arg-type]
        raise ValueError("the checksum differs")
    return Loaded(json.loads(header), mapped.whole(file, DIGEST_BYTES + len(header)))


def _is_as_seen(path: Path) -> bool:
    """Whether nobody has touched it since its checksum was right, as its times and inode tell."""
    try:
        return _note(path).read_text() == cache.stamp([path])
    except (OSError, ValueError):
        return False


def _see(path: Path) -> None:
    """Note that its checksum is right."""
    with suppress(OSError):  # somebody removed it, or we may not write here
        _note(path).write_text(cache.stamp([path]))


def _note(path: Path) -> Path:
    return path.with_suffix(".seen")


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
    _note(path).unlink(missing_ok=True)


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
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def _remove(path: Path) -> bool:
    """Remove a file unless somebody uses it, or we may not."""
    try:
        with path.open("rb") as file:
            if not _lock(file, exclusive=True):
                return False
        _unlink(path)
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
