"""Quantisation and the search for the layer that spoils it, on a graph of three layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("nncf")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ovenbird import NumericError  # noqa: E402
from ovenbird_export import layers  # noqa: E402
from ovenbird_export.quantise import quantise  # noqa: E402

pytestmark = pytest.mark.export

SHAPE = (1, 8, 6, 6)


def weights(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))


def write(path: Path, external: bool = False) -> Path:
    """conv, relu, conv, relu, conv; their names are those that torch's exporter gives."""
    names = ("conv_in", "down_blocks.0/conv", "up_blocks.0/conv")
    nodes, tensor = [], "sample"
    for number, name in enumerate(names):
        nodes.append(helper.make_node("Conv", [tensor, f"w{number}"], [f"c{number}"], f"/{name}/Conv", pads=[1] * 4))
        tensor = f"r{number}" if number < 2 else "out"
        nodes.append(helper.make_node("Relu" if number < 2 else "Identity", [f"c{number}"], [tensor], f"/{name}/Act"))
    initial = [numpy_helper.from_array(weights(k, 8, 8, 3, 3), f"w{k}") for k in range(3)]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in ("sample", "out")]
    graph = helper.make_graph(nodes, "toy", ports[:1], ports[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.parent.mkdir(exist_ok=True)
    onnx.save_model(model, path, save_as_external_data=external, location="weights", size_threshold=0)
    return path


def sample(seed: int) -> dict[str, Any]:
    return {"sample": np.random.default_rng(seed).standard_normal(SHAPE, np.float32)}


def run(model: Any, inputs: dict[str, Any]) -> Any:
    return ort.InferenceSession(model.SerializeToString()).run(None, inputs)[0]


@pytest.mark.parametrize("external", [False, True])
def test_weights_and_activations_get_eight_bits(
    tmp_path: Path, external: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "unet" / "model.onnx", external)
    model = quantise(path, [sample(k) for k in range(4)])
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 3 and kinds.count("DequantizeLinear") == 6
    assert [t.data_type for t in model.graph.initializer].count(TensorProto.INT8) >= 3
    exact = run(onnx.load(path), sample(9))
    found = run(model, sample(9))
    assert 0 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.15
    assert capsys.readouterr().out == ""


def test_what_nncf_cannot_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "unet" / "model.onnx")
    with pytest.raises(NumericError, match="unet: NNCF cannot quantise it"):
        quantise(path, [{"sample": np.zeros((1, 5, 6, 6), np.float32)}])


def test_the_layer_that_spoils_it_is_found(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good" / "model.onnx"), write(tmp_path / "bad" / "model.onnx", external=True)
    model = onnx.load(bad)
    tensor = model.graph.initializer[1]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(model, bad)
    found = layers.errors(good, bad, sample(1))
    assert list(found) == ["conv_in", "down_blocks.0", "up_blocks.0"]
    assert found["conv_in"] == 0 and found["down_blocks.0"] == pytest.approx(0.5)
    assert layers.worst_group(good, bad, sample(1)).startswith("down_blocks.0 (relative error 0 before it, 0.5 after)")
    assert layers.worst_group(good, good, sample(1)) == "no group of layers"
