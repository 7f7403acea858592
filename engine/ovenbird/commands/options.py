"""The options that commands share, and what becomes of them: a request, a pipeline, names of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from ovenbird import images, machine, progress, schedulers
from ovenbird.autoencoder import DECODERS
from ovenbird.backends import BACKENDS, EXACT
from ovenbird.bundle import EMBEDDED, PRECISIONS
from ovenbird.choice import AUTO, DEFAULT_BACKEND
from ovenbird.errors import RequestError
from ovenbird.pipeline import Pipeline
from ovenbird.presets import DEFAULT_PRESET, POOLED, PRESETS
from ovenbird.prompts import SYNTAXES
from ovenbird.request import (
    CONDITIONS,
    HIRES_STRENGTH,
    LATENT,
    MAX_HIRES_SCALE,
    STRENGTH,
    STRENGTH_WITH_MASK,
    UPSCALERS,
    Request,
    check_count,
    check_size,
)
from ovenbird.timing import Timings

Typed = Mapping[str, Any]
"""What was typed: the name of an option -> its value."""
Option = Callable[[Any], Any]
Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_STEPS = 32
PATH = click.Path(path_type=Path)


def _debug_here_too(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    ctx.find_root().params["debug"] |= value


WORDS: Sequence[Option] = (
    click.option("--negative-prompt", default="", help="What it does not show."),
    click.option(
        "--prompt-syntax",
        type=click.Choice(list(SYNTAXES)),
        default="plain",
        help="How both are read: webui has weights, (more), [less], (so:1.3), and takes long prompts in chunks.",
    ),
    click.option(
        "--clip-skip", type=int, default=0, help="Last layers of the text encoder to leave out, as in diffusers."
    ),
)
PROMPT: Sequence[Option] = (
    click.option(
        "--prompt", required=True, multiple=True, help="What the picture shows; several times for several pictures."
    ),
    *WORDS,
    click.option("--num-images", type=int, default=1, help="Pictures of each prompt; number k of all uses seed + k."),
)
BETWEEN: Sequence[Option] = (
    click.option("--variation-seed", type=int, help="Another seed, for --variation-strength.  [default: random]"),
    click.option(
        "--variation-strength",
        type=float,
        default=0.0,
        help="How far the noise is on its way to that of --variation-seed, 0 to 1; picture k then uses that seed + k.",
    ),
    click.option("--to-prompt", help="Another prompt, for --blend."),
    click.option("--blend", type=float, help="How far the prompt is on its way to it, 0 to 1.  [default: 0.5]"),
)
START: Sequence[Option] = (
    click.option("--init-image", type=PATH, help="A picture to start from: PNG, JPEG or WebP."),
    click.option(
        "--strength",
        type=float,
        help="How much of --init-image may change, above 0 to 1; only that share of the steps is run.  "
        f"[default: {STRENGTH:g}, with --mask {STRENGTH_WITH_MASK:g}]",
    ),
    click.option("--mask", type=PATH, help="White where --init-image is made anew, black where it stays."),
)
HIRES: Sequence[Option] = (
    click.option(
        "--hires-scale",
        type=float,
        help=f"Make the picture, enlarge it by this factor, 1 to {MAX_HIRES_SCALE:g}, and make it anew from there.",
    ),
    click.option(
        "--hires-upscaler",
        type=click.Choice(UPSCALERS),
        help=f"Enlarge latents, or pixels.  [default: {LATENT}]",
    ),
    click.option(
        "--hires-strength",
        type=float,
        help=f"How much of the enlarged picture may change, above 0 to 1.  [default: {HIRES_STRENGTH:g}]",
    ),
    click.option(
        "--hires-steps", type=int, help="Steps from noise; that share of them is run.  [default: --num-inference-steps]"
    ),
)
TILES: Sequence[Option] = (
    click.option("--tile-size", type=int, help="The most pixels a side that the U-Net sees at once.  [default: all]"),
)
SIDES: Sequence[Option] = (
    click.option("--height", type=int, help="Pixels, a multiple of 8.  [default: the model's, or --init-image's]"),
    click.option("--width", type=int, help="Pixels, a multiple of 8.  [default: the model's, or --init-image's]"),
)
SAMPLING: Sequence[Option] = (
    click.option("--num-inference-steps", type=int, default=DEFAULT_STEPS, help="Steps of the sampler."),
    click.option(
        "--guidance-scale", type=float, default=7.5, help="How closely to follow the prompt; 1 or less is off."
    ),
    click.option(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar="START STOP",
        help="Guide only there, which saves half of a step elsewhere: from 0, noise, to 1, the picture.  "
        "[default: the preset's]",
    ),
    click.option("--seed", type=int, help="The same seed gives the same picture.  [default: random]"),
    click.option(
        "--scheduler",
        help=f"A sampler: {', '.join(schedulers.SAMPLERS)}; many also with _{', _'.join(schedulers.SUFFIXES)}.  "
        "[default: the model's]",
    ),
    click.option("--eta", type=float, default=0.0, help="Fresh noise of DDIM and TCD, 0 to 1."),
    click.option("--beta-start", type=float, help="First beta of training.  [default: the model's]"),
    click.option("--beta-end", type=float, help="Last beta of training.  [default: the model's]"),
    click.option(
        "--beta-schedule", help="How betas grow: linear, scaled_linear, squaredcos_cap_v2.  [default: the model's]"
    ),
)
SIZES: Sequence[Option] = tuple(
    click.option(
        f"--{name.replace('_', '-')}",
        nargs=2,
        type=int,
        default=default,
        show_default=False,
        metavar="TOP LEFT" if "crops" in name else "HEIGHT WIDTH",
        help=f"What SDXL is told, as in diffusers.  [default: {default or 'the size of the picture'}]",
    )
    for name, default in CONDITIONS.items()
)
RUNNING: Sequence[Option] = (
    click.option(
        "--model",
        default=EMBEDDED,
        help="A name, the folder of an exported model, or OWNER/NAME[@REVISION] of one on the Hugging Face Hub.",
    ),
    click.option("--offline", is_flag=True, help="Take a model of the Hub from what was downloaded before."),
    click.option(
        "--precision",
        type=click.Choice([*PRECISIONS, AUTO]),
        help="Variant of the model; auto takes what ovenbird tune measured to be the fastest, else int8 on a processor "
        "that is quick at it, else fp16.  [default: auto with --preset balanced or fast, else the first of these]",
    ),
    click.option(
        "--embedding",
        multiple=True,
        metavar="FILE[:WORD]",
        help="A word for prompts, from a .safetensors file of textual inversion; several times for several.",
    ),
    click.option(
        "--backend",
        type=click.Choice(list(BACKENDS)),
        help=f"Runtime.  [default: {DEFAULT_BACKEND}; where the variant is chosen by ovenbird tune, what that found]",
    ),
    click.option("--device", default="cpu", help="Device of the runtime."),
    click.option(
        "--threads",
        type=int,
        help="Processor threads.  [default: every core; where the variant is chosen by ovenbird tune, what that found]",
    ),
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        default=DEFAULT_PRESET,
        help="How much exactness to give for speed; the four options that follow say instead of it.",
    ),
    click.option(
        "--pool-attention",
        type=click.Choice(POOLED),
        help="Let the widest self-attentions look at means of 2x2 cells, in the steps between whole ones or in all.",
    ),
    click.option(
        "--reuse-every",
        type=int,
        metavar="STEPS",
        help="Run the whole U-Net at every so many steps, and only its outermost layers in between.",
    ),
    click.option("--reuse-depth", type=int, metavar="LAYERS", help="How many of its layers run at every step."),
    click.option(
        "--exact-edit",
        "exact",
        multiple=True,
        type=click.Choice([*EXACT, "none"]),
        help="Changes of graphs that only round otherwise; several times for several.  [default: all]",
    ),
    click.option("--batch-size", type=int, default=1, help="Pictures to draw side by side; takes memory."),
    click.option(
        "--max-memory",
        metavar="SIZE",
        help="Stay within this much memory, such as 2GiB, or say what is needed.  [default: no limit]",
    ),
    click.option(
        "--vae-tile",
        type=int,
        metavar="PIXELS",
        help="Decode and encode larger pictures in tiles of this side, to save memory.  [default: in one piece]",
    ),
    click.option(
        "--decoder",
        type=click.Choice(list(DECODERS)),
        help="Of latents; tiny, where the model has one, is quick and a little less exact.  [default: full; the preset "
        "fast takes tiny where there is one]",
    ),
    click.option("--no-safety-checker", is_flag=True, help="Do not ask the model's safety checker, if it has one."),
    click.option(
        "--preview-every",
        type=int,
        metavar="STEPS",
        help="So often show in NAME-preview.png, beside the output, what is to be seen so far; by the tiny decoder if "
        "the model has one.  It goes when the picture is there, and stays when the run is stopped.",
    ),
    click.option("--report", type=PATH, help="Write the timing report to this JSON file too."),
    click.option("--quiet", is_flag=True, help="Print the pictures' paths and nothing else."),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_debug_here_too,
        help="Show the traceback of an error.",
    ),
)


def options(*groups: Sequence[Option]) -> Callable[[Command], Command]:
    """All the options of these groups, in their order."""

    def add(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


def request_of(typed: Typed, **others: Any) -> Request:
    """The request that was typed, and ``others`` of its fields.  Raises ``RequestError`` for what no model could do."""
    given = {name: typed[name] for name in _SAME if name in typed}
    if "prompt" in given and not isinstance(given["prompt"], str):
        given["prompt"] = given["prompt"][0] if len(given["prompt"]) == 1 else list(given["prompt"])
    for name, option in (("image", "init_image"), ("mask_image", "mask")):
        if typed.get(option):
            given[name] = images.read(option.replace("_", "-"), typed[option])
    wish = Request(**given | {"num_images_per_prompt": typed.get("num_images", 1)} | others)
    if wish.scheduler is not None:
        schedulers.sampler(wish.scheduler)  # a wrong name stops here, before any model is read
    check_folder("report", typed["report"])
    if typed["preview_every"] is not None:
        check_count("preview_every", typed["preview_every"])
    return wish


_SAME = tuple(field.name for field in fields(Request) if field.name not in ("image", "mask_image"))
"""Options may have the names of these fields."""


def pipeline_of(typed: Typed, timings: Timings, *, keep: bool = True) -> Pipeline:
    """The model, on the runtime, that were typed; without ``keep`` one stage at a time is in memory."""
    if typed["vae_tile"] is not None:
        check_size("vae_tile", typed["vae_tile"])
    betas = {name: typed[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    with progress.silent() if typed["quiet"] else nullcontext():
        return Pipeline.open(
            typed["model"],
            typed["backend"],
            typed["device"],
            threads=typed["threads"],
            precision=typed["precision"],
            keep=keep,
            batch_size=typed["batch_size"],
            max_memory=typed["max_memory"],
            embeddings=typed["embedding"],
            vae_tile=typed["vae_tile"],
            decoder=typed["decoder"],
            safety_checker=not typed["no_safety_checker"],
            offline=typed["offline"],
            preset=typed["preset"],
            pool_attention=typed["pool_attention"],
            reuse_every=typed["reuse_every"],
            reuse_depth=typed["reuse_depth"],
            exact=tuple(name for name in typed["exact"] if name in EXACT) if typed["exact"] else None,
            timings=timings,
            scheduler_config={name: value for name, value in betas.items() if value is not None},
        )


def timings_since_start() -> Timings:
    """A clock that knows when the process began."""
    timings = Timings()
    started = machine.seconds_since_process_start()
    if started is not None:
        timings.add("start", started)
    return timings


def check_folder(name: str, path: Path | None) -> None:
    """Raises ``RequestError`` unless a file of that name could be made."""
    if path is not None and not path.parent.is_dir():
        raise RequestError(f"{name}: the folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
    if path is not None and path.is_dir():
        raise RequestError(f"{name}: {path} is a folder")


def check_free(name: str, paths: Sequence[Path], overwrite: bool) -> None:
    """Raises ``RequestError`` if there is something under one of these names that must not be replaced."""
    for path in paths:
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise RequestError(f"{name}: {path} exists", hint="choose another name, or add --overwrite")
