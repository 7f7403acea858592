"""``--params-from``: an earlier picture's settings in place of what is not typed, and whether it can be the same."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ovenbird import images, machine
from ovenbird.backends import EXACT
from ovenbird.bundle import PRECISIONS, known
from ovenbird.commands.options import BETAS, Typed
from ovenbird.errors import RequestError
from ovenbird.pipeline import Pipeline
from ovenbird.recall import WEB_UI, Recalled
from ovenbird.request import Request

ASIDE = ("image", "mask_image", "num_images_per_prompt", "prompt")
"""Fields of a request that are not options of the same name."""
OF_PRESET = ("pool_attention", "reuse_every", "reuse_depth", "guidance_interval", "decoder", "precision")
"""Options that ``--preset`` stands for; a preset that is typed goes before the picture's."""
FILES = {
    "image": ("init_image", "another picture"),
    "mask_image": ("mask", "a mask"),
    "tokenizer": ("tokenizer", "a tokenizer that is not the model's"),
    "embeddings": ("embedding", "learned words"),
}
"""Setting, a hash of something -> the option that must give it again, and what it is."""


def recalled(typed: Typed, picture: Recalled) -> Typed:
    """What was typed, and in place of the rest what the picture says.

    Raises ``RequestError`` for a file, or a model, that must be given again.
    """
    source = click.get_current_context().get_parameter_source
    chosen = {name for name in typed if source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)}
    for setting, (option, what) in FILES.items():
        if picture.settings.get(setting) not in (None, []) and not typed[option]:
            raise RequestError(
                f"params-from: {picture.path} was made with {what}, to be given again",
                hint=f"--{option.replace('_', '-')} FILE{_named(picture.settings[setting])}",
            )
    if "preset" in chosen:
        chosen |= {*OF_PRESET, "exact"}
    if "model" not in chosen:
        typed = {**typed, "model": _model(picture)}
    return {**typed, **{name: value for name, value in _options(picture).items() if name not in chosen}}


def _options(picture: Recalled) -> dict[str, Any]:
    """The settings as ``generate`` has options for them."""
    told = picture.settings
    same = {field.name for field in fields(Request)} - {*ASIDE} | {*OF_PRESET, "device", "vae_tile", "batch_size"}
    found = {name: told[name] for name in same if name in told} | {"prompt": (told["prompt"],)}
    if not found.get("variation_strength"):
        found.pop("variation_seed", None)  # as of the first of several frames, which is not on its way yet
    config = told.get("scheduler_config", {})
    found |= {name: value for name, value in config.items() if name in BETAS}
    found["scheduler_config"] = {name: value for name, value in config.items() if name not in BETAS}
    if told.get("weights") in PRECISIONS:
        found["precision"] = told["weights"]
    if "backend" in told:
        found["backend"] = told["backend"].partition(" ")[0]
    if "safety_checker" in told:
        found["no_safety_checker"] = told["safety_checker"] == "off"
    if "exact" in told:
        found["exact"] = tuple(name for name in EXACT if name in told["exact"]) or ("none",)
    if told.get("device") == "cpu" and told.get("threads", 0) in range(1, machine.usable_cores()):
        found["threads"] = told["threads"]
    return found


def _named(value: object) -> str:
    """The names of embeddings' files, which are no paths."""
    files = [str(each.get("file")) for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
    return f", of the file {', '.join(files):.200}" if files else ""


def _model(picture: Recalled) -> str | Path:
    """Where the model is that the picture names, if it is one that has a name here."""
    name, key = picture.settings.get("model"), picture.settings.get("model_key")
    found = known(name, key)
    if found is None:
        what = f"was made with {name!a:.60}, which is not among the models here" if name else "does not name its model"
        raise RequestError(
            f"model: {picture.path} {what}",
            hint="say where it is: --model FOLDER, or OWNER/NAME",
        )
    return found


def check_files(request: Request, picture: Recalled) -> None:
    """Warn of a picture or a mask that is not the one that was used."""
    for name in ("image", "mask_image"):
        before, given = picture.settings.get(name), getattr(request, name)
        if before and given is not None and images.digest(given) != before:
            option = FILES[name][0].replace("_", "-")
            _differ(picture, f"with another --{option}: its pixels differ")


def as_read(pipeline: Pipeline, request: Request, picture: Recalled) -> Request:
    """The request without the web UI's clip skip if the model is an SDXL, for which the web UI leaves it out, too."""
    if picture.by == WEB_UI and pipeline.bundle.family == "sdxl" and request.clip_skip:
        warnings.warn("clip_skip: the web UI has none with SDXL, so it is left out", stacklevel=2)
        return replace(request, clip_skip=0)
    return request


def compare(pipeline: Pipeline, picture: Recalled) -> None:
    """Warn of what was opened and is not what the picture was made with, naming both."""
    told, bundle = picture.settings, pipeline.bundle
    before, now = (told.get("model"), told.get("model_key")), (bundle.name, bundle.key)
    if before != now and any(before):
        names = (f"{name}{f' ({key:.12})' if key else ''}" for name, key in (before, now))
        _differ(picture, "with {}, and this is {}".format(*names))
    words = {(each["word"], each["sha256"]) for each in pipeline.embeddings.facts()}
    if {(each.get("word"), each.get("sha256")) for each in told.get("embeddings", [])} != words:
        _differ(picture, "with other learned words than these")
    if told.get("tokenizer") != bundle.words_digest:
        _differ(picture, "with another --tokenizer")
    runtime = {
        "backend": f"{pipeline.backend.name} {pipeline.backend.version}",
        "threads": pipeline.backend.threads,
        "inference_precision": pipeline.precision,
    }
    for name, value in runtime.items():
        if told.get(name, value) != value:
            _differ(picture, f"with {name} {told[name]}, and this is {value}: it may round otherwise")


def _differ(picture: Recalled, how: str) -> None:
    warnings.warn(f"{picture.path} was made by {picture.by} {how}", stacklevel=3)
