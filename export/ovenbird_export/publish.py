"""Publishing: built beside the target, brought to the disk, renamed once.  The target is absent or complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ovenbird.bundle import MANIFEST
from ovenbird.disk import is_disk_full
from ovenbird.errors import Cancelled, OvenbirdError, RequestError, ResourceError

TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}")
LEFTOVER_AGE_S = 24 * 3600


@dataclass(frozen=True)
class Workspace:
    """A folder of our own beside the targets, on the same file system."""

    folder: Path
    temporary: Path
    variants: tuple[str, ...]
    force: bool

    def variant(self, name: str) -> Path:
        """Where a variant is built."""
        return self.temporary / name

    @property
    def scratch(self) -> Path:
        """Room for what is not published."""
        return self.temporary / "scratch"

    def publish(self) -> list[Path]:
        """Bring every variant to the disk, then rename each to where it belongs."""
        for name in self.variants:
            _sync(self.variant(name))
        for name in self.variants:
            if self.force and (self.folder / name).exists():
                _swap(self.variant(name), self.folder / name, aside=self.temporary / f"old-{name}")
            else:
                _move(self.variant(name), self.folder / name)
        _sync_one(self.folder)
        return [self.folder / name for name in self.variants]


@contextmanager
def workspace(folder: Path, variants: Sequence[str], *, force: bool) -> Iterator[Workspace]:
    """Room to build variants of ``folder`` in, gone afterwards whatever happens.

    Raises ``RequestError`` when a target exists, ``ResourceError`` when the disk is full or cannot be written, and
    ``Cancelled`` for Ctrl-C and SIGTERM.
    """
    for name in variants:
        _refuse_existing(folder / name, force)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with _terminate_as_interrupt():
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            temporary.mkdir()
            yield Workspace(folder, temporary, tuple(variants), force)
    except KeyboardInterrupt as interrupt:
        raise Cancelled("the export was stopped; what was not finished is removed") from interrupt
    except Exception as error:
        if is_disk_full(error, folder):
            raise ResourceError(f"the disk of {folder} is full", hint="make room and export again") from error
        if isinstance(error, OSError) and not isinstance(error, OvenbirdError):
            raise ResourceError(f"{error.filename or folder}: {error.strerror or error}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in created:
            with suppress(OSError):  # it holds something, as it should
                path.rmdir()


def require_space(folder: Path, needed: int) -> None:
    """Raise ``ResourceError`` when fewer than ``needed`` bytes are free where ``folder`` lies."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder} has {free / 1e9:.1f} GB free; the export needs {needed / 1e9:.1f} GB",
            hint="make room, or ask for fewer precisions",
        )


def write_text(path: Path, text: str) -> None:
    """UTF-8 with Unix line ends, on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented, with sorted keys, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """``ovenbird.json``: ``facts``, and size and sha256 of every other file in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _describe(path) for path in paths}
    write_json(folder / MANIFEST, {**facts, "files": files})


def sweep(folder: Path) -> None:
    """Remove what exports that were killed left in ``folder`` more than a day ago."""
    for path in folder.iterdir():
        ours = TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        with suppress(FileNotFoundError):  # its export is just done with it
            if ours and time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(path, ignore_errors=True)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _refuse_existing(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not (target / MANIFEST).is_file():
        raise RequestError(f"{target} exists and is not an export", hint="choose another folder, or remove it")
    if not force:
        raise RequestError(f"{target} exists", hint="replace it with --force, or choose another folder")


def _swap(new: Path, target: Path, aside: Path) -> None:
    # Between the two renames the target is absent, never half there.
    try:
        with suppress(FileNotFoundError):  # another export is between its own two
            target.rename(aside)
        _move(new, target)
    except BaseException:  # an interrupt too: what lies aside would be removed with the workspace
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise


def _move(new: Path, target: Path) -> None:
    try:
        new.rename(target)
    except OSError as error:
        if not _same_manifest(new, target):
            raise ResourceError(f"{target} cannot be put in place: {error.strerror}") from error


def _same_manifest(new: Path, target: Path) -> bool:
    # Another export of the same source was faster; its bytes are ours.
    theirs = target / MANIFEST
    return theirs.is_file() and theirs.read_bytes() == (new / MANIFEST).read_bytes()


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
