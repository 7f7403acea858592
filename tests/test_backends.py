"""One contract, every runtime, the same tiny graphs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from ovenbird.backends import BACKENDS, Backend, create
from ovenbird.backends.devices import parse
from ovenbird.backends.openvino import core
from ovenbird.errors import ModelError, RequestError, ResourceError
from ovenbird.timing import Flop

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
    assert model.flop == (Flop(2 * 4 * 3, 0) if backend.name == "openvino" else None)
    assert backend.threads >= 1 and backend.version[0].isdigit()


def test_what_halves_run_in_has_its_short_name(backend: Backend, graph: Path) -> None:
    wished = backend.best_precision("fp16")
    model = backend.compile(graph, {"x": (1, 4)}, precision=wished, cache_key=None)
    assert model.precision == wished and wished in ("f32", "bf16")


def test_n2_f32_weights_run_in_f32(backend: Backend) -> None:
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


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:1:2", "cuda 1", "cuda:1\n"])
def test_onnxruntime_refuses_other_devices(name: str) -> None:
    with pytest.raises(RequestError, match="device: onnxruntime has no") as caught:
        create("onnxruntime", name)
    assert caught.value.hint == "it has: cpu, cuda, cuda:1 and so on"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of what ONNX Runtime is sent, one by one."""
    import onnxruntime

    sizes, send = list[int](), onnxruntime.OrtValue.ortvalue_from_numpy

    def spy(array: Any, *place: Any) -> Any:
        sizes.append(array.nbytes)
        return send(array, *place)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", spy)
    return sizes


def test_what_has_not_changed_is_not_sent_again_and_what_has_is(graph: Path, sent: list[int]) -> None:
    model = create("onnxruntime").compile(graph, {"x": (1, 4)}, precision="f32", cache_key=None)
    x, number = np.zeros((1, 4), np.float32), np.array(1)

    def run(expected: list[int]) -> float:
        sent.clear()
        result = model({"x": x, "number": number})["y"][0, 0]
        assert sent == expected
        return float(result)

    assert run([16, 8]) == 1
    assert run([]) == 1
    x += 1  # the same array, with other content
    assert run([16]) == 19
    x = x.copy()
    assert run([]) == 19
    number = np.array(2)
    assert run([8]) == 20
    x = np.ones((2, 4), np.float32)
    assert run([32]) == 20
    x = np.zeros((2, 4), np.float32)
    run([32])
    x = -x  # equal, but other bytes
    run([32])
    x[:] = np.nan
    run([32])
    assert np.isnan(run([]))


def test_a_step_sends_latents_and_timestep_and_the_text_once(nestling: Path, sent: list[int]) -> None:
    shapes = {"sample": (2, 4, 64, 64), "encoder_hidden_states": (2, 77, 128)}
    model: Any = create("onnxruntime").compile(
        nestling / "fp16" / "unet", {"sample": (2, 4, 8, 8)}, precision="f32", cache_key=None
    )
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    places = {name: model._send(name, array) for name, array in arrays.items()}
    assert sent == [128 << 10, 2 * 77 * 128 * 4]
    assert (2 * 77 * 768 * 4) >> 10 == 462  # SD 1.5's text
    sent.clear()
    for number in range(3):
        arrays["sample"] += number + 1
        again = {name: model._send(name, array) for name, array in arrays.items()}
        assert again["encoder_hidden_states"] is places["encoder_hidden_states"]
        model._send("timestep", np.array(number, model.inputs["timestep"].dtype))
    assert sent == [128 << 10, 4] * 3


class FakeSession:
    """A session on a graphics card that is not there, but for the operators ``strays``."""

    asked: ClassVar[dict[str, Any]] = {}
    providers: ClassVar = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    strays: ClassVar[list[str]] = []

    def __init__(self, path: Path, options: Any, **asked: Any) -> None:
        recorded = options.get_session_config_entry("session.record_ep_graph_assignment_info")
        FakeSession.asked = {**asked, "recorded": recorded}

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def part(provider: str, operators: list[str]) -> Any:
            nodes = [SimpleNamespace(op_type=name) for name in operators]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        return [part("CUDAExecutionProvider", ["Conv", "Mul"]), part("CPUExecutionProvider", self.strays)]

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs


