"""From the start of the process to the PNG, as a person with a watch would see it: first run, second run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

from benchmarks import children

DEMO = Path(__file__).resolve().parents[1] / "demo.py"
COMMAND = [sys.executable, str(DEMO), "--prompt", "a red house in the snow at night", "--seed", "1"]


def measure(rounds: int) -> dict[str, Any]:
    """Whole-process seconds with an empty cache and right after, ``rounds`` times in turn."""
    first, second = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            first.append(_seconds(Path(folder)))
            second.append(_seconds(Path(folder)))
    return {"first run": _summary(first), "second run": _summary(second), "rounds": rounds}


def _seconds(folder: Path) -> float:
    environment = {**os.environ, "OVENBIRD_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    with subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=PIPE, stderr=DEVNULL) as process:
        assert process.stdout
        saved = process.stdout.readline()  # says where the PNG is; what comes after it is the report
        seconds = time.perf_counter() - began
    if process.returncode or not saved:
        raise subprocess.CalledProcessError(process.returncode, COMMAND)
    return seconds


def _summary(values: list[float]) -> dict[str, float]:
    return {f"{name}_s": value for name, value in children.spread(values).items()}
