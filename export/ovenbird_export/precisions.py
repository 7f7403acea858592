"""How weights are stored: one row for each variant, and the one rule that says which weights are halved.

Arithmetic stays in float32.  OpenVINO's own ``compress_to_fp16`` is not used: it halves every constant, the frequencies
of the time embedding too, and costs a U-Net eight times the error (8e-3 against 1e-3 where it was measured).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = 4096
"""Elements from which a tensor is halved: convolutions and matrices are larger, biases and norms are worth nothing."""
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Precision:
    """A variant: what is done to the weights of torch's module and of the IR, in place, and to each of the graph's."""

    name: str
    bytes_per_weight: int
    round_module: Callable[[Any], None]
    store: Callable[[NDArray[Any]], NDArray[Any]]
    """A tensor as the ONNX graph stores it; with another type, a Cast follows it."""
    shrink_ir: Callable[[Any], None]


def is_halved(values: NDArray[np.float32]) -> bool:
    """Whether a tensor is stored in half: it is large enough, and nothing in it overflows or is not a number."""
    return values.size >= SMALLEST and bool(np.abs(values).max() <= LARGEST_HALF)


def is_exact_in_half(values: NDArray[np.float32]) -> bool:
    """Whether ``is_halved`` and nothing is lost."""
    return is_halved(values) and bool((values.astype(np.float16) == values).all())


def keep(_: Any) -> None:
    """Leave the weights as they are."""


def whole(values: NDArray[Any]) -> NDArray[Any]:
    """A tensor as it is."""
    return values


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """A weight in half if it ``is_halved``."""
    return values.astype(np.float16) if values.dtype == np.float32 and is_halved(values) else values


def halve_module(module: Any) -> None:
    """Round the weights that a variant stores in half; what torch computes then is what the variant must give."""
    for parameter in module.parameters():
        if is_halved(parameter.detach().numpy()):
            parameter.data = parameter.data.half().float()


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
        Precision("fp32", 4, keep, whole, keep),
        Precision("fp16", 2, halve_module, halved, halve_ir),
    )
}
