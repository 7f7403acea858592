"""ONNX files looked through before a runtime reads them: protobuf's wire format, without the package onnx."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ovenbird.backends.operators import DOMAINS
from ovenbird.errors import ModelError

MOST_NODES = 200_000
"""SDXL's U-Net has some ten thousand."""
DEEPEST = 8
MOST_ELEMENTS = 1 << 40
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
"""Bits of an element, by ``TensorProto.DataType``; of others, which are at least four, nothing is foreseen."""
EXTERNAL_KEYS = ("location", "offset", "length", "checksum")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Numbers of fields, by message, as onnx.proto has them.
MODEL_GRAPH, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
FUNCTION_NODE = 7
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
SPARSE_TENSORS = (1, 2)
TENSOR_DIMS, TENSOR_TYPE, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 2, 13, 14


class Part(NamedTuple):
    """A message inside of the file, or bytes."""

    begin: int
    end: int


@dataclass
class Onnx:
    """One file.  ``strange`` is what no export of Stable Diffusion has; what could do harm raises ``ModelError``."""

    path: Path
    listed: Collection[str]
    """Files beside it whose hashes were compared, and which may therefore have a second name."""
    strange: set[str] = field(default_factory=set)
    nodes: int = 0
    data: bytes | mmap.mmap = b""

    def check(self) -> set[str]:
        """Raises ``ModelError``."""
        try:
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self.data:
                self._model(Part(0, len(self.data)))
        except ModelError:
            raise
        except (ValueError, IndexError) as error:
            raise self._refused(f"it is not a graph of ONNX: {error}") from error
        return self.strange

    def _model(self, model: Part) -> None:
        for number, value in self._fields(model):
            if number == MODEL_GRAPH:
                self._graph(value, 0)
            elif number == MODEL_TRAINING:
                raise self._refused("it says how to train it")
            elif number == MODEL_FUNCTIONS:
                self.strange.add("functions of its own")
                for inner, node in self._fields(value):
                    if inner == FUNCTION_NODE:
                        self._node(node, 0)

    def _graph(self, graph: Part, depth: int) -> None:
        if depth > DEEPEST:
            raise self._refused(f"graphs lie in graphs, more than {DEEPEST} deep")
        for number, value in self._fields(graph):
            if number == GRAPH_NODE:
                self._node(value, depth)
            elif number == GRAPH_INITIALIZER:
                self._tensor(value)
            elif number == GRAPH_SPARSE:
                self._sparse(value)

    def _node(self, node: Part, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise self._refused(f"it has more than {MOST_NODES} nodes")
        operator = domain = ""
        for number, value in self._fields(node):
            if number == NODE_OPERATOR:
                operator = self._text(value)
            elif number == NODE_DOMAIN:
                domain = self._text(value)
            elif number == NODE_ATTRIBUTE:
                self._attribute(value, depth)
        if operator not in DOMAINS.get(domain, ()):
            self.strange.add(f"{domain}.{operator}"[:64].lstrip("."))

    def _attribute(self, attribute: Part, depth: int) -> None:
        for number, value in self._fields(attribute):
            if number in ATTRIBUTE_TENSORS:
                self._tensor(value)
            elif number in ATTRIBUTE_GRAPHS:
                self._graph(value, depth + 1)
            elif number in ATTRIBUTE_SPARSE:
                self._sparse(value)

    def _sparse(self, sparse: Part) -> None:
        for number, value in self._fields(sparse):
            if number in SPARSE_TENSORS:
                self._tensor(value)

    def _tensor(self, tensor: Part) -> None:
        elements, kind, external, outside = 1, 0, dict[str, str](), False
        for number, value in self._fields(tensor, packed=TENSOR_DIMS):
            if number == TENSOR_DIMS:
                elements *= value.begin
            elif number == TENSOR_TYPE:
                kind = value.begin
            elif number == TENSOR_LOCATION:
                outside = value.begin == 1
            elif number == TENSOR_EXTERNAL:
                key, text = self._pair(value)
                if key not in EXTERNAL_KEYS or key in external:
                    raise self._refused(f"weights in another file with {key[:40]!a}, which is not known or comes twice")
                external[key] = text
            if not 0 <= elements <= MOST_ELEMENTS:
                raise self._refused(f"a tensor of more than {MOST_ELEMENTS} numbers")
        size = elements * BITS.get(kind, 4) // 8
        if outside or external:
            self._outside(external, size)
        elif elements > 2 * (tensor.end - tensor.begin):
            raise self._refused(f"a tensor of {elements} numbers in {tensor.end - tensor.begin} bytes")

    def _outside(self, external: dict[str, str], size: int) -> None:
        """Weights in another file: a regular one beside this, with no second name, and long enough."""
        name = external.get("location", "")
        if name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\:"):
            raise self._refused(f"weights in {name[:80]!a}, which is not a name in its own folder")
        offset, length = self._count(external, "offset", 0), self._count(external, "length", size)
        try:
            found = (self.path.parent / name).lstat()
        except OSError as error:
            raise self._refused(f"weights in {name!a}: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise self._refused(
                f"weights in {name!a}, which is a link or no file", hint="put the file itself into the folder"
            )
        if found.st_nlink > 1 and os.fspath(name) not in self.listed:
            raise self._refused(
                f"weights in {name!a}, which has {found.st_nlink} names on this disk (hard links), so that it may be "
                "anybody's",
                hint=f"make it a file of its own: cp {name} {name}.new && mv {name}.new {name}",
            )
        if offset + max(length, size) > found.st_size:
            raise self._refused(
                f"weights at {offset} to {offset + max(length, size)} of {name!a}, which has {found.st_size} bytes",
                hint="download it again, or export the model again",
            )

    def _count(self, external: dict[str, str], key: str, default: int) -> int:
        text = external.get(key, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._refused(f"weights in another file with {key} {text[:40]!a}, which is no number of bytes")
        return int(text)

    def _pair(self, entry: Part) -> tuple[str, str]:
        found = {number: self._text(value) for number, value in self._fields(entry)}
        return found.get(1, ""), found.get(2, "")

    def _text(self, part: Part) -> str:
        return self.data[part.begin : part.end].decode()

    def _fields(self, part: Part, packed: int = 0) -> Iterator[tuple[int, Part]]:
        """Number and value of each: of whole numbers in ``begin``, also where those of ``packed`` come many at once."""
        data, (at, end) = self.data, part
        while at < end:
            key, at = _varint(data, at)
            number, kind = key >> 3, key & 7
            if kind == BYTES:
                size, at = _varint(data, at)
                begin, at = at, at + size
                if at > end:
                    raise ValueError(f"something ends behind what it is in, at {begin}")
                if number == packed:
                    while begin < at:
                        value, begin = _varint(data, begin)
                        yield number, Part(value, begin)
                else:
                    yield number, Part(begin, at)
            elif kind == VARINT:
                value, at = _varint(data, at)
                yield number, Part(value, at)
            elif kind in (FIXED32, FIXED64):
                at += 4 if kind == FIXED32 else 8
            else:
                raise ValueError(f"an unknown kind of field at {at}")
        if at != end:
            raise ValueError(f"something ends behind what it is in, at {at}")

    def _refused(self, what: str, hint: str | None = None) -> ModelError:
        return ModelError(f"{self.path} is refused: {what}", hint=hint)


def _varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise ValueError(f"a number without an end at {at}")
    return value, at + 1
