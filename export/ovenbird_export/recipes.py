"""Families of models as data: what a source folder may hold, what comes out of it, and how it is tried.

A family is one ``Recipe``; the code that converts does not know which one it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird.errors import RequestError

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

SMALLEST_SIDE, LARGEST_SIDE, LARGEST_BATCH = 64, 8192, 64


@dataclass(frozen=True)
class Shapes:
    """What is fixed in the graphs: pictures per call, and their sides in pixels; None leaves it free.

    Raises ``RequestError`` for what no model can have.
    """

    batch: int | None = None
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and not 1 <= self.batch <= LARGEST_BATCH:
            raise RequestError(f"batch: {self.batch} is not in 1..{LARGEST_BATCH}")
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and (side % 8 or not SMALLEST_SIDE <= side <= LARGEST_SIDE):
                near = min(max(round(side / 8) * 8, SMALLEST_SIDE), LARGEST_SIDE)
                raise RequestError(
                    f"{name}: {side} is not a multiple of 8 in {SMALLEST_SIDE}..{LARGEST_SIDE}", hint=f"try {near}"
                )

    @property
    def axes(self) -> tuple[str, ...]:
        """Words in the graphs' names of the axes that are fixed.  With the batch goes the length of the text."""
        return tuple(
            word
            for word, size in (
                ("batch", self.batch),
                ("sequence", self.batch),
                ("height", self.height),
                ("width", self.width),
            )
            if size is not None
        )

    def fit(self, probe: Probe, rows: int, factor: int, tokens: int) -> Probe:
        """``probe`` with what is fixed, for a part that takes ``rows`` rows for a picture.

        ``factor`` is pixels per latent cell, ``tokens`` the text's full length.  Raises ``RequestError``.
        """
        for side in (self.height, self.width):
            if side is not None and side % factor:
                raise RequestError(f"shapes: {side} is not a multiple of {factor}, as this model's autoencoder needs")
        return replace(
            probe,
            batch=self.batch * rows if self.batch else probe.batch,
            tokens=tokens if self.batch else probe.tokens,
            height=self.height // factor if self.height else probe.height,
            width=self.width // factor if self.width else probe.width,
        )


FREE = Shapes()
"""Every batch, and every size that the autoencoder can give."""


@dataclass(frozen=True)
class Part:
    """One exported component."""

    name: str
    origin: str
    """The entry in ``model_index.json``, and the folder, that it comes from."""
    kind: str
    """The class of ``origin`` that it is a part of; with another class it does not exist."""
    onnx_config: str
    """The class that names its inputs, outputs and free axes, one of optimum's or of ``graphs``."""
    method: str
    """How the module is called: a row of ``modules.METHODS``."""
    inputs: Callable[[Config, Probe], Arrays]
    gate: float
    """The largest absolute difference from torch with which it is published."""

    def rows(self, config: Config) -> int:
        """How many rows of its batch one picture takes: two where guidance asks for both halves in one call."""
        return 2 if self.origin == "unet" and config.get("time_cond_proj_dim") is None else 1


@dataclass(frozen=True)
class Recipe:
    """One family, as one of the pipelines of diffusers."""

    family: str
    pipeline: str
    classes: Mapping[str, tuple[str, ...]]
    """Entry of ``model_index.json`` -> the classes it may name, as ``library.Class``."""
    optional: Mapping[str, tuple[str, ...]]
    """Entries that are exported when they are there."""
    left_out: Mapping[str, tuple[str, ...]]
    """Entries that may be there but are not exported."""
    flags: Mapping[str, tuple[bool | None, ...]]
    """Other keys of ``model_index.json`` that are kept -> the values they may have."""
    fixed: Mapping[str, Mapping[str, tuple[Any, ...]]]
    """Component -> setting -> the values it may have (None: absent).

    Other values would need inputs that this family does not have."""
    tokenizers: Mapping[str, str]
    """Tokenizer -> the text encoder that must have a row for each of its tokens."""
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


TIME_IDS = 6
"""SDXL is told three pairs: the original size, where it was cropped, and the size asked for."""


def unet_inputs(config: Config, probe: Probe) -> Arrays:
    """A timestep, and latents, a text and whatever else the settings ask for, all standard normal."""
    draw = np.random.default_rng(probe.seed).standard_normal
    inputs: Arrays = {
        "sample": draw((probe.batch, config["in_channels"], probe.height, probe.width), np.float32),
        "timestep": np.array(probe.timestep, np.float32),
        "encoder_hidden_states": draw((probe.batch, probe.tokens, config["cross_attention_dim"]), np.float32),
    }
    if config.get("time_cond_proj_dim") is not None:
        inputs["timestep_cond"] = draw((probe.batch, config["time_cond_proj_dim"]), np.float32)
    if config.get("addition_embed_type") == "text_time":
        text = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
        inputs["text_embeds"] = draw((probe.batch, text), np.float32)
        height, width = 8.0 * probe.height, 8.0 * probe.width
        inputs["time_ids"] = np.tile(np.array([height, width, 0, 0, height, width], np.float32), (probe.batch, 1))
    return inputs


def decoder_inputs(config: Config, probe: Probe) -> Arrays:
    """Standard normal latents."""
    shape = (probe.batch, config["latent_channels"], probe.height, probe.width)
    return {"latent_sample": np.random.default_rng(probe.seed).standard_normal(shape, np.float32)}


def encoder_inputs(config: Config, probe: Probe) -> Arrays:
    """Pictures of noise in [-1, 1]."""
    factor = vae_factor(config)
    shape = (probe.batch, config["in_channels"], probe.height * factor, probe.width * factor)
    return {"sample": np.random.default_rng(probe.seed).uniform(-1, 1, shape).astype(np.float32)}


