"""A diffusers folder of the smallest Stable Diffusion that has every kind of block, with seeded random weights."""

from __future__ import annotations

import json
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


def write_tokenizer(folder: Path) -> int:
    """A byte-level CLIP tokenizer with a few merges; how many tokens it has."""
    letters = byte_letters()
    joined = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    settings = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "name_or_path": "/somewhere/else"}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(tokens)


def write_source(folder: Path) -> None:
    """The whole folder, as ``save_pretrained`` writes it."""
    import torch

    # Untyped packages: their classes are called through Any.
    diffusers, transformers = (cast(Any, import_module(name)) for name in ("diffusers", "transformers"))
    torch.manual_seed(0)
    vocabulary = write_tokenizer(folder / "tokenizer")
    transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=vocabulary,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    ).save_pretrained(folder / "text_encoder")
    diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=32,
    ).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(
        layers_per_block=1,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")
    diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1).save_pretrained(folder / "scheduler")
    write_index(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")


def write_index(folder: Path, **changes: object) -> None:
    """``model_index.json``, with entries changed; the folder is made if need be."""
    entries = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.39.0",
        "_name_or_path": "/somewhere/else",
        "feature_extractor": [None, None],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(entries | changes), encoding="utf-8")
