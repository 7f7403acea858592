"""A run as one sees it: what it will be, a bar, files as pictures are finished, and where the time went."""

from __future__ import annotations

import json
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from os import _exit
from pathlib import Path
from typing import Any

import click
from PIL.Image import Image

from ovenbird import progress
from ovenbird.commands.options import Typed, check_free
from ovenbird.errors import Cancelled, RequestError
from ovenbird.memory import MIB
from ovenbird.metadata import save_picture, whole
from ovenbird.pipeline import Pipeline
from ovenbird.request import Request
from ovenbird.result import Picture, Step
from ovenbird.sizes import show_size
from ovenbird.timing import Timings


def draw(pipeline: Pipeline, requests: Sequence[Request], paths: Sequence[Path], typed: Typed) -> None:
    """Make the pictures of settled requests, and tell of it from the model's name to the timing report.

    Raises what ``drawn`` raises.
    """
    if typed["preview_every"]:
        check_free("output", [preview_of(path) for path in paths], typed["overwrite"])
    announce(pipeline, requests[0], typed)
    with hearing() as heard:
        for _ in drawn(pipeline, requests, paths, typed):
            pass
    tell(pipeline, typed, heard)


def drawn(
    pipeline: Pipeline, requests: Sequence[Request], paths: Sequence[Path | None], typed: Typed
) -> Iterator[Picture]:
    """The pictures of settled requests, each put, as soon as it is finished, where its number says, if anywhere.

    A first Ctrl-C or SIGTERM ends the run at its next step, with ``Cancelled``; a second one at once.
    """
    quiet = typed["quiet"]
    with stopping(pipeline.cancel):
        clock = Timings()
        events = pipeline.stream(requests, preview_every=typed["preview_every"])
        if pipeline.max_memory is not None and not quiet:
            click.echo(f"memory: {pipeline.planned}", err=True)
        for picture in with_progress(with_previews(events, paths, pipeline.timings), quiet):
            path = paths[picture.picture]
            if path is not None:
                path = _saved(pipeline, picture, path, typed)
                click.echo(_line(picture, path, typed, clock.total()))
            clock = Timings()
            yield picture


def _saved(pipeline: Pipeline, picture: Picture, path: Path, typed: Typed) -> Path:
    """Where the picture is: beside ``path``, if that was chosen for the user and another process took it meanwhile."""
    while True:
        try:
            pipeline.save(picture, path, overwrite=typed["overwrite"])
        except RequestError:
            if typed.get("output") is not None or not path.exists():
                raise
            path = next(name for k in count(1) if not (name := path.with_stem(f"{path.stem}-{k}")).exists())
        else:
            return path


