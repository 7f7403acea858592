"""Graphs: torch to ONNX once, that ONNX to each variant's ONNX, and each variant's ONNX to its OpenVINO IR."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import openvino as ov
import torch
from onnx import external_data_helper, helper, numpy_helper
from openvino import opset13 as ops
from openvino._offline_transformations import apply_moc_transformations
from optimum.exporters.onnx import model_configs

from ovenbird_export.precisions import Precision, Stored
from ovenbird_export.recipes import CLIP_SKIP, Arrays, Part

ONNX_FILE = "model.onnx"
ONNX_DATA = "model.onnx_data"
IR_FILE = "openvino_model.xml"
TOKENIZER_FILE = "openvino_tokenizer.xml"
INLINE_BYTES = 1 << 30
"""Weights up to here, as traced, lie in ``model.onnx`` itself, larger ones beside it; protobuf ends at 2 GiB."""
OUTSIDE_BYTES = 1024
"""A tensor from here on lies beside the graph when the large ones do; shapes and the like stay with it."""
ALIGNMENT = 4096
"""Where a tensor beside the graph may begin, so that it can be mapped."""
COUNTED = re.compile(r"[A-Z]\w*_\d+(\.\w+)?")
"""Names that OpenVINO gives by counting every node that the process ever made."""


class TextWithSkips(model_configs.CLIPTextOnnxConfig):  # type: ignore[misc]
    """As optimum has it, and behind its outputs those without the last layers, for ``clip_skip``."""

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        skips = range(1, self._config.num_hidden_layers)
        axes = {0: "batch_size", 1: "sequence_length"}
        return {**super().outputs, **{f"{CLIP_SKIP}{skip}": axes for skip in skips}}


class TextWithProjection(model_configs.CLIPTextWithProjectionOnnxConfig):  # type: ignore[misc]
    """As optimum has it, but that the width of ``text_embeds`` is not called the length of the text."""

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {**super().outputs, "text_embeds": {0: "batch_size"}}


class TinyDecoder(model_configs.VaeDecoderOnnxConfig):  # type: ignore[misc]
    """What optimum does not know: ``AutoencoderTiny``, which has no list of blocks by name."""

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        factor = 2 ** (len(self._config.block_out_channels) - 1)
        return {"sample": {0: "batch_size", 2: f"latent_height * {factor}", 3: f"latent_width * {factor}"}}


class TinyEncoder(model_configs.VaeEncoderOnnxConfig):  # type: ignore[misc]
    """Its other half, which gives latents and no distribution of them."""

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        factor = 2 ** (len(self._config.block_out_channels) - 1)
        return {"latent_sample": {0: "batch_size", 2: f"sample_height / {factor}", 3: f"sample_width / {factor}"}}


class SafetyChecker(model_configs.CLIPVisionModelOnnxConfig):  # type: ignore[misc]
    """What optimum leaves in torch: the safety checker.  Its first output has the name that diffusers gives it."""

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"clip_input": {0: "batch_size"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {name: {0: "batch_size"} for name in ("has_nsfw_concepts", "concept_scores", "special_scores")}


OURS = {kind.__name__: kind for kind in (TextWithSkips, TextWithProjection, TinyDecoder, TinyEncoder, SafetyChecker)}


def onnx_config(module: torch.nn.Module, part: Part) -> Any:
    """The names of a part's inputs and outputs and which axes are free, as optimum knows them or as we do."""
    kind: Any = OURS.get(part.onnx_config) or getattr(model_configs, part.onnx_config)
    return kind(module.config)


@torch.no_grad()
def trace(module: torch.nn.Module, part: Part, inputs: Arrays, folder: Path) -> None:
    """Write ``model.onnx`` in float32, with free batch, sides and length of text.

    optimum's ``main_export`` stands in the way: it holds the whole pipeline and two more copies of the VAE, and traces
    at the configured size, which divides evenly (see ``recipes.TRACE``) and costs SD 1.5 minutes.  So does its
    ``export_pytorch``: weights over 2 GiB, which torch writes one tensor to a file, it reads back into memory beside
    the module.  What is below both is used: names, free axes, and patches that let transformers be traced.
    """
    config = onnx_config(module, part)
    folder.mkdir(parents=True, exist_ok=True)
    with config.patch_model_for_export(module, model_kwargs={}):
        names = config.ordered_inputs(module)
        torch.onnx.export(
            module,
            ({name: torch.from_numpy(inputs[name]) for name in names},),
            f=str(folder / ONNX_FILE),
            input_names=list(names),
            output_names=list(config.outputs),
            dynamic_axes={**names, **config.outputs},
            opset_version=config.DEFAULT_ONNX_OPSET,
            dynamo=False,
        )


def fix_axes(folder: Path, arrays: Arrays, words: Sequence[str]) -> None:
    """Fix the axes with one of ``words`` in their names at the sizes of ``arrays``, which are inputs and outputs."""
    model = onnx.load(folder / ONNX_FILE, load_external_data=False)
    for port in [*model.graph.input, *model.graph.output]:
        for axis, size in zip(port.type.tensor_type.shape.dim, arrays[port.name].shape, strict=True):
            if any(word in axis.dim_param for word in words):
                axis.dim_value = size
    del model.graph.value_info[:]  # what was known of the tensors inside, with the old axes in it
    onnx.save_model(model, folder / ONNX_FILE)


