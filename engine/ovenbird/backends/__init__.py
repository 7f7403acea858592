"""Runtimes: how a component's file becomes something one can call.  One file each, one row in ``BACKENDS``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ovenbird.errors import RequestError

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Port:
    """One input of a component; ``None`` in a shape is a free dimension."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class CompiledModel(Protocol):
    """A component that is ready to run."""

    inputs: Mapping[str, Port]
    precision: str
    """The arithmetic that really runs: ``f32``, ``bf16`` or ``f16``."""
    cache: str
    """Whether compiling was saved: ``hit``, ``miss`` or ``off``."""

    @property
    def device(self) -> str:
        """Where it really runs, as the runtime tells."""

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name, never in halves; inputs are cast to the type that the graph declares."""


class Backend(Protocol):
    """A runtime on a device."""

    name: str
    version: str
    device: str
    threads: int

    def best_precision(self, stored: str) -> str:
        """The arithmetic to ask for when a folder's weights are stored as ``fp32``, ``fp16`` or ``int8``."""

    def compile(self, folder: Path, shapes: Shapes, *, precision: str, cache_key: str | None) -> CompiledModel:
        """Read the component in ``folder``; ``shapes`` fixes its inputs.

        Raises ``ModelError`` when the file is absent or cannot be read.
        """


def fit(array: NDArray[Any], port: Port) -> NDArray[Any]:
    """An array as a port wants it: its type, contiguous, and a lone number with as many axes as declared."""
    cast = np.ascontiguousarray(array, port.dtype)
    return cast.reshape((1,) * len(port.shape)) if array.size == 1 else cast


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """The same, but halves widened, which samplers would go on calculating in."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


BACKENDS = {
    "openvino": "ovenbird.backends.openvino:OpenVINO",
    "onnxruntime": "ovenbird.backends.onnxruntime:OnnxRuntime",
}
"""Name -> module and class; the module, and so the runtime, is imported when it is chosen."""


def create(name: str, device: str = "cpu", threads: int | None = None) -> Backend:
    """The runtime of that name, on that device; ``threads=None`` leaves the number to the runtime.

    Raises ``RequestError`` for an unknown name or device, ``MissingExtraError`` when it is not installed.
    """
    if name not in BACKENDS:
        raise RequestError(f"backend: {name!r} is not one of {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise RequestError(f"threads: {threads} is less than 1", hint="leave it out to use every core")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)(device, threads)
    return backend
