"""Every parser, fed with what nobody would write: ``python -m tests.fuzz TARGET --minutes 5``.

Seeds are changed byte by byte, or as the JSON or the framed content that they are; a change that ends at another line
of ours becomes a seed, too.  Whatever comes in, a parser gives a value or an ``OvenbirdError``, within ``SECONDS`` of
processor time and ``MEMORY`` more memory.  What breaks that is shown, kept with ``--keep``, and the exit code is 1.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import FrameType

import click

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_changes import Target
from fuzz_targets import TARGETS

import ovenbird
from ovenbird.errors import OvenbirdError
from ovenbird.machine import peak_rss_mib, resident
from ovenbird.memory import MIB

SECONDS, MEMORY = 1.0, 200 << 20
HANGS = 10.0
"""Seconds of processor time after which an input is given up."""
LONGEST = 1 << 18
MOST_SEEDS = 2000
OURS = re.compile(rf"^{re.escape(Path(ovenbird.__file__).parent.as_posix())}/|/ovenbird_export/\w+\.py$")
"""Files of ours."""


class Breach(Exception):
    """An input that a parser did not stand."""


class Fuzzer:
    """One target, its growing corpus, and the folder in which its files are written."""

    def __init__(self, target: Target, folder: Path, seed: int) -> None:
        self.target, self.folder, self.chance = target, folder, random.Random(seed)
        self.corpus, self.seen = list(target.seeds()), set[str]()

    def seeds_hold(self) -> None:
        """Every seed is one that the parser takes; raises what it raises."""
        with _limited():
            for data in self.corpus:
                self.target.parse(data, self.folder)

    def inputs(self) -> Iterator[bytes]:
        """Seeds, then changes without end."""
        yield from list(self.corpus)
        while True:
            data = self.chance.choice(self.corpus)
            for _ in range(self.chance.choice((1, 1, 1, 2, 4))):
                data = self.target.change(self.chance, data, self.corpus)
            yield data[:LONGEST]

    def check(self, data: bytes) -> None:
        """Raises ``Breach``."""
        end = self._end(data)
        if end not in self.seen and len(self.seen) < MOST_SEEDS:
            self.seen.add(end)
            self.corpus.append(data)

    def _end(self, data: bytes) -> str:
        """Where it ended: a value, or the lines that refused it."""
        before, most, started = resident() or 0, _peak(reset=True), time.process_time()
        with _limited():
            try:
                self.target.parse(data, self.folder)
                end = "a value"
            except OvenbirdError as error:
                end = f"{_line(error)} {_line(error.__cause__)} {re.sub(r'[^a-z ]', '', str(error.__cause__))[:24]}"
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic in Rust is no Exception
                raise Breach(f"{type(error).__name__}: {str(error)[:200]} at {_line(error)}") from error
        seconds = time.process_time() - started
        if (peak := _peak()) > max(most, before + MEMORY):
            raise Breach(f"it took {(peak - before) >> 20} MiB")
        if seconds > SECONDS:
            raise Breach(f"it took {seconds:.1f} s")
        return end


def _line(error: BaseException | None) -> str:
    """The last line of ours that an error passed."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if OURS.search(Path(frame.filename).as_posix())]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else type(error).__name__


def _peak(*, reset: bool = False) -> int:
    if reset:
        with suppress(OSError):  # not on every system: then only what is more than ever before is seen
            Path("/proc/self/clear_refs").write_text("5")
    return int((peak_rss_mib() or 0) * MIB)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it did not end in {HANGS:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fuzz(name: str, minutes: float, seed: int, keep: Path | None) -> list[str]:
    """What was found, each kind once."""
    found: dict[str, bytes] = {}
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as scratch:
        os.environ["OVENBIRD_CACHE"] = str(Path(scratch) / "cache")
        fuzzer = Fuzzer(TARGETS[name], Path(scratch), seed)
        fuzzer.seeds_hold()
        until, count = time.monotonic() + 60 * minutes, 0
        for data in fuzzer.inputs():
            count += 1
            try:
                fuzzer.check(data)
            except Breach as breach:
                kind = str(breach).rpartition(" at ")[2] if " at " in str(breach) else str(breach)[:14]
                if kind not in found:
                    found[kind] = data
                    _show(name, data, breach, keep)
            if time.monotonic() > until:
                break
    click.echo(f"{name}: {count} inputs in {minutes:g} min, {len(fuzzer.seen)} ways to end, {len(found)} breaches")
    return list(found)


def _show(name: str, data: bytes, breach: Breach, keep: Path | None) -> None:
    click.echo(f"{name}: {breach}\n    {data[:300]!r}", err=True)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / f"{name}-{hashlib.sha256(data).hexdigest()[:8]}"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(breach)), errors="replace")


@click.command()
@click.argument("targets", nargs=-1, type=click.Choice(list(TARGETS)))
@click.option("--minutes", default=5.0, show_default=True, help="For each target.")
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="A folder for what breaks a parser.")
def main(targets: Sequence[str], minutes: float, seed: int, keep: Path | None) -> None:
    """Feed parsers with changed inputs; all of them unless some are named."""
    found = [each for name in targets or TARGETS for each in fuzz(name, minutes, seed, keep)]
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
