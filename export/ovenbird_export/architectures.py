"""Published architectures as data: what their ``config.json`` and ``scheduler_config.json`` say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]

END = "<|endoftext|>"
UNCHECKED: Config = {
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}
"""No safety checker."""


@dataclass(frozen=True)
class Architecture:
    """One model, without its weights and its vocabulary."""

    pipeline: str
    components: Mapping[str, Config]
    """Whatever has weights -> its ``config.json``."""
    scheduler: Config
    padding: Mapping[str, str]
    """Tokenizer -> the token that it pads with."""
    index: Mapping[str, Any] = field(default_factory=lambda: UNCHECKED)
    """What else ``model_index.json`` says."""


def _unet(**changes: Any) -> Config:
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    } | changes


def _vae(**changes: Any) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    } | changes


def _text_encoder(**changes: Any) -> Config:
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published; it means the highest id
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "vocab_size": 49408,
    } | changes


def _scheduler(kind: str, **settings: Any) -> Config:
    return {
        "_class_name": kind,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None,
    } | settings


PNDM = _scheduler("PNDMScheduler", skip_prk_steps=True)

SD15 = Architecture(
    pipeline="StableDiffusionPipeline",
    components={"text_encoder": _text_encoder(), "unet": _unet(), "vae": _vae()},
    scheduler=PNDM,
    padding={"tokenizer": END},
)

SD15_INPAINT = Architecture(
    pipeline="StableDiffusionInpaintPipeline",
    components={**SD15.components, "unet": _unet(in_channels=9)},
    scheduler=_scheduler("DDIMScheduler"),
    padding={"tokenizer": END},
)

# Dreamshaper v7 as a latent consistency model, which was distilled at 768 x 768.
LCM = Architecture(
    pipeline="LatentConsistencyModelPipeline",
    components={**SD15.components, "unet": _unet(sample_size=96, time_cond_proj_dim=256), "vae": _vae(sample_size=768)},
    scheduler=_scheduler(
        "LCMScheduler",
        original_inference_steps=50,
        rescale_betas_zero_snr=False,
        set_alpha_to_one=True,
        steps_offset=0,
        timestep_scaling=10.0,
        timestep_spacing="leading",
    ),
    padding={"tokenizer": END},
)

# The one for 768 x 768 pixels, which predicts v.
SD21 = Architecture(
    pipeline="StableDiffusionPipeline",
    components={
        "text_encoder": _text_encoder(
            hidden_act="gelu",
            hidden_size=1024,
            intermediate_size=4096,
            num_attention_heads=16,
            num_hidden_layers=23,
            projection_dim=512,
        ),
        "unet": _unet(
            attention_head_dim=[5, 10, 20, 20],
            cross_attention_dim=1024,
            sample_size=96,
            upcast_attention=True,
            use_linear_projection=True,
        ),
        "vae": _vae(sample_size=768),
    },
    scheduler=_scheduler("DDIMScheduler", prediction_type="v_prediction"),
    padding={"tokenizer": "!"},
)

# Base 1.0.
SDXL = Architecture(
    pipeline="StableDiffusionXLPipeline",
    components={
        "text_encoder": _text_encoder(),
        "text_encoder_2": _text_encoder(
            architectures=["CLIPTextModelWithProjection"],
            hidden_act="gelu",
            hidden_size=1280,
            intermediate_size=5120,
            num_attention_heads=20,
            num_hidden_layers=32,
            projection_dim=1280,
        ),
        "unet": _unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            attention_head_dim=[5, 10, 20],
            block_out_channels=[320, 640, 1280],
            cross_attention_dim=2048,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            projection_class_embeddings_input_dim=2816,
            sample_size=128,
            transformer_layers_per_block=[1, 2, 10],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            use_linear_projection=True,
        ),
        "vae": _vae(force_upcast=True, sample_size=1024, scaling_factor=0.13025),
    },
    scheduler=_scheduler(
        "EulerDiscreteScheduler", interpolation_type="linear", timestep_spacing="leading", use_karras_sigmas=False
    ),
    padding={"tokenizer": END, "tokenizer_2": "!"},
    index={"force_zeros_for_empty_prompt": True},
)

# Nobody's: every kind of block of SD 1.5 at three resolutions, for tests.
TINY = Architecture(
    pipeline="StableDiffusionPipeline",
    components={
        "text_encoder": _text_encoder(
            hidden_size=64,
            intermediate_size=256,
            num_attention_heads=4,
            num_hidden_layers=2,
            projection_dim=64,
            vocab_size=2000,
        ),
        "unet": _unet(
            block_out_channels=[32, 64, 64],
            cross_attention_dim=64,
            down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            layers_per_block=1,
            sample_size=16,
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        ),
        "vae": _vae(block_out_channels=[32, 32, 64, 64], layers_per_block=1, sample_size=128),
    },
    scheduler=PNDM,
    padding={"tokenizer": END},
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "sd15": SD15,
    "sd21": SD21,
    "sdxl": SDXL,
    "sd15-inpaint": SD15_INPAINT,
    "lcm": LCM,
    "tiny": TINY,
}
