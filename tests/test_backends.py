"""One contract, every runtime, the same tiny graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovenbird.backends import BACKENDS, Backend, create
from ovenbird.errors import ModelError, RequestError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write_graph(folder: Path, name: str) -> Path:
    """x @ w + a whole number, as ONNX and as IR."""
    onnx = pytest.importorskip("onnx")
    import openvino

    helper, proto = onnx.helper, onnx.TensorProto
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w"], ["product"]),
                helper.make_node("Cast", [name], ["t"], to=proto.FLOAT),
                helper.make_node("Add", ["product", "t"], ["y"]),
            ],
            "tiny",
            [
                helper.make_tensor_value_info("x", proto.FLOAT, ["batch", 4]),
                helper.make_tensor_value_info(name, proto.INT64, []),
            ],
            [helper.make_tensor_value_info("y", proto.FLOAT, ["batch", 3])],
            [onnx.numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    onnx.save(model, folder / "model.onnx")
    openvino.save_model(
        openvino.convert_model(folder / "model.onnx"), folder / "openvino_model.xml", compress_to_fp16=False
    )
    return folder


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph"), "number")


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return create(request.param)


def test_it_computes_and_casts(backend: Backend, graph: Path) -> None:
    model = backend.compile(graph, {"x": (2, 4)}, precision="f32", cache_key=None)
    x = np.arange(8, dtype=np.float64).reshape(2, 4)
    result = model({"x": x, "number": np.array([10.0])})
    expected = x @ np.arange(12).reshape(4, 3) + 10
    assert list(result) == ["y"]
    np.testing.assert_array_equal(result["y"], expected)
    assert result["y"].dtype == np.float32


def test_results_are_the_callers_own(backend: Backend, graph: Path) -> None:
    model = backend.compile(graph, {"x": (1, 4)}, precision="f32", cache_key=None)
    first = model({"x": np.ones((1, 4)), "number": np.array(0)})["y"]
    kept = first.copy()
    model({"x": np.zeros((1, 4)), "number": np.array(0)})
    np.testing.assert_array_equal(first, kept)


def test_it_says_what_it_is(backend: Backend, graph: Path) -> None:
    model = backend.compile(graph, {"x": (1, 4)}, precision="f32", cache_key=None)
    assert model.precision == "f32"
    assert set(model.inputs) == {"x", "number"}
    assert model.inputs["number"].dtype == np.int64
    assert backend.threads >= 1 and backend.version[0].isdigit()


def test_what_halves_run_in_has_its_short_name(backend: Backend, graph: Path) -> None:
    wished = backend.best_precision("fp16")
    model = backend.compile(graph, {"x": (1, 4)}, precision=wished, cache_key=None)
    assert model.precision == wished and wished in ("f32", "bf16")


def test_f32_weights_run_in_f32(backend: Backend) -> None:
    assert backend.best_precision("fp32") == "f32"


def test_e4_an_absent_or_broken_file_is_a_model_error(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        backend.compile(tmp_path, {}, precision="f32", cache_key=None)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError):
        backend.compile(tmp_path, {}, precision="f32", cache_key=None)


def test_an_unknown_device_or_runtime_is_a_request_error() -> None:
    for name in BACKENDS:
        with pytest.raises(RequestError, match="device"):
            create(name, "abacus")
    with pytest.raises(RequestError, match="openvino"):
        create("tensorflow")


def test_cuda_is_refused_where_it_is_not() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    with pytest.raises(RequestError, match="cuda"):
        create("onnxruntime", "cuda")


def test_e7_the_cache_is_used_and_a_damaged_entry_is_not(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path))
    shapes = {"x": (2, 4)}

    def run(key: str) -> tuple[str, float]:
        model = create("openvino").compile(graph, shapes, precision="f32", cache_key=key)
        return model.cache, float(model({"x": np.ones((2, 4)), "number": np.array(0)})["y"][0, 0])

    assert run("one") == ("miss", 18.0)
    assert run("one") == ("hit", 18.0)
    assert run("two")[0] == "miss"  # other bytes of the model, another key
    for path in tmp_path.glob("*.blob"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert run("one") == ("miss", 18.0)
    assert run("one") == ("hit", 18.0)


def test_e6_an_unwritable_cache_costs_a_warning(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("OVENBIRD_CACHE", str(blocked))
    with pytest.warns(UserWarning, match="cannot be written"):
        model = create("openvino").compile(graph, {"x": (1, 4)}, precision="f32", cache_key="one")
    assert model.cache == "miss"


def test_openvino_takes_fractions_of_a_timestep_that_is_declared_whole(tmp_path: Path) -> None:
    model = create("openvino").compile(
        write_graph(tmp_path, "timestep"), {"x": (1, 4)}, precision="f32", cache_key=None
    )
    result = model({"x": np.zeros((1, 4)), "timestep": np.array(948.75)})["y"]
    np.testing.assert_array_equal(result, np.full((1, 3), 948.75, np.float32))
