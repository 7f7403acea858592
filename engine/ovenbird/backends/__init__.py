"""Runtimes: how a component's file becomes something one can call.  One file each, one row in ``BACKENDS``."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ovenbird.errors import ModelError, RequestError, ResourceError
from ovenbird.timing import Flop

# OpenVINO would tell Google Analytics of each import, from a process of its own; without this package it cannot.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Port:
    """One input of a component; ``None`` in a shape is a free dimension."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Rows:
    """What a text encoder's table of tokens gets behind its last row."""

    values: NDArray[np.float32]  # (rows, D)
    behind: int
    """How many rows the table has."""

    @property
    def table(self) -> tuple[int, int]:
        """The table's shape, by which it is found in a graph: no other constant that is looked up has it."""
        return self.behind, self.values.shape[1]

    @property
    def digest(self) -> str:
        """A hash that names these numbers and no others."""
        return hashlib.sha256(repr(self.table).encode() + self.values.tobytes()).hexdigest()

    def stored(self, folder: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The rows in the type that the table is stored in.

        Raises ``ModelError`` when they are too large for it, or it holds no floats.
        """
        if dtype.kind != "f":
            raise ModelError(f"{folder}: its tokens are stored as {dtype}, to which no embedding can be added")
        with np.errstate(over="ignore"):
            found = self.values.astype(dtype)
        if not np.isfinite(found).all():
            raise ModelError(
                f"{folder}: an embedding holds numbers that are too large for {dtype}, in which this folder's are",
                hint="take the variant fp32",
            )
        return found


DEEP = "deep_features"
"""The output of a U-Net that gives out what its last layers take from below, and the input of those: (N, C, H, W)."""
SHALLOW = "shallow_unet"
"""The component that those layers alone are; it is compiled of the U-Net's files."""
WEIGHTS = "weights"
EXACT = ("gates", "upsampling", WEIGHTS)
"""Changes to graphs that only round otherwise: GEGLU as two products, upsampling and convolution as one, weights stored
as they are multiplied."""


@dataclass(frozen=True)
class Edits:
    """What is changed of a component's graph before it is compiled."""

    exact: tuple[str, ...] = EXACT
    """Of those; a runtime that makes none of them gives the same results without."""
    pooled: bool = False
    """Whether the U-Net's widest self-attentions see the means of 2x2 cells."""
    depth: int = 0
    """How many layers of the U-Net's way up run at every step; 0 for all, with nothing given out from below them."""
    shallow: bool = False
    """Whether only those are in the graph."""


NO_EDITS = Edits(())


def one_table(folder: Path, rows: Rows, tables: list[Any]) -> Any:
    """The only one, if there is one.  Raises ``ModelError``."""
    if len(tables) != 1:
        raise ModelError(
            f"{folder} has {len(tables)} tables of {rows.table[0]} x {rows.table[1]} numbers that tokens are looked up "
            "in, not one, so no embedding can be added",
            hint="export the model again with ovenbird export",
        )
    return tables[0]


class CompiledModel(Protocol):
    """A component that is ready to run."""

    inputs: Mapping[str, Port]
    precision: str
    """The arithmetic that really runs: ``f32``, ``bf16`` or ``f16``."""
    cache: str
    """Whether compiling was saved: ``hit``, ``miss`` or ``off``."""
    flop: Flop | None
    """What a call calculates, counted in the graph that was compiled; None where that is not known."""

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

    def compile(
        self,
        folder: Path,
        shapes: Shapes,
        *,
        precision: str,
        cache_key: str | None,
        rows: Rows | None = None,
        edits: Edits = NO_EDITS,
    ) -> CompiledModel:
        """Read the component in ``folder``; ``shapes`` fixes its inputs, ``rows`` are added to its table of tokens.

        Raises ``ModelError`` when the file is absent, cannot be read, or not be changed by the ``edits``;
        ``RequestError`` where a runtime has not the edits that are not exact.
        """


def feed(inputs: Arrays, ports: Mapping[str, Port]) -> dict[str, NDArray[Any]]:
    """Every input as its port wants it.  Raises ``ModelError`` for a graph that takes others."""
    if inputs.keys() != ports.keys():
        raise ModelError(
            f"a graph takes {', '.join(ports)}, and this pipeline has {', '.join(inputs)} for it",
            hint="its model_index.json or config.json may be another model's",
        )
    return {name: fit(inputs[name], port) for name, port in ports.items()}


def fit(array: NDArray[Any], port: Port) -> NDArray[Any]:
    """An array as a port wants it: its type, contiguous, and a lone number with as many axes as declared.

    Raises ``ModelError`` where a fraction would be lost.
    """
    cast = np.ascontiguousarray(array, port.dtype)
    if port.dtype.kind == "i" and array.dtype.kind == "f" and (cast != array).any():
        raise ModelError(
            f"a graph takes whole numbers where this sampler has {float(array.flat[0])}",
            hint="choose another sampler, such as ddim, or export the model again",
        )
    return cast.reshape((1,) * len(port.shape)) if array.size == 1 else cast


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """The same, but halves widened, which samplers would go on calculating in."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


BACKENDS = {
    "openvino": "ovenbird.backends.openvino:OpenVINO",
    "onnxruntime": "ovenbird.backends.onnxruntime:OnnxRuntime",
}
"""Name -> module and class; the module, and so the runtime, is imported when it is chosen."""


def create(name: str, device: str = "cpu", threads: int | None = None, *, allow_foreign: bool = False) -> Backend:
    """The runtime of that name, on that device; ``threads=None`` leaves the number to the runtime.

    With ``allow_foreign`` it reads graphs with operators that no export of Stable Diffusion has: see ``admission``.

    Raises ``RequestError`` for an unknown name or device, ``MissingExtraError`` when it is not installed.
    """
    if name not in BACKENDS:
        raise RequestError(f"backend: {name!r} is not one of {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise RequestError(f"threads: {threads} is less than 1", hint="leave it out to use every core")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)(device, threads, allow_foreign)
    return backend


NO_MEMORY = re.compile(
    r"bad.alloc|(failed to|cannot|can't|could not|unable to) alloc|memory allocation|out of memory|"
    "resource temporarily unavailable",  # no room for one more thread
    re.IGNORECASE,
)
"""How runtimes say it, which have no type of error for it."""


@contextmanager
def short_of_memory(name: str) -> Iterator[None]:
    """Raises ``ResourceError`` that names the component when a runtime gets no memory."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        raise ResourceError(
            f"{name}: there is not enough memory for it",
            hint="--max-memory SIZE finds a way to do with less; smaller pictures take less, too",
        ) from error
