"""Changes to OpenVINO graphs before they are compiled: exact ones, which only round otherwise, and approximate ones.

Graphs are matched by their structure, so that those of other exporters are changed, too.  What is not found stays as
it is; each function says how many places it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from ovenbird.backends import DEEP, Edits
from ovenbird.errors import ModelError

Output = Any
Node = Any
REAL = (ov.Type.f32, ov.Type.f16)
WHOLE = (*REAL, ov.Type.i8, ov.Type.u8)
"""What numpy shows as it is: bf16 it would show as f16, and four bits not one by one."""


def edited(model: ov.Model, edits: Edits) -> ov.Model:
    """A graph of static shapes, changed.  Raises ``ModelError`` where what was asked for cannot be done.

    Exact edits are made where there is a place for them, and so is pooling among the outermost layers, of which not all
    models have attention.
    """
    if edits.shallow:
        model = reuse_deep(model, edits.depth)
    elif edits.depth:
        keep_deep(model, edits.depth)
    if edits.pooled and not pool_keys(model) and not edits.shallow:
        raise ModelError(
            "unet: it has no self-attention over 2x2 cells that could be averaged",
            hint="sides that are multiples of 16 give such cells; or leave out --pool-attention",
        )
    for name, rewrite in REWRITES.items():
        if name in edits.exact:
            rewrite(model)
    model.validate_nodes_and_infer_types()
    return model


def split_gates(model: ov.Model) -> int:
    """GEGLU (Shazeer, 2020): one product that is cut in two becomes two products, and nothing has to be cut."""
    changed = 0
    for gelu in _of_type(model, "Gelu"):
        cut, users = _source(gelu.input(0)), list(gelu.output(0).get_target_inputs())
        if len(users) != 1 or users[0].get_node().get_type_name() != "Multiply" or cut.get_type_name() != "Slice":
            continue
        other = _source(users[0].get_node().input(1 - users[0].get_index()))
        made = cut.input_value(0)
        if other.get_type_name() != "Slice" or other.input_value(0) != made or not _starts_at_zero(other):
            continue
        halves = _halves_of_product(made)
        if halves is not None:
            other.output(0).replace(halves[0])
            cut.output(0).replace(halves[1])
            changed += 1
    return changed


def upsample_by_convolution(model: ov.Model) -> int:
    """Nearest upsampling by 2 and a 3x3 convolution as one 2x2 convolution of the small picture.

    It makes four times as many channels, which are put side by side: 16 products where the two take 36.  The kernel's
    sums are the same numbers added in another order.
    """
    changed = 0
    for resize in _of_type(model, "Interpolate"):
        users = list(resize.output(0).get_target_inputs())
        if len(users) != 1 or users[0].get_index() != 0 or not _doubles(resize):
            continue
        node = users[0].get_node()
        kernel = numbers(node.input_value(1)) if _is_plain_3x3(node) else None
        if kernel is None:
            continue
        larger = _convolved_larger(resize.input_value(0), kernel.astype(np.float32))
        larger.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(larger.output(0))
        changed += 1
    return changed


def _convolved_larger(small: Output, kernel: NDArray[np.float32]) -> Node:
    """(N, C, H, W) -> (N, D, 2H, 2W); the kernel is (D, C, 3, 3)."""
    summed = _meeting(_meeting(kernel, 2), 4)  # (D, C, a, u, b, v)
    weights = ops.constant(summed.transpose(0, 2, 4, 1, 3, 5).reshape(-1, kernel.shape[1], 2, 2))
    # Between the pixels of the small picture, and around it, lie (H + 1) (W + 1) windows of four.  Each knows the 2x2
    # pixels of the large one that lie there, which is one row and one column too many at every side.
    windows = ops.convolution(small, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    spread = ops.depth_to_space(windows, "depth_first", 2)
    return ops.slice(spread, *(np.array(value) for value in ([1, 1], [-1, -1], [1, 1], [2, 3])))


def _meeting(kernel: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The three rows of a kernel along an axis, summed as they meet two rows of the small picture: along two axes.

    For an odd row of the large picture the first two meet one and the last the other; for the even row after it the
    first meets one, and the last two the other.
    """
    first, second, third = np.moveaxis(kernel, axis, 0)
    return np.stack([np.stack([first + second, third], axis), np.stack([first, second + third], axis)], axis)


