"""What one types: ``demo.py`` and ``ovenbird``."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TextIO

import click

from ovenbird import __version__, images, machine, schedulers
from ovenbird.backends import BACKENDS
from ovenbird.bundle import EMBEDDED, PRECISIONS
from ovenbird.errors import Cancelled, OvenbirdError, RequestError, ResourceError
from ovenbird.metadata import save_png
from ovenbird.pipeline import Picture, Pipeline, Step
from ovenbird.prompts import SYNTAXES
from ovenbird.request import STRENGTH, STRENGTH_WITH_MASK, Request
from ovenbird.timing import Timings

DEFAULT_OUTPUT = "output.png"
DEFAULT_STEPS = 32


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


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    click.echo(f"warning: {message}", err=True)


def _debug_here_too(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    ctx.find_root().params["debug"] |= value


@main.command(context_settings={"show_default": True})
@click.option("--prompt", required=True, help="What the picture shows.")
@click.option("--negative-prompt", default="", help="What it does not show.")
@click.option(
    "--prompt-syntax",
    type=click.Choice(list(SYNTAXES)),
    default="plain",
    help="How both are read: webui has weights, (more), [less], (so:1.3), and takes long prompts in chunks.",
)
@click.option("--clip-skip", type=int, default=0, help="Last layers of the text encoder to leave out, as in diffusers.")
@click.option("--init-image", type=click.Path(path_type=Path), help="A picture to start from: PNG, JPEG or WebP.")
@click.option(
    "--strength",
    type=float,
    help="How much of --init-image may change, above 0 to 1; only that share of the steps is run.  "
    f"[default: {STRENGTH:g}, with --mask {STRENGTH_WITH_MASK:g}]",
)
@click.option(
    "--mask", type=click.Path(path_type=Path), help="White where --init-image is made anew, black where it stays."
)
@click.option("--model", default=EMBEDDED, help="A name, or the folder of an exported model.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help=f"The PNG to write.  [default: {DEFAULT_OUTPUT}, or the next free name]",
)
@click.option("--overwrite", is_flag=True, help="Replace an --output that exists.")
@click.option("--height", type=int, help="Pixels, a multiple of 8.  [default: the model's, or --init-image's]")
@click.option("--width", type=int, help="Pixels, a multiple of 8.  [default: the model's, or --init-image's]")
@click.option("--num-inference-steps", type=int, default=DEFAULT_STEPS, help="Steps of the sampler.")
@click.option("--guidance-scale", type=float, default=7.5, help="How closely to follow the prompt; 1 or less is off.")
@click.option("--seed", type=int, help="The same seed gives the same picture.  [default: random]")
@click.option("--num-images", type=int, default=1, help="Pictures; number k uses seed + k.")
@click.option(
    "--scheduler",
    help=f"A sampler: {', '.join(schedulers.SAMPLERS)}; many also with _{', _'.join(schedulers.SUFFIXES)}.  "
    "[default: the model's]",
)
@click.option("--eta", type=float, default=0.0, help="Fresh noise of DDIM and TCD, 0 to 1.")
@click.option("--beta-start", type=float, help="First beta of training.  [default: the model's]")
@click.option("--beta-end", type=float, help="Last beta of training.  [default: the model's]")
@click.option(
    "--beta-schedule", help="How betas grow: linear, scaled_linear, squaredcos_cap_v2.  [default: the model's]"
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Variant of the model.  [default: the first there is]")
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="openvino", help="Runtime.")
@click.option("--device", default="cpu", help="Device of the runtime.")
@click.option("--threads", type=int, help="Processor threads.  [default: every core]")
@click.option("--report", type=click.Path(path_type=Path), help="Write the timing report to this JSON file too.")
@click.option("--quiet", is_flag=True, help="Print the pictures' paths and nothing else.")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_debug_here_too,
    help="Show the traceback of an error.",
)
def generate(
    prompt: str,
    negative_prompt: str,
    prompt_syntax: str,
    clip_skip: int,
    init_image: Path | None,
    strength: float | None,
    mask: Path | None,
    model: str,
    output: Path | None,
    overwrite: bool,
    height: int | None,
    width: int | None,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int | None,
    num_images: int,
    scheduler: str | None,
    eta: float,
    beta_start: float | None,
    beta_end: float | None,
    beta_schedule: str | None,
    precision: str | None,
    backend: str,
    device: str,
    threads: int | None,
    report: Path | None,
    quiet: bool,
) -> None:
    """Make a picture of a prompt."""
    timings = _timings()
    request = Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        prompt_syntax=prompt_syntax,
        clip_skip=clip_skip,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        eta=eta,
        seed=seed,
        num_images_per_prompt=num_images,
        scheduler=scheduler,
        image=images.read("init-image", init_image) if init_image else None,
        mask_image=images.read("mask", mask) if mask else None,
        strength=strength,
    )
    if scheduler is not None:
        schedulers.sampler(scheduler)  # a wrong name stops here, before any model is read
    paths = _outputs(output, num_images, overwrite)
    _check_folder("report", report)
    betas = {"beta_start": beta_start, "beta_end": beta_end, "beta_schedule": beta_schedule}
    pipeline = Pipeline.open(
        model,
        backend,
        device,
        threads=threads,
        precision=precision,
        timings=timings,
        scheduler_config={name: value for name, value in betas.items() if value is not None},
    )
    request = request.settled(pipeline.bundle.default_size)
    if not quiet:
        _announce(pipeline, request)
    for picture in _with_progress(pipeline.stream(request), quiet):
        path = paths[picture.picture]
        with timings.stage("save"):
            save_png(picture.image, path, _facts(pipeline, request, picture.seed), overwrite=overwrite)
        click.echo(path if quiet else f"{path}  seed {picture.seed}")
    found = pipeline.report()
    if not quiet:
        click.echo(f"\n{found.table()}", err=True)
    if report:
        report.write_text(json.dumps(found.as_dict(), indent=2) + "\n", encoding="utf-8")


def _timings() -> Timings:
    timings = Timings()
    started = machine.seconds_since_process_start()
    if started is not None:
        timings.add("start", started)
    return timings


def _announce(pipeline: Pipeline, request: Request) -> None:
    if pipeline.bundle.embedded:
        click.echo(
            "model: nestling, the small one that comes with ovenbird (storybook scenes, 128x128); "
            "for a bigger one: --model FOLDER, made by `ovenbird export`",
            err=True,
        )
    else:
        state = "" if pipeline.bundle.manifest else ", unverified: it has no ovenbird.json"
        click.echo(f"model: {pipeline.bundle.name} ({pipeline.bundle.precision}{state})", err=True)
    click.echo(f"seed: {request.seed}", err=True)


def _with_progress(events: Iterator[Step | Picture], quiet: bool) -> Iterator[Picture]:
    """Show a bar on a terminal, and pass the pictures on."""
    clock = Timings()
    for event in events:
        if isinstance(event, Picture):
            yield event
        elif not quiet and sys.stderr.isatty():
            if event.index == 1:
                clock = Timings()  # compiling came before the first step
            click.echo(_bar(event, clock.total()), nl=event.index == event.count, err=True)


def _bar(step: Step, seconds: float, width: int = 32) -> str:
    full = width * step.index // step.count
    rate = f"{seconds / (step.index - 1):.3f} s/step" if step.index > 1 else ""
    return f"\r[{'#' * full}{'-' * (width - full)}] {step.index}/{step.count}  {rate}"


def _facts(pipeline: Pipeline, request: Request, seed: int) -> Mapping[str, Any]:
    """Everything that made one picture."""
    facts = {field.name: getattr(request, field.name) for field in fields(request)}
    facts |= {name: images.digest(facts[name]) for name in ("image", "mask_image") if facts[name]}
    return facts | {
        "seed": seed,
        "num_images_per_prompt": 1,
        "sampler": pipeline.scheduler(request).label,
        "model": pipeline.bundle.name,
        "model_key": pipeline.bundle.key,
        "weights": pipeline.bundle.precision,
        "scheduler_config": pipeline.scheduler_overrides,
        "backend": f"{pipeline.backend.name} {pipeline.backend.version}",
        "device": pipeline.backend.device,
        "inference_precision": pipeline.precision,
        "ovenbird": __version__,
    }


def _outputs(output: Path | None, count: int, overwrite: bool) -> list[Path]:
    """Where the pictures go: ``name.png``, or ``name-0.png``, ``name-1.png`` ... for several."""
    _check_folder("output", output)
    if output is not None and output.suffix.lower() != ".png":
        raise RequestError(f"output: {output} does not end in .png", hint=f"use {output.with_suffix('.png')}")
    if output is None:
        return _free_names(count)
    paths = [output] if count == 1 else [output.with_stem(f"{output.stem}-{k}") for k in range(count)]
    for path in paths:
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise RequestError(f"output: {path} exists", hint="choose another name, or add --overwrite")
    return paths


def _free_names(count: int) -> list[Path]:
    base, number, free = Path(DEFAULT_OUTPUT), 0, list[Path]()
    while len(free) < count:
        path = base if number == 0 else base.with_stem(f"{base.stem}-{number}")
        if not (path.exists() or path.is_symlink()):
            free.append(path)
        number += 1
    return free


def _check_folder(name: str, path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise RequestError(f"{name}: the folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
    if path is not None and path.is_dir():
        raise RequestError(f"{name}: {path} is a folder")


def demo() -> None:
    """``demo.py``: ``ovenbird generate`` under another name."""
    main(["generate", *sys.argv[1:]], prog_name="ovenbird")
