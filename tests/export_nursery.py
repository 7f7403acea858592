"""Exports in processes of their own, to be killed: forked from one that has the tools, so that each starts at once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATIENCE_S = 300
TOOLS = (
    "ovenbird_export.convert",
    "ovenbird_export.proof",
    "ovenbird_export.original",
    "ovenbird_export.export",
    "ovenbird_export.hub",
    "ovenbird.cli",
    "openvino_tokenizers",
    "nncf",
    "nncf.onnx.quantization.quantize_model",
)


@dataclass
class Nursery:
    """A process that forks on demand; it never computes, so that it has no threads that a fork would lose."""

    process: subprocess.Popen[str]
    folder: Path
    born: int = field(default=0)

    def start(self, code: str) -> Child:
        """Fork, and run ``code`` there, with all that this module defines."""
        self.born += 1
        child = Child(self, self.folder / f"{self.born}.err", self.folder / f"{self.born}.out")
        child.shown.touch()
        child.pid = self.ask({"code": code, "err": str(child.shown), "out": str(child.printed)})
        return child

    def export(self, *words: object, before: str = "") -> Child:
        """``ovenbird export`` with these words, after some other code."""
        return self.start(f"{before}\nrun_export({[str(word) for word in words]!r})")

    def ask(self, question: Mapping[str, object]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@dataclass
class Child:
    """One of them."""

    nursery: Nursery
    shown: Path
    printed: Path
    pid: int = 0
    status: int | None = None

    def stderr(self) -> str:
        return self.shown.read_text(encoding="utf-8")

    def stdout(self) -> str:
        return self.printed.read_text(encoding="utf-8")

    def reaches(self, text: str) -> None:
        """Wait until ``text`` stands on stderr."""
        limit = time.monotonic() + PATIENCE_S
        while text not in self.stderr():
            assert time.monotonic() < limit and self.is_alive(), self.stderr()
            time.sleep(0.002)

    def is_alive(self) -> bool:
        # Field 3 is the state; who is dead is a zombie until somebody waits.
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def send(self, signal: int) -> None:
        os.kill(self.pid, signal)

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        if self.status is None:
            self.status = self.nursery.ask({"wait": self.pid})
        return self.status


@contextmanager
def open_nursery(folder: Path, **environment: str) -> Iterator[Nursery]:
    """Start it; what its children print lands in ``folder``."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-W", "ignore", str(HERE / "export_nursery.py")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NNCF_CI": "1", **environment},
    ) as process:
        yield Nursery(process, folder)
        assert process.stdin is not None
        process.stdin.close()


# In a child


def run_export(words: list[str]) -> int:
    """The whole command line, as ``ovenbird`` has it; does not come back unless the export is complete."""
    from ovenbird.cli import main
    from ovenbird_export.cli import export

    main.add_command(export)
    result: int = main(["export", *words], standalone_mode=False)
    return result


def draw_little() -> None:
    """Fewer checks, fewer and shorter drawings: nothing here depends on how good a quantisation is."""
    from ovenbird_export import calibration, convert, fidelity

    convert.CHECKS = convert.CHECKS[:1]
    calibration.STEPS, calibration.KEEP, fidelity.STEPS = (1,), 1, 1
    fidelity.PROMPTS = fidelity.PROMPTS[:1]


def watch(folder: Path, report: Path) -> None:
    """Write down how every variant in ``folder`` is at the begin of every stage, and before and after every rename.

    That is what a kill would leave at that moment.
    """
    import click

    def tell(moment: str) -> None:
        with report.open("a", encoding="utf-8") as file:
            print(json.dumps([moment, conditions(folder)]), file=file)

    def echo(text: object = None, **options: Any) -> None:
        if str(text).endswith(" ... "):
            tell(str(text))
        real_echo(text, **options)

    def rename(path: Path, target: Path) -> Path:
        tell(f"before {path.name} becomes {target.name}")
        found = real_rename(path, target)
        tell(f"after {path.name} became {target.name}")
        return found

    real_echo, real_rename = click.echo, Path.rename
    click.echo = echo
    Path.rename = rename  # type: ignore[method-assign, assignment]


def conditions(folder: Path) -> dict[str, str]:
    """Variant -> ``old`` as ``write_old`` left it, ``whole``, or what is wrong with it."""
    if not folder.is_dir():
        return {}
    return {path.name: condition(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".tmp-")}


def condition(variant: Path) -> str:
    try:
        manifest = json.loads((variant / "ovenbird.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"no manifest: {error}"
    there = {path.relative_to(variant).as_posix() for path in variant.rglob("*") if path.is_file()}
    if there != {"ovenbird.json", *manifest["files"]}:
        return f"other files than listed: {there ^ set(manifest['files'])}"
    for name, facts in manifest["files"].items():
        content = (variant / name).read_bytes()
        if facts != {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}:
            return f"other bytes than listed: {name}"
    return "old" if manifest.get("old") else "whole" if "unet/openvino_model.bin" in there else "too little"


def mount_little(folder: Path, size: str) -> None:
    """A file system of this size over ``folder``, for this process alone; ends it with 77 where that is not allowed."""
    import ctypes

    new_mounts = 0x20000
    commands = (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])
    alone = ctypes.CDLL(None).unshare(new_mounts) == 0
    if not alone or any(subprocess.run(command, check=False).returncode for command in commands):
        sys.exit(77)


def write_old(folder: Path, *variants: str) -> None:
    """What an export left there before."""
    from ovenbird_export import publish

    for name in variants:
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_bytes(name.encode())
        publish.write_manifest(folder / name, {"old": True})


def write_source(folder: Path) -> None:
    """A model that is soon converted."""
    import export_tiny

    export_tiny.write_tiny(folder, export_tiny.LEAST)


# The process that forks


def serve() -> None:
    import importlib

    with redirect_stdout(sys.stderr):
        for name in TOOLS:
            importlib.import_module(name)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        else:
            answer = _fork(question)
        print(answer, flush=True)


def _fork(question: Mapping[str, str]) -> int:
    if pid := os.fork():
        return pid
    status = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(question[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["OVENBIRD_CACHE"] = f"{question['out']}.cache"
        draw_little()
        exec(question["code"], globals())
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise AssertionError


if __name__ == "__main__":
    serve()
