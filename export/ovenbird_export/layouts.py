"""The original layouts as data: how Stable Diffusion's trainers name what lies in one file, and what it looks like."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovenbird.errors import ModelError
from ovenbird_export.weights import LazyTensor

UNET = "model.diffusion_model."
VAE = "first_stage_model."
VAE_ALONE = "a VAE alone; give it with --vae beside a model"
DIFFUSERS = "one component in diffusers' layout; give the whole folder"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MOST_TENSORS = 10_000

_TRAINING = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
_UNCHECKED = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
PNDM = {"_class_name": "PNDMScheduler", **_TRAINING, "skip_prk_steps": True}
DDIM = {"_class_name": "DDIMScheduler", **_TRAINING}
EULER = {"_class_name": "EulerDiscreteScheduler", **_TRAINING, "timestep_spacing": "leading"}
PURE_NOISE = {**EULER, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
"""For models that were trained up to a signal of zero."""


@dataclass(frozen=True)
class Text:
    """A text encoder in the file, and what its weights do not say."""

    folder: str
    prefix: str
    kind: str
    """Its class in transformers."""
    activation: str
    padding: str
    """The token that fills a prompt up."""
    open_clip: bool = False
    """Whether its weights have OpenCLIP's names."""

    @property
    def tokenizer(self) -> str:
        """The folder of its tokenizer."""
        return self.folder.replace("text_encoder", "tokenizer")


@dataclass(frozen=True)
class Family:
    """Models that were trained alike, and what their weights do not say."""

    name: str
    pipelines: Mapping[int, str]
    """Channels that go into the U-Net -> diffusers' pipeline."""
    texts: tuple[Text, ...]
    heads: int | None
    """Attention heads everywhere in the U-Net; None where each has 64 channels."""
    scaling_factor: float
    scheduler: Mapping[str, Any]
    sizes: Mapping[str, int]
    """What the U-Net predicts -> the side in latent cells that it was trained at."""
    extras: Mapping[str, Any]
    """Further entries of ``model_index.json``."""
    prediction: str | None
    """What the U-Net predicts unless the file says otherwise; None where both are common."""


FAMILIES = (
    Family(
        name="SDXL",
        pipelines={4: "StableDiffusionXLPipeline", 9: "StableDiffusionXLInpaintPipeline"},
        texts=(
            Text("text_encoder", "conditioner.embedders.0.transformer.", "CLIPTextModel", "quick_gelu", END),
            Text(
                "text_encoder_2",
                "conditioner.embedders.1.model.",
                "CLIPTextModelWithProjection",
                "gelu",
                "!",
                open_clip=True,
            ),
        ),
        heads=None,
        scaling_factor=0.13025,
        scheduler=EULER,
        sizes={"epsilon": 128, "v_prediction": 128},
        extras={"force_zeros_for_empty_prompt": True},
        prediction="epsilon",
    ),
    Family(
        name="SD 2.x",
        pipelines={4: "StableDiffusionPipeline", 9: "StableDiffusionInpaintPipeline"},
        texts=(Text("text_encoder", "cond_stage_model.model.", "CLIPTextModel", "gelu", "!", open_clip=True),),
        heads=None,
        scaling_factor=0.18215,
        scheduler=DDIM,
        sizes={"epsilon": 64, "v_prediction": 96},
        extras=_UNCHECKED,
        prediction=None,
    ),
    Family(
        name="SD 1.x",
        pipelines={4: "StableDiffusionPipeline", 9: "StableDiffusionInpaintPipeline"},
        texts=(Text("text_encoder", "cond_stage_model.transformer.", "CLIPTextModel", "quick_gelu", END),),
        heads=8,
        scaling_factor=0.18215,
        scheduler=PNDM,
        sizes={"epsilon": 64, "v_prediction": 64},
        extras=_UNCHECKED,
        prediction="epsilon",
    ),
)

UNUSED = {
    label: re.compile(pattern)
    for label, pattern in {
        "averaged weights (EMA)": r"model_ema\.",
        "noise schedule": r"(sqrt_(recip(m1)?_|one_minus_)?|log_one_minus_)?alphas_cumprod(_prev)?$|betas$|logvar$"
        r"|lvlb_weights$|posterior_(variance|log_variance_clipped|mean_coef[12])$|denoiser\.(log_)?sigmas$",
        "marks of what is predicted": r"(v_pred|ztsnr)$",
        "position ids": r".*\.embeddings\.position_ids$",
        "contrastive training": r"(cond_stage_model|conditioner)\..*\blogit_scale$|cond_stage_model\..*\battn_mask$"
        r"|(cond_stage_model|conditioner\.embedders\.0)\.((model|transformer)\.)?text_projection(\.weight)?$",
        "text layers behind the 23rd": r"cond_stage_model\.model\.transformer\.resblocks\.(2[3-9]|[3-9]\d)\.",
        "training of the VAE": r"(first_stage_model\.)?loss\.",
    }.items()
}
"""Tensors that no picture depends on.  SD 2.x listens to the last layer of its text encoder but one."""

