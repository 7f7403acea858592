"""Help pages: examples first, options under headings, commands in groups; and the options that every command has."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from ovenbird import progress
from ovenbird.errors import RequestError

Option = Callable[[Any], Any]
"""A decorator of click's."""
REST = "Other options"
MEANT = {
    "-H": "--height",
    "-W": "--width",
    "-n": "--num-images",
    "-o": "--output",
    "-p": "--prompt",
    "-s": "--num-inference-steps",
    "--cfg": "--guidance-scale",
    "--cfg-scale": "--guidance-scale",
    "--ckpt": "--model",
    "--ddim-eta": "--eta",
    "--ddim-steps": "--num-inference-steps",
    "--H": "--height",
    "--image": "--init-image",
    "--init-img": "--init-image",
    "--n-samples": "--num-images",
    "--num-images-per-prompt": "--num-images",
    "--out": "--output",
    "--outdir": "--output",
    "--sampler": "--scheduler",
    "--scale": "--guidance-scale",
    "--size": "--width",
    "--steps": "--num-inference-steps",
    "--W": "--width",
}
"""What other programs call an option -> what it is called here, for suggestions."""


class Page(click.Command):
    """A command with examples, whose options stand under the headings that ``under`` gave them."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # not all know it
            raise

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        write_examples(formatter, self.examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and record[1]:
                heading = REST if isinstance(parameter, click.Option) else "Arguments"
                headings.setdefault(getattr(parameter, "heading", heading), []).append(record)
        headings[REST] = headings.pop(REST, [])  # the last one
        for heading, records in headings.items():
            if records:
                with formatter.section(heading if len(headings) > 1 else "Options"):
                    formatter.write_dl(records)


def under(heading: str, *options: Option) -> Sequence[Option]:
    """The same options, to be shown below this heading."""

    def headed(option: Option) -> Option:
        def add(command: Any) -> Any:
            command = option(command)
            command.__click_params__[-1].heading = heading
            return command

        return add

    return tuple(map(headed, options))


def write_examples(formatter: click.HelpFormatter, examples: Iterable[str]) -> None:
    """Lines to type, which are not wrapped."""
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def write_commands(
    formatter: click.HelpFormatter, commands: Mapping[str, click.Command], groups: Mapping[str, Sequence[str]]
) -> None:
    """Commands with a line each, in groups; those that no group names come last."""
    named = {name for names in groups.values() for name in names}
    for heading, names in {**groups, "More": [name for name in commands if name not in named]}.items():
        rows = [(name, commands[name].get_short_help_str(100)) for name in names if name in commands]
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def refusal(error: click.UsageError, context: click.Context) -> RequestError:
    """What click says of a line that it does not understand, in our words, with what may have been meant.

    ``context`` is where it happened, if the error does not know better.
    """
    context = error.ctx or context
    page = f"{context.command_path} --help"
    if isinstance(error, click.NoSuchOption):
        return RequestError(f"there is no option {error.option_name}", hint=_meant(error.option_name, context) or page)
    if isinstance(error, click.BadParameter) and error.param and not isinstance(error, click.MissingParameter):
        near = _nearest(error)
        return RequestError(f"{error.param.opts[0]}: {error.message.rstrip('.')}", hint=near or page)
    examples = getattr(context.command, "examples", ())
    message = error.format_message().rstrip(".")
    return RequestError(message[0].lower() + message[1:], hint=f"such as: {examples[0]}" if examples else page)


def having(option: str, group: click.Command, context: click.Context) -> list[str]:
    """The commands of a group that have this option, spelled with either line."""
    commands = {}
    if isinstance(group, click.Group):
        commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return [name for name, command in commands.items() if command and option in _spelled_with_dashes(command)]


def _spelled_with_dashes(command: click.Command) -> set[str]:
    return {word.replace("_", "-") for parameter in command.params for word in parameter.opts}


def _nearest(error: click.BadParameter) -> str:
    """Of the words that an option takes the one that may have been meant, or nothing."""
    kind = error.param.type if error.param else None
    typed = error.message.split("'")[1:2]
    near = difflib.get_close_matches(typed[0], kind.choices, n=1) if typed and isinstance(kind, click.Choice) else []
    return f"did you mean {near[0]}?" if near else ""


def _meant(option: str, context: click.Context) -> str:
    """A hint, or nothing."""
    everywhere = {name for parameter in context.find_root().command.params for name in parameter.opts}
    if context.parent and option in everywhere:
        return f"put it before the command: ovenbird {option} {context.info_name}"
    known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
    meant = MEANT.get(option)
    within = [name for name in known if len(option) > 2 and option.strip("-") in name]
    found = [meant] if meant in known else within or difflib.get_close_matches(option, known, cutoff=0.7)
    if found:
        return f"did you mean {' or '.join(map(str, found[:4]))}?"
    others = having(option, context.parent.command, context) if context.parent else []
    return f"it is an option of {' and '.join(f'ovenbird {name}' for name in others[:3])}" if others else ""


def _silence(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        ctx.with_resource(progress.silent())


JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
QUIET = click.option(
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_silence,
    help="Print results and nothing else; warnings and errors still go to stderr.",
)
