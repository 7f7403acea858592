"""ONNX Runtime: the CPU, or CUDA with no quiet way back to the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays, Port, Rows, Shapes, fit, one_table
from ovenbird.errors import MissingExtraError, ModelError, RequestError, ResourceError
from ovenbird.machine import usable_cores

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingExtraError("onnxruntime", "onnx") from error

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class OnnxRuntime:
    """ONNX Runtime on ``cpu`` or ``cuda``."""

    name = "onnxruntime"

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        if device not in PROVIDERS:
            raise RequestError(f"device: onnxruntime has no {device!r}", hint=f"it offers: {', '.join(PROVIDERS)}")
        if PROVIDERS[device] not in ort.get_available_providers():
            raise RequestError(
                f"device: this onnxruntime was built without {device!r}",
                hint='pip uninstall onnxruntime && pip install "ovenbird[cuda]"',
            )
        self.version = ort.__version__
        self.device = device
        self._threads = threads or 0
        self.threads = threads or usable_cores()

    def best_precision(self, stored: str) -> str:
        """Always ``f32``: half-precision weights are widened when the graph is read."""
        return "f32"

    def compile(
        self, folder: Path, shapes: Shapes, *, precision: str, cache_key: str | None, rows: Rows | None = None
    ) -> OnnxRuntimeModel:
        """See ``Backend.compile``; shapes are left free, which costs this runtime nothing."""
        if precision != "f32":
            raise RequestError(f"precision: onnxruntime runs f32 here, not {precision}")
        path = folder / "model.onnx"
        if not path.is_file():
            raise ModelError(f"{folder} holds no model.onnx", hint="export the model again, or use --backend openvino")
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # Without this, weights in eight bits would make it round what they are multiplied with as well.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        graph: Path | bytes = path
        if rows is not None:
            graph = _extended(path, rows)
            # Where weights beside the graph are, for one that comes from no file.
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            session = ort.InferenceSession(graph, options, providers=[PROVIDERS[self.device]])
        except Exception as error:  # its exceptions share no base of their own
            raise ModelError(f"{path}: ONNX Runtime cannot use it: {error}") from error
        if session.get_providers()[0] != PROVIDERS[self.device]:
            raise ResourceError(f"device: ONNX Runtime fell back to {session.get_providers()[0]} from {self.device}")
        return OnnxRuntimeModel(session)


class OnnxRuntimeModel:
    """A session."""

    precision = "f32"
    cache = "off"

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [port.name for port in session.get_outputs()]
        self.inputs = {port.name: _port(port) for port in session.get_inputs()}

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See ``CompiledModel``."""
        cast = {name: fit(inputs[name], port) for name, port in self.inputs.items()}
        return dict(zip(self._outputs, self._session.run(self._outputs, cast), strict=True))


def _port(port: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else None for size in port.shape)
    return Port(shape, np.dtype(DTYPES[port.type]))


def _extended(path: Path, rows: Rows) -> bytes:
    """The graph with a longer table of tokens; ONNX Runtime itself cannot change one."""
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx") from error
    try:
        model = onnx.load(path, load_external_data=False)
        reader, table = one_table(path, rows, _tables(model.graph, rows))
        more = rows.stored(path, helper.tensor_dtype_to_np_dtype(table.data_type))
    except ModelError:
        raise
    except Exception as error:  # whatever protobuf and onnx say of a broken file
        raise ModelError(f"{path} is not an ONNX graph: {error}") from error
    model.graph.initializer.append(numpy_helper.from_array(more, "ovenbird.rows"))
    node = helper.make_node("Concat", [table.name, "ovenbird.rows"], ["ovenbird.table"], axis=0)
    model.graph.node.insert(0, node)
    reader.input[0] = "ovenbird.table"
    extended: bytes = model.SerializeToString()
    return extended


def _tables(graph: Any, rows: Rows) -> list[tuple[Any, Any]]:
    """Tables of the right shape that tokens are looked up in, and who reads each as it is stored."""
    stored = {tensor.name: tensor for tensor in graph.initializer if tuple(tensor.dims) == rows.table}
    makers = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type == "Gather":
            maker = makers.get(node.input[0])
            reader = maker if maker is not None and maker.op_type == "Cast" else node  # what widens it, or the lookup
            if reader.input[0] in stored:
                found.append((reader, stored[reader.input[0]]))
    return found
