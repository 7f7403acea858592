"""diffusers' names turned back into those of the original trainers, from facts about their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def renamed(name: str, names: Mapping[str, str]) -> str:
    for new, old in names.items():
        name = re.sub(rf"(^|\.){re.escape(new)}(?=\.|$)", lambda m, old=old: f"{m[1]}{old}", name)
    return name


def unet(weights: Tensors, layers: int) -> Tensors:
    """``layers`` is ``layers_per_block``; the way up has one more block in each level, as has the way down with its
    downsampler."""
    per_level = layers + 1

    def original(name: str) -> str:
        way = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
        if not way:
            return renamed(renamed(name, RESNET) if "resnets" in name else name, UNET)
        direction, level, kind, index, rest = way[1], int(way[2]), way[3], int(way[4]), way[5]
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * per_level}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":
            attends = any(other.startswith(f"up_blocks.{level}.attentions") for other in weights)
            return f"output_blocks.{(level + 1) * per_level - 1}.{2 if attends else 1}.{rest}"
        block = level * per_level + index
        place = f"input_blocks.{block + 1}" if direction == "down" else f"output_blocks.{block}"
        return f"{place}.0.{renamed(rest, RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"

    return {original(name): tensor for name, tensor in weights.items()}


def vae(weights: Tensors, levels: int) -> Tensors:
    def original(name: str) -> str:
        name = renamed(name, VAE)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)

    named = {original(name): tensor for name, tensor in weights.items()}
    attention = re.compile(r".*attn_1\.(q|k|v|proj_out)\.weight")
    return {name: tensor[:, :, None, None] if attention.fullmatch(name) else tensor for name, tensor in named.items()}


def clip(weights: Tensors) -> Tensors:
    positions = weights["text_model.embeddings.position_embedding.weight"].shape[0]
    return {**weights, "text_model.embeddings.position_ids": torch.arange(positions)[None]}


def open_clip(weights: Tensors, more_layers: int = 0) -> Tensors:
    """``more_layers`` are those behind the ones that are listened to; they are not trained here."""
    found: Tensors = {"logit_scale": torch.ones(())}
    layers = 1 + max(int(m[1]) for name in weights if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name)))
    weights = dict(weights)
    hidden = weights["text_model.final_layer_norm.weight"].shape[0]
    for layer in range(layers, layers + more_layers):
        first = [name for name in weights if name.startswith("text_model.encoder.layers.0.")]
        weights |= {name.replace(".0.", f".{layer}.", 1): torch.zeros_like(weights[name]) for name in first}
    projection = weights.pop("text_projection.weight", None)
    found["text_projection"] = torch.zeros(hidden, hidden) if projection is None else projection.T.contiguous()
    for name, tensor in weights.items():
        if m := re.match(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            three = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[f"transformer.resblocks.{m[1]}.attn.in_proj_{m[2]}"] = torch.cat(three)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            found[renamed(name, OPEN_CLIP)] = tensor
    return found


def prefixed(prefix: str, weights: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def checkpoint(family: str, modules: Mapping[str, Any]) -> Tensors:
    """The whole file of "SD 1.x", "SD 2.x" or "SDXL"."""
    parts = {name: module.state_dict() for name, module in modules.items()}
    config = modules["unet"].config
    found = prefixed("model.diffusion_model.", unet(parts["unet"], config.layers_per_block))
    found |= prefixed("first_stage_model.", vae(parts["vae"], len(modules["vae"].config.block_out_channels)))
    if family == "SD 1.x":
        return found | prefixed("cond_stage_model.transformer.", clip(parts["text_encoder"]))
    if family == "SD 2.x":
        return found | prefixed("cond_stage_model.model.", open_clip(parts["text_encoder"], more_layers=1))
    found |= prefixed("conditioner.embedders.0.transformer.", clip(parts["text_encoder"]))
    return found | prefixed("conditioner.embedders.1.model.", open_clip(parts["text_encoder_2"]))
