"""OpenVINO IR looked through before OpenVINO reads it: its XML by expat, its weights by their size alone."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ovenbird.backends import operators
from ovenbird.bundle import LARGEST_IR
from ovenbird.errors import ModelError

MOST_LAYERS = 200_000
LARGEST_SIDE, MOST_SIDES, MOST_ELEMENTS = 1 << 31, 16, 1 << 40
BITS = {
    **dict.fromkeys(("f64", "i64", "u64"), 64),
    **dict.fromkeys(("f32", "i32", "u32"), 32),
    **dict.fromkeys(("f16", "bf16", "i16", "u16"), 16),
    **dict.fromkeys(("i8", "u8", "boolean", "f8e4m3", "f8e5m2", "f8e8m0"), 8),
    **dict.fromkeys(("i4", "u4", "nf4", "f4e2m1"), 4),
}
"""Of an element; of other kinds nothing is foreseen."""
OPSET = re.compile(r"opset\d{1,2}", re.ASCII)
PATH_LIKE = re.compile(r"[/\\\x00]")


@dataclass
class Ir:
    """One file.  ``strange`` is what no export of Stable Diffusion has; what could do harm raises ``ModelError``."""

    path: Path
    strange: set[str] = field(default_factory=set)
    layers: int = 0
    kind: str = ""
    """Of the layer that is being read."""
    inside: list[str] = field(default_factory=list)
    """Names of the elements that are open."""
    weights: int = 0

    def check(self) -> set[str]:
        """Raises ``ModelError``."""
        weights = self.path.with_suffix(".bin")
        self.weights = weights.stat().st_size if weights.is_file() else 0
        if self.path.stat().st_size > LARGEST_IR:
            raise self._refused(f"it is larger than {LARGEST_IR >> 20} MiB")
        parser = expat.ParserCreate("utf-8")  # as OpenVINO is given it, whatever the file says of itself
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.StartDoctypeDeclHandler = self._doctype
        try:
            with self.path.open("rb") as file:
                parser.ParseFile(file)
        except expat.ExpatError as error:
            raise self._refused(f"it is not XML: {error}", hint="export the model again") from error
        return self.strange

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        inside = self.inside[-1] if self.inside else ""
        self.inside.append(name)
        if name == "layer":
            self._layer(attributes)
        elif name == "data" and inside == "layer":
            self._data(attributes)
        elif "rt_info" in self.inside:
            self._note(name, attributes)

    def _end(self, name: str) -> None:
        self.inside.pop()

    def _doctype(self, *declared: Any) -> None:
        raise self._refused("it declares a type of document, which could name files or grow without end")

    def _layer(self, attributes: dict[str, str]) -> None:
        self.layers += 1
        if self.layers > MOST_LAYERS:
            raise self._refused(f"it has more than {MOST_LAYERS} layers")
        self.kind, version = attributes.get("type", ""), attributes.get("version", "")
        if self.kind not in operators.IR or not OPSET.fullmatch(version):
            self.strange.add(f"{version}.{self.kind}"[:64])
        if self.inside.count("layer") > 1:
            self.strange.add("layers in layers")

    def _data(self, attributes: dict[str, str]) -> None:
        for key, value in attributes.items():
            if PATH_LIKE.search(value):
                raise self._refused(f"a layer {self.kind[:40]!a} with {key[:40]}={value[:40]!a}, which may be a path")
        sides = [text for text in attributes.get("shape", "").split(",") if text.strip()]
        elements = math.prod(map(self._side, sides[:MOST_SIDES]))
        if len(sides) > MOST_SIDES or elements > MOST_ELEMENTS:
            raise self._refused(f"a shape of {attributes['shape'][:80]!a}")
        if self.kind in ("Const", "Constant"):
            offset, size = (self._count(key, attributes.get(key, "0")) for key in ("offset", "size"))
            if offset + size > self.weights or size * 8 < elements * BITS.get(attributes.get("element_type", ""), 0):
                raise self._refused(
                    f"weights of the shape {attributes.get('shape', '')[:80]!a} in {size} bytes from {offset} of "
                    f"a .bin that has {self.weights}",
                    hint="download it again, or export the model again",
                )

    def _side(self, text: str) -> int:
        """Of a free one, the most that is said of it, or 1."""
        numbers = re.findall(r"\d+", text)
        if any(len(number) > 18 or int(number) > LARGEST_SIDE for number in numbers):
            raise self._refused(f"a side of {text[:40]!a}")
        return int(numbers[-1]) if numbers else 1

    def _count(self, key: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._refused(f"weights with {key} {text[:40]!a}, which is no number of bytes")
        return int(text)

    def _note(self, name: str, attributes: dict[str, str]) -> None:
        """What OpenVINO writes there for itself, such as where its weights are, is not for a file to say."""
        if name.startswith("__") or attributes.get("name", "").startswith("__"):
            raise self._refused(f"it tells OpenVINO {name[:40]!a}, which is not a file's to tell")

    def _refused(self, what: str, hint: str | None = None) -> ModelError:
        return ModelError(f"{self.path} is refused: {what}", hint=hint)
