"""Settings of modules, worked out from the shapes of their weights; what shapes cannot say comes from the family.

Every function raises ``KeyError`` for a weight that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, NamedTuple

from ovenbird_export.layouts import Family, Text

HEAD = 64
"""Channels of an attention head, where not their number is fixed but their size."""
TIMES = 6
"""Numbers that SDXL's U-Net is told beside the prompt: sides, corner and target sides of the picture."""

Weights = Mapping[str, Any]
"""Names -> whatever has a shape."""
Config = dict[str, Any]


class Block(NamedTuple):
    """A residual block of the U-Net, and the attention behind it."""

    channels: int
    depth: int
    """Transformer layers; 0 where there is no attention."""


def unet(family: Family, weights: Weights, size: int) -> Config:
    """For ``UNet2DConditionModel``, from the original names; ``size`` is the side in latent cells it was trained at.

    Raises ``ValueError`` when blocks of a level differ.
    """
    levels = _levels(weights)
    blocks = [level[0] for level in levels]
    if any(level != [block] * len(levels[0]) for level, block in zip(levels, blocks, strict=True)):
        raise ValueError("blocks of one level differ, as in distilled models")
    channels = [block.channels for block in blocks]
    middle = "middle_block.1"
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size,
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "out_channels": weights["out.2.weight"].shape[0],
        "layers_per_block": len(levels[0]),
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if block.depth else "DownBlock2D" for block in blocks],
        "up_block_types": ["CrossAttnUpBlock2D" if block.depth else "UpBlock2D" for block in reversed(blocks)],
        # diffusers gives the middle as many layers as the last level, and asks for a number where there are none
        "transformer_layers_per_block": [max(block.depth, 1) for block in blocks[:-1]] + [_depth(weights, middle)],
        "cross_attention_dim": weights[f"{middle}.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": family.heads or [number // HEAD for number in channels],
        "use_linear_projection": len(weights[f"{middle}.proj_in.weight"].shape) == 2,
    }


def addition(weights: Weights, pooled: int) -> Config:
    """What SDXL's U-Net has on top: it is told ``pooled`` numbers of the prompt, and the sizes of the picture."""
    width = weights["label_emb.0.0.weight"].shape[1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (width - pooled) // TIMES,
        "projection_class_embeddings_input_dim": width,
    }


def vae(weights: Weights, scaling_factor: float) -> Config:
    """For ``AutoencoderKL``, from the original names."""
    conv = "encoder.down.{}.block.{}.conv1.weight"
    levels = _while(lambda level: conv.format(level, 0) in weights)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "layers_per_block": _while(lambda layer: conv.format(0, layer) in weights),
        "block_out_channels": [weights[conv.format(level, 0)].shape[0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": scaling_factor,
    }


def text(encoder: Text, weights: Weights, ids: Mapping[str, int]) -> Config:
    """For ``encoder.kind``, from transformers' names; ``ids`` are the numbers of the tokens that begin and end."""
    vocabulary, hidden = weights["text_model.embeddings.token_embedding.weight"].shape
    layer = "text_model.encoder.layers.{}.mlp.fc1.weight"
    return {
        "architectures": [encoder.kind],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": weights[layer.format(0)].shape[0],
        "num_hidden_layers": _while(lambda index: layer.format(index) in weights),
        "num_attention_heads": hidden // HEAD,
        "max_position_embeddings": weights["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": weights["text_projection.weight"].shape[0] if "text_projection.weight" in weights else hidden,
        "hidden_act": encoder.activation,
        **ids,
    }


def _levels(weights: Weights) -> list[list[Block]]:
    """The blocks on the way down; a level ends where cells are merged."""
    levels: list[list[Block]] = [[]]
    for index in count(1):
        conv = weights.get(f"input_blocks.{index}.0.in_layers.2.weight")
        if conv is not None:
            levels[-1].append(Block(conv.shape[0], _depth(weights, f"input_blocks.{index}.1")))
        elif f"input_blocks.{index}.0.op.weight" in weights:
            levels.append([])
        else:
            break
    return levels


def _depth(weights: Weights, block: str) -> int:
    return _while(lambda layer: f"{block}.transformer_blocks.{layer}.norm1.weight" in weights)


def _while(there: Callable[[int], bool]) -> int:
    return next(number for number in count() if not there(number))
