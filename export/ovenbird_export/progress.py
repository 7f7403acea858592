"""What a person sees while an export runs."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def stage(text: str) -> Iterator[None]:
    """One line on stderr: ``text`` when it begins, the seconds it took when it ends.  The tools stay quiet in it."""
    click.echo(f"{text} ... ", nl=False, err=True)
    started = time.monotonic()
    try:
        with _quiet():
            yield
    except BaseException:
        click.echo("failed", err=True)
        raise
    click.echo(f"{time.monotonic() - started:.1f} s", err=True)


def note(text: str) -> None:
    """Something worth knowing, on stderr."""
    click.echo(f"note: {text}", err=True)


@contextmanager
def _quiet() -> Iterator[None]:
    # Tracing warns about every Python branch it freezes.  Whether one mattered is measured afterwards, at other sizes.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