def checker_inputs(config: Config, probe: Probe) -> Arrays:
    """Pictures of noise as the image processor leaves them: normalised, of the side that the encoder looks at."""
    vision = config["vision_config"]
    shape = (probe.batch, vision["num_channels"], vision["image_size"], vision["image_size"])
    return {"clip_input": np.random.default_rng(probe.seed).standard_normal(shape, np.float32)}


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

AUTOENCODERS = ("diffusers.AutoencoderKL", "diffusers.AutoencoderTiny")
TOKENIZERS = ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast")
CHECKER = {
    "safety_checker": ("stable_diffusion.StableDiffusionSafetyChecker",),
    "feature_extractor": ("transformers.CLIPImageProcessor", "transformers.CLIPFeatureExtractor"),
}
TINY = {"tiny_vae": ("diffusers.AutoencoderTiny",)}
"""Beside the full autoencoder, which encodes; diffusers has no word for it, so it is ours."""
IMAGE_ENCODER = {"image_encoder": ("transformers.CLIPVisionModelWithProjection",)}
NO_OTHER_INPUT: dict[str, tuple[Any, ...]] = {
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "num_class_embeds": (None,),
}
AUTOENCODER: dict[str, tuple[Any, ...]] = {
    "latent_channels": (None, 4),
    "latents_mean": (None,),
    "latents_std": (None,),
    "upsampling_scaling_factor": (None, 2),
}

CLIP_SKIP = "clip_skip."
"""What the text encoder's outputs without its last layers are called, before how many are left out."""

UNET = Part("unet", "unet", "UNet2DConditionModel", "UNetOnnxConfig", "denoise", unet_inputs, 1e-4)
VAE = (
    Part("vae_decoder", "vae", "AutoencoderKL", "VaeDecoderOnnxConfig", "decode", decoder_inputs, 3e-4),
    Part("vae_encoder", "vae", "AutoencoderKL", "VaeEncoderOnnxConfig", "encode", encoder_inputs, 3e-4),
    Part("vae_decoder", "vae", "AutoencoderTiny", "TinyDecoder", "decode", decoder_inputs, 3e-4),
    Part("vae_encoder", "vae", "AutoencoderTiny", "TinyEncoder", "encode_tiny", encoder_inputs, 3e-4),
    Part("tiny_vae_decoder", "tiny_vae", "AutoencoderTiny", "TinyDecoder", "decode", decoder_inputs, 3e-4),
)

SD = Recipe(
    family="sd",
    pipeline="StableDiffusionPipeline",
    classes={
        "text_encoder": ("transformers.CLIPTextModel",),
        "tokenizer": TOKENIZERS,
        "unet": ("diffusers.UNet2DConditionModel",),
        "vae": AUTOENCODERS,
        "scheduler": SCHEDULERS,
    },
    optional={**CHECKER, **TINY},
    left_out=IMAGE_ENCODER,
    flags={"requires_safety_checker": (True, False)},
    fixed={
        "unet": {**NO_OTHER_INPUT, "addition_embed_type": (None,), "in_channels": (None, 4), "out_channels": (None, 4)},
        "vae": AUTOENCODER,
        "tiny_vae": AUTOENCODER,
    },
    tokenizers={"tokenizer": "text_encoder"},
    parts=(
        Part("text_encoder", "text_encoder", "CLIPTextModel", "TextWithSkips", "clip_skip", text_inputs, 1e-4),
        UNET,
        *VAE,
        Part(
            "safety_checker",
            "safety_checker",
            "StableDiffusionSafetyChecker",
            "SafetyChecker",
            "check",
            checker_inputs,
            1e-4,
        ),
    ),
)

SDXL = Recipe(
    family="sdxl",
    pipeline="StableDiffusionXLPipeline",
    classes={
        **SD.classes,
        "text_encoder_2": ("transformers.CLIPTextModelWithProjection",),
        "tokenizer_2": TOKENIZERS,
    },
    optional=TINY,
    left_out={**IMAGE_ENCODER, "feature_extractor": CHECKER["feature_extractor"]},
    flags={"force_zeros_for_empty_prompt": (True, False), "add_watermarker": (None, True, False)},
    fixed={**SD.fixed, "unet": {**SD.fixed["unet"], "addition_embed_type": ("text_time",)}},
    tokenizers={"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"},
    parts=(
        # Their hidden states, which have no norm behind them, reach tens: 1e-4 would be their last bit or two.
        Part("text_encoder", "text_encoder", "CLIPTextModel", "CLIPTextOnnxConfig", "hidden_states", text_inputs, 1e-3),
        Part(
            "text_encoder_2",
            "text_encoder_2",
            "CLIPTextModelWithProjection",
            "TextWithProjection",
            "hidden_states",
            text_inputs,
            1e-3,
        ),
        UNET,
        *VAE,
    ),
)


def _inpainting(recipe: Recipe, pipeline: str, **flags: tuple[bool | None, ...]) -> Recipe:
    # A U-Net that also sees mask and picture, or one that does not and gets them between the steps.
    unet = {**recipe.fixed["unet"], "in_channels": (None, 4, 9)}
    return replace(recipe, pipeline=pipeline, flags={**recipe.flags, **flags}, fixed={**recipe.fixed, "unet": unet})


RECIPES = {
    recipe.pipeline: recipe
    for recipe in (
        SD,
        replace(SD, pipeline="LatentConsistencyModelPipeline"),
        _inpainting(SD, "StableDiffusionInpaintPipeline"),
        SDXL,
        _inpainting(SDXL, "StableDiffusionXLInpaintPipeline", requires_aesthetics_score=(False,)),
    )
}
