"""What ``ovenbird txt2img`` and ``ovenbird img2img`` share: the options of CompVis' scripts, and what they do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ovenbird.bundle import EMBEDDED, PRECISIONS
from ovenbird.choice import AUTO
from ovenbird.commands.checkpoint import exported
from ovenbird.commands.drawing import announce, drawn, hearing, tell
from ovenbird.commands.options import (
    BETAS,
    LOADING,
    PATH,
    RUNTIME,
    WORDS,
    Typed,
    pipeline_of,
    request_of,
    timings_since_start,
)
from ovenbird.commands.samples import Failures, Folder, Line, check_grid, grid, prompts
from ovenbird.errors import NumericError, RequestError
from ovenbird.metadata import save_picture
from ovenbird.pages import Option, under
from ovenbird.pipeline import Pipeline
from ovenbird.request import MAX_SEED, Request, check_count

DEFAULT_PROMPT = "a painting of a virus monster playing guitar"
USUAL_SIZE = 512
ARITHMETIC = {"full": "f32", "autocast": None}
CHANNELS, FACTOR = 4, 8


def script(outdir: str, n_samples: int, n_iter: int, scale: float) -> Sequence[Option]:
    """The options that both scripts have, with the defaults of one of them."""
    own = under(
        "As in CompVis' script",
        click.option("--prompt", default=DEFAULT_PROMPT, help="What the pictures show."),
        click.option("--from-file", type=PATH, help="Prompts in a text file, one a line, instead of --prompt."),
        click.option(
            "--ckpt",
            type=PATH,
            metavar="FILE",
            help="A .ckpt or .safetensors file.  It is exported once, to a folder beside it, and that is opened.",
        ),
        click.option("--model", help=f"An exported model, as ovenbird generate takes it.  [default: {EMBEDDED}]"),
        click.option(
            "--outdir", type=PATH, default=outdir, help="Gets samples/00000.png and on, and grid-0000.png and on."
        ),
        click.option("--skip_grid", is_flag=True, help="Write no grid."),
        click.option("--skip_save", is_flag=True, help="Write no samples, only the grid."),
        click.option("--ddim_steps", "num_inference_steps", type=int, default=50, help="Steps of the sampler."),
        click.option("--plms", is_flag=True, help="PLMS instead of DDIM."),
        click.option("--dpm_solver", is_flag=True, help="DPM-Solver++ 2M instead of DDIM."),
        click.option("--fixed_code", is_flag=True, help="Start every iteration and every prompt from the same noise."),
        click.option("--ddim_eta", "eta", type=float, default=0.0, help="Fresh noise of DDIM, 0 to 1."),
        click.option("--n_samples", type=int, default=n_samples, help="Pictures of each prompt in an iteration."),
        click.option("--n_iter", type=int, default=n_iter, help="How often that is repeated, with other seeds."),
        click.option(
            "--n_rows",
            type=int,
            default=0,
            show_default="--n_samples",
            help="Pictures in a row of the grid.",
        ),
        click.option(
            "--scale", "guidance_scale", type=float, default=scale, help="How closely to follow the prompt; 1 is off."
        ),
        click.option("--seed", type=int, default=42, help="Of the first picture; picture k of all has seed + k."),
        click.option(
            "--precision",
            type=click.Choice([*ARITHMETIC, *PRECISIONS, AUTO]),
            default="autocast",
            help="Of the arithmetic: full is float32, autocast what the weights and the processor make best.  Or a "
            "variant of the model: see ovenbird generate.",
        ),
        click.option("--C", "channels", type=int, default=CHANNELS, help=f"Always {CHANNELS}.", show_default=False),
        click.option("--f", "factor", type=int, default=FACTOR, help=f"Always {FACTOR}.", show_default=False),
        click.option("--config", type=PATH, hidden=True),
        click.option("--laion400m", is_flag=True, hidden=True),
    )
    return (*own, *WORDS, *LOADING, *RUNTIME)


def run(typed: Typed) -> None:
    """Draw what was typed.  Raises ``RequestError`` at the end for lines of a file that gave no pictures."""
    timings = timings_since_start()
    typed = {**typed, **_in_our_words(typed)}
    total = typed["n_samples"] * typed["n_iter"]
    wish = request_of(typed, num_images_per_prompt=total)  # what is wrong but for a prompt of a file stops here
    folder = Folder(typed["outdir"])
    lines: Iterator[Line] = prompts(typed["from_file"]) if typed["from_file"] else iter([(0, typed["prompt"])])
    typed["model"] = exported(typed["ckpt"], typed) if typed["ckpt"] else typed["model"] or EMBEDDED
    pipeline = pipeline_of(typed, timings)
    wish = wish.settled(pipeline.bundle.default_size)
    announce(pipeline, wish, typed)
    _say_size(wish, typed)
    if not typed["skip_grid"]:
        assert wish.width and wish.height
        check_grid((wish.width, wish.height), total, _columns(typed))
    folder.make()
    failures, place = Failures(), -1
    with hearing() as heard:
        for place, (number, prompt) in enumerate(lines):
            try:
                _draw(pipeline, list(_iterations(wish, prompt, place, typed)), folder, typed)
            except (RequestError, NumericError) as error:
                if not typed["from_file"]:
                    raise
                failures.add(number, error)
    tell(pipeline, typed, heard)
    if typed["from_file"]:
        failures.check(typed["from_file"], place + 1)


def _in_our_words(typed: Typed) -> dict[str, Any]:
    """Options of ``generate`` for those of the scripts.  Raises ``RequestError`` for what cannot be honoured."""
    _refuse(typed)
    for name in ("n_samples", "n_iter"):
        check_count(name, typed[name])
    variant = typed["precision"] not in ARITHMETIC
    return {
        "scheduler": "pndm" if typed["plms"] else "dpmpp_2m" if typed["dpm_solver"] else "ddim",
        "precision": typed["precision"] if variant else None,
        "inference_precision": None if variant else ARITHMETIC[typed["precision"]],
        "prompt": "" if typed["from_file"] else typed["prompt"],
        "overwrite": False,
        **dict.fromkeys(BETAS),
    }


def _refuse(typed: Typed) -> None:
    wrong = {
        "laion400m": (typed["laion400m"], "that model is older than Stable Diffusion", "take another with --ckpt"),
        "config": (
            typed["config"],
            "settings of training are not read",
            "leave it out; of a checkpoint that predicts v, lay it beside the file, with the same name and .yaml",
        ),
        "C": (typed["channels"] != CHANNELS, f"{typed['channels']} is not {CHANNELS}", "leave it out"),
        "f": (typed["factor"] != FACTOR, f"{typed['factor']} is not {FACTOR}", "leave it out"),
        "plms": (typed["plms"] and typed["dpm_solver"], "--dpm_solver is another sampler", "leave one out"),
        "ckpt": (typed["ckpt"] and typed["model"], "--model is another one", "leave one out"),
        "skip_save": (
            typed["skip_save"] and typed["skip_grid"],
            "--skip_grid leaves nothing to write",
            "leave one out",
        ),
    }
    for name, (found, problem, hint) in wrong.items():
        if found:
            raise RequestError(f"{name}: {problem}", hint=hint)


def _iterations(wish: Request, prompt: str | RequestError, place: int, typed: Typed) -> Iterator[Request]:
    """The requests for the prompt at that place.  Raises ``RequestError``."""
    if isinstance(prompt, RequestError):
        raise prompt
    assert wish.seed is not None
    if typed["fixed_code"]:
        for _ in range(typed["n_iter"]):
            yield replace(wish, prompt=prompt, num_images_per_prompt=typed["n_samples"])
    else:
        seed = (wish.seed + place * wish.num_images_per_prompt) % (MAX_SEED + 1)
        yield replace(wish, prompt=prompt, seed=seed)


def _draw(pipeline: Pipeline, requests: Sequence[Request], folder: Folder, typed: Typed) -> None:
    total = sum(request.num_images_per_prompt for request in requests)
    paths: Sequence[Path | None] = [None] * total if typed["skip_save"] else folder.samples(total)
    pictures = [picture.image for picture in drawn(pipeline, requests, paths, typed) if not typed["skip_grid"]]
    if pictures:
        path = folder.grid()
        save_picture(grid(pictures, _columns(typed)), path, None)
        click.echo(json.dumps({"grid": str(path)}) if typed["as_json"] else path)


def _columns(typed: Typed) -> int:
    return int(typed["n_rows"] if typed["n_rows"] > 0 else typed["n_samples"])


def _say_size(wish: Request, typed: Typed) -> None:
    """Where it is not what CompVis' script has, and nobody typed it."""
    left_open = wish.image is None and None in (typed["width"], typed["height"])
    if left_open and (wish.width, wish.height) != (USUAL_SIZE, USUAL_SIZE) and not typed["quiet"]:
        click.echo(f"size: {wish.width}x{wish.height}, after the model's own; --H and --W say otherwise", err=True)
