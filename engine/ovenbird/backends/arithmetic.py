"""What a graph calculates, counted before it runs: products of matrices, to which all the rest is small."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import openvino as ov

from ovenbird.timing import Flop

NOT_COUNTED = {"Einsum", "If", "Loop", "TensorIterator", "LSTMSequence", "GRUSequence", "RNNSequence"}
"""Operators that may hold products which are not looked for here."""
RESHAPED = {"Convert", "Reshape", "Transpose", "Unsqueeze"}
SCALED = {"Multiply", "Subtract"}
"""What widens weights that are stored in eight bits."""


class Work(NamedTuple):
    """Of one call."""

    flop: float
    """Multiplications and additions, counted apart."""
    int8: float
    """Those whose factors the graph rounds to eight bits, both of them."""
    weights: float
    """Bytes, as they are stored."""
    values: float
    """Numbers other than weights that the operators read and write, as if no cache kept any."""

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(*(mine + its for mine, its in zip(self, other, strict=True)))


NOTHING = Work(0, 0, 0, 0)


def count(model: ov.Model) -> dict[str, Work] | None:
    """By kind: ``convolution``, ``transposed convolution``, ``linear`` with weights, ``attention`` without.

    None for a graph that cannot be counted: its shapes are not all static, or operators hide what they do.
    """
    found: dict[str, Work] = {}
    for node in model.get_ordered_ops():
        type_name = node.get_type_name()
        if type_name in NOT_COUNTED:
            return None
        if type_name not in PRODUCTS:
            continue
        if any(port.get_partial_shape().is_dynamic for port in (*node.input_values(), *node.outputs())):
            return None
        kind, work = _work(node)
        found[kind] = found.get(kind, NOTHING) + work
    return found


def flop(model: ov.Model) -> Flop | None:
    """All kinds together, or None."""
    found = count(model)
    if found is None:
        return None
    total = sum(found.values(), NOTHING)
    return Flop(total.flop, total.int8)


def _work(node: Any) -> tuple[str, Work]:
    kind, formula = PRODUCTS[node.get_type_name()]
    factors = node.input_values()[: 3 if kind == "attention" else 2]
    stored = [_stored(port) for port in factors]
    if None not in stored:  # folded into a constant before anything runs
        return kind, NOTHING
    if kind == "linear" and stored == [None, None]:
        kind = "attention"
    total = float(formula(node, *(list(port.get_shape()) for port in factors)))
    values = [_size(port) for port, size in zip(factors, stored, strict=True) if size is None]
    # There is no kernel for whole attention in eight bits.
    rounded = node.get_type_name() != ATTENTION and all(map(_rounded, factors))
    weights = sum(size for size in stored if size is not None)
    return kind, Work(total, total * rounded, weights, sum(values) + _size(node.output(0)))


def _size(port: Any) -> int:
    return prod(port.get_shape())


def _convolution(node: Any, _: list[int], kernel: list[int]) -> int:
    """Kernels are (out, in, ...)."""
    return 2 * _size(node.output(0)) * prod(kernel[1:])


def _group_convolution(node: Any, _: list[int], kernel: list[int]) -> int:
    """Kernels are (groups, out, in, ...)."""
    return 2 * _size(node.output(0)) * prod(kernel[2:])


def _transposed_convolution(_: Any, values: list[int], kernel: list[int]) -> int:
    """Kernels are (in, out, ...); every number that comes in is added to as many that go out."""
    return 2 * prod(values) * prod(kernel[1:])


def _transposed_group_convolution(_: Any, values: list[int], kernel: list[int]) -> int:
    """Kernels are (groups, in, out, ...)."""
    return 2 * prod(values) * prod(kernel[2:])


def _product(node: Any, left: list[int], _: list[int]) -> int:
    summed = left[-1] if len(left) == 1 or not node.get_attributes()["transpose_a"] else left[-2]
    return 2 * _size(node.output(0)) * summed


def _attention(_: Any, queries: list[int], keys: list[int], values: list[int]) -> int:
    """Queries by keys, and what comes of that by values."""
    return 2 * prod(queries[:-1]) * keys[-2] * (keys[-1] + values[-1])


ATTENTION = "ScaledDotProductAttention"
PRODUCTS: dict[str, tuple[str, Callable[..., int]]] = {
    "Convolution": ("convolution", _convolution),
    "GroupConvolution": ("convolution", _group_convolution),
    "ConvolutionBackpropData": ("transposed convolution", _transposed_convolution),
    "GroupConvolutionBackpropData": ("transposed convolution", _transposed_group_convolution),
    "MatMul": ("linear", _product),
    ATTENTION: ("attention", _attention),
}
"""Operator -> kind, and its operations by the node and the shapes of its factors."""


def _stored(port: Any) -> int | None:
    """How many bytes the constants have that a factor is made of; None if it is made of anything else."""
    node = port.get_node()
    name = node.get_type_name()
    if name == "Constant":
        return int(node.get_byte_size())
    if name in RESHAPED:
        return _stored(node.input_value(0))
    if name not in SCALED and name != "FakeQuantize":
        return None
    sizes = 0
    for source in node.input_values():
        size = _stored(source)
        if size is None:
            return None
        sizes += size
    return sizes


def _rounded(port: Any) -> bool:
    """Whether a factor has one of 256 values, or of fewer."""
    node = port.get_node()
    name = node.get_type_name()
    if name == "Constant":
        return node.get_element_type() in (ov.Type.i8, ov.Type.u8)
    if name == "FakeQuantize":
        return int(node.get_attributes()["levels"]) <= 256
    if name in SCALED and _stored(node.input_value(1)) is None:
        return False
    return name in RESHAPED | SCALED and _rounded(node.input_value(0))
