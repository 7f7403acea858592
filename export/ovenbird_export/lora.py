"""LoRA (Hu et al., 2021): a file of low-rank differences, added to the weights before anything is traced.

Trainers write a layer's name in several ways, and some ways cannot be read back: ``to_q`` and ``to.q`` look alike once
every dot is an underscore.  So no name is read back here.  Each layer that a component has is spelled in every way that
a file may use, and looked up; whatever is left in the file then is a reason to refuse it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ovenbird.disk import is_file
from ovenbird.errors import ModelError, RequestError
from ovenbird_export.weights import read_header

MOST_KEYS = 20_000
PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
"""How a name begins -> the component; with underscores as kohya's trainers write it, with dots as diffusers does."""
ENDINGS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
"""How it ends -> which factor it is."""
CHANGING = ("alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out")
"""Settings of peft's that would change the sum, and that no file in the wild was seen to have with diffusers' names."""

Layers = dict[tuple[str, str], dict[str, str]]
"""Component and layer, dots written as underscores -> factor -> key in the file."""


@dataclass(frozen=True)
class Lora:
    """A safetensors file of differences, and how much of them is added."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """``FILE`` or ``FILE:SCALE``.  Raises ``RequestError`` for no file or no number."""
        path, colon, number = text.rpartition(":")
        if is_file(Path(text)) or not colon:
            path, number = text, "1"
        try:
            scale = float(number)
        except ValueError as error:
            raise RequestError(f"lora: {number!r:.40} is not a number", hint="write FILE or FILE:SCALE") from error
        if not math.isfinite(scale):
            raise RequestError(f"lora: the scale {number} is not finite")
        if not is_file(Path(path)):
            raise RequestError(f"lora: {path:.200} is not a file", hint="write FILE or FILE:SCALE")
        return cls(Path(path), scale)

    @cached_property
    def layers(self) -> Layers:
        """What the header names.  Raises ``ModelError`` for the first key that means nothing here."""
        layers: Layers = {}
        for key in _header(self.path)[0]:
            component, layer, factor = self._meaning(key)
            if factor in layers.setdefault((component, layer), {}):
                raise ModelError(f"{self.path}: {key!r} says what {layers[component, layer][factor]!r} said before")
            layers[component, layer][factor] = key
        for factors in layers.values():
            if not {"down", "up"} <= set(factors):
                raise ModelError(f"{self.path}: {min(factors.values())!r} lacks its other half")
        return layers

    @cached_property
    def alphas(self) -> Mapping[str, float]:
        """Component -> alpha of every layer that has none of its own, where diffusers saved peft's settings."""
        text = _header(self.path)[1].get("lora_adapter_metadata", "{}")
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self.path}: its lora_adapter_metadata is not JSON") from error
        if not isinstance(settings, dict):
            raise ModelError(f"{self.path}: its lora_adapter_metadata is not a JSON object")
        alphas = {}
        for name, value in settings.items():
            component, _, setting = name.partition(".")
            if setting in CHANGING and value:
                raise ModelError(f"{self.path} was trained with {setting}, which is not known, so it would be lost")
            if setting == "lora_alpha":
                alphas[component] = _number(self.path, name, value)
        return alphas

    def check(self, components: Iterable[str]) -> None:
        """Raise ``ModelError`` unless every key is for one of ``components``.  Reads the header alone."""
        known = set(components)
        for component in [*(component for component, _ in self.layers), *self.alphas]:
            if component not in known:
                raise ModelError(f"{self.path} changes a {component}, which the source does not have")

    def _meaning(self, key: str) -> tuple[str, str, str]:
        for prefix, component in PREFIXES.items():
            for ending, factor in ENDINGS.items():
                if key.startswith(prefix) and key.endswith(ending) and key[-len(ending) - 1] in "._":
                    layer = key[len(prefix) : -len(ending) - 1].replace(".processor.", ".")
                    return component, layer.replace(".", "_"), factor
        raise ModelError(f"{self.path}: {key!r} is not a LoRA's name for anything", hint="it would be left unused")


def merge_lora(module: Any, component: str, lora: Lora) -> None:
    """Add the file's differences for ``component`` to ``module``'s float32 weights, one layer at a time.

    Raises ``ModelError`` for a layer that the module lacks, for shapes that do not fit, and for what is not finite.
    """
    from safetensors import safe_open

    names, merged = spellings(module), set()
    with safe_open(lora.path, framework="pt") as file:
        for (owner, layer), keys in lora.layers.items():
            if owner != component:
                continue
            what = f"{lora.path}: {min(keys.values())!r}"
            if layer not in names:
                raise ModelError(f"{what} is for a layer that this {component} lacks")
            if names[layer] in merged:
                raise ModelError(f"{what} is for {names[layer]}, which the file has under another name too")
            merged.add(names[layer])
            factors = {factor: file.get_tensor(key).float() for factor, key in keys.items()}
            weight = module.get_submodule(names[layer]).weight
            weight.data = weight.data + lora.scale * _delta(what, weight, factors, lora.alphas.get(component))


