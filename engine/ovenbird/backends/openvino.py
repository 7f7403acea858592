"""OpenVINO: static shapes, a stated precision, and a cache of compiled models that cannot go stale."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from ovenbird import compiled, mapped
from ovenbird.backends import (
    NO_EDITS,
    WEIGHTS,
    Arrays,
    Edits,
    Port,
    Rows,
    Shapes,
    arithmetic,
    as_float32,
    feed,
    one_table,
    rewrites,
    weights,
)
from ovenbird.backends.admission import admit, hashed
from ovenbird.backends.devices import parse
from ovenbird.bundle import MANIFEST, read_json
from ovenbird.errors import ModelError, RequestError
from ovenbird.machine import instruction_sets, isa_limit, leaves_bf16, overflows_at_eight_bits, usable_cores
from ovenbird.mapped import Mapped
from ovenbird.timing import Flop


@cache
def core() -> ov.Core:
    """The only one of this process.

    A processor's plugin gives signals a stack of its own, and takes it away when it goes.  Where two were there and the
    first goes first, signals are left with none: the next Ctrl-C ends in a segmentation fault (OpenVINO 2026.4).
    """
    return ov.Core()


class OpenVINO:
    """The OpenVINO runtime on a device by OpenVINO's own name: ``cpu``, ``gpu.1``, ``npu``, ``auto:gpu,cpu``."""

    name = "openvino"

    def __init__(self, device: str = "cpu", threads: int | None = None, allow_foreign: bool = False) -> None:
        self.core = core()
        self.version = ov.get_version().split("-")[0]
        self.device = device.lower()
        self._device = parse(device, self.core.available_devices)
        if threads and "CPU" not in self._device.members:
            raise RequestError(f"threads: {threads} has no effect on {self.device}", hint="leave it out")
        compiled.limit()  # a wrong one stops here, before any model is read
        self._threads, self._allow_foreign = threads, allow_foreign
        self.threads = threads or usable_cores()

    @property
    def offered(self) -> list[str]:
        """The devices that are here, with their own names."""
        names = {each: self.core.get_property(each, "FULL_DEVICE_NAME") for each in self.core.available_devices}
        return [f"{each.lower()} ({name})" for each, name in names.items()]

    def best_precision(self, stored: str) -> str:
        """For half-precision weights what the device multiplies in, ``bf16`` on processors and ``f16`` on others.

        Else, and where several devices may run, ``f32``.
        """
        if stored in ("fp32", "unknown") or self._device.is_virtual:
            return "f32"
        if self.device == "cpu" and not leaves_bf16():  # of that OpenVINO's capabilities say nothing
            return "f32"
        wish, name = ("BF16", "bf16") if self.device == "cpu" else ("FP16", "f16")
        return name if wish in self.core.get_property(self._device.name, "OPTIMIZATION_CAPABILITIES") else "f32"

    def compile(
        self,
        folder: Path,
        shapes: Shapes,
        *,
        precision: str,
        cache_key: str | None,
        rows: Rows | None = None,
        edits: Edits = NO_EDITS,
    ) -> OpenVINOModel:
        """See ``Backend.compile``.  A folder with only ``model.onnx`` is read too."""
        properties = self._properties(precision)
        facts = self._facts(cache_key, folder, shapes, properties, rows, edits) if cache_key else None
        if facts and (found := self._load(facts, properties)):
            return found
        admit(_graph_file(folder), self.name, listed=hashed(folder, cache_key), allow_foreign=self._allow_foreign)
        held: list[Mapped] = []
        with self._dropping(held):
            model = self._read(folder, shapes, rows, edits, precision, held)
            # Taken before compiling, which may give a port the name of a tensor inside.
            ports = _names(model.inputs), _names(model.outputs)
            flop = arithmetic.flop(model)
            runs = self._compile(model, properties, folder)
            # Neither is among the facts that an entry is found by: both follow from them.
            cached = _keep(facts, {"ports": ports, "flop": flop}, runs) if facts else "off"
        return OpenVINOModel(runs, *ports, cached=cached, flop=flop, held=held)

    def _dropping(self, held: Iterable[Mapped]) -> AbstractContextManager[None]:
        """The processor's plugin copies nearly all of what it is given; the test measures that it writes nothing."""
        return mapped.dropping(held) if self.device == "cpu" else nullcontext()

    def _properties(self, precision: str) -> dict[str, Any]:
        # Always asked for: without the hint OpenVINO may choose bf16 by itself.
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if "CPU" not in self._device.members:
            return properties
        # Without this, weights in eight bits would make it round what flows between the layers as well.
        processor = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        if self._threads:
            processor["INFERENCE_NUM_THREADS"] = self._threads
        return properties | ({"DEVICE_PROPERTIES": {"CPU": processor}} if self._device.is_virtual else processor)

    def _facts(
        self,
        model: str,
        folder: Path,
        shapes: Shapes,
        properties: Mapping[str, Any],
        rows: Rows | None,
        edits: Edits,
    ) -> dict[str, Any]:
        """All that a compiled model depends on."""
        devices = {name: self.core.get_property(name, "FULL_DEVICE_NAME") for name in self._device.members}
        return {
            "model": _model_name(folder.parent),
            "manifest": model,
            "component": folder.name,
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "properties": properties,
            "runtime": f"{self.name} {ov.get_version()}",
            "device": self.device,
            "devices": devices,
            "instruction_sets": instruction_sets(),
            "rows": rows and rows.digest,
            "edits": asdict(edits),
            "isa_limit": isa_limit(),
            "overflows": overflows_at_eight_bits(),
        }

    def _load(self, facts: Mapping[str, Any], properties: Mapping[str, Any]) -> OpenVINOModel | None:
        key = compiled.name(facts)
        found = compiled.load(key)
        if found is None:
            return None
        blob = ov.Tensor(found.blob.bytes, shared_memory=True)
        try:
            with self._dropping([found.blob]):
                runs = self.core.import_model(blob, self._device.name, dict(properties))
        except RuntimeError:  # another build's; compiling anew is always right
            compiled.discard(key)
            return None
        flop = found.facts.get("flop")
        return OpenVINOModel(runs, *found.facts["ports"], cached="hit", flop=flop and Flop(*flop), held=[found.blob])

    def _read(
        self, folder: Path, shapes: Shapes, rows: Rows | None, edits: Edits, precision: str, held: list[Mapped]
    ) -> ov.Model:
        """The graph as it will be compiled; ``held`` gets the files that its weights are in."""
        path = _graph_file(folder)
        with _as_model_error(path):
            model = self._open(path, held)
            _take_fractions(model)
            if rows is not None:
                _append(model, rows, path)
            model.reshape({port: _static(port, shapes) for port in model.inputs})
            if "CPU" in self._device.members and overflows_at_eight_bits():
                home = weights.narrow(model, compiled.scratch)
                held += [home] if home else []
            model = rewrites.edited(model, edits)
            if WEIGHTS in edits.exact and self.device == "cpu":
                model, home = weights.settle(model, precision, compiled.scratch)
                held += [home] if home else []
            return model

    def _open(self, path: Path, held: list[Mapped]) -> ov.Model:
        stored = path.with_suffix(".bin")
        if self.device != "cpu" or path.suffix != ".xml" or not stored.is_file() or not stored.stat().st_size:
            return self.core.read_model(path)
        with stored.open("rb") as file:
            held.append(mapped.whole(file))
        return self.core.read_model(path.read_text(encoding="utf-8"), ov.Tensor(held[-1].bytes, shared_memory=True))

    def _compile(self, model: ov.Model, properties: Mapping[str, Any], folder: Path) -> ov.CompiledModel:
        with _as_model_error(folder):
            return self.core.compile_model(model, self._device.name, dict(properties))