LOOKS = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3"),
        (r"(model\.diffusion_model\.)?(double|single)_blocks\.", "Flux"),
        (r"lora_|.*[._](lora|lora_(up|down|A|B)|hada|lokr)[._]", "a LoRA; give it with --lora beside a model"),
        (r"control_model\.|controlnet_|input_hint_block\.|zero_convs\.", "a ControlNet"),
        (r"conditioner\.embedders\.0\.model\.", "the refiner of SDXL"),
        (r"depth_model\.", "the depth model of SD 2"),
        (r"embedder\.model\.|noise_augmentor\.", "the unCLIP model of SD 2"),
        (r"edm_", "a model with noise levels of its own (EDM)"),
        (r"cond_stage_model\.(roberta|bert|transformation)", "a model with another text encoder"),
        (r".*(motion_modules|temporal_transformer|time_stack)\.", "a video model"),
        (r"string_to_param|emb_params|clip_[lg]$", "a textual inversion"),
        (r"(unet\.)?(down_blocks|mid_block|up_blocks)\.|(text_encoder|text_model)\.", DIFFUSERS),
        (r"(encoder|decoder)\.(down_blocks|mid_block|up_blocks)\.", DIFFUSERS),
        (r"(encoder|decoder)\.(conv_in|mid|down|up)\b", VAE_ALONE),
    )
)
"""How others can be told from their names; the first that fits any tensor of the file."""
CHANNELS = {5: "the depth model of SD 2", 7: "the upscaler of SD 2", 8: "InstructPix2Pix"}


def detect(file: Path, names: Collection[str]) -> Family:
    """The family of a file by what it holds.  Raises ``ModelError``, which says what it looks like instead."""
    hint = f"known: {', '.join(family.name for family in FAMILIES)}, with U-Net, VAE and text encoders in one file"
    what = look(file, names)
    if what:
        raise ModelError(f"{file} looks like {what}", hint=hint)
    for family in FAMILIES:
        prefixes = {"U-Net": UNET, "VAE": VAE} | {text.folder: text.prefix for text in family.texts}
        missing = [part for part, prefix in prefixes.items() if not any(name.startswith(prefix) for name in names)]
        if not missing:
            return family
        if not {text.folder for text in family.texts} & set(missing):
            raise ModelError(f"{file} holds the text encoders of {family.name}, but no {' and no '.join(missing)}")
    raise ModelError(f"{file} holds no known text encoder; its first tensor is {min(names)!r}", hint=hint)


def look(file: Path, names: Collection[str]) -> str | None:
    """What the names look like, if it is anything in ``LOOKS``.  Raises ``ModelError`` for none or too many of them."""
    if not names:
        raise ModelError(f"{file} holds no tensors")
    if len(names) > MOST_TENSORS:
        raise ModelError(f"{file} holds {len(names)} tensors; no model in one file has more than {MOST_TENSORS}")
    return next((what for pattern, what in LOOKS if any(pattern.match(name) for name in names)), None)


def autoencoder(file: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of a VAE, alone or with a model around it, in whichever layout.  Raises ``ModelError``."""
    what = look(file, tensors)
    if what not in (None, VAE_ALONE, DIFFUSERS):
        raise ModelError(f"{file} looks like {what}", hint="give a file or a folder with an autoencoder")
    inside = {name.removeprefix(VAE): tensor for name, tensor in tensors.items() if name.startswith(VAE)}
    return {name: tensor for name, tensor in (inside or tensors).items() if unused_label(name) is None}


def unused(file: Path, family: Family, names: Iterable[str]) -> dict[str, int]:
    """How many tensors of each kind no picture depends on.

    Raises ``ModelError`` for a tensor that belongs to nothing.
    """
    found: Counter[str] = Counter()
    for name in names:
        label = unused_label(name)
        if label is not None:
            found[label] += 1
        elif not name.startswith((UNET, VAE, *(text.prefix for text in family.texts))):
            raise ModelError(f"{file}: {name!r} is not known in {family.name}, so its effect would be lost")
    return dict(found)


def unused_label(name: str) -> str | None:
    """Why no picture depends on a tensor, or None."""
    return next((label for label, pattern in UNUSED.items() if pattern.match(name)), None)
