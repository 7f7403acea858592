"""What Tab offers for the values of options."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from ovenbird import models, schedulers


def complete_model(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models that are here, and folders."""
    found = [CompletionItem(name) for name in models.names() if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="dir")]


def complete_scheduler(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of samplers; those with a suffix once something is typed."""
    names = schedulers.NAMES if incomplete else tuple(schedulers.SAMPLERS)
    return [name for name in names if name.startswith(incomplete)]