class OpenVINOModel:
    """A compiled model with one inference request."""

    def __init__(
        self,
        runs: ov.CompiledModel,
        inputs: list[str],
        outputs: list[str],
        *,
        cached: str,
        flop: Flop | None,
        held: Sequence[Mapped] = (),
    ) -> None:
        self.cache, self.flop = cached, flop
        self._outputs = outputs
        self.inputs = {name: _port(port) for name, port in zip(inputs, runs.inputs, strict=True)}
        self.precision = _precision(runs)
        self._runs, self._request = runs, runs.create_infer_request()
        self._held = held  # OpenVINO uses it in place and does not hold it

    @property
    def device(self) -> str:
        """Where it runs; ``auto`` may begin on one device and go on on another."""
        return ", ".join(name.strip("()").lower() for name in self._runs.get_property("EXECUTION_DEVICES"))

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See ``CompiledModel``."""
        results = self._request.infer(list(feed(inputs, self.inputs).values()))
        return {name: as_float32(np.array(results[index])) for index, name in enumerate(self._outputs)}


class _Stream(BytesIO):
    """Memory by its type, which is the only one that ``export_model`` takes, and a file from where that stands now."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file, self._start = file, file.tell()
        self.error: Exception | None = None
        """The first; raised here it would be lost in OpenVINO, which then goes on as if nothing had happened."""

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except Exception as error:
                self.error = error
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset + (self._start if whence == os.SEEK_SET else 0), whence) - self._start
        except Exception as error:
            self.error = self.error or error
            return 0


def _keep(facts: Mapping[str, Any], more: Mapping[str, Any], runs: ov.CompiledModel) -> str:
    """Keep a compiled model, with more about it: ``miss``, or ``off`` for a device that gives nothing to keep."""

    def export(file: IO[bytes]) -> None:
        stream = _Stream(file)
        with ThreadPoolExecutor(1) as pool:  # Ctrl-C, which only the main thread sees, would be lost in OpenVINO
            pool.submit(runs.export_model, stream).result()
        if stream.error:
            raise stream.error

    try:
        compiled.keep(compiled.name(facts), {**facts, **more}, export)
    except RuntimeError:
        return "off"
    return "miss"


def _model_name(folder: Path) -> str:
    """What a listing of the cache calls it: what its manifest says, or the end of its path, which may be a commit."""
    if not (folder / MANIFEST).is_file():
        return f"{folder.parent.name}/{folder.name[:12]}"
    manifest = read_json(folder / MANIFEST)
    return f"{manifest.get('name')} {manifest.get('precision')}"


def _precision(runs: ov.CompiledModel) -> str:
    """What is really calculated in, on each device in turn."""
    devices = [name.strip("()") for name in runs.get_property("EXECUTION_DEVICES")]
    if "INFERENCE_PRECISION_HINT" in runs.get_property("SUPPORTED_PROPERTIES"):
        kinds = [runs.get_property("INFERENCE_PRECISION_HINT")]
    else:
        told = runs.get_property("DEVICE_PROPERTIES")
        kinds = [told[name]["INFERENCE_PRECISION_HINT"] for name in devices if name in told]
    return "+".join(dict.fromkeys(kind.get_type_name() for kind in kinds)) or "unknown"


@contextmanager
def _as_model_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, UnicodeError) as error:  # of the latter, a name of a folder that is no UTF-8
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