def write_onnx(model: onnx.ModelProto, base: Path, precision: Precision, folder: Path) -> None:
    """Write a variant's ``model.onnx``, one tensor at a time; weights that ``model`` has not read lie in ``base``."""
    graph, axes = model.graph, _channel_axes(model.graph)
    large = sum(_size(tensor) for tensor in graph.initializer) > INLINE_BYTES
    wider: list[onnx.NodeProto] = []
    scales: list[onnx.TensorProto] = []
    with (folder / ONNX_DATA).open("wb") if large else nullcontext() as data:
        for tensor in graph.initializer:
            values = numpy_helper.to_array(tensor, str(base))
            stored = precision.store(values, axes.get(tensor.name))
            if stored.values.dtype != values.dtype:
                wider.append(_widen(tensor, stored))
            if stored.scale is not None:
                scales.append(numpy_helper.from_array(stored.scale, wider[-1].input[1]))
            _put(tensor, numpy_helper.from_array(stored.values, tensor.name), data)
    graph.initializer.extend(scales)
    for tensor in (attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")):
        if external_data_helper.uses_external_data(tensor):
            external_data_helper.load_external_data_for_tensor(tensor, str(base))
    nodes = [*wider, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save_model(model, folder / ONNX_FILE)


def _widen(tensor: onnx.TensorProto, stored: Stored) -> onnx.NodeProto:
    # The tensor gets another name; what comes out of the node has the old one.
    name, tensor.name = tensor.name, f"{tensor.name}.{stored.values.dtype}"
    if stored.scale is None:
        return helper.make_node("Cast", [tensor.name], [name], f"{name}.widen", to=tensor.data_type)
    inputs = [tensor.name, f"{name}.scale"]
    return helper.make_node("DequantizeLinear", inputs, [name], f"{name}.widen", axis=stored.axis)


def _channel_axes(graph: onnx.GraphProto) -> dict[str, int]:
    """The weights of matrices and convolutions, and the axis of each along which the outputs lie."""
    dims = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    found: dict[str, set[int | None]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in dims:
                found.setdefault(name, set()).add(_output_axis(node, dims[name]) if place == 1 else None)
    return {name: axis for name, axes in found.items() if len(axes) == 1 and (axis := axes.pop()) is not None}


def _output_axis(node: onnx.NodeProto, dims: int) -> int | None:
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    axes = {"Conv": 0, "MatMul": dims - 1, "Gemm": 0 if transposed else 1}
    return axes.get(node.op_type)


def _size(tensor: onnx.TensorProto) -> int:
    size: int = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return size


def _put(tensor: onnx.TensorProto, stored: onnx.TensorProto, data: IO[bytes] | None) -> None:
    if data is not None and len(stored.raw_data) >= OUTSIDE_BYTES:
        data.write(bytes(-data.tell() % ALIGNMENT))
        external_data_helper.set_external_data(stored, ONNX_DATA, data.tell(), len(stored.raw_data))
        data.write(stored.raw_data)
        stored.ClearField("raw_data")
    tensor.CopyFrom(stored)


def remove_onnx(folder: Path) -> None:
    """Take away what ``write_onnx`` wrote, once the IR is made from it."""
    for name in (ONNX_FILE, ONNX_DATA):
        (folder / name).unlink(missing_ok=True)


def write_ir(precision: Precision, folder: Path) -> None:
    """Write ``openvino_model.xml`` and ``.bin`` from the ``model.onnx`` beside them.

    These are the steps of ``openvino.convert_model``, which is not called because it reports its use to a server.
    """
    model = ov.Core().read_model(folder / ONNX_FILE)
    apply_moc_transformations(model, cf=False)
    precision.shrink_ir(model)
    _name_ports(model, onnx.load(folder / ONNX_FILE, load_external_data=False).graph)
    _take_whole_timesteps(model)
    _rename_counted(model)
    ov.save_model(model, folder / IR_FILE, compress_to_fp16=False)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write ``openvino_tokenizer.xml`` and ``.bin``, which openvino-genai reads instead of the tokenizer's files."""
    from openvino_tokenizers import convert_tokenizer

    model = convert_tokenizer(tokenizer, with_detokenizer=False)
    model.input(0).get_tensor().set_names({"string_input"})  # it is counted, too
    _rename_counted(model)
    ov.save_model(model, folder / TOKENIZER_FILE, compress_to_fp16=False)


def _name_ports(model: Any, graph: onnx.GraphProto) -> None:
    # Inputs and outputs alone: where a step is removed as useless, here or by a compiler, a port would get the names
    # of both its sides, in no order.
    for node in model.get_ops():
        for output in node.outputs():
            output.get_tensor().set_names(set())
    for port, value in zip([*model.inputs, *model.outputs], [*graph.input, *graph.output], strict=True):
        port.get_tensor().set_names({value.name})


def _take_whole_timesteps(model: Any) -> None:
    # One int64, because openvino-genai gives nothing else.  The engine takes the rounding out again when it reads this.
    for parameter in model.get_parameters():
        if "timestep" in parameter.output(0).names:
            readers, shape = parameter.output(0).get_target_inputs(), parameter.get_output_shape(0)
            parameter.set_element_type(ov.Type.i64)
            parameter.set_partial_shape(ov.PartialShape([1]))
            number = ops.reshape(ops.convert(parameter, "f32"), np.array(shape, np.int64), special_zero=False)
            for reader in readers:
                reader.replace_source_output(number.output(0))
    model.validate_nodes_and_infer_types()


def _rename_counted(model: Any) -> None:
    # So that the same model gives the same bytes, whatever was converted before it in this process.
    for position, node in enumerate(model.get_ordered_ops()):
        if COUNTED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{position}")
