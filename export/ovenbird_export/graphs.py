"""Graphs: torch to ONNX once, that ONNX to each variant's ONNX, and each variant's ONNX to its OpenVINO IR."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import torch
from onnx import numpy_helper
from openvino import opset13 as ops
from openvino._offline_transformations import apply_moc_transformations
from optimum.exporters.onnx import model_configs
from optimum.exporters.onnx.convert import export_pytorch

from ovenbird_export.precisions import Precision
from ovenbird_export.recipes import Arrays, Part

ONNX_FILE = "model.onnx"
ONNX_DATA = "model.onnx_data"
IR_FILE = "openvino_model.xml"
INLINE_BYTES = 1 << 30
"""Weights up to here lie in ``model.onnx`` itself, larger ones beside it; protobuf ends at 2 GiB."""
COUNTED = re.compile(r"[A-Z]\w*_\d+(\.\w+)?")
"""Names that OpenVINO gives by counting every node that the process ever made."""


def onnx_config(module: torch.nn.Module, part: Part) -> Any:
    """What optimum knows about the part: the names of its inputs and outputs, and which axes are free."""
    return getattr(model_configs, part.onnx_config)(module.config)


def trace(module: torch.nn.Module, part: Part, inputs: Arrays, folder: Path) -> None:
    """Write ``model.onnx`` in float32, with free batch, sides and length of text.

    optimum's ``main_export`` stands in the way: it holds the whole pipeline and two more copies of the VAE, and traces
    at the configured size, which divides evenly (see ``recipes.TRACE``) and costs SD 1.5 minutes.  What is below it
    does everything else: names, free axes, and patches that let transformers be traced.
    """
    config = onnx_config(module, part)
    config.generate_dummy_inputs = lambda framework: {n: torch.from_numpy(array) for n, array in inputs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    export_pytorch(module, config, config.DEFAULT_ONNX_OPSET, folder / ONNX_FILE)


def write_onnx(traced: Path, precision: Precision, folder: Path) -> None:
    """Write a variant's ``model.onnx`` from the traced one."""
    model = onnx.load(traced / ONNX_FILE)
    precision.shrink_onnx(model)
    large = sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer) > INLINE_BYTES
    onnx.save_model(
        model,
        folder / ONNX_FILE,
        save_as_external_data=large,
        location=ONNX_DATA if large else None,
    )
    if large:  # onnx lets nobody else read what it puts beside the graph
        shutil.copymode(folder / ONNX_FILE, folder / ONNX_DATA)


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
