"""``ovenbird batch``: the pictures of a job file, by as many processes as one likes, through kills and power cuts."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any

import click

from ovenbird.commands.drawing import (
    preview_of,
    stopping,
    with_previews,
    with_progress,
    write_report,
)
from ovenbird.commands.options import (
    BETWEEN,
    HIRES,
    PATH,
    PROMPT,
    RUNNING,
    SAMPLING,
    SIDES,
    SIZES,
    START,
    START_STRENGTH,
    TILES,
    Typed,
    check_running,
    options,
    pipeline_of,
    timings_since_start,
)
from ovenbird.errors import Cancelled, NumericError, OvenbirdError, RequestError, ResourceError
from ovenbird.jobs import Item, Jobs
from ovenbird.journal import Journal, peek, refuse_other
from ovenbird.pages import Page, under
from ovenbird.pipeline import Pipeline
from ovenbird.records import ALSO
from ovenbird.request import Request, check_count
from ovenbird.result import Picture
from ovenbird.settings import surroundings
from ovenbird.supervisor import SUPERVISED, supervise
from ovenbird.timing import Timings

MOST_DEATHS = 2
LEFTOVERS = ".ovenbird-*.png"
"""What killed processes leave that were writing."""
AGAIN_S = 1.0
"""So often those are asked for whom others are drawing."""
SAY_NOTHING = ("jobs", "outdir", "restart", "retry_failed", "restarts", "quiet", "as_json", "report", "preview_every")
SAID_OTHERWISE = ("model", "precision", "backend", "device", "embedding", "tokenizer", "offline", "init_image", "mask")
"""Options that make no difference to pixels, and those whose effect the journal has by another name."""
JOBS = (click.argument("jobs", type=PATH),)
WHERE = under(
    "Where it goes",
    click.option("--outdir", type=PATH, help="The folder, made if need be.  [default: JOBS without its end]"),
    click.option("--restart", is_flag=True, help="Begin anew where a run lies already; replaces its pictures."),
    click.option("--retry-failed", is_flag=True, help="Try again what failed before."),
    click.option(
        "--restarts",
        type=int,
        default=0,
        metavar="TIMES",
        help="Work in a second process, and begin it again so often when it is killed, as by a lack of memory; what "
        "kills it twice is marked as failed.",
    ),
)


@click.command(
    cls=Page,
    context_settings={"show_default": True},
    examples=(
        "ovenbird batch jobs.jsonl",
        "ovenbird batch jobs.csv --outdir pictures --model models/sd15 --num-inference-steps 20 --restarts 5",
    ),
)
@options(JOBS, PROMPT[1:], START, WHERE, SIDES, SAMPLING, BETWEEN, HIRES, TILES, SIZES, RUNNING)
def batch(**typed: Any) -> None:
    """Make the pictures of a file, one a line, and go on after a kill.

    JOBS is of JSON lines (.jsonl, .ndjson, .json), or .csv whose first row has names.  A line has a prompt and any
    setting of ovenbird generate by its option's name with underscores, such as seed, num_inference_steps, num_images or
    init_image (from the folder of JOBS).  Options given here are for lines that do not say.  The picture is named by
    output, else ID.png, else by its place in the file: 00000.png.

    All lines are checked before a model is read.  After Ctrl-C, a kill or a power cut the same command goes on, and
    several may work in one folder at the same time.
    """
    path: Path = typed["jobs"]
    folder: Path = typed["outdir"] or path.with_suffix("")
    again = os.environ.get(SUPERVISED)
    if typed["restarts"] and again is None:
        sys.exit(supervise(folder, typed["restarts"]))
    timings = timings_since_start()
    restart, retry = (typed[name] and again != "again" for name in ("restart", "retry_failed"))
    _check(typed, folder)
    with Jobs.read(path, _defaults(typed)) as jobs:
        sys.exit(_made(jobs, folder, typed, timings, restart=restart, retry=retry))


def _made(jobs: Jobs, folder: Path, typed: Typed, timings: Timings, *, restart: bool, retry: bool) -> int:
    """Make the pictures; the exit code."""
    header = _header(jobs, typed)
    if not restart:
        refuse_other(peek(folder), header, folder)
    pipeline = pipeline_of(typed, timings)
    jobs.check(pipeline.check, typed["jobs"])
    folder.mkdir(parents=True, exist_ok=True)
    header["model"] = surroundings(pipeline)
    with closing(Journal(folder)) as journal:
        journal.begin(header, restart=restart, free=lambda: _check_free(jobs, folder))
        if retry:
            journal.forget_failures()
        run = Run(jobs, journal, pipeline, typed, folder)
        with stopping(run.stop):
            run.all()
    if typed["report"]:
        write_report(typed["report"], pipeline.report(measured=True).as_dict())
    return run.exit_code


class Run:
    """One process at work in a folder."""

    def __init__(self, jobs: Jobs, journal: Journal, pipeline: Pipeline, typed: Typed, folder: Path) -> None:
        self._jobs, self._journal, self._pipeline, self._typed, self._folder = jobs, journal, pipeline, typed, folder
        self._stopped = Event()
        self._made = 0
        self._before, self._began = len(journal.done) + len(journal.failed), time.monotonic()

    def stop(self) -> None:
        """End at the next step; from any thread."""
        self._stopped.set()
        self._pipeline.cancel()

    def all(self) -> None:
        """Every picture that is not there, and at the end those of others who have not come to theirs."""
        self._say(f"{len(self._jobs)} pictures for {self._folder}, {len(self._journal.done)} of them made before")
        self._say(f"model: {self._pipeline.bundle.name} ({self._pipeline.bundle.precision})")
        told = False
        try:
            waiting = [unit for unit in self._jobs.units(self._typed["batch_size"]) if not self._turn(unit)]
            while waiting := [unit for unit in waiting if not self._turn(unit)]:
                if not told:
                    self._say(f"waiting for {sum(map(len, waiting))} that other processes draw")
                    told = True
                self._stopped.wait(AGAIN_S)
        finally:
            self._sum_up()
        if self._journal.alone():
            for path in self._folder.glob(LEFTOVERS):
                path.unlink(missing_ok=True)

    @property
    def exit_code(self) -> int:
        """That of the worst failure."""
        return max((failure.exit_code for failure in self._journal.failed.values()), default=0)

    def _turn(self, unit: Sequence[int]) -> bool:
        """Make what is missing of pictures that are drawn together; whether all of them are settled then."""
        self._check_stopped()
        with self._journal.claimed(unit) as ours:
            if ours:
                missing = set(self._missing(unit))
                for number in unit:
                    if number not in missing:
                        self._tell_settled(self._jobs.item(number))
                if missing:
                    self._draw(tuple(unit), missing)
        return ours

    def _missing(self, unit: Sequence[int]) -> Iterator[int]:
        for number in unit:
            path = self._folder / self._jobs.item(number).file
            if number not in self._journal.failed and _sha256(path) != self._journal.done.get(number, b""):
                yield number

    def _draw(self, unit: tuple[int, ...], missing: set[int]) -> None:
        """All of them together, so that they are what they would be in an unbroken run; alone what fails together."""
        error = self._attempt(unit, missing)
        if error is not None and len(unit) > 1:
            for number in unit:
                if number in missing:
                    self._draw((number,), missing)
        elif error is not None:
            self._fail(self._jobs.item(*unit), error)

    def _attempt(self, unit: tuple[int, ...], missing: set[int]) -> OvenbirdError | None:
        """Draw, and save what is missing; what was wrong."""
        if self._journal.deaths[unit] >= MOST_DEATHS:
            return ResourceError(f"{MOST_DEATHS} processes were killed while they drew it")
        if SUPERVISED in os.environ:
            self._journal.append({"status": "started", "by": self._journal.me, "items": unit})
        began, drawn, items = time.monotonic(), list[Picture](), [self._jobs.item(number) for number in unit]
        problem: OvenbirdError | None = None
        try:
            for picture in self._pictures(items):
                drawn.append(picture)
        except (RequestError, ResourceError, NumericError, Cancelled) as error:
            if isinstance(error, ResourceError) and isinstance(error.__cause__, OSError):
                raise  # the disk's, of a preview, which is no fault of this picture
            problem = error
        except MemoryError:
            problem = ResourceError("out of memory")
        for picture in drawn:
            item = items[picture.picture]
            if item.number in missing:
                self._save(item, picture, (time.monotonic() - began) / len(unit))
                missing.remove(item.number)
        if isinstance(problem, Cancelled):
            raise Cancelled("the run was stopped; the same command goes on")
        return problem

    def _pictures(self, items: Sequence[Item]) -> Iterator[Picture]:
        size, paths = self._pipeline.bundle.default_size, [self._folder / item.file for item in items]
        wishes = [self._jobs.single(item.number, self._journal.seed, size) for item in items]
        events = self._pipeline.stream(wishes, preview_every=self._typed["preview_every"])
        self._check_stopped()  # a signal that came before this call would be forgotten by it
        return with_progress(with_previews(events, paths, self._pipeline.timings), self._typed["quiet"])

    def _save(self, item: Item, picture: Picture, seconds: float) -> None:
        path = self._folder / item.file
        self._pipeline.save(picture, path, overwrite=True)
        entry = {**_names(item), "status": "done", "seed": picture.seed, "sha256": (_sha256(path) or b"").hex()}
        if picture.nsfw_content_detected is not None:
            entry["nsfw_content_detected"] = picture.nsfw_content_detected
        self._journal.append({**entry, "seconds": round(seconds, 3)})
        self._made += 1
        self._tell(item, {**entry, "seconds": round(seconds, 3)}, f"seed {picture.seed}  {seconds:.1f} s{self._left()}")

    def _fail(self, item: Item, error: OvenbirdError) -> None:
        entry = {**_names(item), "status": "failed", "error": str(error), "exit_code": error.exit_code}
        self._journal.append(entry)
        self._tell(item, entry)
        hint = f" ({error.hint})" if error.hint else ""
        click.echo(f"{self._place()} {item.file}  failed: {error}{hint}", err=True)

    def _tell(self, item: Item, entry: dict[str, Any], said: str = "") -> None:
        """Results on stdout, and how it goes on stderr."""
        path = self._folder / item.file
        if self._typed["as_json"]:
            click.echo(json.dumps({**entry, "path": str(path)}))
        elif entry["status"] == "done":
            click.echo(os.fsencode(path))
        if said:
            self._say(f"{self._place()} {item.file}  {said}")

    def _tell_settled(self, item: Item) -> None:
        failure = self._journal.failed.get(item.number)
        self._tell(
            item, {**_names(item), **({"status": "failed", **failure._asdict()} if failure else {"status": "there"})}
        )

    def _place(self) -> str:
        return f"[{len(self._journal.done) + len(self._journal.failed)}/{len(self._jobs)}]"

    def _left(self) -> str:
        """How long the rest will take, as fast as it goes now, whoever draws."""
        settled = len(self._journal.done) + len(self._journal.failed)
        share = (len(self._jobs) - settled) / max(1, settled - self._before)
        return f"  left {_span(share * (time.monotonic() - self._began))}" if settled < len(self._jobs) else ""

    def _sum_up(self) -> None:
        made, failed = self._made, len(self._journal.failed)
        rate = f" ({made * 3600 / (time.monotonic() - self._began):.0f} an hour)" if made else ""
        self._say(f"{made} made{rate}, {len(self._journal.done) - made} there already, {failed} failed")
        if failed:
            click.echo(f"error: {failed} of {len(self._jobs)} failed: {self._journal.path} says why", err=True)
            click.echo("hint: --retry-failed tries them again", err=True)

    def _say(self, text: str) -> None:
        if not self._typed["quiet"]:
            click.echo(text, err=True)

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Cancelled("the run was stopped; the same command goes on")


def _check(typed: Typed, folder: Path) -> None:
    """Raises ``RequestError``."""
    check_running(typed)
    if typed["preview_every"] is not None:
        check_count("preview_every", typed["preview_every"])
    if typed["restarts"] < 0:
        raise RequestError(f"restarts: {typed['restarts']} is less than 0")
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"outdir: {folder} is not a folder", hint="give another --outdir")


def _defaults(typed: Typed) -> dict[str, Any]:
    """What was typed, by the names of ``Request``'s fields; pictures by their paths, from wherever one is."""
    names = {field.name: field.name for field in fields(Request)} | {field: name for name, field in ALSO.items()}
    given = {field: typed[name] for field, name in names.items() if typed.get(name) is not None}
    given = {"strength": START_STRENGTH, **given}
    return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in given.items()}


def _header(jobs: Jobs, typed: Typed) -> dict[str, Any]:
    """All that decides pixels, but for the model."""
    names = sorted(set(typed) - {*SAY_NOTHING, *SAID_OTHERWISE})
    return {
        "jobs": jobs.sha256,
        "images": jobs.images,
        "pictures": len(jobs),
        "options": {name: typed[name] for name in names},
    }


def _check_free(jobs: Jobs, folder: Path) -> None:
    """Raises ``RequestError`` if one of the pictures would replace something."""
    there = {path.name for path in folder.iterdir()}
    taken = [item.file for item in jobs.items() if item.file in there or preview_of(Path(item.file)).name in there]
    if taken:
        raise RequestError(
            f"outdir: {folder / taken[0]} exists, of {len(taken)}, and is of no run that is known",
            hint="choose another --outdir; or, to replace them, --restart",
        )


def _names(item: Item) -> dict[str, Any]:
    return {"item": item.number, "id": item.id, "file": item.file}


def _sha256(path: Path) -> bytes | None:
    """Of a file that is one."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _span(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{hours} h"
