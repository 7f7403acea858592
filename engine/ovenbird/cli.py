"""``demo.py`` and ``ovenbird``: the commands, and what every one of them does with an error."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, TextIO

import click

from ovenbird import __version__
from ovenbird.commands.cache import cache
from ovenbird.commands.frames import frames
from ovenbird.commands.generate import generate
from ovenbird.commands.tune import tune
from ovenbird.commands.upscale import upscale
from ovenbird.errors import Cancelled, OvenbirdError, ResourceError


class Commands(click.Group):
    """A group that also holds what other packages add under ``ovenbird.commands``, such as ``export``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(entry.name for entry in entry_points(group="ovenbird.commands"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in entry_points(group="ovenbird.commands", name=cmd_name):
            command: click.Command = entry.load()
            return command
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        with polite_errors(ctx):
            return super().invoke(ctx)


@contextmanager
def polite_errors(ctx: click.Context) -> Iterator[None]:
    """Turn what is raised on purpose into ``error:``, ``hint:`` and an exit code."""
    try:
        yield
    except OvenbirdError as error:
        _complain(error, ctx.params["debug"])
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("\nstopped; finished pictures are kept", err=True)
        sys.exit(Cancelled.exit_code)
    except MemoryError as error:
        _complain(ResourceError("out of memory", hint="ask for a smaller size"), ctx.params["debug"], error)
        sys.exit(ResourceError.exit_code)
    except OSError as error:
        _complain(ResourceError(f"{error.filename or 'a file'}: {error.strerror or error}"), ctx.params["debug"], error)
        sys.exit(ResourceError.exit_code)


def _complain(error: OvenbirdError, debug: bool, cause: BaseException | None = None) -> None:
    if debug:
        traceback.print_exception(cause or error)
    click.echo(f"error: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Stable Diffusion without a GPU."""
    warnings.showwarning = _warn


for command in (generate, frames, upscale, tune, cache):
    main.add_command(command)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    click.echo(f"warning: {message}", err=True)


def demo() -> None:
    """``demo.py``: ``ovenbird generate`` under another name."""
    main(["generate", *sys.argv[1:]], prog_name="ovenbird")
