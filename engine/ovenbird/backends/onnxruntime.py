"""ONNX Runtime: the CPU, or CUDA with no quiet way back to the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import NO_EDITS, Arrays, Edits, Port, Rows, Shapes, as_float32, feed, one_table
from ovenbird.backends.admission import admit, hashed
from ovenbird.errors import MissingExtraError, ModelError, RequestError, ResourceError
from ovenbird.machine import usable_cores

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingExtraError("onnxruntime", "onnx") from error

DEVICE = re.compile(r"(cpu|cuda)(?:(?<=cuda):(\d{1,3}))?", re.ASCII)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
OF_SHAPES = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Sqrt", "Floor", "Ceil", "Min", "Max", "Equal", "Not", "Where"),
    *("Shape", "Size", "Cast", "Constant", "ConstantOfShape", "Identity", "Range", "ReduceProd"),
    *("Concat", "Expand", "Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"),
}
"""What sizes are calculated with, which ONNX Runtime leaves to the CPU on purpose, wherever the rest runs."""


NOT_HERE = "take --backend openvino, or leave --pool-attention, --reuse-every and --preset out"


class Place(NamedTuple):
    """A device as ONNX Runtime counts them."""

    kind: str
    number: int


class OnnxRuntime:
    """ONNX Runtime on ``cpu``, ``cuda`` or ``cuda:1``."""

    name = "onnxruntime"

    def __init__(self, device: str = "cpu", threads: int | None = None, allow_foreign: bool = False) -> None:
        found = DEVICE.fullmatch(device.lower())
        if found is None:
            raise RequestError(f"device: onnxruntime has no {device!r:.40}", hint="it has: cpu, cuda, cuda:1 and so on")
        self._place = Place(found[1], int(found[2] or 0))
        if PROVIDERS[self._place.kind] not in ort.get_available_providers():
            raise RequestError(
                f"device: this onnxruntime was built without {device!r}",
                hint='pip uninstall onnxruntime && pip install "ovenbird[cuda]"',
            )
        self.version = ort.__version__
        self.device = device.lower()
        self._threads, self._allow_foreign = threads or 0, allow_foreign
        self.threads = threads or usable_cores()

    @property
    def offered(self) -> list[str]:
        """The devices that this build can use."""
        return [kind for kind, provider in PROVIDERS.items() if provider in ort.get_available_providers()]

    def best_precision(self, stored: str) -> str:
        """Always ``f32``: half-precision weights are widened when the graph is read."""
        return "f32"

    def compile(
        self,
        folder: Path,
        shapes: Shapes,
        *,
        precision: str,
        cache_key: str | None,
        rows: Rows | None = None,
        edits: Edits = NO_EDITS,
    ) -> OnnxRuntimeModel:
        """See ``Backend.compile``; shapes are left free, which costs this runtime nothing."""
        if edits.pooled or edits.depth:
            raise RequestError("backend: onnxruntime has no pooled attention and reuses nothing", hint=NOT_HERE)
        if precision != "f32":
            raise RequestError(f"precision: onnxruntime runs f32 here, not {precision}")
        path = folder / "model.onnx"
        if not path.is_file():
            raise ModelError(f"{folder} holds no model.onnx", hint="export the model again, or use --backend openvino")
        admit(path, self.name, listed=hashed(folder, cache_key), allow_foreign=self._allow_foreign)
        session = self._session(path, rows)
        if self._place.kind != "cpu":
            _require_provider(session, PROVIDERS[self._place.kind], folder.name)
        return OnnxRuntimeModel(session, self._place)

    def _session(self, path: Path, rows: Rows | None) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # Without this, weights in eight bits would make it round what they are multiplied with as well.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        graph: Path | bytes = path
        if rows is not None:
            graph = _extended(path, rows)
            # Where weights beside the graph are, for one that comes from no file.
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        settings = {}
        if self._place.kind == "cuda":
            # In TF32, which is its default, float32 would not be float32.
            settings = {"device_id": str(self._place.number), "use_tf32": "0"}
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            return ort.InferenceSession(
                graph, options, providers=[(PROVIDERS[self._place.kind], settings)], enable_fallback=0
            )
        except Exception as error:  # its exceptions share no base of their own
            if "CUDA" in str(error):
                raise ResourceError(f"device: {self.device}: {error}") from error
            raise ModelError(f"{path}: ONNX Runtime cannot use it: {error}") from error


class OnnxRuntimeModel:
    """A session with its inputs and outputs bound.

    An input whose bytes are those of the last call is not sent to the device again.  Samplers run on the host: with
    guidance, at 512x512 and in float32, a step sends latents of 128 KiB and a timestep of 4 or 8 bytes, and fetches
    128 KiB; SD 1.5's text, 462 KiB, is sent once for a picture.
    """

    cache = "off"
    flop = None

    def __init__(self, session: Any, place: Place) -> None:
        self._session, self._place = session, place
        self._outputs = [port.name for port in session.get_outputs()]
        self.inputs = {port.name: _port(port) for port in session.get_inputs()}
        half = any(port.type == "tensor(float16)" for port in session.get_outputs())
        self.precision = "f16" if half else "f32"
        self.device = place.kind if place.number == 0 else f"{place.kind}:{place.number}"
        self._sent: dict[str, tuple[NDArray[Any], Any]] = {}
        """Input -> a copy of what was sent, and where that is now."""

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See ``CompiledModel``."""
        binding = self._session.io_binding()
        for name, array in feed(inputs, self.inputs).items():
            binding.bind_ortvalue_input(name, self._send(name, array))
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        results = [as_float32(value.numpy()) for value in binding.get_outputs()]
        return dict(zip(self._outputs, results, strict=True))

    def _send(self, name: str, array: NDArray[Any]) -> Any:
        before = self._sent.get(name)
        if before is None or not _same_bytes(before[0], array):
            kept = array.copy()  # the caller may write to its own
            self._sent[name] = before = kept, ort.OrtValue.ortvalue_from_numpy(kept, *self._place)
        return before[1]


def _same_bytes(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Not only equal, as 0 and -0 are."""
    return one.shape == other.shape and np.array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))


def _require_provider(session: Any, provider: str, component: str) -> None:
    """Raise ``ResourceError`` when a session runs elsewhere, or a U-Net does in part."""
    if session.get_providers()[0] != provider:
        raise ResourceError(
            f"device: ONNX Runtime fell back to {session.get_providers()[0]} from {provider}",
            hint="onnxruntime-gpu needs CUDA and cuDNN in the versions that it was built for",
        )
    if component != "unet":
        return
    strays = _operators(session).get(PROVIDERS["cpu"], set()) - OF_SHAPES
    if strays:
        raise ResourceError(f"device: ONNX Runtime puts {', '.join(sorted(strays))} of {component} on the CPU")


def _operators(session: Any) -> Mapping[str, set[str]]:
    """Provider -> the operators that it runs."""
    found: dict[str, set[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, set()).update(node.op_type for node in part.get_nodes())
    return found


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
