"""The journal of a folder of pictures: what was finished and what failed, and who draws what at the moment.

``journal.jsonl`` has a line that says what the run is, and then one for every picture, brought to the disk before the
next one begins.  ``journal.lock`` is empty: processes lock single bytes of it, and a lock is gone with its process.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ovenbird.errors import RequestError, ResourceError

NAME, LOCK = "journal.jsonl", "journal.lock"
VERSION = 1
APPENDING, PRESENT, CLAIMS = 0, 1, 2
"""Bytes of the lock file: who appends holds the first, who works in the folder shares the second; the others are claims
of pictures, by their numbers."""
HOW = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What lines raise that nobody wrote like that."""
Header = Mapping[str, Any]
Entry = Mapping[str, Any]


class Failure(NamedTuple):
    """Why there is no picture."""

    error: str
    exit_code: int


class Journal:
    """What is known of the pictures of a folder, by their numbers."""

    def __init__(self, folder: Path) -> None:
        """Raises ``OSError`` where nothing can be written."""
        self.path = folder / NAME
        self.done: dict[int, bytes] = {}
        """The sha256 of files that were finished."""
        self.failed: dict[int, Failure] = {}
        self.deaths: Counter[tuple[int, ...]] = Counter()
        """How often a process died that was drawing these together."""
        self.seed = 0
        """Of the whole run: seeds that nobody gave come from it."""
        self.me = f"{socket.gethostname()}:{os.getpid()}"
        self._started: dict[str, tuple[int, ...]] = {}
        self._file = os.open(self.path, HOW | os.O_APPEND, 0o666)
        self._locks = Locks(folder / LOCK)
        self._read = 0

    def begin(self, header: Header, *, restart: bool, free: Callable[[], None]) -> None:
        """Go on with a run, or begin one, if ``free`` does not object.

        Raises ``RequestError`` when the folder holds another run, or is to be begun anew and somebody works there.
        """
        with self._locks.held(APPENDING):
            if restart:
                if not self._locks.take(PRESENT):
                    raise RequestError(f"restart: somebody draws in {self.path.parent}", hint="wait, or stop them")
                os.ftruncate(self._file, 0)
            self._locks.take(PRESENT, shared=True)
            self._mend()
            if not os.fstat(self._file).st_size:
                if not restart:
                    free()
                self._write({"journal": VERSION, **header, "seed": secrets.randbits(64)})
                _sync(self.path.parent)
        found = peek(self.path.parent)
        assert found is not None
        refuse_other(found, header, self.path.parent)
        self.seed = found["seed"]
        self.refresh()

    def refresh(self) -> None:
        """Read what was appended meanwhile, by whomever."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                with suppress(*DAMAGE):  # that picture is made again
                    self._take(json.loads(line))

    def forget_failures(self) -> None:
        """As if nothing had failed so far."""
        self.failed.clear()
        self.deaths.clear()

    def append(self, entry: Entry) -> None:
        """Bring one line to the disk.  Raises ``ResourceError``."""
        with self._locks.held(APPENDING):
            self._mend()
            self._write(entry)
        self.refresh()

    @contextmanager
    def claimed(self, unit: Sequence[int]) -> Iterator[bool]:
        """Whether these pictures are ours to draw meanwhile; what others finished before is known then."""
        byte = CLAIMS + unit[0]
        ours = self._locks.take(byte)
        try:
            if ours:
                self.refresh()
            yield ours
        finally:
            if ours:
                self._locks.free(byte)

    def alone(self) -> bool:
        """Whether nobody else works in the folder; where there are no locks, nobody knows."""
        return self._locks.take(PRESENT) and self._locks.work

    def close(self) -> None:
        """Let go of everything."""
        self._locks.close()
        os.close(self._file)

    def _take(self, entry: Entry) -> None:
        if entry.get("status") == "done":
            self.done[int(entry["item"])] = bytes.fromhex(entry["sha256"])
            self.failed.pop(entry["item"], None)
        elif entry.get("status") == "failed":
            self.failed[int(entry["item"])] = Failure(str(entry["error"]), int(entry["exit_code"]))
            self.done.pop(entry["item"], None)
        elif entry.get("status") == "started":
            self._started[entry["by"]] = tuple(entry["items"])
        elif entry.get("status") == "died" and entry["by"] in self._started:
            self.deaths[self._started.pop(entry["by"])] += 1

    def _write(self, entry: Entry) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            raise ResourceError(f"{self.path} cannot be written: {error.strerror}") from error

    def _mend(self) -> None:
        """Cut off the half of a line that a dead process left."""
        size = os.fstat(self._file).st_size
        with self.path.open("rb") as file:
            while size:
                start = max(0, size - 4096)
                file.seek(start)
                found = file.read(size - start).rfind(b"\n")
                size = start if found < 0 else start + found + 1
                if found >= 0:
                    break
        if size < os.fstat(self._file).st_size:
            os.ftruncate(self._file, size)


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk.  A picture whose name is lost is missed; a journal would not be."""
    with suppress(OSError):  # where folders cannot be opened
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def peek(folder: Path) -> Header | None:
    """What the run in a folder is; None if there is none.  Raises ``RequestError`` for a journal that is not ours."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 20)
    except FileNotFoundError:
        return None
    if not line.endswith(b"\n"):  # nobody came further
        return None
    with suppress(*DAMAGE):
        found = json.loads(line)
        if isinstance(found, dict) and found.get("journal") == VERSION and isinstance(found.get("seed"), int):
            return found
    raise RequestError(
        f"outdir: {path} is damaged, or not of this version", hint="choose another --outdir, or --restart"
    )


def refuse_other(found: Header | None, wanted: Header, folder: Path) -> None:
    """Raises ``RequestError`` if the run that was found is another one, as far as what is wanted says."""
    for name, value in json.loads(json.dumps(wanted)).items():
        if found is not None and found.get(name) != value:
            raise RequestError(
                f"outdir: {folder} holds the pictures of {_other(name, found.get(name), value)}",
                hint="choose another --outdir; or, to begin anew there, --restart",
            )


def _other(name: str, there: Any, wanted: Any) -> str:
    if not isinstance(there, dict) or not isinstance(wanted, dict):
        return f"other {name}"
    differing = next(key for key in {**there, **wanted} if there.get(key) != wanted.get(key))
    before, now = (
        "not given" if each.get(differing) is None else f"{each[differing]!r:.60}" for each in (there, wanted)
    )
    return f"other {name}: {differing} was {before}, and is {now}"


class Locks:
    """Locks on single bytes of a file, among processes."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, os.open(path, HOW, 0o666)
        self.work = True
        """Whether there are any, as far as is known."""

    def take(self, byte: int, *, shared: bool = False, wait: bool = False) -> bool:
        """Whether nobody stands against it.  Where there are no locks it is always granted, with one warning."""
        try:
            import fcntl

            how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
            fcntl.lockf(self._file, how, 1, byte)
        except (ImportError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            self._warn(error)
        return True

    def free(self, byte: int) -> None:
        """Let go of one."""
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    @contextmanager
    def held(self, byte: int) -> Iterator[None]:
        """Wait for one, and have it meanwhile."""
        self.take(byte, wait=True)
        try:
            yield
        finally:
            self.free(byte)

    def close(self) -> None:
        """Let go of all."""
        os.close(self._file)

    def _warn(self, error: Exception) -> None:
        if self.work:
            self.work = False
            warnings.warn(
                f"{self._path.parent} has no locks ({error}): let one process at a time draw there", stacklevel=4
            )
