"""How weights are stored: one row for each variant, and the rules that say which weights are halved or quartered.

Arithmetic stays in float32.  OpenVINO's own ``compress_to_fp16`` is not used: it halves every constant, the frequencies
of the time embedding too, and costs a U-Net eight times the error (8e-3 against 1e-3 where it was measured).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SMALLEST = 4096
"""Elements from which a tensor is halved: convolutions and matrices are larger, biases and norms are worth nothing."""
LARGEST_HALF = float(np.finfo(np.float16).max)


class Stored(NamedTuple):
    """A tensor as it is kept: ``values * scale`` along ``axis``, or the values themselves."""

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    axis: int = 0


@dataclass(frozen=True)
class Precision:
    """A variant: how its weights are kept, in torch's module and in the IR (in place), and each of the ONNX graph."""

    name: str
    bytes_per_weight: int
    round_module: Callable[[Any], None]
    store: Callable[[NDArray[Any], int | None], Stored]
    """A tensor, and the axis of its output channels if it is a weight -> how it is kept."""
    shrink_ir: Callable[[Any], None]
    psnr_db: float
    """What pictures must have, from end to end, against those of the reference.

    fp16's is what the eye cannot tell apart.  nestling has 28 dB in int8; 15 lets models pass that draw finer things.
    """
    quantised: Mapping[str, float] = field(default_factory=dict)
    """Components whose arithmetic is in eight bits, and the relative error with which they pass.

    0.35: nestling's U-Net has 0.11, one of random weights, which is the worst there is to quantise, 0.30; a layer that
    is lost gives more than 1.
    """

    def stores_like(self, other: Precision) -> bool:
        """Whether a component whose arithmetic is float32 has the same bytes in both."""
        return (self.store, self.shrink_ir) == (other.store, other.shrink_ir)


def is_halved(values: NDArray[np.float32]) -> bool:
    """Whether a tensor is stored in half: it is large enough, and nothing in it overflows or is not a number."""
    return values.size >= SMALLEST and bool(np.abs(values).max() <= LARGEST_HALF)


def is_exact_in_half(values: NDArray[np.float32]) -> bool:
    """Whether ``is_halved`` and nothing is lost."""
    return is_halved(values) and bool((values.astype(np.float16) == values).all())


def keep(_: Any) -> None:
    """Leave the weights as they are."""


def whole(values: NDArray[Any], axis: int | None) -> Stored:
    """A tensor as it is."""
    return Stored(values)


def halved(values: NDArray[Any], axis: int | None) -> Stored:
    """A weight in half if it ``is_halved``."""
    return Stored(values.astype(np.float16) if values.dtype == np.float32 and is_halved(values) else values)


def quartered(values: NDArray[Any], axis: int | None) -> Stored:
    """A matrix or a convolution in eight bits, with a scale for every output; anything else ``halved``.

    It is halved before, so that one module of torch can be rounded for one variant after the other.
    """
    half = halved(values, axis)
    if axis is None or half.values.dtype != np.float16:
        return half
    values = half.values.astype(np.float32)
    others = tuple(other for other in range(values.ndim) if other != axis)
    scale = np.maximum(np.abs(values).max(others) / np.float32(127), np.finfo(np.float32).tiny)
    return Stored(np.rint(values / np.expand_dims(scale, others)).astype(np.int8), scale, axis)


def halve_module(module: Any) -> None:
    """Round the weights that a variant stores in half; what torch computes then is what the variant must give."""
    for parameter in module.parameters():
        if is_halved(parameter.detach().numpy()):
            parameter.data = parameter.data.half().float()


def quarter_module(module: Any) -> None:
    """Round as ``quartered`` does; in torch the outputs of matrices and convolutions lie along the first axis."""
    import torch

    halve_module(module)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            kept = quartered(layer.weight.detach().numpy(), 0)
            if kept.scale is not None:
                scale = kept.scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
                layer.weight.data = torch.from_numpy(kept.values * scale)


def halve_ir(model: Any) -> None:
    """Store in half whatever is exact in half: OpenVINO folded the Casts behind ``halved`` away, not their rounding."""
    import openvino as ov
    from openvino import opset13 as ops

    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    constants.reverse()
    while constants:  # each is let go as soon as it is replaced
        constant = constants.pop()
        if constant.get_element_type() != ov.Type.f32 or not is_exact_in_half(constant.data):
            continue
        name = constant.get_friendly_name()
        half = ops.constant(constant.data.astype(np.float16), name=f"{name}.f16")
        wide = ops.convert(half, "f32", name=f"{name}.widen")
        constant.output(0).replace(wide.output(0))


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", 4, keep, whole, keep, psnr_db=60.0),
        Precision("fp16", 2, halve_module, halved, halve_ir, psnr_db=35.0),
        Precision("int8", 2, halve_module, halved, halve_ir, psnr_db=15.0, quantised={"unet": 0.35}),
        Precision("int8-weights", 1, quarter_module, quartered, halve_ir, psnr_db=20.0),
    )
}
