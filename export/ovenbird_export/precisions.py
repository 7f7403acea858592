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
    """A variant: what is done to the weights of torch's module, of the ONNX graph and of the IR, each in place."""

    name: str
    bytes_per_weight: int
    round_module: Callable[[Any], None]
    shrink_onnx: Callable[[Any], None]
    shrink_ir: Callable[[Any], None]


def is_halved(values: NDArray[np.float32]) -> bool:
    """Whether a tensor is stored in half: it is large enough, and nothing in it overflows or is not a number."""
    return values.size >= SMALLEST and bool(np.abs(values).max() <= LARGEST_HALF)


def is_exact_in_half(values: NDArray[np.float32]) -> bool:
    """Whether ``is_halved`` and nothing is lost."""
    return is_halved(values) and bool((values.astype(np.float16) == values).all())


def keep(_: Any) -> None:
    """Leave the weights as they are."""


def halve_module(module: Any) -> None:
    """Round the weights that a variant stores in half; what torch computes then is what the variant must give."""
    for parameter in module.parameters():
        if is_halved(parameter.detach().numpy()):
            parameter.data = parameter.data.half().float()


def halve_onnx(model: Any) -> None:
    """Store weights in half, each with a Cast behind it that has the weight's old name."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if is_halved(values):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.f16"))
            casts.append(helper.make_node("Cast", [f"{name}.f16"], [name], f"{name}.widen", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def halve_ir(model: Any) -> None:
    """Store in half whatever is exact in half: OpenVINO folded the Casts of ``halve_onnx`` away, not their rounding."""
    import openvino as ov
    from openvino import opset13 as ops

    for constant in [op for op in model.get_ops() if op.get_type_name() == "Constant"]:
        if constant.get_element_type() != ov.Type.f32 or not is_exact_in_half(constant.data):
            continue
        name = constant.get_friendly_name()
        half = ops.constant(constant.data.astype(np.float16), name=f"{name}.f16")
        wide = ops.convert(half, "f32", name=f"{name}.widen")
        constant.output(0).replace(wide.output(0))


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", 4, keep, keep, keep),
        Precision("fp16", 2, halve_module, halve_onnx, halve_ir),
    )
}
