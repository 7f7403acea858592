"""``ovenbird info``: what this machine is, what a model is, or how a picture was made."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ovenbird import __version__, backends, cache, compiled, machine, progress, recall
from ovenbird.bundle import PRECISIONS
from ovenbird.choice import Leeway
from ovenbird.commands.about import about, rows_of
from ovenbird.commands.completing import complete_model
from ovenbird.disk import is_file
from ovenbird.errors import OvenbirdError, RequestError
from ovenbird.metadata import PICTURES
from ovenbird.models import open_variants
from ovenbird.pages import JSON, QUIET, Page
from ovenbird.sizes import counted, show_size

EXTRAS = {
    "export": (("torch", "optimum"), "to export models"),
    "hub": (("huggingface_hub", "requests", "urllib3"), "to take models from the Hugging Face Hub"),
}
"""What more can be installed -> modules that it needs, and what it is for."""
FIRST = (
    "prompt",
    "negative_prompt",
    "seed",
    "num_inference_steps",
    "sampler",
    "guidance_scale",
    "width",
    "height",
    "model",
)
"""What people look for in a picture's settings."""


@click.command(
    cls=Page,
    short_help="Tell about this machine, a model or a picture.",
    examples=(
        "ovenbird info",
        "ovenbird info nestling",
        "ovenbird info models/sd15 --json",
        "ovenbird info output.png",
    ),
)
@click.argument("what", required=False, shell_complete=complete_model)
@JSON
@QUIET
def info(what: str | None, as_json: bool) -> None:
    """Tell about this machine; or about WHAT, which is a model or a picture.

    A model is a name, a folder, or OWNER/NAME[@REVISION] that was downloaded: what it is, its variants, how they were
    verified, its licence, and what it lacks.  Of a picture, the settings that made it.
    """
    if what is None:
        told = _machine()
        rows = _machine_rows(told)
    elif is_file(Path(what)) or Path(what).suffix.lower() in PICTURES:
        if not is_file(Path(what)):
            raise RequestError(f"{what:.200} is not a file", hint="ovenbird models lists models")
        told = dict(recall.read(Path(what), "what").settings)
        names = (*FIRST, *(name for name in told if name not in FIRST))
        rows = (
            (name.replace("_", " "), _plain(told[name])) for name in names if told.get(name) not in (None, "", [], {})
        )
    else:
        told = about(open_variants(what))
        rows = rows_of(told)
    click.echo(json.dumps(told, indent=2) if as_json else "\n".join(_lines(rows)))


def _machine() -> dict[str, Any]:
    precision, why = Leeway().ruled(PRECISIONS)
    return {
        "ovenbird": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": machine.cpu_name(),
        "threads": machine.usable_cores(),
        "cores": machine.physical_cores(),
        "instruction_sets": machine.instruction_sets(),
        "isa_limit": machine.isa_limit(),
        "memory_bytes": machine.total_memory(),
        "available_bytes": machine.available_memory(),
        "load": machine.load_average(),
        "runtimes": {name: _runtime(name) for name in backends.BACKENDS},
        "extras": {name: all(map(find_spec, modules)) for name, (modules, _) in EXTRAS.items()},
        "cache": _cache(),
        "recommended": {"precision": precision, "why": why},
    }


def _runtime(name: str) -> dict[str, Any]:
    try:
        backend: Any = backends.create(name)  # both have more than every backend must
    except OvenbirdError as error:
        return {"error": str(error), "hint": error.hint}
    return {"version": backend.version, "devices": backend.offered}


def _cache() -> dict[str, Any]:
    root = cache.root()
    there = root is not None and root.is_dir()
    return {
        "folder": str(root) if root else None,
        "bytes": progress.size(root) if root and there else 0,
        "compiled_bytes": sum(entry.size for entry in compiled.entries()) if there else 0,
        "compiled_limit_bytes": compiled.limit(),
        "downloads_bytes": progress.size(root / "hub") if root and there else 0,
    }


def _machine_rows(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "ovenbird", f"{told['ovenbird']}, Python {told['python']}, {told['system']}"
    cores, threads = told["cores"], told["threads"]
    yield "processor", f"{told['cpu']}; {counted(threads, 'thread')} on {counted(cores, 'core')}"
    sets = ", ".join(told["instruction_sets"]) or "not known here"
    yield "instructions", sets + (f"; limited to {told['isa_limit']}" if told["isa_limit"] else "")
    if told["memory_bytes"] is not None and told["available_bytes"] is not None:
        yield "memory", f"{show_size(told['memory_bytes'])}, {show_size(told['available_bytes'])} of it available"
    for name, runtime in told["runtimes"].items():
        if "error" in runtime:
            yield name, f"{runtime['error']}; {runtime['hint']}"
        else:
            yield name, f"{runtime['version']} on {', '.join(runtime['devices'])}"
    for name, there in told["extras"].items():
        what = EXTRAS[name][1]
        yield (
            name,
            f"{'installed' if there else 'not installed'}, {what}"
            + ("" if there else f': pip install "ovenbird[{name}]"'),
        )
    kept = told["cache"]
    of = f"{show_size(kept['compiled_bytes'])} of {show_size(kept['compiled_limit_bytes'])} are compiled models"
    yield "cache", f"{kept['folder'] or 'none: there is no home folder'}; {show_size(kept['bytes'])}; {of}"
    chosen = told["recommended"]
    yield "recommended", f"variant {chosen['precision']}: {chosen['why']}; ovenbird tune MODEL measures it"


def _lines(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Names and values below one another; what would steer a terminal is shown as ``?``."""
    shown = [(name, value.splitlines() or [""]) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0) + 2
    for name, values in shown:
        for number, value in enumerate(values):
            yield "".join(c if c.isprintable() else "?" for c in f"{'' if number else name:<{width}}{value}")


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