def tell(pipeline: Pipeline, typed: Typed, heard: Sequence[str]) -> None:
    """Where the time went, and in the report what was warned of."""
    quiet = typed["quiet"]
    found = pipeline.report(measured=not quiet or bool(typed["report"]))
    limit, peak = pipeline.max_memory, found.peak_rss_mib
    if limit is not None and peak is not None and peak * MIB > limit:
        told = f"this took {peak:.0f} MiB of memory at the most, and --max-memory is {show_size(limit)}"
        heard = [*heard, told]
        click.echo(f"warning: {told}", err=True)
    if not quiet:
        click.echo(f"\n{found.table()}", err=True)
    if typed["report"]:
        write_report(typed["report"], {**found.as_dict(), "warnings": heard})


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, but into what is no plain file, such as /dev/stdout, as it comes."""
    text = json.dumps(content, indent=2) + "\n"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8")
        return
    with whole(path, overwrite=True) as file:
        file.write(text.encode())


def _line(picture: Picture, path: Path, typed: Typed, seconds: float) -> str:
    """What is printed of a picture, ``seconds`` after the one before it, or the beginning."""
    flagged = picture.nsfw_content_detected
    if typed.get("as_json"):
        told = {"path": str(path), "seed": picture.seed, "flagged": flagged, "seconds": round(seconds, 3)}
        return json.dumps(told)
    if typed["quiet"]:
        return str(path)
    return f"{path}  seed {picture.seed}{'  flagged by the safety checker, and not shown' if flagged else ''}"


def preview_of(path: Path) -> Path:
    """Where the previews of a picture go."""
    return path.with_stem(f"{path.stem}-preview")


def with_previews(
    events: Iterator[Step | Picture], paths: Sequence[Path | None], timings: Timings
) -> Iterator[Step | Picture]:
    """Write the latest preview of each picture, pass everything on, and take it away when the picture is saved."""
    written: set[Path] = set()
    for event in events:
        if isinstance(event, Step):
            for number, image in zip(event.pictures, event.previews, strict=False):
                final = paths[number]
                if final is None:
                    continue
                path = preview_of(final)
                with timings.stage("save"):
                    save_picture(image, path, None, overwrite=True)
                written.add(path)
        yield event
        final = paths[event.picture] if isinstance(event, Picture) else None
        if final is not None and (path := preview_of(final)) in written:
            path.unlink(missing_ok=True)


def announce(pipeline: Pipeline, first: Request, typed: Typed) -> None:
    """The model, the words that were added to it, the first request's seed, and its size if its picture has another."""
    if typed["quiet"]:
        return
    if pipeline.bundle.embedded:
        click.echo(
            "model: nestling, the small one that comes with ovenbird (storybook scenes, 128x128); "
            "for a bigger one: --model FOLDER, made by `ovenbird export`",
            err=True,
        )
    else:
        state = "" if pipeline.bundle.manifest else ", unverified: it has no ovenbird.json"
        click.echo(f"model: {pipeline.bundle.name} ({pipeline.bundle.precision}{state})", err=True)
    for word in pipeline.embeddings.words:
        click.echo(f"embedding: {word.word} from {word.file}", err=True)
    if isinstance(first.image, Image) and first.image.size != (first.width, first.height):
        width, height = first.image.size
        click.echo(f"size: {first.width}x{first.height}, of a picture of {width}x{height}", err=True)
    click.echo(f"seed: {first.seed}", err=True)


def with_progress(events: Iterator[Step | Picture], quiet: bool) -> Iterator[Picture]:
    """Show a bar on a terminal, and pass the pictures on."""
    clock = Timings()
    for event in events:
        if isinstance(event, Picture):
            yield event
        elif not quiet and progress.on_terminal():
            if event.index == 1:
                clock = Timings()  # compiling came before the first step
            click.echo(_bar(event, clock.total()), nl=event.index == event.count, err=True)


def _bar(step: Step, seconds: float, width: int = 32) -> str:
    full = width * step.index // step.count
    rate = f"{seconds / (step.index - 1):.3f} s/step" if step.index > 1 else ""
    return f"\r[{'#' * full}{'-' * (width - full)}] {step.index}/{step.count}  {rate}"


@contextmanager
def hearing() -> Iterator[list[str]]:
    """What was warned of meanwhile, which is shown as ever."""
    heard, shown = list[str](), warnings.showwarning

    def hear(message: Warning | str, *where: Any) -> None:
        heard.append(str(message))
        shown(message, *where)

    warnings.showwarning = hear  # type: ignore[assignment]
    try:
        yield heard
    finally:
        warnings.showwarning = shown


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` at the first SIGINT or SIGTERM, and end the process at the second.

    Python's own handlers wait until a runtime's call returns, which may take a minute; a byte in a socket does not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    sender, receiver = socket.socketpair()
    sender.setblocking(False)

    def listen() -> None:
        if receiver.recv(1):
            click.echo("\nstopping at the next step; once more stops at once", err=True)
            stop()
        if receiver.recv(1):
            _exit(Cancelled.exit_code)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    descriptor = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        sender.close()
        listener.join()
        receiver.close()
