"""torch modules made from a ``Source``: one component at a time, its own weights or none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
import transformers

from ovenbird.errors import ModelError
from ovenbird_export.recipes import Arrays, Cases, Part
from ovenbird_export.source import Source

RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The VAE's attention in checkpoints from before diffusers 0.15 -> its names now."""
COMPUTED = ("text_model.embeddings.position_ids",)
"""Stored by old checkpoints, but always 0, 1, 2 ..."""


def read_module(source: Source, component: str) -> torch.nn.Module:
    """The component in float32, ready to be run.  Raises ``ModelError`` unless settings and weights fit exactly.

    ``from_pretrained`` stands in the way here: it looks for more files than the weights (adapters, shards, pickles),
    follows settings that fetch code, and fills what is missing with random numbers.
    """
    _, name = source.classes[component]
    try:
        with torch.device("meta"):
            module = BUILDERS[name](source, component)
    except ModelError:
        raise
    except Exception as error:  # the settings came from outside; anything may be wrong with them
        raise ModelError(f"{source.folder / component}: no {name} has these settings: {error}") from error
    _load(module, source.weights(component))
    return module.eval().requires_grad_(False)


def configuration(module: torch.nn.Module) -> dict[str, Any]:
    """The settings of a module with every default filled in."""
    config: Any = module.config
    return dict(config) if isinstance(module, diffusers.ModelMixin) else dict(config.to_dict())


def configuration_json(module: torch.nn.Module) -> str:
    """``config.json`` as the module's own library writes it."""
    config: Any = module if isinstance(module, diffusers.ModelMixin) else module.config
    return str(config.to_json_string())


def adapt(module: Any, part: Part) -> None:
    """Let ``module(**inputs)`` be the part: the VAE is two of them.

    As in optimum, but without its two more copies of the VAE.
    """
    if part.method == "decode":
        module.forward = lambda latent_sample: module.decode(z=latent_sample)
    elif part.method == "encode":
        # The mean and the logarithm of the variance, before anything is drawn from them.
        module.forward = lambda sample: {"latent_parameters": module.encode(sample).latent_dist.parameters}


@torch.no_grad()
def run(module: torch.nn.Module, names: Mapping[str, str], inputs: Sequence[Arrays]) -> Cases:
    """Each of ``inputs`` with the outputs under the names of the graph; ``names`` is torch's name -> the graph's."""
    cases: Cases = []
    for arrays in inputs:
        outputs = module(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        cases.append((arrays, {names.get(name, name): value.numpy() for name, value in outputs.items()}))
    return cases


def _diffusion(kind: Any) -> Callable[[Source, str], torch.nn.Module]:
    def build(source: Source, component: str) -> torch.nn.Module:
        known = list(inspect.signature(kind.__init__).parameters)[1:]
        module: torch.nn.Module = kind(**source.settings(component, known))
        return module

    return build


def _clip_text(source: Source, component: str) -> torch.nn.Module:
    known = set(inspect.signature(transformers.CLIPTextConfig.__init__).parameters) - {"self", "kwargs"}
    ignored = {*transformers.PretrainedConfig().to_dict(), "architectures", "torch_dtype", "dropout"}
    make: Any = transformers.CLIPTextConfig
    config = make(**source.settings(component, known, ignored))
    config.architectures = ["CLIPTextModel"]
    return transformers.CLIPTextModel(config)


BUILDERS: dict[str, Callable[[Source, str], torch.nn.Module]] = {
    "CLIPTextModel": _clip_text,
    "UNet2DConditionModel": _diffusion(diffusers.UNet2DConditionModel),
    "AutoencoderKL": _diffusion(diffusers.AutoencoderKL),
}


def _load(module: torch.nn.Module, path: Path) -> None:
    try:
        stored = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error
    weights = {_current(name): tensor.float() for name, tensor in stored.items() if name not in COMPUTED}
    try:
        module.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit its config.json: {error}") from error
    for name, buffer in module.named_buffers():
        if buffer.is_meta and name in COMPUTED:
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(buffer.shape[-1])[None], persistent=False)


def _current(name: str) -> str:
    return re.sub(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.", lambda m: f"{m[1]}{RENAMED[m[2]]}.", name)
