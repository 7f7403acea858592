"""Weights written out once in the type that the arithmetic takes, where their memory can be given back.

Folders store halves and call them float32.  OpenVINO widens all of them, keeps that, and sorts a copy for the
processor: three times the memory, where the copy is in bf16.  Of a graph that is bf16 itself it only makes the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import op
from openvino import opset13 as ops

from ovenbird.backends.arithmetic import NOT_COUNTED, PRODUCTS
from ovenbird.backends.rewrites import REAL, numbers
from ovenbird.machine import usable_cores
from ovenbird.mapped import Mapped

Output = Any
Port = Any
Room = Callable[[int], Mapped]
"""So many bytes to write to."""

KINDS = {"bf16": ov.Type.bf16, "f32": ov.Type.f32}
HALF_STEPS = np.float32(2)
WHOLE = (ov.Type.f64, *REAL, ov.Type.bf16)
ALIGNED = 64
BLOCK = 1 << 18  # numbers: a block stays in a core's own cache
LARGEST_BF16 = np.float32(3.3895314e38)


def settle(model: ov.Model, precision: str, room: Room) -> tuple[ov.Model, Mapped | None]:
    """A graph of float32 whose weights are ``bf16`` or ``f32``, as the arithmetic is, and what they lie in.

    In bf16 is then all that follows a product, as the processor would have it by itself; what comes before, such as the
    sines of a timestep, stays in f32.  Graphs with weights in eight bits, which OpenVINO treats in its own way, or with
    graphs inside, stay as they are, and so do all for other arithmetic.
    """
    nodes = model.get_ops()
    if precision not in KINDS or any(_has_eighths(node) or node.get_type_name() in NOT_COUNTED for node in nodes):
        return model, None
    settled = model.clone()
    try:
        home = _settle(settled, KINDS[precision], room)
    except RuntimeError:  # an operator of others that takes float32 alone
        return model, None
    return settled, home


def narrow(model: ov.Model, room: Room) -> Mapped | None:
    """Weights in eight bits rounded to seven, in a graph that rounds what flows between layers, and what they lie in.

    Two products of those and of eight bits fit into sixteen: on processors that sum them so, results are right.
    """
    nodes = model.get_ordered_ops()
    if not any(node.get_type_name() == "FakeQuantize" for node in nodes):
        return None
    found = [(node, scaled) for node in nodes for scaled in _scales(node)]
    constants, home = _written([node.data for node, _ in found], ov.Type.i8, room)
    for (node, scaled), made in zip(found, constants, strict=True):
        step = ops.constant(HALF_STEPS.astype(scaled.get_element_type().to_dtype()))
        scaled.replace_source_output(ops.multiply(scaled.get_source_output(), step).output(0))
        node.output(0).replace(made)
    model.validate_nodes_and_infer_types()
    return home


def _scales(node: Any) -> Iterator[Port]:
    """Of weights that are stored in eight bits, as NNCF does it, where their scale comes in."""
    if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.i8:
        return
    widened = [port.get_node() for port in node.output(0).get_target_inputs()]
    if len(widened) == 1 and widened[0].get_type_name() == "Convert":
        ports = list(widened[0].output(0).get_target_inputs())
        if len(ports) == 1 and ports[0].get_node().get_type_name() == "Multiply":
            yield ports[0].get_node().input(1 - ports[0].get_index())


def _settle(model: ov.Model, kind: ov.Type, room: Room) -> Mapped:
    ports = list(_before_products(model) if kind == ov.Type.bf16 else _widened(model))
    sources = {_name(source): source for source in (port.get_source_output() for port in ports)}
    stored = {name: found for name, source in sources.items() if (found := numbers(source)) is not None}
    constants, home = _written(list(stored.values()), kind, room)
    made = dict(zip(stored, constants, strict=True))
    for name in sources.keys() - made.keys():
        made[name] = ops.convert(sources[name], kind).output(0)
    for port in ports:
        port.replace_source_output(made[_name(port.get_source_output())])
    model.validate_nodes_and_infer_types()
    _end_in_f32(model)
    return home


def _before_products(model: ov.Model) -> Iterator[Port]:
    """Where real numbers come in to what follows a product, the products among it."""
    following = set()
    for node in model.get_ordered_ops():
        kind, sources = node.get_type_name(), [port.get_source_output() for port in node.inputs()]
        apart = [source.get_node().get_name() not in following for source in sources]
        if kind in ("ShapeOf", "Result") or (kind not in PRODUCTS and all(apart)):
            continue
        following.add(node.get_name())
        taken = 1 if kind == "Interpolate" else len(sources)  # it takes sizes as float32, too
        for port, source, is_apart in [*zip(node.inputs(), sources, apart, strict=True)][:taken]:
            if is_apart and source.get_element_type() in REAL:
                yield port


def _widened(model: ov.Model) -> Iterator[Port]:
    """Where weights in half come in as float32."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convert" and node.get_element_type() == ov.Type.f32:
            found = numbers(node.output(0))
            if found is not None and found.dtype == np.float16:
                yield from node.output(0).get_target_inputs()