def pool_keys(model: ov.Model) -> int:
    """In self-attentions over the most cells, keys and values of 2x2 cells are averaged; queries stay.

    What attends to all cells then attends to a quarter as many.  As in PixArt-Sigma's key-value compression (Chen et
    al., 2024), but with a plain mean and nothing trained.
    """
    found = list(_self_attentions(model))
    if not found:
        return 0
    most = max(cells for cells, _ in found)
    level = _level(*_latent_size(model), most)
    if level is None:
        return 0
    for cells, readers in found:
        if cells != most:
            continue
        mean = _pooled(_unrounded(readers[0]).get_source_output(), *level)
        for port in readers:
            node = _source(port)
            if node.get_type_name() == "FakeQuantize":
                port.replace_source_output(AGAIN["FakeQuantize"](node, mean, *node.input_values()[1:]).output(0))
            else:
                port.replace_source_output(mean)
    return sum(cells == most for cells, _ in found)


REWRITES: Mapping[str, Callable[[ov.Model], int]] = {"gates": split_gates, "upsampling": upsample_by_convolution}
"""By their names in ``EXACT``; that of weights is made at the very end, for an arithmetic."""


def keep_deep(model: ov.Model, depth: int) -> None:
    """Give out what the last ``depth`` layers of the U-Net's way up take from below.

    DeepCache (Ma et al., 2024): between neighbouring steps that changes little.  Raises ``ModelError`` for a graph
    without so many.
    """
    [output] = model.add_outputs(_deep(model, depth).get_source_output())
    output.set_names({DEEP})


def reuse_deep(model: ov.Model, depth: int) -> ov.Model:
    """The U-Net's first and last layers alone, which take what ``keep_deep`` gave out.  Raises ``ModelError``."""
    port = _deep(model, depth)
    given = ops.parameter(port.get_partial_shape(), port.get_element_type(), DEEP)
    given.output(0).set_names({DEEP})
    port.replace_source_output(given.output(0))
    return ov.Model(model.get_results(), [*model.get_parameters(), given], "shallow")


def _deep(model: ov.Model, depth: int) -> Any:
    """Where what comes from below meets what comes from the way down."""
    meetings = [node for node in _of_type(model, "Concat") if _is_meeting(node)]
    if not 1 <= depth < len(meetings):
        raise ModelError(
            f"unet: reuse_depth: {depth} is not from 1 to {len(meetings) - 1}, the layers of its way up that meet one "
            "of its way down"
        )
    return _unrounded(meetings[-depth].input(0))


def _is_meeting(node: Node) -> bool:
    shape = node.get_output_partial_shape(0)
    return node.get_input_size() == 2 and shape.rank.get_length() == 4 and node.get_attributes()["axis"] in (1, -3)


def _of_type(model: ov.Model, name: str) -> Iterator[Node]:
    return (node for node in model.get_ordered_ops() if node.get_type_name() == name)


def _source(port: Any) -> Node:
    return port.get_source_output().get_node()


def _unrounded(port: Any) -> Any:
    """Before what comes in is rounded to eight bits, if it is."""
    node = _source(port)
    return node.input(0) if node.get_type_name() == "FakeQuantize" else port


def numbers(output: Output) -> NDArray[Any] | None:
    """A constant, or one that is stored in half and widened; None of others, and of types that numpy has not."""
    node = output.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or node.get_element_type() not in REAL:
        return None
    found: NDArray[Any] = node.data
    return found


def _starts_at_zero(cut: Node) -> bool:
    start = cut.input_value(1).get_node()
    return start.get_type_name() == "Constant" and not start.data.any()


def _halves_of_product(made: Output) -> list[Output] | None:
    """x W + b, with the columns of W and b cut in half."""
    node = made.get_node()
    if node.get_type_name() != "Add":
        return None
    ports = node.inputs()
    products = [port for port in ports if _source(port).get_type_name() == "MatMul"]
    if len(products) != 1 or _source(products[0]).get_attributes()["transpose_a"]:
        return None
    [product] = products
    [bias] = [port for port in ports if port != product]
    across = _source(product).get_attributes()["transpose_b"]
    try:
        weights = _cut(_source(product).input_value(1), -2 if across else -1)
        biases = _cut(bias.get_source_output(), -1)
    except NotImplementedError:
        return None
    x = _source(product).input_value(0)
    return [
        ops.add(ops.matmul(x, weight, False, across), beside).output(0)
        for weight, beside in zip(weights, biases, strict=True)
    ]