def _delta(what: str, weight: Any, factors: Mapping[str, Any], default: float | None) -> Any:
    try:
        delta = _fit(_product(**factors, default=default), weight.shape)
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{factor} {tuple(tensor.shape)}" for factor, tensor in factors.items())
        raise ModelError(f"{what} does not fit a weight of {tuple(weight.shape)}: {shapes}") from error
    if not bool(delta.isfinite().all()):
        raise ModelError(f"{what} gives numbers that are not finite")
    return delta


def spellings(module: Any) -> dict[str, str]:
    """Every way to write the name of a layer that has a matrix or a convolution, without dots -> the name."""
    layers = [name for name, layer in module.named_modules() if _has_matrix(layer)]
    spelled = {name.replace(".", "_"): name for name in layers}
    # Before diffusers 0.17 an attention's output was named without its place in the list.
    spelled |= {name.removesuffix(".0").replace(".", "_"): name for name in layers if name.endswith("to_out.0")}
    if getattr(module.config, "down_block_types", None):
        blocks = dict(_blocks(module.config))
        spelled |= {_original(name, blocks).replace(".", "_"): name for name in layers}
    return spelled


def _has_matrix(layer: Any) -> bool:
    weight = getattr(layer, "weight", None)
    return weight is not None and weight.ndim in (2, 4)


OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
INSIDE = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""The U-Net's layers as diffusers names them -> as Stability's code does, whose names SDXL's trainers use."""


def _original(name: str, blocks: Mapping[str, str]) -> str:
    if name in OUTSIDE or name in blocks:
        return OUTSIDE.get(name) or blocks[name]
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        block, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if block in blocks:
            return f"{blocks[block]}.{INSIDE.get(rest, rest)}"
    return name


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    kinds, layers = config["down_block_types"], config["layers_per_block"]
    counts = [layers] * len(kinds) if isinstance(layers, int) else list(layers)
    place = 1
    for level, count in enumerate(counts):
        for layer in range(count):
            yield f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{place}.0"
            yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{place}.1"
            place += 1
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{place}.0.op"
        place += 1
    yield from (("mid_block.resnets.0", "middle_block.0"), ("mid_block.resnets.1", "middle_block.2"))
    yield "mid_block.attentions.0", "middle_block.1"
    place = 0
    for level, (kind, count) in enumerate(zip(config["up_block_types"], reversed(counts), strict=True)):
        for layer in range(count + 1):
            yield f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{place}.0"
            yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{place}.1"
            place += 1
        yield f"up_blocks.{level}.upsamplers.0", f"output_blocks.{place - 1}.{2 if 'CrossAttn' in kind else 1}"


def _product(down: Any, up: Any, mid: Any = None, alpha: Any = None, default: float | None = None) -> Any:
    """alpha / rank * up @ mid @ down, for matrices and for convolutions with their kernel in ``down`` or in ``mid``."""
    rank = down.shape[0]
    if rank == 0 or up.shape[1] != rank or math.prod(up.shape[2:]) != 1:
        raise ValueError("the ranks differ")
    if mid is None:
        product = (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
    elif tuple(mid.shape[:2]) == (rank, rank) and math.prod(down.shape[2:]) == 1:
        middle = (up.flatten(1) @ mid.flatten(1)).reshape(len(up), *mid.shape[1:])
        product = (middle.movedim(1, -1) @ down.flatten(1)).movedim(-1, 1)
    else:
        raise ValueError("the ranks differ")
    strength = rank if default is None else default
    return product * ((strength if alpha is None else float(alpha)) / rank)


def _fit(delta: Any, shape: Any) -> Any:
    # A matrix and a convolution of one pixel are the same.
    if delta.shape[:2] != shape[:2] or (
        delta.shape[2:] != shape[2:] and math.prod([*delta.shape[2:], *shape[2:]]) != 1
    ):
        raise ValueError("the shapes differ")
    return delta.reshape(shape)


def _header(path: Path) -> tuple[list[str], Mapping[str, str]]:
    header = read_header(path)
    if not 0 < len(header.tensors) <= MOST_KEYS:
        raise ModelError(f"{path} holds {len(header.tensors)} tensors; a LoRA has 1 to {MOST_KEYS}")
    return sorted(header.tensors), header.metadata


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"{path}: {name} is {value!r}, not a number")
    return float(value)
