"""``demo.py`` and ``ovenbird``: the commands, and what every one of them does with an error."""

from __future__ import annotations

import difflib
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from io import TextIOWrapper
from typing import Any, TextIO

import click

from ovenbird import __version__, pages
from ovenbird.commands.batch import batch
from ovenbird.commands.bench import bench
from ovenbird.commands.cache import cache
from ovenbird.commands.frames import frames
from ovenbird.commands.generate import generate
from ovenbird.commands.img2img import img2img
from ovenbird.commands.info import info
from ovenbird.commands.models import models
from ovenbird.commands.tune import tune
from ovenbird.commands.txt2img import txt2img
from ovenbird.commands.upscale import upscale
from ovenbird.errors import Cancelled, OvenbirdError, RequestError, ResourceError

GROUPS = {
    "Make pictures": ("generate", "frames", "upscale", "batch", "txt2img", "img2img"),
    "Models": ("models", "export", "verify"),
    "This machine": ("info", "tune", "bench", "cache"),
}
"""How the help page has them; a command that stands in none comes last."""
EXAMPLES = (
    'ovenbird generate --prompt "a large red house in the snow at night"',
    "ovenbird models",
    "ovenbird export path/to/stable-diffusion-v1-5 models/sd15",
    'ovenbird generate --model models/sd15 --prompt "a harbour at noon"',
    "ovenbird info",
    "ovenbird generate --help",
    'eval "$(_OVENBIRD_COMPLETE=bash_source ovenbird)"    # from now on Tab completes; also zsh_source, fish_source',
)


class Commands(click.Group):
    """A group that also holds what other packages add under ``ovenbird.commands``, such as ``export``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(entry.name for entry in entry_points(group="ovenbird.commands"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in entry_points(group="ovenbird.commands", name=cmd_name):
            command: click.Command = entry.load()
            return command
        return super().get_command(ctx, cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with polite_errors(ctx):
            try:
                return super().parse_args(ctx, args)
            except click.NoSuchOption as error:
                having = pages.having(error.option_name, self, ctx)
                first = next((name for names in GROUPS.values() for name in names if name in having), None)
                if first is None:
                    raise
                hint = f"put it behind a command: ovenbird {first} {error.option_name}"
                raise RequestError(f"{error.option_name} is an option of commands", hint=hint) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            # click, where it suggests something, knows only the commands that are ours.
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f"did you mean ovenbird {near[0]}?" if near else "ovenbird --help lists them"
            if " " in name:
                hint = f"for a picture of that: ovenbird generate --prompt {shlex.quote(name)}"
            raise RequestError(f"there is no command {name}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        pages.write_examples(formatter, EXAMPLES)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        pages.write_commands(formatter, {name: command for name, command in found.items() if command}, GROUPS)

    def invoke(self, ctx: click.Context) -> Any:
        with polite_errors(ctx):
            return super().invoke(ctx)


@contextmanager
def polite_errors(ctx: click.Context) -> Iterator[None]:
    """Turn what is raised on purpose into ``error:``, ``hint:`` and an exit code."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except (click.UsageError, OvenbirdError) as error:
        ours = pages.refusal(error, ctx) if isinstance(error, click.UsageError) else error
        _complain(ours, ctx, error)
        sys.exit(ours.exit_code)
    except KeyboardInterrupt:
        click.echo("\nstopped; finished pictures are kept", err=True)
        sys.exit(Cancelled.exit_code)
    except MemoryError as error:
        _complain(ResourceError("out of memory", hint="ask for a smaller size"), ctx, error)
        sys.exit(ResourceError.exit_code)
    except BrokenPipeError:
        raise  # whoever read the results has enough; click ends quietly
    except OSError as error:
        _complain(ResourceError(f"{error.filename or 'a file'}: {error.strerror or error}"), ctx, error)
        sys.exit(ResourceError.exit_code)


def _spelled(name: str) -> str:
    """Of a command or an option: as here or as in Python."""
    return name.replace("_", "-")


def _complain(error: OvenbirdError, ctx: click.Context, cause: BaseException) -> None:
    if ctx.params.get("debug"):
        traceback.print_exception(cause)
    click.echo(f"error: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _spelled})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Stable Diffusion without a GPU: text in, picture out.

    Every command has a page of its own, with examples: ovenbird COMMAND --help.
    """
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends no run


for command in (generate, frames, upscale, batch, txt2img, img2img, models, info, tune, bench, cache):
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
