"""Components out of a file in the original layout: weights under diffusers' names, and settings that fit them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import safetensors.torch
import torch
import transformers
from diffusers.loaders import single_file_utils

from ovenbird.errors import ModelError
from ovenbird_export import layouts, shapes
from ovenbird_export.layouts import UNET, VAE, Family, Text
from ovenbird_export.pickled import open_file
from ovenbird_export.publish import write_json
from ovenbird_export.weights import LazyTensor

CONVERSIONS: Any = single_file_utils  # has no types
FLOATS = ("float64", "float32", "float16", "bfloat16")
ORIGINAL = ("encoder.down.", "decoder.up.")
"""How names begin in an autoencoder's file that diffusers did not write."""
SHORT = re.compile(r"^(?=(embeddings|encoder|final_layer_norm)\.)")
"""Where some files leave ``text_model.`` out."""

Lazy = Mapping[str, LazyTensor]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Component:
    """A part of a diffusers folder."""

    name: str
    config: shapes.Config
    weights: Tensors


def components(file: Path, tensors: Lazy, family: Family, size: int, ids: Mapping[str, int]) -> Iterator[Component]:
    """Text encoders, U-Net and VAE, each read when it is asked for and checked against diffusers' own module.

    ``size`` is the side in latent cells that the U-Net was trained at, ``ids`` the numbers of the tokens that begin and
    end a text.  Raises ``ModelError`` unless every weight has its place and every place its weight.
    """
    pooled = 0
    for encoder in family.texts:
        part = part_of(file, tensors, encoder.prefix)
        with _as_known(file, encoder.folder):
            weights = _text_weights(encoder, _read(part))
            config = shapes.text(encoder, weights, ids)
        pooled = config["projection_dim"]
        yield _checked(file, part, Component(encoder.folder, config, weights))
    part = part_of(file, tensors, UNET)
    with _as_known(file, "unet"):
        config = shapes.unet(family, part, size) | (shapes.addition(part, pooled) if len(family.texts) > 1 else {})
        weights = CONVERSIONS.convert_ldm_unet_checkpoint(_read(part, UNET), config)
    yield _checked(file, part, Component("unet", config, weights))
    part = part_of(file, tensors, VAE)
    with _as_known(file, "vae"):
        config = shapes.vae(part, family.scaling_factor)
        weights = CONVERSIONS.convert_ldm_vae_checkpoint(_read(part), config)
    yield _checked(file, part, Component("vae", config, weights))


def read_autoencoder(file: Path, config: shapes.Config) -> Tensors:
    """Weights under diffusers' names from a .safetensors or .ckpt file with an autoencoder, in either layout.

    ``config`` are the settings of the module that they are for; whether its shapes fit is for the caller to see.
    Raises ``ModelError`` for another file, and for weights that would be lost.
    """
    part = part_of(file, layouts.autoencoder(file, open_file(file).tensors), "")
    weights = _read(part)
    if any(name.startswith(ORIGINAL) for name in part):
        with _as_known(file, "vae"):
            weights = CONVERSIONS.convert_ldm_vae_checkpoint(weights, config)
        _all_kept(file, part, "vae", weights)
    return weights


def part_of(file: Path, tensors: Lazy, prefix: str) -> dict[str, LazyTensor]:
    """What lies under a prefix, without it and without what is unused.  Raises ``ModelError`` for whole numbers."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix) and layouts.unused_label(name) is None:
            if tensor.dtype not in FLOATS:
                raise ModelError(f"{file}: {name} is {tensor.dtype}; weights may be {', '.join(FLOATS)}")
            found[name.removeprefix(prefix)] = tensor
    return found


def write_component(folder: Path, component: Component) -> None:
    """``config.json`` and the weights, under the names that diffusers and transformers look for."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", component.config)
    name = "model" if "architectures" in component.config else "diffusion_pytorch_model"
    safetensors.torch.save_file(_apart(component.weights), folder / f"{name}.safetensors", metadata={"format": "pt"})


def _read(part: Lazy, prefix: str = "") -> Tensors:
    return {f"{prefix}{name}": tensor.read() for name, tensor in part.items()}


def _text_weights(encoder: Text, weights: Tensors) -> Tensors:
    if not encoder.open_clip:
        return {SHORT.sub("text_model.", name): tensor for name, tensor in weights.items()}
    hidden = weights["token_embedding.weight"].shape[1]
    module = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden))
    converted: Tensors = CONVERSIONS.convert_open_clip_checkpoint(module, weights, prefix="")
    return converted


@contextmanager
def _as_known(file: Path, part: str) -> Iterator[None]:
    # The weights came from outside; where they are not as expected, the functions of diffusers stumble in many ways.
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"{file}: its {part} is not built as any that is known: {error!r:.200}") from error


def _checked(file: Path, part: Lazy, component: Component) -> Component:
    """The component, if its weights are exactly those of the module, and all that the file has."""
    with _as_known(file, component.name):
        expected = {name: tuple(tensor.shape) for name, tensor in _empty(component.config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in component.weights.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise ModelError(
                f"{file}: its {component.name} does not fit together: {name} has the shape {found.get(name)},"
                f" not {expected.get(name)}"
            )
    _all_kept(file, part, component.name, component.weights)
    return component


def _all_kept(file: Path, part: Lazy, name: str, weights: Tensors) -> None:
    given, kept = (sum(map(_numbers, tensors.values())) for tensors in (part, weights))
    if given != kept:
        raise ModelError(f"{file}: {given - kept} numbers of its {name} have no place in any that is known")


def _empty(config: shapes.Config) -> torch.nn.Module:
    """The module with these settings, without weights."""
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        if "architectures" in config:
            kind = getattr(transformers, config["architectures"][0])
            module: torch.nn.Module = kind(kind.config_class(**settings))
        else:
            module = getattr(diffusers, config["_class_name"])(**settings)
    return module


def _numbers(tensor: Any) -> int:
    return int(torch.Size(tensor.shape).numel())


def _apart(weights: Tensors) -> Tensors:
    """Each tensor in one piece and in memory of its own, as safetensors wants it; nearly all are so already."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in weights.items():
        whole = tensor.contiguous()
        apart[name] = whole.clone() if whole.data_ptr() in seen else whole
        seen.add(whole.data_ptr())
    return apart
