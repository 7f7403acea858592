"""Measurements in processes of their own, one after the other, in turn: A B C A B C."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from signal import Signals
from statistics import median
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
Answer = dict[str, Any]
"""What a child told of itself; of one that failed, only its ``error``."""
Spread = dict[str, float]


def ask(module: str, job: object, environment: Mapping[str, str] | None = None) -> Answer:
    """Run ``module`` with a job in a fresh process; one that fails, or is killed, answers with its ``error``."""
    told = {**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-m", module, json.dumps(job)]
    done = subprocess.run(command, env=told, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        answer: Answer = json.loads(done.stdout)
        return answer
    click.echo(done.stderr, err=True)
    if done.returncode < 0:
        return {"error": f"killed by {Signals(-done.returncode).name}"}
    return {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}


def answer(work: Callable[[Any], Answer]) -> None:
    """What a module does with its job when ``ask`` runs it: nothing but the answer comes to stdout."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # some libraries print
    found = work(json.loads(sys.argv[1]))
    with os.fdopen(stdout, "w") as file:
        json.dump(found, file)


def in_turn(names: Iterable[str], rounds: int, run: Callable[[str, int], Answer]) -> dict[str, list[Answer]]:
    """Name -> its answers, by rounds.  Whoever fails is not asked again, and ends with its error."""
    found: dict[str, list[Answer]] = {name: [] for name in names}
    for number in range(rounds):
        for name, answers in found.items():
            if not failed(answers):
                click.echo(f"round {number + 1} of {rounds}: {name}", err=True)
                answers.append(run(name, number))
    return found


def failed(answers: list[Answer]) -> str | None:
    """The error that ended them, if one did."""
    return answers[-1].get("error") if answers else None


def spread(values: Iterable[float]) -> Spread:
    """The median, and how far the rounds went."""
    known = sorted(values)
    return {"median": median(known), "min": known[0], "max": known[-1]}


def forget_peak() -> bool:
    """Let the peak count from now on; whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
