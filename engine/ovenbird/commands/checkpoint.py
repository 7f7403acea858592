"""``--ckpt``: a checkpoint is exported once, beside it, and opened as any other folder after that."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ovenbird import cache
from ovenbird.bundle import MANIFEST, PRECISIONS, read_json
from ovenbird.commands.options import Typed
from ovenbird.errors import (
    Cancelled,
    MissingExtraError,
    ModelError,
    NumericError,
    OvenbirdError,
    RequestError,
    ResourceError,
)
from ovenbird.supervisor import signals_kept, started

ENDS = (".ckpt", ".safetensors")
DEFAULT_PRECISION = "fp16"
CHILD = "from ovenbird.cli import main; main(prog_name='ovenbird')"
FAILURES: Mapping[int, type[OvenbirdError]] = {
    error.exit_code: error for error in (RequestError, ModelError, ResourceError, NumericError, Cancelled)
}


def exported(file: Path, typed: Typed) -> Path:
    """The folder ``file`` without its end, which holds what was exported of just these bytes; made if it must be.

    The variant is the one that was typed, else any that is there, else fp16.  Raises ``RequestError`` for what is no
    checkpoint, or if the folder holds another model; ``MissingExtraError`` without torch; what the export ended with.
    """
    folder = _place(file)
    there = list(_sources(folder, typed["precision"]))
    digest = _sha256(file) if there else ""
    if there and all(source.get("file_sha256") == digest for source in there):
        return folder
    strangers = [source for source in there if source.get("file") != file.name]
    if strangers:
        raise RequestError(
            f"ckpt: {folder}, where {file.name} would be exported to, holds another model",
            hint=f"--model {folder} takes that one; or move it away",
        )
    _export(file, folder, typed, again=bool(there))
    return folder


def _place(file: Path) -> Path:
    if file.is_dir():
        raise RequestError(f"ckpt: {file} is a folder", hint=f"an exported model is opened with --model {file}")
    if not file.is_file():
        raise RequestError(f"ckpt: {file} is not a file")
    if file.suffix.lower() not in ENDS:
        raise RequestError(f"ckpt: {file} does not end in {' or '.join(ENDS)}")
    return file.with_suffix("")


def _sources(folder: Path, precision: str | None) -> Iterator[Mapping[str, Any]]:
    """What the manifests of that variant, or of all, say of where they come from."""
    for name in [precision] if precision in PRECISIONS else PRECISIONS:
        manifest = folder / name / MANIFEST
        if manifest.is_file():
            source = read_json(manifest).get("source")
            yield source if isinstance(source, dict) else {}


def _sha256(file: Path) -> str:
    """Remembered for as long as nothing touches the file."""
    note = f"{cache.stamp([file])}.sha256"
    known = cache.read(note)
    if known is None:
        with file.open("rb") as opened:
            known = hashlib.file_digest(opened, "sha256").hexdigest().encode()
        cache.write(note, known)
    return known.decode()


def _export(file: Path, folder: Path, typed: Typed, *, again: bool) -> None:
    """In a process of its own: what torch takes of memory goes with it."""
    if not entry_points(group="ovenbird.commands", name="export") or find_spec("torch") is None:
        raise MissingExtraError("torch", "export", f"ckpt: {file.name} must be exported first, and ")
    words = ["--precision", typed["precision"] if typed["precision"] in PRECISIONS else DEFAULT_PRECISION]
    words += ["--tokenizer", str(typed["tokenizer"])] if typed["tokenizer"] else []
    words += ["--offline"] * typed["offline"] + ["--force"] * again
    why = "it has changed and is exported again" if again else "it is exported once"
    _say(typed, f"ckpt: {file}: {why}, to {folder}; a model of full size takes some minutes")
    began = time.monotonic()
    command = [sys.executable, "-P", "-c", CHILD, "export", str(file), str(folder), *words]
    code, said = _run(command, quiet=typed["quiet"])
    if code:
        click.echo(said, err=True, nl=False)
        failure = FAILURES.get(code, ModelError)
        raise failure(f"ckpt: {file.name} could not be exported", hint="the lines above say why")
    _say(typed, f"ckpt: exported in {time.monotonic() - began:.0f} s; from now on {folder} is opened")


def _run(command: Sequence[str], *, quiet: bool) -> tuple[int, bytes]:
    """The exit code, and what was said where that is not to be seen as it comes.

    Ctrl-C and SIGTERM are the export's affair: it removes what it had begun, however long that takes.
    """
    with signals_kept():
        child = started(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE if quiet else None)
        said = child.communicate()[1]
    return child.returncode, said or b""


def _say(typed: Typed, text: str) -> None:
    if not typed["quiet"]:
        click.echo(text, err=True)