@pytest.fixture
def _cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)


@pytest.mark.usefixtures("_cuda")
def test_cuda_is_asked_for_by_number_and_without_a_way_back(graph: Path) -> None:
    for name, number in (("cuda", "0"), ("CUDA:1", "1")):
        model = create("onnxruntime", name).compile(graph, {}, precision="f32", cache_key=None)
        assert model.device == name.lower()
        assert FakeSession.asked == {
            "providers": [("CUDAExecutionProvider", {"device_id": number, "use_tf32": "0"})],
            "enable_fallback": 0,
            "recorded": "1",
        }


@pytest.mark.usefixtures("_cuda")
def test_a_session_that_fell_back_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSession, "providers", ["CPUExecutionProvider"])
    with pytest.raises(ResourceError, match="fell back to CPUExecutionProvider"):
        create("onnxruntime", "cuda").compile(graph, {}, precision="f32", cache_key=None)


@pytest.mark.usefixtures("_cuda")
def test_a_unet_that_runs_on_the_cpu_in_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_with(component: str, *strays: str) -> None:
        monkeypatch.setattr(FakeSession, "strays", list(strays))
        (tmp_path / component).mkdir(exist_ok=True)
        (tmp_path / component / "model.onnx").write_bytes(b"\x08\x0a")  # a version, and nothing else
        create("onnxruntime", "cuda").compile(tmp_path / component, {}, precision="f32", cache_key=None)

    compile_with("unet", "Shape", "Gather", "Concat", "Mul")
    compile_with("text_encoder", "ArgMax")
    with pytest.raises(ResourceError, match="puts Conv, Resize of unet on the CPU"):
        compile_with("unet", "Shape", "Conv", "Resize", "Conv")


@pytest.mark.usefixtures("_cuda")
def test_cudas_own_errors_are_those_of_a_device(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA failure 101: invalid device ordinal")

    monkeypatch.setattr(FakeSession, "__init__", fail)
    with pytest.raises(ResourceError, match="device: cuda:9: CUDA failure 101"):
        create("onnxruntime", "cuda:9").compile(graph, {}, precision="f32", cache_key=None)


def test_onnxruntime_tells_where_its_operators_run(nestling: Path) -> None:
    import onnxruntime

    from ovenbird.backends.onnxruntime import OF_SHAPES, _operators

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = nestling / "fp16" / "unet" / "model.onnx"
    found = _operators(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    assert set(found) == {"CPUExecutionProvider"}
    assert {"Conv", "MatMul", "Softmax", "Resize"} <= found["CPUExecutionProvider"] - OF_SHAPES
    assert {"Shape", "Gather"} <= found["CPUExecutionProvider"]


def test_a_graph_in_halves_answers_in_float32(backend: Backend, tmp_path: Path) -> None:
    helper, proto = onnx.helper, onnx.TensorProto
    ports = [helper.make_tensor_value_info(name, proto.FLOAT16, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "halves", ports[:1], ports[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "model.onnx"
    )
    model = backend.compile(tmp_path, {"x": (1, 4)}, precision="f32", cache_key=None)
    result = model({"x": np.arange(4.0)[None]})["y"]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[0, 2, 4, 6]])


def test_openvino_takes_fractions_of_a_timestep_that_is_declared_whole(tmp_path: Path) -> None:
    model = create("openvino").compile(
        write_graph(tmp_path, "timestep"), {"x": (1, 4)}, precision="f32", cache_key=None
    )
    result = model({"x": np.zeros((1, 4)), "timestep": np.array(948.75)})["y"]
    np.testing.assert_array_equal(result, np.full((1, 3), 948.75, np.float32))


KNOWN = ["CPU", "GPU.0", "GPU.1", "NPU"]
DEVICES = {
    "cpu": ["CPU"],
    "GPU": ["GPU"],
    "gpu.1": ["GPU.1"],
    "Npu": ["NPU"],
    "npu.0": ["NPU.0"],
    "auto": KNOWN,
    "auto:gpu,cpu": ["GPU", "CPU"],
    "AUTO:-GPU.0": ["CPU", "GPU.1", "NPU"],
    "HETERO:GPU.1,CPU": ["GPU.1", "CPU"],
    "multi:npu,gpu.0": ["NPU", "GPU.0"],
}


@pytest.mark.parametrize("name", DEVICES)
def test_openvinos_own_names_of_devices_in_any_case(name: str) -> None:
    device = parse(name, KNOWN)
    assert (device.name, list(device.members)) == (name.upper(), DEVICES[name])
    assert device.is_virtual == (name[:4].lower() in ("auto", "hete", "mult"))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "abacus",
        "gpu.2",
        "cpu.0",
        "auto:",
        "auto:abacus",
        "auto:-abacus",
        "hetero",
        "hetero:",
        "hetero:-cpu",
        "a:cpu",
    ],
)
def test_other_devices_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(RequestError, match="device: openvino has no") as caught:
        parse(name, KNOWN)
    assert str(caught.value.hint).startswith("it offers cpu, gpu.0, gpu.1, npu and auto")


