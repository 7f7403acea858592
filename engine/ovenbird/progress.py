"""What a person sees while an export or a download runs: whole lines on stderr, in a terminal and in a log alike."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock

import click

IMPORTED = time.monotonic()
AGAIN_S = 0.5
"""A terminal is told this often how far a stage is."""
_BEGAN = ContextVar("_BEGAN", default=IMPORTED)
_SILENT = ContextVar("_SILENT", default=False)

Advance = Callable[[float], None]
"""Tells which share of a stage is done, 0 to 1."""


def begin() -> None:
    """Set the clock of the lines to zero; until then it runs since this was imported."""
    _BEGAN.set(time.monotonic())


def elapsed() -> float:
    """Seconds since ``begin``."""
    return time.monotonic() - _BEGAN.get()


@contextmanager
def silent() -> Iterator[None]:
    """Nothing is shown inside."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


@contextmanager
def stage(text: str, *written: Path) -> Iterator[Advance]:
    """One line: when it begins the time and ``text``, when it ends its seconds, and by how much ``written`` grew.

    ``written`` are the files or folders that the stage writes, and no larger ones: their files are counted, twice.  The
    tools stay quiet in it.  Whoever tells how far it is, tells it to terminals alone.
    """
    started, before = time.monotonic(), size(*written)
    line = f"{_clock()} {text} ... "
    try:
        _show(line)
        with _QUIET:
            yield _advance(line)
    except KeyboardInterrupt:
        _show("stopped\n")
        raise
    except BaseException:
        _show("failed\n")
        raise
    grown = f", {amount(size(*written) - before)}" if written else ""
    _show(f"{time.monotonic() - started:.1f} s{grown}\n")


def end(written: int) -> None:
    """The last line: how long everything took, and how many bytes it gave."""
    _show(f"{_clock()} done ... {elapsed():.1f} s, {amount(written)}\n")


def note(text: str) -> None:
    """Something worth knowing, on stderr."""
    _show(f"{_clock()} note: {text}\n")


def tell(text: str) -> None:
    """A line without a time, on stderr."""
    _show(f"{text}\n")


def size(*paths: Path) -> int:
    """The bytes of files, and of all files in folders; what does not exist has none."""
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())


def amount(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _show(text: str) -> None:
    if not _SILENT.get():
        click.echo(text, nl=False, err=True)


def on_terminal() -> bool:
    """Whether stderr is one; it may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def _advance(line: str) -> Advance:
    told = time.monotonic()

    def advance(share: float) -> None:
        nonlocal told
        if on_terminal() and time.monotonic() - told > AGAIN_S:
            told = time.monotonic()
            _show(f"\r{line}{share:.0%} ")

    return advance


def _clock() -> str:
    minutes, seconds = divmod(int(elapsed()), 60)
    return f"[{minutes:2}:{seconds:02}]"


class _Quiet:
    """Silence while anybody is in a stage: counted, for stages of several threads may overlap in any order."""

    def __init__(self) -> None:
        self._lock, self._inside, self._undo = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        # Tracing warns about every Python branch it freezes.  Whether one mattered is measured afterwards.
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._undo.callback(logging.disable, logging.root.manager.disable)
                self._undo.enter_context(warnings.catch_warnings())
                logging.disable(logging.WARNING)
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo.close()


_QUIET = _Quiet()
