"""Synthetic models: an architecture as published, with seeded random weights instead of trained ones.

They are good for measuring time, memory and file sizes before anything is downloaded, and for finding out whether a
model runs on a machine at all: every layer has its true size, no two are alike and none is trivial, so nothing can be
merged, folded or left out that a real model needs, and values stay moderate through all layers, in half precision too.
They are good for nothing that training makes: pictures are noise, and what a sampler or a precision costs in quality
says nothing about a real model, whose rare large values are what makes quantisation hard.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird.errors import RequestError
from ovenbird.progress import stage
from ovenbird_export import publish
from ovenbird_export.architectures import ARCHITECTURES, Architecture, Config
from ovenbird_export.vocabulary import write_tokenizer

PREFIX = "synthetic:"
SEED = 0
BYTES_PER_WEIGHT = 2
SPARE_BYTES = 4 << 20
"""For everything that is not weights: tokenizers, configurations, headers."""
DRAWN_AT_ONCE = 1 << 16
FILES = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
BRANCH_ENDS = ("conv2", "to_out.0", "ff.net.2", "proj_out", "out_proj", "fc2")
"""The last layer of each residual branch."""
BRANCH_GAIN = 0.5
"""Keeps the sum over dozens of branches from growing."""

Shapes = Mapping[str, tuple[int, ...]]  # tensor -> shape, in the order of the file


def names() -> tuple[str, ...]:
    """What ``write`` knows, without the prefix."""
    return tuple(ARCHITECTURES)


def write(name: str, target: Path) -> dict[str, str]:
    """Write a diffusers folder with weights in float16; what the manifest says about its source.

    The same name gives the same bytes, but for the version of diffusers in the index.  At no time more than a part of
    one tensor is in memory.  Raises ``RequestError`` for an unknown name.
    """
    architecture = _architecture(name)
    with stage(f"{PREFIX}{name}: index, scheduler, tokenizer", target):
        _write_rest(architecture, target)
    for component, config in architecture.components.items():
        folder = target / component
        with stage(f"{PREFIX}{name}: {component}", folder):
            folder.mkdir()
            publish.write_json(folder / "config.json", config)
            write_weights(folder / FILES[_class_of(config)[0]], component, tensors(name, component))
    return {"name": PREFIX + name, "seed": str(SEED), "licence": "none needed"}


def predicted_bytes(name: str) -> int:
    """What ``write`` puts on the disk, or a little more.  Raises ``RequestError`` for an unknown name."""
    shapes = [shape for part in _architecture(name).components for shape in tensors(name, part).values()]
    return BYTES_PER_WEIGHT * sum(map(math.prod, shapes)) + SPARE_BYTES


@cache
def tensors(name: str, component: str) -> Shapes:
    """A component's tensors, asked of the library that will read them; nothing is allocated."""
    import torch

    config = ARCHITECTURES[name].components[component]
    library, kind = _class_of(config)
    package: Any = import_module(library)
    settings: Any = {key: value for key, value in config.items() if key not in ("_class_name", "architectures")}
    with torch.device("meta"):
        if library == "diffusers":
            module = getattr(package, kind)(**settings)
        else:
            module = getattr(package, kind)(package.CLIPTextConfig(**settings))
    return {tensor: tuple(values.shape) for tensor, values in module.state_dict().items()}


def write_weights(path: Path, component: str, shapes: Shapes) -> None:
    """Write a safetensors file piece by piece: the library's own writer wants all tensors in memory at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + BYTES_PER_WEIGHT * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for piece in draw(f"{component}/{name}", shape):
                file.write(piece.data)


def draw(name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float16]]:
    """A tensor's numbers in pieces, independent normal ones.

    Each takes 16 random bits, which choose among as many equally likely values: ten times as fast as drawing normal
    numbers and rounding them, and nothing lies beyond 4.3 standard deviations.
    """
    mean, deviation = distribution(name, shape)
    values = (mean + deviation * _quantiles()).astype("<f2")
    # The bits themselves, because numpy may change what a Generator makes of them.
    source = np.random.SFC64(int.from_bytes(hashlib.sha256(f"{SEED}/{name}".encode()).digest()))
    count = math.prod(shape)
    for begin in range(0, count, DRAWN_AT_ONCE):
        size = min(DRAWN_AT_ONCE, count - begin)
        bits = source.random_raw(-(-size // 4)).astype("<u8", copy=False).view("<u2")
        yield values.take(bits[:size])


def distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation with which a layer's output is about as large as its input.

    Norms and biases are not exactly 1 and 0, as they would be at the start of a training: converters merge tensors that
    are equal and drop arithmetic that changes nothing.
    """
    layer, _, kind = name.rpartition(".")
    if kind == "bias":
        return 0.0, 0.02
    if len(shape) == 1:
        return 1.0, 0.1
    if layer.endswith("_embedding"):
        return 0.0, 0.02
    gain = BRANCH_GAIN if layer.endswith(BRANCH_ENDS) else 1.0
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


@cache
def _quantiles() -> NDArray[np.float64]:
    normal, levels = NormalDist(), 1 << 16
    return np.array([normal.inv_cdf((level + 0.5) / levels) for level in range(levels)])


def _write_rest(architecture: Architecture, target: Path) -> None:
    components = {name: _class_of(config) for name, config in architecture.components.items()}
    tokenizers = dict.fromkeys(architecture.padding, ("transformers", "CLIPTokenizer"))
    index = {
        "_class_name": architecture.pipeline,
        "_diffusers_version": version("diffusers"),
        "scheduler": _class_of(architecture.scheduler),
    }
    (target / "scheduler").mkdir(parents=True)
    publish.write_json(target / "model_index.json", {**index, **components, **tokenizers, **architecture.index})
    publish.write_json(target / "scheduler" / "scheduler_config.json", architecture.scheduler)
    for name, padding in architecture.padding.items():
        write_tokenizer(target / name, architecture.components["text_encoder"]["vocab_size"], padding)


def _class_of(config: Config) -> tuple[str, str]:
    if "_class_name" in config:
        return "diffusers", config["_class_name"]
    return "transformers", config["architectures"][0]


def _architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        known = ", ".join(PREFIX + known for known in ARCHITECTURES)
        raise RequestError(f"source: {PREFIX}{name} is not known; known: {known}")
    return ARCHITECTURES[name]
