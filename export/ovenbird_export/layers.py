"""Where in a component an error begins: the same inputs through two graphs, compared after each group of layers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ovenbird.backends import Arrays

GROUP = re.compile(r"/((?:[a-z_]+/)*?[a-z_]+\.\d+|mid_block|[a-z_]+)/")
"""``down_blocks.0``, ``text_model/encoder/layers.3``, ``mid_block``, ``conv_in``: the start of a node's name."""


def errors(reference: Path, variant: Path, inputs: Arrays) -> dict[str, float]:
    """Layer group -> relative error of its last output, in the order of the graph; both paths are ``model.onnx``."""
    groups = {name: tensor for name, tensor in _last_outputs(reference).items() if tensor in _outputs(variant)}
    expected, found = (_run(path, list(groups.values()), inputs) for path in (reference, variant))
    return {
        name: float(np.linalg.norm(ours - theirs) / (np.linalg.norm(theirs) or 1.0))
        for name, ours, theirs in zip(groups, found, expected, strict=True)
    }


def worst_group(reference: Path, variant: Path, inputs: Arrays) -> str:
    """The group in which the relative error grows most, with the error before and after it."""
    before, growth = 0.0, [("", 0.0, 0.0)]
    for name, error in errors(reference, variant, inputs).items():
        growth.append((name, before, error))
        before = error
    name, before, after = max(growth, key=lambda row: row[2] - row[1])
    return f"{name} (relative error {before:.2g} before it, {after:.2g} after)" if name else "no group of layers"


def _last_outputs(path: Path) -> dict[str, str]:
    last: dict[str, str] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        group = GROUP.match(node.name)
        if group and node.op_type not in ("Constant", "Shape", "Gather", "Cast"):
            last.pop(group[1], None)  # so that the order is that of the last nodes
            last[group[1]] = node.output[0]
    return last


def _outputs(path: Path) -> set[str]:
    return {name for node in onnx.load(path, load_external_data=False).graph.node for name in node.output}


def _run(path: Path, names: list[str], inputs: Arrays) -> list[NDArray[np.float64]]:
    model = onnx.load(path, load_external_data=False)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value, np.float64) for value in session.run(names, dict(inputs))]
