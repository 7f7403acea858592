"""ONNX Runtime: the CPU, or CUDA with no quiet way back to the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Arrays, Port, Shapes, fit
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

    def compile(self, folder: Path, shapes: Shapes, *, precision: str, cache_key: str | None) -> OnnxRuntimeModel:
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
        try:
            session = ort.InferenceSession(path, options, providers=[PROVIDERS[self.device]])
        except Exception as error:  # its exceptions share no base of their own
            raise ModelError(f"{path}: ONNX Runtime cannot use it: {error}") from error
        if session.get_providers()[0] != PROVIDERS[self.device]:
            raise ResourceError(f"device: ONNX Runtime fell back to {session.get_providers()[0]} from {self.device}")
        return OnnxRuntimeModel(session, self.device)


class OnnxRuntimeModel:
    """A session."""

    precision = "f32"
    cache = "off"

    def __init__(self, session: Any, device: str) -> None:
        self.device = device
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
