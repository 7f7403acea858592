"""How much memory a component takes on a runtime: foreseen from configs and files' sizes, before anything is loaded.

Counted is what Linux calls resident, of the process: weights that are mapped from a file, too, once they are read.
The numbers in ``HABITS`` are fitted to OpenVINO 2026.4 and ONNX Runtime 1.31 on x86-64 processors;
``python -m benchmarks memory`` measures what they foresee.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ovenbird import compiled
from ovenbird.backends import SHALLOW
from ovenbird.bundle import Bundle

MIB = 1 << 20
WIDTHS = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i8": 1, "u8": 1, "i4": 0.5, "u4": 0.5}
"""Type of a weight -> bytes; others are no weights."""
STORED = {"fp32": 4, "fp16": 2, "int8": 2, "int8-weights": 1}
"""Variant -> bytes of most weights."""
Config = Mapping[str, Any]
Shape = tuple[int, ...]


DECIDES = ("sample", "latent_sample", "input_ids", "clip_input")
"""Inputs whose shape decides how much room a call takes."""


class Need(NamedTuple):
    """A component, and the input that decides."""

    component: str
    shape: Shape
    """Of ``sample`` (N, C, H, W), of ``latent_sample`` (N, C, H/8, W/8), of ``input_ids`` (N, 77)."""

    @classmethod
    def of(cls, component: str, shapes: Mapping[str, Shape]) -> Need:
        """From the shapes of all inputs."""
        return cls(component, next((shape for name, shape in shapes.items() if name in DECIDES), ()))


class Cost(NamedTuple):
    """Bytes that a component adds to a process."""

    making: int
    """While it is read and compiled, at the most."""
    held: int
    """From its first call until it is let go."""


class Weights(NamedTuple):
    """Of a component, as its files have them."""

    whole: float
    """How many are floating-point numbers."""
    eighths: float
    """How many are kept in eight bits."""
    quantised: bool
    """Whether it calculates in eight bits, too."""
    looked_up: float
    """How many of the first are a table that is not multiplied with: the vocabulary."""
    convolutions: bool
    """Whether nearly all of them belong to convolutions."""
    graph: int
    """Bytes of what tells how they are connected."""


class Found(NamedTuple):
    """What the disk is good for."""

    cached: bool
    """The compiled model is there."""
    files: bool
    """Weights can be written out."""


@dataclass(frozen=True)
class Habits:
    """What a runtime does with memory."""

    base: int
    """Bytes of a process that has loaded everything but a model."""
    of_weights: Callable[[Weights, float, Found], Cost]
    """(weights, bytes a number in the arithmetic that runs, what the disk is good for) -> bytes."""
    fused: bool
    """Whether attention is calculated without a matrix of every cell by every other."""
    maps: float
    """Room that calls take: times what is alive at once at least."""


def _openvino(weights: Weights, width: float, found: Found) -> Cost:
    """It sorts weights for the processor, from files that are mapped, and given back meanwhile: its cache, the model's,
    and the one where weights are written out in the type of the arithmetic.

    Widened by itself, and kept beside the others, are tables, and what is left in half beside weights in eight bits.
    """
    eighths = weights.eighths * (1 if weights.quantised else width)
    made = width * (weights.whole - weights.looked_up) + eighths + 58 * weights.graph
    if not found.cached:
        made += 4 * (weights.whole if weights.eighths else weights.looked_up * (width < 4))
        made += width * weights.whole * (not found.files)
    return Cost(int(made), int(made))


def _onnxruntime(weights: Weights, width: float, found: Found) -> Cost:
    """It widens weights to float32 and sorts those of convolutions twice; then it keeps one of each."""
    made = (13 if weights.convolutions else 7) * weights.whole + 3 * weights.eighths + 35 * weights.graph
    return Cost(int(made), int(4 * weights.whole + 2 * weights.eighths + 14 * weights.graph))


HABITS: Mapping[str, Habits] = {
    "openvino": Habits(112 * MIB, _openvino, fused=True, maps=1.0),
    "onnxruntime": Habits(75 * MIB, _onnxruntime, fused=False, maps=1.0),
}
"""By ``Backend.name``; of others, nothing is foreseen."""


class Foresight:
    """What the components of a model will take on a runtime, on the processor."""

    def __init__(self, bundle: Bundle, runtime: str, precision: str) -> None:
        self.habits = HABITS[runtime]
        self._bundle, self._precision = bundle, precision
        self._kept = set(_compiled_before())
        self._files = compiled.scratch(1).in_file
        self.cost = cache(self._cost)
        """(need) -> its ``Cost``.  Raises ``ModelError`` when a config cannot be read."""
        self.facts = cache(self._read)
        """(component) -> its config and its ``Weights``."""

    def _cost(self, need: Need) -> Cost:
        config, weights = self.facts(need.component)
        precision = "f32" if need.component == "safety_checker" else self._precision
        cost = self.habits.of_weights(weights, WIDTHS[precision], Found(self._is_cached(need, precision), self._files))
        call = WIDTHS[precision] * self.habits.maps * alive(need, config, fused=self.habits.fused)
        return Cost(cost.making, cost.held + int(call))

    def _is_cached(self, need: Need, precision: str) -> bool:
        return (self._bundle.key, precision, need) in self._kept

    def _read(self, component: str) -> tuple[Config, Weights]:
        if component == SHALLOW:
            config, weights = self.facts("unet")
            return config, outermost(weights, config)
        config = self._bundle.config(component)
        return config, read_weights(self._bundle.path / component, config, self._bundle.precision)


def _compiled_before() -> Iterator[tuple[str, str, Need]]:
    """What the cache holds: the model's key, the arithmetic, and for which input."""
    for facts in (entry.facts for entry in compiled.entries()):
        with suppress(KeyError, TypeError, AttributeError):  # it says something else
            shapes = {name: tuple(shape) for name, shape in facts["shapes"].items()}  # type: ignore[index]
            precision = facts["properties"]["INFERENCE_PRECISION_HINT"]  # type: ignore[index]
            name = SHALLOW if facts["edits"]["shallow"] else facts["component"]  # type: ignore[index]
            yield facts["manifest"], precision, Need.of(name, shapes)  # type: ignore[index]


