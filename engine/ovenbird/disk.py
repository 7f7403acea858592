"""When a disk is full, and how tools say so."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LINKS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What disks without hard links say when one is made, such as a USB stick's."""
TELLING = ("No space left", "quota exceeded", "File too large", "not enough space on the disk", "iostream")
"""What tools say in errors of no particular kind when a file cannot be written: Rust's, and C++'s."""
NEARLY_FULL_BYTES = 1 << 20


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether a full disk is behind ``error``: it says so or, as tools' own errors may not, the disk is full now."""
    if getattr(error, "errno", None) in FULL or any(text in str(error) for text in TELLING):
        return True
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free < NEARLY_FULL_BYTES


def expanded(path: str | Path) -> Path:
    """With somebody's home in place of ``~``; that of nobody stays as it is."""
    with suppress(RuntimeError, ValueError):
        return Path(path).expanduser()
    return Path(path)


def is_file(path: Path) -> bool:
    """Whether there is one; what can be no path, being too long or of a strange kind, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """The same of a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
