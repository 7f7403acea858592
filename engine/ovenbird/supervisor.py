"""A process that runs a batch in another one, and begins it again when that one is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ovenbird.errors import ResourceError
from ovenbird.journal import NAME, Journal

SUPERVISED = "OVENBIRD_SUPERVISED"
"""Set in the worker: ``first``, or ``again`` after another one died."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM)


def supervise(folder: Path, restarts: int) -> int:
    """Run this very command as a worker, and again up to ``restarts`` times when a signal kills it; its exit code.

    What it was drawing is noted in the folder's journal.  Raises ``ResourceError`` when it was killed once too often.
    """
    with signals_kept():
        return _supervised(folder, restarts)


@contextmanager
def signals_kept() -> Iterator[None]:
    """What Ctrl-C and SIGTERM did before they do again afterwards."""
    before = {number: signal.getsignal(number) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def started(command: Sequence[str], **others: Any) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that each signal reaches it once, and through us."""
    child = subprocess.Popen(command, process_group=0 if os.name == "posix" else -1, **others)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: child.send_signal(number))
    return child


def _supervised(folder: Path, restarts: int) -> int:
    worker = _worker("first")
    for left in range(restarts, -1, -1):
        code = worker.wait()
        if code >= 0:
            return code
        _note(folder, worker.pid, -code)
        if left:
            click.echo(f"the worker was killed by signal {-code}; starting it again, {left} left", err=True)
            worker = _worker("again")
    raise ResourceError(
        f"the worker was killed {restarts + 1} times, at last by signal {-code}",
        hint="the same command goes on; if memory is short, --max-memory SIZE does with less, in another --outdir",
    )


def _worker(state: str) -> subprocess.Popen[bytes]:
    return started([sys.executable, *sys.orig_argv[1:]], env={**os.environ, SUPERVISED: state})


def _note(folder: Path, pid: int, number: int) -> None:
    if (folder / NAME).exists():
        journal = Journal(folder)
        journal.append({"status": "died", "by": f"{socket.gethostname()}:{pid}", "signal": number})
        journal.close()
