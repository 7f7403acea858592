"""A folder of small notes under checked names: whatever is damaged, old or unwritable counts as absent."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ovenbird.disk import expanded

DIGEST_BYTES = 32
PART = re.compile(r"\.part-[0-9a-f]{8}")
LEFTOVER_AGE_S = 24 * 3600


def root() -> Path | None:
    """``$OVENBIRD_CACHE``, else ``ovenbird`` under the user's cache folder; None where there is no home."""
    chosen = os.environ.get("OVENBIRD_CACHE")
    if chosen:
        return expanded(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return Path(base or Path.home() / ".cache") / "ovenbird"
    except RuntimeError:
        return None


def read(key: str) -> bytes | None:
    """What was written under this key, or None; an entry whose checksum is wrong is removed."""
    folder = root()
    if folder is None:
        return None
    path = folder / key
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() == data[:DIGEST_BYTES]:
        return body
    with suppress(OSError):
        path.unlink()
    return None


def write(key: str, body: bytes) -> bool:
    """Keep bytes under a key, whole or not at all; a cache that cannot be written costs one warning."""
    folder = root()
    if folder is None:
        return False
    try:
        with part(folder) as file:
            file.write(hashlib.sha256(body).digest() + body)
            file.close()
            os.replace(file.name, folder / key)
    except OSError as error:
        complain(error)
        return False
    return True


@contextmanager
def part(folder: Path) -> Iterator[IO[bytes]]:
    """A new file in ``folder``, which is made; whoever writes it moves it to its name, or it is removed.

    Removes what killed writers have left there, too.  Raises ``OSError``.
    """
    for each in (folder.parent, folder):  # one by one, so that the error is the same for every folder in a file
        each.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    path = folder / f".part-{secrets.token_hex(4)}"
    try:
        with path.open("x+b") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove parts that nobody has written to for a day."""
    for path in folder.iterdir():
        with suppress(OSError):  # it is gone, or not ours to remove
            if PART.fullmatch(path.name) and time.time() - path.lstat().st_mtime > LEFTOVER_AGE_S:
                path.unlink()


def digest(facts: object) -> str:
    """The sha256 of all that something depends on, as JSON has it: a name for just this."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def stamp(paths: Iterable[Path]) -> str:
    """A hash of all that changes when files do, without their bytes.  Raises ``OSError`` when one is not there."""
    # The last one cannot be set, unlike the one before it.
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    facts = [(name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def complain(error: OSError) -> None:
    """The one warning that a cache costs which cannot be written."""
    warn_once(f"the cache {root()} cannot be written ({error.strerror or error}); going on without it")


@functools.cache
def warn_once(text: str) -> None:
    """The same words once in a process."""
    warnings.warn(text, stacklevel=3)