OUTERMOST = 165
"""Weights of the U-Net's two outermost layers on the way up and the one on the way down, by the square of the width."""


def outermost(weights: Weights, config: Config) -> Weights:
    """Those of a shallow U-Net of the usual depth."""
    count = OUTERMOST * config.get("block_out_channels", (320,))[0] ** 2
    share = min(1.0, count / (weights.whole + weights.eighths))
    return weights._replace(
        whole=share * weights.whole, eighths=share * weights.eighths, graph=int(share * weights.graph)
    )


def alive(need: Need, config: Config, *, fused: bool) -> float:
    """How many numbers a call holds at once at the most: feature maps, and the matrices of attention.

    What a config does not say is as in Stable Diffusion 1.5.
    """
    if need.component in ("unet", SHALLOW):
        return _of_unet(need.shape, config, fused)
    if "vae" in need.component:
        return _of_autoencoder(need, config, fused)
    return 0  # others' maps are smaller than what else is uncertain


GATED = 18
"""Widths of a block's maps that its gated layer holds: twice four, what becomes of each half, and its input."""
BESIDE = 2
"""Times what comes into a block on the way up, which is what came from below beside what was kept: the norm's, too."""
AROUND = 3.2
"""Maps of an autoencoder's widest block at once: into a convolution, out of it, and past it."""


def _of_unet(shape: Shape, config: Config, fused: bool) -> float:
    """What is kept for the way up, and the widest of the blocks."""
    rows, _, height, width = shape
    wide = config.get("block_out_channels", (320, 640, 1280, 1280))
    levels = range(len(wide))
    cells = [height * width / 4**level for level in levels]
    attends = ["CrossAttn" in kind for kind in config.get("down_block_types", ["CrossAttn"] * (len(wide) - 1) + [""])]
    layers = _each(config.get("layers_per_block", 2), levels)
    # What older configs call the width of a head is the number of heads.
    heads = _each(config.get("num_attention_heads") or config.get("attention_head_dim", 8), levels)
    below = [*wide[1:], wide[-1]]
    kept: float = sum((layers[level] + 1) * wide[level] * cells[level] for level in levels)
    widest: float = max(
        cells[level] * max(GATED * wide[level] * attends[level], BESIDE * (wide[level] + below[level]))
        for level in levels
    )
    matrices: float = max(2 * heads[level] * cells[level] ** 2 * attends[level] for level in levels)
    return rows * (kept + (widest if fused else max(widest, matrices)))


def _of_autoencoder(need: Need, config: Config, fused: bool) -> float:
    """The widest of the blocks, or the attention in the middle."""
    count, _, height, width = need.shape
    wide = config.get("block_out_channels", (128, 256, 512, 512))
    cells = height * width / (4 ** (len(wide) - 1) if need.component == "vae_encoder" else 1)
    comes = wide if need.component == "vae_encoder" else [*wide[1:], wide[-1]]
    widest: float = max(
        AROUND * channels * cells * 4 ** (len(wide) - 1 - level) for level, channels in enumerate(comes)
    )
    attends = config.get("mid_block_add_attention", True) and "tiny" not in need.component and not fused
    return count * max(widest, 2 * cells**2 * attends)


def _each(value: int | Sequence[int], levels: Sequence[int]) -> Sequence[int]:
    """One for each level."""
    return [value] * len(levels) if isinstance(value, int) else value


CONSTANT = re.compile(rb'<data\b[^<>]*\belement_type="(\w+)"[^<>]*\bsize="(\d{1,18})"')


def read_weights(folder: Path, config: Config, variant: str) -> Weights:
    """Of a component: from what OpenVINO's graph says of each constant, or from the size of an ONNX model's files."""
    looked_up = config.get("vocab_size", 0) * config.get("hidden_size", 0)
    convolutions = "vae" in folder.name
    graph = folder / "openvino_model.xml"
    if graph.is_file():
        text = graph.read_bytes()
        kinds = [(WIDTHS.get(kind.decode(), 0), int(size)) for kind, size in CONSTANT.findall(text)]
        whole = sum(size / width for width, size in kinds if width >= 2)
        eighths = sum(size / width for width, size in kinds if 0 < width < 2)
        return Weights(whole, eighths, b'type="FakeQuantize"' in text, looked_up, convolutions, len(text))
    stored = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    quantised = variant == "int8" and folder.name == "unet"  # the rest of that variant is halved
    width = 1 if quantised else STORED.get(variant, 4)  # as most tools write them
    whole, eighths = (stored / width, 0) if width > 1 else (0, stored)
    return Weights(whole, eighths, quantised, looked_up, convolutions, 0)
