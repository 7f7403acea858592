"""A folder of byte strings under checked names: whatever is damaged, old or unwritable counts as absent."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path

DIGEST_BYTES = 32


def root() -> Path | None:
    """``$OVENBIRD_CACHE``, else ``ovenbird`` under the user's cache folder; None where there is no home."""
    chosen = os.environ.get("OVENBIRD_CACHE")
    if chosen:
        return Path(chosen)
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
    body = memoryview(data)[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() == data[:DIGEST_BYTES]:
        return bytes(body)
    path.unlink(missing_ok=True)
    return None


def write(key: str, body: bytes) -> bool:
    """Keep bytes under a key, whole or not at all; a cache that cannot be written costs one warning."""
    folder = root()
    if folder is None:
        return False
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".part-", delete=False) as file:
            temporary = Path(file.name)
            file.write(hashlib.sha256(body).digest())
            file.write(body)
        os.replace(temporary, folder / key)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        warnings.warn(f"the cache {folder} cannot be written ({error}); going on without it", stacklevel=2)
        return False
    return True
