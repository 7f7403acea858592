"""torch modules made from a ``Source``: one component at a time, its own weights or none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import safetensors
import torch
import transformers
from diffusers.pipelines.stable_diffusion import safety_checker

from ovenbird.errors import ModelError
from ovenbird_export.components import read_autoencoder
from ovenbird_export.lora import merge_lora
from ovenbird_export.recipes import CLIP_SKIP, Arrays, Cases, Part
from ovenbird_export.source import Source

RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The VAE's attention in checkpoints from before diffusers 0.15 -> its names now."""
COMPUTED = "embeddings.position_ids"
"""Stored by old checkpoints, but always 0, 1, 2 ..."""
Weights = dict[str, torch.Tensor]


def read_module(source: Source, component: str) -> torch.nn.Module:
    """The component in float32 with what is merged into it, ready to be run.

    Raises ``ModelError`` unless settings and weights fit exactly.

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
    file = source.changes.file(component)
    tensors = _of_files(source.weights(component)) if file is None else _of_autoencoder(file, module)
    _load(module, tensors, source.weights(component)[0])
    for lora in source.changes.loras:
        merge_lora(module, component, lora)
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
    """Let ``module(**inputs)`` be the part, with the names of the graph's inputs.

    As in optimum, but without its two more copies of the VAE.
    """
    METHODS[part.method](module)


def _clip_skip(module: Any) -> None:
    # As StableDiffusionPipeline.encode_prompt has it: the norm behind the last layer, on the states of an earlier one.
    forward, norm = module.forward, module.text_model.final_layer_norm

    def encode(input_ids: Any) -> dict[str, Any]:
        found = forward(input_ids, output_hidden_states=True)
        states = found.hidden_states
        skipped = {f"{CLIP_SKIP}{skip}": norm(states[-skip - 1]) for skip in range(1, len(states) - 1)}
        return {"last_hidden_state": found.last_hidden_state, "pooler_output": found.pooler_output, **skipped}

    module.forward = encode


def _hidden_states(module: Any) -> None:
    for inner in module.modules():
        if hasattr(inner, "config"):
            inner.config.output_hidden_states = True


def _denoise(module: Any) -> None:
    forward = module.forward

    def denoise(
        sample: Any,
        timestep: Any,
        encoder_hidden_states: Any,
        timestep_cond: Any = None,
        text_embeds: Any = None,
        time_ids: Any = None,
    ) -> Any:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        return forward(sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond, added_cond_kwargs=added)

    module.forward = denoise


def _decode(module: Any) -> None:
    def decode(latent_sample: Any) -> Any:
        return module.decode(latent_sample)

    module.forward = decode


def _encode(module: Any) -> None:
    # The mean and the logarithm of the variance, before anything is drawn from them.
    module.forward = lambda sample: {"latent_parameters": module.encode(sample).latent_dist.parameters}


def _encode_tiny(module: Any) -> None:
    module.forward = lambda sample: {"latent_sample": module.encode(sample).latents}


def _check(module: Any) -> None:
    # As the checker's own forward, which blackens pictures in numpy and rounds to three decimals before it asks
    # whether a score is above zero.
    distance: Any = safety_checker.cosine_distance

    def check(clip_input: Any) -> Weights:
        picture = module.visual_projection(module.vision_model(clip_input)[1])
        special = distance(picture, module.special_care_embeds) - module.special_care_embeds_weights
        concepts = distance(picture, module.concept_embeds) - module.concept_embeds_weights
        stricter = 0.01 * (special > 0.0005).any(dim=1, keepdim=True)
        flagged = (concepts + stricter > 0.0005).any(dim=1)
        return {"has_nsfw_concepts": flagged, "concept_scores": concepts, "special_scores": special}

    module.forward = check


METHODS: dict[str, Callable[[Any], None]] = {
    "clip_skip": _clip_skip,
    "hidden_states": _hidden_states,
    "denoise": _denoise,
    "decode": _decode,
    "encode": _encode,
    "encode_tiny": _encode_tiny,
    "check": _check,
}


@torch.no_grad()
def run(module: torch.nn.Module, names: Mapping[str, str], inputs: Sequence[Arrays]) -> Cases:
    """Each of ``inputs`` with the outputs under the names of the graph; ``names`` is torch's name -> the graph's."""
    cases: Cases = []
    for arrays in inputs:
        outputs = module(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        cases.append((arrays, {names.get(name, name): value.numpy() for name, value in _flat(outputs)}))
    return cases


def _flat(outputs: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in outputs.items():
        if isinstance(value, tuple):
            yield from ((f"{name}.{place}", tensor) for place, tensor in enumerate(value))
        else:
            yield name, value


def _diffusion(kind: Any, *derived: str) -> Callable[[Source, str], torch.nn.Module]:
    def build(source: Source, component: str) -> torch.nn.Module:
        module: torch.nn.Module = kind(**source.settings(component, _known(kind), derived))
        return module

    return build


def _clip_text(kind: Any) -> Callable[[Source, str], torch.nn.Module]:
    def build(source: Source, component: str) -> torch.nn.Module:
        make: Any = transformers.CLIPTextConfig
        config = make(**source.settings(component, _known(make), _ignored()))
        config.architectures = [kind.__name__]
        module: torch.nn.Module = kind(config)
        return module

    return build


def _safety_checker(source: Source, component: str) -> torch.nn.Module:
    # What its text half would be does not matter: it has none.
    ignored = {*_ignored(), "text_config", "text_config_dict", "logit_scale_init_value", "initializer_factor"}
    settings = source.settings(component, ("vision_config", "vision_config_dict", "projection_dim"), ignored)
    vision = {**settings.pop("vision_config", {}), **(settings.pop("vision_config_dict", None) or {})}
    known = _known(transformers.CLIPVisionConfig)
    source.refuse_unknown(component, vision, [*known, *_ignored()])
    make: Any = transformers.CLIPConfig
    config = make(vision_config={key: value for key, value in vision.items() if key in known}, **settings)
    config.architectures = ["StableDiffusionSafetyChecker"]
    return safety_checker.StableDiffusionSafetyChecker(config)


def _known(config: Any) -> set[str]:
    return set(inspect.signature(config.__init__).parameters) - {"self", "kwargs"}


def _ignored() -> set[str]:
    return {
        *transformers.PretrainedConfig().to_dict(),
        "_attn_implementation_autoset",
        "architectures",
        "torch_dtype",
        "dropout",
    }


BUILDERS: dict[str, Callable[[Source, str], torch.nn.Module]] = {
    "CLIPTextModel": _clip_text(transformers.CLIPTextModel),
    "CLIPTextModelWithProjection": _clip_text(transformers.CLIPTextModelWithProjection),
    "UNet2DConditionModel": _diffusion(diffusers.UNet2DConditionModel),
    "AutoencoderKL": _diffusion(diffusers.AutoencoderKL),
    "AutoencoderTiny": _diffusion(diffusers.AutoencoderTiny, "block_out_channels"),
    "StableDiffusionSafetyChecker": _safety_checker,
}


def _load(module: torch.nn.Module, tensors: Iterable[tuple[str, torch.Tensor]], path: Path) -> None:
    weights = {}
    for name, tensor in tensors:
        # The least and the greatest show every NaN and infinity, and cost no memory.
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise ModelError(f"{path}: {name} holds numbers that are not finite", hint="the file may be damaged")
        weights[name] = tensor
    try:
        module.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit its config.json: {error}") from error
    for name, buffer in module.named_buffers():
        if buffer.is_meta and name.endswith(COMPUTED):
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(buffer.shape[-1])[None], persistent=False)


def _of_files(paths: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    # One at a time: a file in half precision is never whole in memory beside its float32 copy.
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if not name.endswith(COMPUTED)]  # noqa: SIM118
                yield from ((_current(name), file.get_tensor(name).float()) for name in names)
        except safetensors.SafetensorError as error:
            raise ModelError(f"{path} is not a safetensors file: {error}") from error


def _of_autoencoder(file: Path, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    # Copied, for they lie in the pages of the file, which nobody may write to.
    weights = read_autoencoder(file, configuration(module))
    yield from ((_current(name), tensor.to(torch.float32, copy=True)) for name, tensor in weights.items())


def _current(name: str) -> str:
    return re.sub(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.", lambda m: f"{m[1]}{RENAMED[m[2]]}.", name)
