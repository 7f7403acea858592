"""The options that commands share, and what becomes of them: a request, a pipeline, names of files."""

from __future__ import annotations

import difflib
import os
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
from ovenbird.commands.completing import complete_model, complete_scheduler
from ovenbird.disk import expanded
from ovenbird.errors import RequestError, ResourceError
from ovenbird.models import hub_name
from ovenbird.pages import Option, under
from ovenbird.pipeline import Pipeline
from ovenbird.presets import DEFAULT_PRESET, POOLED, PRESETS, shortcuts
from ovenbird.prompts import SYNTAXES
from ovenbird.request import (
    CONDITIONS,
    HIRES_STRENGTH,
    LATENT,
    MAX_HIRES_SCALE,
    UPSCALERS,
    Request,
    check_count,
    check_size,
)
from ovenbird.scheduler_config import BETA_SCHEDULES
from ovenbird.sizes import parse_size
from ovenbird.text import checked_tokenizer
from ovenbird.timing import Timings

Typed = Mapping[str, Any]
"""What was typed: the name of an option -> its value."""
Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_STEPS = 32
START_STRENGTH = 0.5
"""As in stable_diffusion.openvino; ``Request`` has diffusers' defaults."""


class _Path(click.Path):
    """A path in which ``~`` is somebody's home, as it is not for shells behind an equals sign."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(value), param, ctx)


PATH = _Path(path_type=Path)
REPORT = "choose another name, that ends in .json"
FOREIGN = click.option(
    "--allow-foreign-ir",
    is_flag=True,
    help="Read graphs with operators that no export of Stable Diffusion has: only those of people you trust.",
)


def _debug_here_too(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    ctx.find_root().params["debug"] |= value


WORDS: Sequence[Option] = under(
    "The prompt",
    click.option("--negative-prompt", default="", help="What it does not show."),
    click.option(
        "--prompt-syntax",
        type=click.Choice(list(SYNTAXES)),
        default="plain",
        help="How both are read: webui has weights, (more), [less], (so:1.3), and takes long prompts in chunks.",
    ),
    click.option("--strict", is_flag=True, help="Refuse a prompt that is longer than what is read of it."),
    click.option(
        "--clip-skip", type=int, default=0, help="Last layers of the text encoder to leave out, as in diffusers."
    ),
)
PROMPT: Sequence[Option] = under(
    "The prompt",
    click.option("--prompt", multiple=True, help="What the picture shows; several times for several pictures."),
    *WORDS,
    click.option("--num-images", type=int, default=1, help="Pictures of each prompt; number k of all uses seed + k."),
)
BETWEEN: Sequence[Option] = under(
    "Between two pictures",
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
START: Sequence[Option] = under(
    "From a picture",
    click.option("--init-image", type=PATH, help="A picture to start from: PNG, JPEG or WebP."),
    click.option(
        "--strength",
        type=float,
        help="How much of --init-image may change, above 0 to 1; only that share of the steps is run.  "
        f"[default: {START_STRENGTH:g}]",
    ),
    click.option("--mask", type=PATH, help="White where --init-image is made anew, black where it stays."),
)
HIRES: Sequence[Option] = under(
    "Made larger",
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
TILES: Sequence[Option] = under(
    "Made larger",
    click.option("--tile-size", type=int, help="The most pixels a side that the U-Net sees at once.  [default: all]"),
)
SIDES: Sequence[Option] = under(
    "Size",
    click.option("--height", type=int, help="Pixels, a multiple of 8.  [default: the model's, or the given picture's]"),
    click.option("--width", type=int, help="Pixels, a multiple of 8.  [default: the model's, or the given picture's]"),
)
SAMPLING: Sequence[Option] = under(
    "Sampling",
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
        shell_complete=complete_scheduler,
        help=f"A sampler: {', '.join(schedulers.SAMPLERS)}; many also with _{', _'.join(schedulers.SUFFIXES)}.  "
        "[default: the model's]",
    ),
    click.option("--eta", type=float, default=0.0, help="Fresh noise of DDIM and TCD, 0 to 1."),
    click.option("--beta-start", type=float, help="First beta of training.  [default: the model's]"),
    click.option("--beta-end", type=float, help="Last beta of training.  [default: the model's]"),
    click.option("--beta-schedule", help=f"How betas grow: {', '.join(BETA_SCHEDULES)}.  [default: the model's]"),
)
SIZES: Sequence[Option] = under(
    "What SDXL is told of sizes",
    *(
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
    ),
)
MODEL: Sequence[Option] = under(
    "The model",
    click.option(
        "--model",
        default=EMBEDDED,
        shell_complete=complete_model,
        help="A name, the folder of an exported model, or OWNER/NAME[@REVISION] of one on the Hugging Face Hub.",
    ),
)
LOADING: Sequence[Option] = under(
    "The model",
    click.option("--offline", is_flag=True, help="Take a model of the Hub from what was downloaded before."),
    click.option(
        "--embedding",
        multiple=True,
        metavar="FILE[:WORD]",
        help="A word for prompts, from a .safetensors file of textual inversion; several times for several.",
    ),
    click.option(
        "--tokenizer",
        metavar="FOLDER",
        help="Read prompts with the vocab.json and merges.txt there, or of OWNER/NAME[@REVISION] on the Hugging Face "
        "Hub.  [default: the model's own]",
    ),
)
VARIANT: Sequence[Option] = under(
    "The model",
    click.option(
        "--precision",
        type=click.Choice([*PRECISIONS, AUTO]),
        help="Variant of the model; auto takes what ovenbird tune measured to be the fastest, else int8 on a processor "
        "that is quick at it, else fp16.  [default: auto with --preset balanced or fast, else the first of these]",
    ),
)
DEVICES: Sequence[Option] = under(
    "The runtime",
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
)
SPEED: Sequence[Option] = under(
    "Speed for exactness",
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
)
MEMORY: Sequence[Option] = under(
    "Memory and decoding",
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
    FOREIGN,
    click.option("--no-safety-checker", is_flag=True, help="Do not ask the model's safety checker, if it has one."),
)
SHOWING: Sequence[Option] = under(
    "What is shown",
    click.option(
        "--preview-every",
        type=int,
        metavar="STEPS",
        help="So often show in NAME-preview.png, beside the output, what is to be seen so far; by the tiny decoder if "
        "the model has one.  It goes when the picture is there, and stays when the run is stopped.",
    ),
    click.option("--report", type=PATH, help="Write the timing report to this JSON file too."),
    click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each picture, a line each."),
    click.option("--quiet", is_flag=True, help="Print the pictures' paths, or that JSON, and nothing else."),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_debug_here_too,
        help="Show the traceback of an error.",
    ),
)
RUNTIME: Sequence[Option] = (*DEVICES, *SPEED, *MEMORY, *SHOWING)
RUNNING: Sequence[Option] = (*MODEL, *LOADING, *VARIANT, *RUNTIME)


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
        given["prompt"] = given["prompt"][0] if len(given["prompt"]) == 1 else tuple(given["prompt"])
    if given.get("prompt") == ():
        raise RequestError("prompt: there is none", hint="say what the picture shows: --prompt TEXT")
    if typed.get("variation_seed") is not None and not given.get("variation_strength"):
        raise RequestError("variation_seed: there is no way to it", hint="give --variation-strength, too")
    if typed.get("init_image") and given["strength"] is None:
        given["strength"] = START_STRENGTH
    for name, option in (("image", "init_image"), ("mask_image", "mask")):
        if typed.get(option):
            given[name] = images.read(option.replace("_", "-"), typed[option])
    wish = Request(**given | {"num_images_per_prompt": typed.get("num_images", 1)} | others)
    if wish.scheduler is not None:
        schedulers.sampler(wish.scheduler)  # a wrong name stops here, before any model is read
    check_running(typed)
    if typed["preview_every"] is not None:
        check_count("preview_every", typed["preview_every"])
    return wish


BETAS = ("beta_start", "beta_end", "beta_schedule")


def check_running(typed: Typed) -> None:
    """What is wrong with the options of ``RUNNING``, as far as no model is needed to tell.  Raises ``RequestError``."""
    _check_report(typed)
    _check_betas(typed)
    for name in ("threads", "batch_size"):
        if typed[name] is not None:
            check_count(name, typed[name])
    if typed["max_memory"] is not None:
        parse_size("max_memory", typed["max_memory"])
    if typed["vae_tile"] is not None:
        check_size("vae_tile", typed["vae_tile"])
    if typed["tokenizer"] is not None and not hub_name(typed["tokenizer"]):
        checked_tokenizer(Path(typed["tokenizer"]))
    shortcuts(typed["preset"], _instead(typed))


def _check_report(typed: Typed) -> None:
    """It is replaced without asking, and nothing else may be."""
    path = typed["report"]
    check_folder("report", path)
    if path is None:
        return
    for name, what in (("jobs", "the job file"), ("output", "the --output")):
        if isinstance(typed.get(name), Path) and typed[name].resolve() == path.resolve():
            raise RequestError(f"report: {path} is {what}, too", hint=REPORT)
    if path.is_file() and not path.is_symlink() and path.suffix.lower() != ".json":
        raise RequestError(f"report: {path} exists and is no .json", hint=REPORT)


def _check_betas(typed: Typed) -> None:
    start, end, schedule = (typed.get(name) for name in BETAS)
    for name, value in (("beta_start", start), ("beta_end", end)):
        if value is not None and not 0 < value < 1:
            raise RequestError(f"{name}: {value:g} is not between 0 and 1")
    if start is not None and end is not None and start > end:
        raise RequestError(f"beta_start: {start:g} is more than beta_end, {end:g}")
    if schedule is not None and schedule not in BETA_SCHEDULES:
        near = difflib.get_close_matches(schedule, BETA_SCHEDULES, n=1)
        hint = f"did you mean {near[0]}?" if near else None
        raise RequestError(f"beta_schedule: {schedule!r:.40} is not one of {', '.join(BETA_SCHEDULES)}", hint=hint)


def _instead(typed: Typed) -> dict[str, Any]:
    """What was said instead of what the preset says."""
    exact = tuple(name for name in typed["exact"] if name in EXACT) if typed["exact"] else None
    return {**{name: typed[name] for name in ("pool_attention", "reuse_every", "reuse_depth")}, "exact": exact}


_SAME = tuple(field.name for field in fields(Request) if field.name not in ("image", "mask_image"))
"""Options may have the names of these fields."""


def pipeline_of(typed: Typed, timings: Timings, *, keep: bool = True) -> Pipeline:
    """The model, on the runtime, that were typed; without ``keep`` one stage at a time is in memory."""
    betas = {name: typed[name] for name in BETAS if typed[name] is not None}
    with progress.silent() if typed["quiet"] else nullcontext():
        return Pipeline.open(
            typed["model"],
            typed["backend"],
            typed["device"],
            threads=typed["threads"],
            precision=typed["precision"],
            inference_precision=typed.get("inference_precision"),
            keep=keep,
            batch_size=typed["batch_size"],
            max_memory=typed["max_memory"],
            embeddings=typed["embedding"],
            tokenizer=typed["tokenizer"],
            vae_tile=typed["vae_tile"],
            decoder=typed["decoder"],
            safety_checker=not typed["no_safety_checker"],
            offline=typed["offline"],
            allow_foreign_ir=typed.get("allow_foreign_ir", False),
            preset=typed["preset"],
            **_instead(typed),
            timings=timings,
            scheduler_config={**typed.get("scheduler_config", {}), **betas},
        )


def timings_since_start() -> Timings:
    """A clock that knows when the process began."""
    timings = Timings()
    started = machine.seconds_since_process_start()
    if started is not None:
        timings.add("start", started)
    return timings


def check_folder(name: str, path: Path | None) -> None:
    """Raises ``RequestError`` unless a file of that name could be made, ``ResourceError`` where that is not allowed."""
    if path is None:
        return
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or holds what no name may
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{name}: {str(path)[:40]!a} ... is no name for a file: {reason}") from error
    if path.parent.exists() and not path.parent.is_dir():
        raise RequestError(f"{name}: {path.parent} is a file, not a folder", hint="choose another folder")
    if not path.parent.is_dir():
        raise RequestError(f"{name}: the folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
    if path.is_dir():
        raise RequestError(f"{name}: {path} is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ResourceError(f"{name}: {path} cannot be written: it is not allowed", hint="choose another folder")


def check_free(name: str, paths: Sequence[Path], overwrite: bool) -> None:
    """Raises ``RequestError`` if there is something under one of these names that must not be replaced."""
    for path in paths:
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise RequestError(f"{name}: {path} exists", hint="choose another name, or add --overwrite")
