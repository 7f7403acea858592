"""What NNCF did to a model in OpenVINO, done to the ONNX graph that the model was read from.

OpenVINO calls an operation as the ONNX node is called that it came from, so that names lead from one to the other.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ovenbird.errors import NumericError

ACCUMULATION = "/WithoutBiases"
"""Ends the name of a convolution or product of matrices in OpenVINO; the node's own name is that of the sum."""
SMOOTH = "/nncf_smooth_quant"
"""Ends the name of a product that SmoothQuant puts before matrices."""
LEVELS = 256


def transfer(quantised: Any, graph: onnx.GraphProto, folder: Path) -> None:
    """Give ``graph``, whose large weights lie in ``folder``, the roundings and weights of an ``openvino.Model``.

    Activations are rounded by QuantizeLinear and DequantizeLinear; weights are kept in eight bits, and widened by
    DequantizeLinear.  Raises ``NumericError`` when a rounding finds no place.
    """
    Transfer(graph, folder).run(quantised)


class Transfer:
    """One graph while it is changed."""

    def __init__(self, graph: onnx.GraphProto, folder: Path) -> None:
        self.graph, self.folder = graph, folder
        self.nodes = {node.name: node for node in graph.node}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input]
        self.made: dict[str, str] = {}
        """Operation that NNCF put in -> the tensor that it gives."""
        self.after: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        """Tensor of the graph as it was -> what is made of it, in order."""
        self.placed: set[str] = set()

    def run(self, quantised: Any) -> None:
        """See ``transfer``."""
        operations = quantised.get_ordered_ops()
        for operation in operations:
            name = operation.get_friendly_name().removesuffix(ACCUMULATION)
            node = self.nodes.get(name)
            if node is None or _is_put_in(operation):
                continue
            for value in operation.input_values():
                if _is_put_in(value.get_node()):
                    self._read_rounded(node, value.get_node())
            if operation.get_type_name() in ("Convolution", "MatMul"):
                self._take_weights(node, operation)
            elif operation.get_type_name() == "Add":
                self._take_bias(node, operation)
        lost = {_name(op) for op in operations if _is_put_in(op)} - self.placed
        if lost:
            raise NumericError(f"{self.folder.name}: {min(lost)} has no place in the ONNX graph")
        self._order()

    def _read_rounded(self, node: onnx.NodeProto, operation: Any) -> None:
        was, now = self._base(operation), self._tensor(operation)
        for place, name in enumerate(node.input):
            if name == was:
                node.input[place] = now

    def _base(self, operation: Any) -> str:
        """The tensor of the graph that a chain of what NNCF put in begins with."""
        while _is_put_in(operation):
            operation = operation.input_value(0).get_node()
        name: str = _name(operation)
        if name in self.inputs or name in self.initializers:
            return name
        if name not in self.nodes:
            raise NumericError(f"{self.folder.name}: {name} is not in the ONNX graph")
        tensor: str = self.nodes[name].output[0]
        return tensor

    def _tensor(self, operation: Any) -> str:
        """What ``operation`` gives, made if it is not yet."""
        if not _is_put_in(operation):
            return self._base(operation)
        name = _name(operation)
        self.placed.add(name)
        if name not in self.made:
            source = self._tensor(operation.input_value(0).get_node())
            make = self._smooth if name.endswith(SMOOTH) else self._round
            self.made[name] = make(operation, source, self.after[self._base(operation)])
        return self.made[name]

    def _smooth(self, operation: Any, source: str, nodes: list[onnx.NodeProto]) -> str:
        target = _name(operation)
        self._put(f"{target}.scale", operation.input_value(1).get_node().data)
        nodes.append(helper.make_node("Mul", [source, f"{target}.scale"], [target], target))
        return target

    def _round(self, operation: Any, source: str, nodes: list[onnx.NodeProto]) -> str:
        low, high = (float(operation.input_value(place).get_node().data) for place in (1, 2))
        if operation.get_attributes()["levels"] != LEVELS:
            raise NumericError(f"{self.folder.name}: {_name(operation)} has not {LEVELS} levels")
        scale = np.float32((high - low) / (LEVELS - 1))
        target = _name(operation)
        given = [f"{target}.scale", f"{target}.zero"]
        self._put(given[0], scale)
        self._put(given[1], np.rint(np.clip(-low / scale, 0, LEVELS - 1)).astype(np.uint8))
        nodes.append(helper.make_node("QuantizeLinear", [source, *given], [f"{target}.u8"], f"{target}.u8"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{target}.u8", *given], [target], target))
        return target

    def _take_weights(self, node: onnx.NodeProto, operation: Any) -> None:
        for place, value in enumerate(operation.input_values()):
            found = _eight_bits(value.get_node())
            if found and node.input[place] in self.initializers:
                values, scale = found
                name, tensor = node.input[place], self.initializers.pop(node.input[place])
                if tuple(tensor.dims) != values.shape:
                    raise NumericError(f"{self.folder.name}: {name} lies in OpenVINO otherwise than in ONNX")
                axes = [axis for axis, size in enumerate(scale.shape) if size > 1] or [0]
                kept = scale.reshape(-1) if scale.size > 1 else np.repeat(scale.reshape(-1), values.shape[axes[0]])
                tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.int8"))
                self._put(f"{name}.scale", kept)
                inputs = [f"{name}.int8", f"{name}.scale"]
                self.after[""].append(
                    helper.make_node("DequantizeLinear", inputs, [name], f"{name}.widen", axis=axes[0])
                )

    def _take_bias(self, node: onnx.NodeProto, operation: Any) -> None:
        constants = [value.get_node() for value in operation.input_values()]
        constants = [constant for constant in constants if constant.get_type_name() == "Constant"]
        names = [name for name in node.input if name in self.initializers]
        if len(constants) == 1 and names:
            tensor = self.initializers[names[-1]]  # the weights of a convolution come before
            corrected = constants[0].data.reshape(tuple(tensor.dims))
            if not np.array_equal(numpy_helper.to_array(tensor, str(self.folder)), corrected):
                tensor.CopyFrom(numpy_helper.from_array(corrected.copy(), tensor.name))

    def _put(self, name: str, values: NDArray[Any] | np.generic) -> None:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))

    def _order(self) -> None:
        """Write the nodes anew, each after what it reads."""
        first = [node for name in ("", *self.inputs, *self.initializers) for node in self.after.pop(name, [])]
        nodes = [*first]
        for node in self.graph.node:
            nodes.append(node)
            for output in node.output:
                nodes += self.after.pop(output, [])
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)


def _name(operation: Any) -> str:
    name: str = operation.get_friendly_name()
    return name


def _is_put_in(operation: Any) -> bool:
    return operation.get_type_name() == "FakeQuantize" or _name(operation).endswith(SMOOTH)


def _eight_bits(operation: Any) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Values and scale of weights that NNCF keeps as ``Multiply(Convert(int8), scale)``; None for anything else."""
    if operation.get_type_name() != "Multiply":
        return None
    wide, scale = (value.get_node() for value in operation.input_values())
    kept = wide.input_value(0).get_node() if wide.get_type_name() == "Convert" else wide
    if kept.get_type_name() != "Constant" or kept.data.dtype != np.int8:
        return None
    return kept.data, scale.data