AGAIN: Mapping[str, Callable[..., Node]] = {
    "Convert": lambda node, value: ops.convert(value, node.get_element_type()),
    "Multiply": lambda _, *values: ops.multiply(*values),
    "Subtract": lambda _, *values: ops.subtract(*values),
    "Add": lambda _, *values: ops.add(*values),
    "FakeQuantize": lambda node, *values: ops.fake_quantize(*values, node.get_attributes()["levels"]),
}
"""What may stand between weights and the product, each number by itself: a node, and other inputs -> its like."""


def _cut(output: Output, axis: int) -> list[Output]:
    """Both halves of weights along an axis that is counted from the last; raises ``NotImplementedError``."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        if node.get_element_type() not in WHOLE:
            raise NotImplementedError(node.get_element_type())
        if len(node.shape) < -axis or node.shape[axis] == 1:
            return [output, output]
        return [ops.constant(np.ascontiguousarray(half)).output(0) for half in np.split(node.data, 2, axis)]
    if kind not in AGAIN:
        raise NotImplementedError(kind)
    halves = zip(*(_cut(value, axis) for value in node.input_values()), strict=True)
    return [AGAIN[kind](node, *half).output(0) for half in halves]


def _doubles(resize: Node) -> bool:
    facts = resize.get_attributes()
    before, after = resize.get_input_partial_shape(0), resize.get_output_partial_shape(0)
    return (
        facts["mode"] == "nearest"
        and before.is_static
        and after.is_static
        and list(after.to_shape()) == [*before.to_shape()[:2], *(2 * side for side in before.to_shape()[2:])]
    )


def _is_plain_3x3(node: Node) -> bool:
    if node.get_type_name() != "Convolution" or list(node.get_input_shape(1)[2:]) != [3, 3]:
        return False
    facts = node.get_attributes()
    ones = ("strides", "dilations", "pads_begin", "pads_end")
    return all(list(facts[name]) == [1, 1] for name in ones) and facts["auto_pad"] in ("explicit", "notset")


def _latent_size(model: ov.Model) -> tuple[int, int]:
    [sample] = [port for port in model.inputs if "sample" in port.get_names()]
    height, width = sample.get_shape()[2:]
    return height, width


def _level(height: int, width: int, cells: int) -> tuple[int, int] | None:
    """Height and width of so many cells, which were halved some times; None unless 2x2 of them can be averaged."""
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    fits = height * width == cells and height % 2 == width % 2 == 0
    return (height, width) if fits else None


def _self_attentions(model: ov.Model) -> Iterator[tuple[int, list[Any]]]:
    """How many cells attend to each other, and the inputs that keys and values are made of."""
    for node in _of_type(model, "ScaledDotProductAttention"):
        products = [made for made in (_product(node.input(index)) for index in range(3)) if made is not None]
        if len(products) == 3:
            seen = {_seen_by(product).get_friendly_name() for product in products}
            if len(seen) == 1:
                yield node.get_input_shape(0)[-2], [product.input(0) for product in products[1:]]


AWAY = {"Transpose", "Reshape", "Multiply", "FakeQuantize"}
"""What may stand between a product and the attention."""


def _product(port: Any) -> Node | None:
    node = _source(port)
    while node.get_type_name() in AWAY:
        node = _source(node.input(0))
    return node if node.get_type_name() == "MatMul" else None


def _seen_by(product: Node) -> Node:
    return _source(_unrounded(product.input(0)))


def _pooled(seen: Output, height: int, width: int) -> Output:
    """(N, H W, C) -> (N, H/2 W/2, C)."""
    rows, _, channels = seen.get_shape()
    pairs = ops.reshape(seen, np.array([rows * height // 2, 2, width * channels]), False)
    above = ops.reduce_mean(pairs, np.array([1]), False)
    pairs = ops.reshape(above, np.array([rows * height * width // 4, 2, channels]), False)
    mean = ops.reduce_mean(pairs, np.array([1]), False)
    return ops.reshape(mean, np.array([rows, height * width // 4, channels]), False).output(0)