class FakeCore:
    """A machine with two graphics cards, whose work this machine's processor does."""

    available_devices = KNOWN
    capabilities: ClassVar = {"CPU": ["FP32", "BF16"], "GPU.1": ["FP32", "FP16"], "NPU": ["FP16"]}

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.core = core()

    def get_property(self, device: str, name: str) -> Any:
        return f"a {device}" if name == "FULL_DEVICE_NAME" else self.capabilities[device]

    def read_model(self, *given: Any) -> Any:
        return self.core.read_model(*given)

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        self.asked.append((device, properties))
        return self.core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.fixture
def _many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovenbird.backends.openvino.core", FakeCore)


@pytest.mark.usefixtures("_many_devices")
def test_what_openvino_is_asked_for_on_other_devices(graph: Path) -> None:
    def asked(device: str, threads: int | None = None) -> tuple[str, dict[str, Any]]:
        backend: Any = create("openvino", device, threads)
        model = backend.compile(graph, {"x": (1, 4)}, precision="f32", cache_key=None)
        assert (backend.device, model.device) == (device.lower(), "cpu")
        return backend.core.asked[0]

    same = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    exact = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    threaded = {**exact, "INFERENCE_NUM_THREADS": 3}
    assert asked("cpu", 3) == ("CPU", same | threaded)
    assert asked("Gpu.1") == ("GPU.1", same)
    assert asked("auto") == ("AUTO", same | {"DEVICE_PROPERTIES": {"CPU": exact}})
    assert asked("hetero:gpu,cpu", 3) == ("HETERO:GPU,CPU", same | {"DEVICE_PROPERTIES": {"CPU": threaded}})
    assert asked("auto:-cpu") == ("AUTO:-CPU", same)
    with pytest.raises(RequestError, match="threads: 3 has no effect on gpu"):
        create("openvino", "gpu", 3)


@pytest.mark.usefixtures("_many_devices")
def test_n2_halves_run_in_what_a_device_multiplies_in() -> None:
    found = {name: create("openvino", name).best_precision("fp16") for name in ("cpu", "gpu.1", "npu", "auto:gpu,cpu")}
    assert found == {"cpu": "bf16", "gpu.1": "f16", "npu": "f16", "auto:gpu,cpu": "f32"}
    assert {create("openvino", name).best_precision("fp32") for name in found} == {"f32"}


@pytest.mark.parametrize(("device", "cached"), [("AUTO", "off"), ("auto:cpu", "off"), ("hetero:cpu", "hit")])
def test_what_hands_work_on_says_who_did_it(graph: Path, device: str, cached: str) -> None:
    inputs = {"x": np.ones((1, 4)), "number": np.array(1)}
    for number in range(2):
        backend = create("openvino", device)
        model = backend.compile(graph, {"x": (1, 4)}, precision="f32", cache_key=f"of {graph} for {device}")
        assert (backend.device, model.device, model.precision) == (device.lower(), "cpu", "f32")
        np.testing.assert_array_equal(model(inputs)["y"], [[19, 23, 27]])
        assert number == 0 or model.cache == cached


@pytest.mark.skipif(os.name == "nt", reason="signals are not sent there")
def test_e9_ctrl_c_after_two_runtimes_came_and_went_is_no_crash() -> None:
    script = """
import os, signal, time
from ovenbird.backends import create
signal.signal(signal.SIGINT, signal.default_int_handler)
first, second = create("openvino"), create("openvino")
del first, second
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
