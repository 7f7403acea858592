"""A run as one sees it: what it will be, a bar, files as pictures are finished, and where the time went."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from os import _exit
from pathlib import Path
from typing import Any

import click

from ovenbird import __version__, images
from ovenbird.commands.options import Typed, check_free
from ovenbird.errors import Cancelled
from ovenbird.metadata import save_png
from ovenbird.pipeline import Pipeline
from ovenbird.request import Request
from ovenbird.result import Picture, Step
from ovenbird.timing import Timings


def draw(pipeline: Pipeline, requests: Sequence[Request], paths: Sequence[Path], typed: Typed) -> None:
    """Make the pictures of settled requests and put each, as soon as it is finished, where its number says.

    A first Ctrl-C or SIGTERM ends the run at its next step, with ``Cancelled``; a second one at once.
    """
    quiet = typed["quiet"]
    if typed["preview_every"]:
        check_free("output", [preview_of(path) for path in paths], typed["overwrite"])
    if not quiet:
        _announce(pipeline, requests)
    with _stopping(pipeline.cancel):
        events = pipeline.stream(requests, preview_every=typed["preview_every"])
        if pipeline.max_memory is not None and not quiet:
            click.echo(f"memory: {pipeline.planned}", err=True)
        for picture in _with_progress(_with_previews(events, paths, pipeline.timings), quiet):
            path = paths[picture.picture]
            with pipeline.timings.stage("save"):
                save_png(picture.image, path, facts(pipeline, picture), overwrite=typed["overwrite"])
            flagged = "  flagged by the safety checker, and not shown" if picture.nsfw_content_detected else ""
            click.echo(path if quiet else f"{path}  seed {picture.seed}{flagged}")
    found = pipeline.report(measured=not quiet or bool(typed["report"]))
    if not quiet:
        click.echo(f"\n{found.table()}", err=True)
    if typed["report"]:
        typed["report"].write_text(json.dumps(found.as_dict(), indent=2) + "\n", encoding="utf-8")


def facts(pipeline: Pipeline, picture: Picture) -> Mapping[str, Any]:
    """Everything that made one picture."""
    given = {field.name: getattr(picture.request, field.name) for field in fields(picture.request)}
    given |= {name: images.digest(given[name]) for name in ("image", "mask_image") if given[name]}
    return given | {
        "sampler": pipeline.scheduler(picture.request).label,
        "model": pipeline.bundle.name,
        "model_key": pipeline.bundle.key,
        "weights": pipeline.bundle.precision,
        "embeddings": pipeline.embeddings.facts(),
        "scheduler_config": pipeline.scheduler_overrides,
        "backend": f"{pipeline.backend.name} {pipeline.backend.version}",
        "device": pipeline.backend.device,
        "inference_precision": pipeline.precision,
        "shortcuts": str(pipeline.shortcuts),
        "nsfw_content_detected": picture.nsfw_content_detected,
        **(picture.developing._asdict() if picture.developing else {}),
        "ovenbird": __version__,
    }


def preview_of(path: Path) -> Path:
    """Where the previews of a picture go."""
    return path.with_stem(f"{path.stem}-preview")


def _with_previews(
    events: Iterator[Step | Picture], paths: Sequence[Path], timings: Timings
) -> Iterator[Step | Picture]:
    """Write the latest preview of each picture, pass everything on, and take it away when the picture is saved."""
    written: set[Path] = set()
    for event in events:
        if isinstance(event, Step):
            for number, image in zip(event.pictures, event.previews, strict=False):
                path = preview_of(paths[number])
                with timings.stage("save"):
                    save_png(image, path, None, overwrite=True)
                written.add(path)
        yield event
        if isinstance(event, Picture) and (path := preview_of(paths[event.picture])) in written:
            path.unlink(missing_ok=True)


def _announce(pipeline: Pipeline, requests: Sequence[Request]) -> None:
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
    click.echo(f"seed: {requests[0].seed}", err=True)


def _with_progress(events: Iterator[Step | Picture], quiet: bool) -> Iterator[Picture]:
    """Show a bar on a terminal, and pass the pictures on."""
    clock = Timings()
    for event in events:
        if isinstance(event, Picture):
            yield event
        elif not quiet and sys.stderr.isatty():
            if event.index == 1:
                clock = Timings()  # compiling came before the first step
            click.echo(_bar(event, clock.total()), nl=event.index == event.count, err=True)


def _bar(step: Step, seconds: float, width: int = 32) -> str:
    full = width * step.index // step.count
    rate = f"{seconds / (step.index - 1):.3f} s/step" if step.index > 1 else ""
    return f"\r[{'#' * full}{'-' * (width - full)}] {step.index}/{step.count}  {rate}"


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
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
