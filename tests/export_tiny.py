"""Diffusers folders of the smallest models that have every kind of block, with seeded random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

MERGES = ("h o", "ho u", "hou s", "hous e</w>", "r e", "re d</w>", "a t</w>", "c at</w>")
CARD = "---\nlicense: apache-2.0\ntags: [tiny]\n---\n# tiny\n"


def byte_letters() -> list[str]:
    """The letter that GPT-2's byte-pair encoding writes for each byte: printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}
    return [letters[byte] for byte in [*printable, *rest]]


def write_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> int:
    """A byte-level CLIP tokenizer with a few merges; how many tokens it has."""
    letters = byte_letters()
    joined = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    special["pad_token"] = pad
    settings = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "name_or_path": "/somewhere/else"}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(tokens)


TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
}
VAE: dict[str, Any] = {
    "layers_per_block": 1,
    "block_out_channels": (8, 8, 16, 16),
    "norm_num_groups": 4,
    "sample_size": 64,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
SMALL_VAE: dict[str, Any] = {
    **VAE,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
"""Two pixels to a cell and not eight: quick, where what it decodes does not matter."""
TINY_VAE: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (1, 1, 1, 1),
}
VISION: dict[str, Any] = {**TEXT, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8}
TRAINED: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PNDM: dict[str, Any] = {**TRAINED, "skip_prk_steps": True, "steps_offset": 1}
"""As Stable Diffusion; with diffusers' defaults latents grow by hundreds, too much for one range in eight bits."""
DDIM: dict[str, Any] = {**TRAINED, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
EULER: dict[str, Any] = {**TRAINED, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Tiny:
    """A source: its pipeline, and for each component its class and the settings that matter."""

    pipeline: str
    components: Mapping[str, tuple[str, Mapping[str, Any]]]
    pads: Mapping[str, str] = field(default_factory=lambda: {"tokenizer": "<|endoftext|>"})
    entries: Mapping[str, object] = field(default_factory=dict)
    """Other entries of ``model_index.json``."""


SD15 = {
    "text_encoder": ("CLIPTextModel", TEXT),
    "unet": ("UNet2DConditionModel", UNET),
    "vae": ("AutoencoderKL", VAE),
    "scheduler": ("PNDMScheduler", PNDM),
}
SDXL = {
    "text_encoder": ("CLIPTextModel", TEXT),
    "text_encoder_2": ("CLIPTextModelWithProjection", {**TEXT, "hidden_act": "gelu", "projection_dim": 16}),
    "unet": (
        "UNet2DConditionModel",
        {
            **UNET,
            "cross_attention_dim": 64,
            "use_linear_projection": True,
            "attention_head_dim": (4, 8),
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 6 * 8,
        },
    ),
    "vae": ("AutoencoderKL", {**VAE, "scaling_factor": 0.13025, "force_upcast": True}),
    "scheduler": ("EulerDiscreteScheduler", {**TRAINED, "timestep_spacing": "leading", "steps_offset": 1}),
}
SD2 = {
    "text_encoder": ("CLIPTextModel", {**TEXT, "num_hidden_layers": 3, "hidden_act": "gelu"}),
    "unet": (
        "UNet2DConditionModel",
        {**UNET, "attention_head_dim": (4, 8), "use_linear_projection": True, "upcast_attention": True},
    ),
    "vae": ("AutoencoderKL", SMALL_VAE),
}
TINIES = {
    "sd15": Tiny(
        "StableDiffusionPipeline",
        SD15,
        entries={
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        },
    ),
    "sd20": Tiny(
        "StableDiffusionPipeline",
        {**SD2, "scheduler": ("DDIMScheduler", {**DDIM, "prediction_type": "epsilon"})},
        pads={"tokenizer": "!"},
    ),
    "sd21": Tiny(
        "StableDiffusionPipeline",
        {**SD2, "scheduler": ("DDIMScheduler", {**DDIM, "prediction_type": "v_prediction"})},
        pads={"tokenizer": "!"},
    ),
    "turbo": Tiny(
        "StableDiffusionPipeline",
        {**SD2, "scheduler": ("EulerDiscreteScheduler", EULER)},
        pads={"tokenizer": "!"},
    ),
    "sdxl": Tiny(
        "StableDiffusionXLPipeline",
        SDXL,
        pads={"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
        entries={"force_zeros_for_empty_prompt": True, "add_watermarker": None, "image_encoder": [None, None]},
    ),
    "lcm": Tiny(
        "LatentConsistencyModelPipeline",
        {
            "text_encoder": ("CLIPTextModel", TEXT),
            "unet": ("UNet2DConditionModel", {**UNET, "time_cond_proj_dim": 16}),
            "vae": ("AutoencoderTiny", TINY_VAE),
            "scheduler": ("LCMScheduler", {}),
        },
    ),
    "inpaint": Tiny(
        "StableDiffusionInpaintPipeline",
        {
            **SD15,
            "unet": ("UNet2DConditionModel", {**UNET, "in_channels": 9}),
            "vae": ("AutoencoderKL", SMALL_VAE),
            "tiny_vae": ("AutoencoderTiny", TINY_VAE),
            "safety_checker": ("StableDiffusionSafetyChecker", VISION),
            "feature_extractor": ("CLIPImageProcessor", {"size": 32, "crop_size": 32}),
            "scheduler": ("EulerAncestralDiscreteScheduler", EULER),
        },
        entries={"requires_safety_checker": True},
    ),
}
LEAST = Tiny(
    "StableDiffusionPipeline",
    {
        "text_encoder": ("CLIPTextModel", {**TEXT, "num_hidden_layers": 1}),
        "unet": (
            "UNet2DConditionModel",
            {
                **UNET,
                "block_out_channels": (32,),
                "down_block_types": ("CrossAttnDownBlock2D",),
                "up_block_types": ("CrossAttnUpBlock2D",),
            },
        ),
        "vae": ("AutoencoderTiny", TINY_VAE),
        "scheduler": ("PNDMScheduler", PNDM),
    },
)
"""What is converted soonest of all that the engine can draw with, for tests that convert again and again."""
LIBRARIES = {"StableDiffusionSafetyChecker": "stable_diffusion"}


def write_source(folder: Path, name: str = "sd15") -> None:
    """The whole folder of one of ``TINIES``."""
    write_tiny(folder, TINIES[name])


def write_tiny(folder: Path, tiny: Tiny) -> None:
    """The whole folder, as ``save_pretrained`` writes it."""
    import torch

    torch.manual_seed(0)
    index: dict[str, object] = {**tiny.entries}
    for tokenizer, pad in tiny.pads.items():
        vocabulary = write_tokenizer(folder / tokenizer, pad)
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    for component, (kind, settings) in tiny.components.items():
        made = build(kind, settings, vocabulary)
        made.save_pretrained(folder / component)
        index[component] = [LIBRARIES.get(kind, type(made).__module__.split(".")[0]), kind]
    write_index(folder, _class_name=tiny.pipeline, **index)
    (folder / "README.md").write_text(CARD, encoding="utf-8")


def build(kind: str, settings: Mapping[str, Any], vocabulary: int) -> Any:
    """A component with random weights."""
    # Untyped packages: their classes are called through Any.
    diffusers, transformers = (cast(Any, import_module(name)) for name in ("diffusers", "transformers"))
    if kind.startswith("CLIPText"):
        ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
        return getattr(transformers, kind)(transformers.CLIPTextConfig(**settings, vocab_size=vocabulary, **ends))
    if kind == "StableDiffusionSafetyChecker":
        module = cast(Any, import_module("diffusers.pipelines.stable_diffusion.safety_checker"))
        checker = getattr(module, kind)(transformers.CLIPConfig(vision_config=dict(settings), projection_dim=16))
        for name in ("concept_embeds", "special_care_embeds"):
            getattr(checker, name).data.normal_()
            getattr(checker, f"{name}_weights").data.uniform_(-0.5, 0.5)
        return checker
    return getattr(transformers if kind == "CLIPImageProcessor" else diffusers, kind)(**settings)


def write_index(folder: Path, **changes: object) -> None:
    """``model_index.json``, with entries changed; the folder is made if need be."""
    entries = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.39.0",
        "_name_or_path": "/somewhere/else",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(entries | changes), encoding="utf-8")
