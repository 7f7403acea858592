"""Families of models as data: what a source folder may hold, what comes out of it, and how it is tried.

A family is one ``Recipe``; the code that converts does not know which one it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Cases = list[tuple[Arrays, Arrays]]  # inputs, and what torch makes of them
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Probe:
    """Sizes at which a graph is traced or tried, and the seed of what it is given."""

    seed: int
    batch: int
    height: int  # latent cells
    width: int
    tokens: int
    timestep: float


TRACE = Probe(seed=0, batch=2, height=9, width=15, tokens=24, timestep=500.0)
"""Odd sides on purpose: diffusers looks at the sides while it is traced.  If they divide evenly it freezes "twice as
large" into the upsamplers, and the graph fails wherever they do not; if they do not, it matches the skip connection's
size, which is right everywhere."""

CHECKS = (
    Probe(seed=1, batch=2, height=16, width=16, tokens=77, timestep=981.0),
    Probe(seed=2, batch=1, height=11, width=13, tokens=40, timestep=1.0),
)
"""One size that divides evenly, one that divides by nothing; neither is the traced one."""


@dataclass(frozen=True)
class Part:
    """One exported component."""

    name: str
    origin: str
    """The entry in ``model_index.json``, and the folder, that it comes from."""
    onnx_config: str
    """The class in ``optimum.exporters.onnx.model_configs`` that names its inputs, outputs and free axes."""
    method: str
    """How the module is called; anything but ``forward`` stands in for it."""
    inputs: Callable[[Config, Probe], Arrays]
    gate: float
    """The largest absolute difference from torch with which it is published."""


@dataclass(frozen=True)
class Recipe:
    """One family."""

    family: str
    pipeline: str
    classes: Mapping[str, tuple[str, ...]]
    """Entry of ``model_index.json`` -> the classes it may name, as ``library.Class``."""
    left_out: Mapping[str, tuple[str, ...]]
    """Entries that may be there but are not exported."""
    unset: Mapping[str, tuple[str, ...]]
    """Component -> settings that would need more inputs than this family has, so must be absent."""
    parts: tuple[Part, ...]


def vae_factor(config: Config) -> int:
    """Pixels per latent cell along one side."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def text_inputs(config: Config, probe: Probe) -> Arrays:
    """Random tokens between a first and a run of last ones, (N, L) int64."""
    length = min(probe.tokens, config["max_position_embeddings"])
    end = config["eos_token_id"]
    # CLIP's early configs say 2 and mean the highest id; transformers treats 2 that way.
    end = config["vocab_size"] - 1 if end == 2 else end
    ids = np.random.default_rng(probe.seed).integers(0, config["vocab_size"] - 1, (probe.batch, length))
    ids[ids == end] = 0
    ids[:, length // 2 :] = end
    return {"input_ids": ids.astype(np.int64)}


def unet_inputs(config: Config, probe: Probe) -> Arrays:
    """Latents, a timestep and a text that are all standard normal."""
    draw = np.random.default_rng(probe.seed).standard_normal
    return {
        "sample": draw((probe.batch, config["in_channels"], probe.height, probe.width), np.float32),
        "timestep": np.array(probe.timestep, np.float32),
        "encoder_hidden_states": draw((probe.batch, probe.tokens, config["cross_attention_dim"]), np.float32),
    }


def decoder_inputs(config: Config, probe: Probe) -> Arrays:
    """Standard normal latents."""
    shape = (probe.batch, config["latent_channels"], probe.height, probe.width)
    return {"latent_sample": np.random.default_rng(probe.seed).standard_normal(shape, np.float32)}


def encoder_inputs(config: Config, probe: Probe) -> Arrays:
    """Pictures of noise in [-1, 1]."""
    factor = vae_factor(config)
    shape = (probe.batch, config["in_channels"], probe.height * factor, probe.width * factor)
    return {"sample": np.random.default_rng(probe.seed).uniform(-1, 1, shape).astype(np.float32)}


SCHEDULERS = tuple(
    f"diffusers.{name}Scheduler"
    for name in (
        "DDIM",
        "DDPM",
        "PNDM",
        "LMSDiscrete",
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "HeunDiscrete",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "DPMSolverSDE",
        "KDPM2Discrete",
        "KDPM2AncestralDiscrete",
        "DEISMultistep",
        "UniPCMultistep",
        "LCM",
        "TCD",
    )
)

SD = Recipe(
    family="sd",
    pipeline="StableDiffusionPipeline",
    classes={
        "text_encoder": ("transformers.CLIPTextModel",),
        "tokenizer": ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast"),
        "unet": ("diffusers.UNet2DConditionModel",),
        "vae": ("diffusers.AutoencoderKL",),
        "scheduler": SCHEDULERS,
    },
    left_out={
        "safety_checker": ("stable_diffusion.StableDiffusionSafetyChecker",),
        "feature_extractor": ("transformers.CLIPImageProcessor", "transformers.CLIPFeatureExtractor"),
        "image_encoder": ("transformers.CLIPVisionModelWithProjection",),
    },
    unset={
        "unet": (
            "addition_embed_type",
            "class_embed_type",
            "encoder_hid_dim_type",
            "num_class_embeds",
            "time_cond_proj_dim",
        )
    },
    parts=(
        Part("text_encoder", "text_encoder", "CLIPTextOnnxConfig", "forward", text_inputs, 1e-4),
        Part("unet", "unet", "UNetOnnxConfig", "forward", unet_inputs, 1e-4),
        Part("vae_decoder", "vae", "VaeDecoderOnnxConfig", "decode", decoder_inputs, 3e-4),
        Part("vae_encoder", "vae", "VaeEncoderOnnxConfig", "encode", encoder_inputs, 3e-4),
    ),
)

RECIPES = {recipe.pipeline: recipe for recipe in (SD,)}
