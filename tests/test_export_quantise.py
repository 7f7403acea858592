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
from ovenbird_export import layers, qdq  # noqa: E402
from ovenbird_export.quantise import in_openvino, quantise  # noqa: E402

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


def run(model: Any, inputs: dict[str, Any], options: Any = None) -> Any:
    return ort.InferenceSession(model.SerializeToString(), options).run(None, inputs)[0]


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


def write_block(path: Path) -> Path:
    """What a U-Net is made of: convolutions with and without bias, a norm, products of matrices, Gemm, resizing."""
    nodes = [
        helper.make_node("Conv", ["sample", "w0", "b0"], ["a"], "/conv_in/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "/act/Relu"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "/down_blocks.0/conv/Conv", pads=[1] * 4),
        helper.make_node("Reshape", ["c", "flat"], ["d"], "/mid/Reshape"),
        helper.make_node("Transpose", ["d"], ["e"], "/mid/Transpose", perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["e", "g", "h"], ["f"], "/mid/norm/LayerNormalization"),
        helper.make_node("MatMul", ["f", "w2"], ["i"], "/mid/to_q/MatMul"),
        helper.make_node("Add", ["b2", "i"], ["j"], "/mid/to_q/Add"),
        helper.make_node("Relu", ["j"], ["k"], "/mid/act/Relu"),
        helper.make_node("MatMul", ["k", "w3"], ["l"], "/mid/to_out/MatMul"),
        helper.make_node("Add", ["l", "e"], ["m"], "/mid/Add"),
        helper.make_node("Reshape", ["m", "wide"], ["n"], "/mid/Reshape_1"),
        helper.make_node("Gemm", ["n", "w4", "b4"], ["out"], "/out/Gemm", transB=1),
    ]
    loud = np.ones(8, np.float32)
    loud[3] = 20  # what SmoothQuant is for
    tensors = {
        **{"w0": weights(0, 8, 8, 3, 3), "b0": weights(1, 8), "w1": weights(2, 8, 8, 3, 3)},
        **{"g": loud, "h": weights(3, 8), "w2": weights(4, 8, 16), "b2": weights(5, 16), "w3": weights(6, 16, 8)},
        **{"w4": weights(7, 4, 8), "b4": weights(8, 4)},
        **{"flat": np.array([0, 8, -1], np.int64), "wide": np.array([-1, 8], np.int64)},
    }
    initial = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    ports = [helper.make_tensor_value_info(*port) for port in (("sample", 1, SHAPE), ("out", 1, (36, 4)))]
    model = helper.make_model(
        helper.make_graph(nodes, "block", ports[:1], ports[1:], initial),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    path.parent.mkdir(exist_ok=True)
    onnx.save_model(model, path)
    return path


def test_what_nncf_does_in_openvino_is_done_to_the_onnx(tmp_path: Path) -> None:
    import openvino as ov

    path = write_block(tmp_path / "unet" / "model.onnx")
    quantised = in_openvino(path, [sample(k) for k in range(4)])
    model = onnx.load(path)
    qdq.transfer(quantised, model.graph, path.parent)
    onnx.checker.check_model(model, full_check=True)
    # In float32: products of eight bits overflow on processors without VNNI, and on each runtime otherwise.
    widened = ort.SessionOptions()
    widened.add_session_config_entry("session.disable_quant_qdq", "1")
    exact, found = run(onnx.load(path), sample(9)), run(model, sample(9), widened)
    compiled = ov.compile_model(quantised, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": False})
    expected = compiled(sample(9))[0]
    norm = np.linalg.norm
    assert 0 < norm(found - exact) / norm(exact) < 0.1
    assert norm(found - expected) / norm(exact) < 0.01  # a rounding that falls the other way here and there
    kinds = [node.op_type for node in model.graph.node]
    fakes = [op for op in quantised.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert kinds.count("QuantizeLinear") == len(fakes) >= 5
    assert sum(tensor.data_type == TensorProto.INT8 for tensor in model.graph.initializer) == 5
    assert "Mul" in kinds  # SmoothQuant's


def test_corrected_biases_come_along(tmp_path: Path) -> None:
    from openvino import opset13

    path = write_block(tmp_path / "unet" / "model.onnx")
    quantised = in_openvino(path, [sample(k) for k in range(4)])
    total = next(op for op in quantised.get_ops() if op.get_friendly_name() == "/conv_in/Conv")
    bias = next(value.get_node() for value in total.input_values() if value.get_node().get_type_name() == "Constant")
    corrected = bias.data + np.float32(1)
    bias.output(0).replace(opset13.constant(corrected).output(0))
    model = onnx.load(path)
    qdq.transfer(quantised, model.graph, path.parent)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(found["b0"], corrected.reshape(-1))
    np.testing.assert_allclose(found["b0"], weights(1, 8) + 1, atol=0.2)


def test_a_rounding_without_a_place_is_refused(tmp_path: Path) -> None:
    path = write_block(tmp_path / "unet" / "model.onnx")
    quantised = in_openvino(path, [sample(0)])
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "Gemm").name = "another"
    with pytest.raises(NumericError, match=r"has no place in the ONNX graph"):
        qdq.transfer(quantised, model.graph, path.parent)


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