def _end_in_f32(model: ov.Model) -> None:
    for result in model.get_results():
        source = result.input_value(0)
        if source.get_element_type() == ov.Type.bf16:
            names = source.get_names()
            wide = ops.convert(source, ov.Type.f32).output(0)
            source.set_names(set())
            wide.set_names(names)
            result.input(0).replace_source_output(wide)
    model.validate_nodes_and_infer_types()


def _name(output: Output) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()


def _has_eighths(node: Any) -> bool:
    """Whether it rounds to eight bits, or widens weights that are stored so."""
    if node.get_type_name() != "Convert" or node.get_element_type() not in WHOLE:
        return bool(node.get_type_name() == "FakeQuantize")
    source = node.input_value(0)
    return bool(source.get_node().get_type_name() == "Constant" and source.get_element_type().bitwidth <= 8)


def _written(weights: Sequence[NDArray[Any]], kind: ov.Type, room: Room) -> tuple[list[Output], Mapped]:
    """Constants of these numbers."""
    sizes = [each.size * kind.size for each in weights]
    starts = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]
    home = room(starts[-1])
    places = [home.bytes[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    write = {ov.Type.bf16: _as_bf16, ov.Type.f32: _as_f32, ov.Type.i8: _as_seven_bits}[kind]
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(lambda block: write(*block), _blocks(weights, places, kind.size)):
            pass
    tensors = (ov.Tensor(place, ov.Shape(each.shape), kind) for each, place in zip(weights, places, strict=True))
    return [op.Constant(tensor, True).output(0) for tensor in tensors], home


def _blocks(
    weights: Sequence[NDArray[Any]], places: Iterable[NDArray[np.uint8]], width: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    for each, place in zip(weights, places, strict=True):
        flat = each.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            end = start + BLOCK
            yield flat[start:end], place[start * width : end * width]


def _as_f32(values: NDArray[Any], place: NDArray[np.uint8]) -> None:
    place.view(np.float32)[:] = values


def _as_seven_bits(values: NDArray[Any], place: NDArray[np.uint8]) -> None:
    place.view(np.int8)[:] = np.rint(values / HALF_STEPS)


def _as_bf16(values: NDArray[Any], place: NDArray[np.uint8]) -> None:
    """Rounded to the nearest, and to even between two; what is finite stays so."""
    wide = values.astype(np.float32)
    if values.dtype == np.float32:
        np.clip(wide, -LARGEST_BF16, LARGEST_BF16, out=wide, where=np.isfinite(wide))
    bits = wide.view(np.uint32)
    bits += ((bits >> 16) & 1) + np.uint32(0x7FFF)
    bits >>= 16
    place.view(np.uint16)[:] = bits
