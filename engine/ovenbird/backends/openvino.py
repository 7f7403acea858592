"""OpenVINO: static shapes, a stated precision, and a cache of compiled models that cannot go stale."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from ovenbird import cache
from ovenbird.backends import Arrays, Port, Rows, Shapes, fit, one_table
from ovenbird.errors import ModelError, RequestError
from ovenbird.machine import usable_cores


class OpenVINO:
    """The OpenVINO runtime on a device by OpenVINO's own name (``cpu``, ``gpu``, ``npu``, ``auto``)."""

    name = "openvino"

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        self.core = ov.Core()
        self.version = ov.get_version().split("-")[0]
        self.device = device
        known = self.core.available_devices
        if device.upper().split(".")[0] not in {*(name.split(".")[0] for name in known), "AUTO"}:
            raise RequestError(
                f"device: openvino has no {device!r} here", hint=f"it offers: {', '.join(known).lower()}"
            )
        self._threads = threads
        self.threads = threads or usable_cores()

    def best_precision(self, stored: str) -> str:
        """``bf16`` for half-precision weights where the processor multiplies in it, else ``f32``."""
        if stored == "fp32" or self.device.lower() != "cpu":
            return "f32"
        capabilities = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "bf16" if "BF16" in capabilities else "f32"

    def compile(
        self, folder: Path, shapes: Shapes, *, precision: str, cache_key: str | None, rows: Rows | None = None
    ) -> OpenVINOModel:
        """See ``Backend.compile``.  A folder with only ``model.onnx`` is read too."""
        properties = self._properties(precision)
        key = cache_key and self._key(cache_key, folder.name, shapes, properties, rows)
        entry = cache.read(key) if key else None
        if entry is not None:
            names, _, blob = entry.partition(b"\n")
            inputs, outputs = json.loads(names)
            compiled = self._import(blob, properties)
            if compiled is not None:
                return OpenVINOModel(compiled, inputs, outputs, "hit")
        model = self._read(folder, shapes, rows)
        # Taken before compiling, which may give a port the name of a tensor inside.
        inputs, outputs = _names(model.inputs), _names(model.outputs)
        compiled = self._compile(model, properties, folder)
        if key:
            stream = BytesIO()
            compiled.export_model(stream)
            cache.write(key, json.dumps([inputs, outputs]).encode() + b"\n" + stream.getvalue())
        return OpenVINOModel(compiled, inputs, outputs, "miss" if key else "off")

    def _properties(self, precision: str) -> dict[str, Any]:
        # Always asked for: without the hint OpenVINO may choose bf16 by itself.
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if self.device.lower() == "cpu":
            # Without this, weights in eight bits would make it round what flows between the layers as well.
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        if self._threads:
            properties["INFERENCE_NUM_THREADS"] = self._threads
        return properties

    def _key(self, model: str, component: str, shapes: Shapes, properties: Mapping[str, Any], rows: Rows | None) -> str:
        device = self.core.get_property(self.device.upper(), "FULL_DEVICE_NAME") if self.device != "auto" else "auto"
        facts = [
            model,
            component,
            sorted(shapes.items()),
            properties,
            ov.get_version(),
            self.device,
            device,
            _isa_limit(),
            rows and rows.digest,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest() + ".blob"

    def _import(self, blob: bytes, properties: Mapping[str, Any]) -> ov.CompiledModel | None:
        try:
            return self.core.import_model(BytesIO(blob), self.device.upper(), dict(properties))
        except RuntimeError:  # another build's blob; compiling anew is always right
            return None

    def _read(self, folder: Path, shapes: Shapes, rows: Rows | None) -> ov.Model:
        path = _graph_file(folder)
        with _as_model_error(path):
            model = self.core.read_model(path)
            _take_fractions(model)
            if rows is not None:
                _append(model, rows, path)
            model.reshape({port: _static(port, shapes) for port in model.inputs})
        return model

    def _compile(self, model: ov.Model, properties: Mapping[str, Any], folder: Path) -> ov.CompiledModel:
        with _as_model_error(folder):
            return self.core.compile_model(model, self.device.upper(), dict(properties))


class OpenVINOModel:
    """A compiled model with one inference request."""

    def __init__(self, compiled: ov.CompiledModel, inputs: list[str], outputs: list[str], cached: str) -> None:
        self.cache = cached
        self._request = compiled.create_infer_request()
        self._outputs = outputs
        self.inputs = {name: _port(port) for name, port in zip(inputs, compiled.inputs, strict=True)}
        self.precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See ``CompiledModel``."""
        cast = {name: fit(inputs[name], port) for name, port in self.inputs.items()}
        results = self._request.infer(list(cast.values()))
        return {name: np.array(results[index]) for index, name in enumerate(self._outputs)}


@contextmanager
def _as_model_error(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot use it: {str(error).strip().splitlines()[-1]}") from error


def _names(ports: list[Any]) -> list[str]:
    return [port.any_name for port in ports]


def _port(port: Any) -> Port:
    shape = tuple(d.get_length() if d.is_static else None for d in port.partial_shape)
    return Port(shape, port.element_type.to_dtype())


def _take_fractions(model: ov.Model) -> None:
    # Folders take the timestep as a whole number, then cast it to float.  Many samplers stop in between.
    for parameter in model.get_parameters():
        if "timestep" in parameter.output(0).names:
            parameter.set_element_type(ov.Type.f32)
    model.validate_nodes_and_infer_types()


def _append(model: ov.Model, rows: Rows, path: Path) -> None:
    """Make its table of tokens longer."""
    wanted = ov.PartialShape(list(rows.table))
    lookups = [node.input(0) for node in model.get_ops() if node.get_type_name() == "Gather"]
    port = one_table(path, rows, [port for port in lookups if port.get_partial_shape() == wanted])
    stored = port
    while _source(stored).get_type_name() == "Convert":
        stored = _source(stored).input(0)
    if _source(stored).get_type_name() == "Constant" and stored.get_element_type().is_real():
        # A constant again: OpenVINO keeps that in half, and would widen anything that is made of one.
        table = _source(stored).data
        stored.replace_source_output(ops.constant(np.concatenate([table, rows.stored(path, table.dtype)])).output(0))
    else:  # eight bits, which become numbers on the way
        more = ops.constant(rows.stored(path, port.get_element_type().to_dtype()))
        port.replace_source_output(ops.concat([port.get_source_output(), more], 0).output(0))


def _source(port: Any) -> Any:
    return port.get_source_output().get_node()


def _static(port: Any, shapes: Shapes) -> list[int]:
    # What is not told, the timestep, is one number.
    free = [d.get_length() if d.is_static else 1 for d in port.partial_shape]
    return next((list(shapes[name]) for name in port.names if name in shapes), free)


def _graph_file(folder: Path) -> Path:
    for name in ("openvino_model.xml", "model.onnx"):
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder} holds neither openvino_model.xml nor model.onnx", hint="export the model again")


def _isa_limit() -> str:
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "")
