"""Do pictures show what captions ask?  A small network reads attributes off them, and its right answers are counted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird.backends import Backend, create
from ovenbird.bundle import Bundle, read_json
from ovenbird.errors import ModelError, OvenbirdError, RequestError
from ovenbird.pipeline import Pipeline
from ovenbird.request import MIN_SIZE, Request

MODEL, CAPTIONS = "model.onnx", "captions.json"
"""What the reader's folder holds."""
KEYS = ("attributes", "num_inference_steps", "captions")
ALL = "all"

Values = Mapping[str, str]
"""Attribute -> value."""
Scores = dict[str, float]
"""Share of right answers among the captions that mention an attribute; first ``all``, over every mention."""


@dataclass(frozen=True)
class Caption:
    """What is asked for, and what of it a picture can be seen to show: only what the text mentions."""

    text: str
    shows: Values


@dataclass(frozen=True)
class Exam:
    """The folder of an attribute reader, and the captions that a model is examined with."""

    folder: Path
    attributes: Mapping[str, tuple[str, ...]]
    """Name -> values, in the order of the reader's logits."""
    steps: int
    captions: tuple[Caption, ...]

    @classmethod
    def open(cls, folder: Path) -> Exam:
        """Raises ``RequestError`` when ``folder`` is not one, ``ModelError`` when its captions cannot be asked."""
        for name in (MODEL, CAPTIONS):
            if not (folder / name).is_file():
                raise RequestError(
                    f"attributes: {folder} holds no {name}",
                    hint=f"give the folder of an attribute reader: {MODEL} and {CAPTIONS}",
                )
        path = folder / CAPTIONS
        found = read_json(path)
        _require(sorted(found) == sorted(KEYS), path, f"it has {', '.join(found)}, not {', '.join(KEYS)}")
        attributes = _attributes(path, found["attributes"])
        entries = found["captions"]
        _require(isinstance(entries, list) and entries, path, "captions is not a list of at least one")
        captions = tuple(_caption(path, number, entry, attributes) for number, entry in enumerate(entries))
        exam = cls(folder, attributes, found["num_inference_steps"], captions)
        try:
            exam.requests()
        except RequestError as error:
            raise ModelError(f"{path}: {error}", hint=error.hint) from error
        return exam

    def requests(self) -> list[Request]:
        """A request for each caption, with its number as seed."""
        return [
            Request(prompt=caption.text, seed=seed, num_inference_steps=self.steps)
            for seed, caption in enumerate(self.captions)
        ]

    def digests(self) -> dict[str, str]:
        """The sha256 of its files."""
        return {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in (MODEL, CAPTIONS)}


class Reader:
    """The network: ``picture`` (1, 3, height, width) in -1 .. 1 -> ``logits`` (1, values of all attributes)."""

    def __init__(self, exam: Exam, backend: Backend) -> None:
        """Raises ``ModelError`` when the network cannot be read, or does not fit the exam."""
        self._path, self._attributes = exam.folder / MODEL, exam.attributes
        try:
            self._model = backend.compile(exam.folder, {}, precision="f32", cache_key=None)
            shapes = {name: port.shape for name, port in self._model.inputs.items()}
            self.height, self.width = self._size(shapes)
            self.read(np.zeros((self.height, self.width, 3), np.uint8))
        except OvenbirdError:
            raise
        except Exception as error:  # those of the runtimes share no base
            raise ModelError(f"{self._path} cannot read a picture: {error}") from error

    def read(self, pixels: NDArray[np.uint8]) -> Values:
        """What a picture (height, width, 3) shows.  Raises ``ModelError`` for logits that make no sense."""
        x = pixels.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1
        logits = self._model({"picture": x}).get("logits", np.empty(0))
        sizes = [len(values) for values in self._attributes.values()]
        fits = logits.shape == (1, sum(sizes)) and np.isfinite(logits).all()
        _require(fits, self._path, f"it gives no logits (1, {sum(sizes)}), one for each value of {CAPTIONS}")
        parts = np.split(logits[0], np.cumsum(sizes)[:-1])
        return {
            name: values[int(part.argmax())]
            for (name, values), part in zip(self._attributes.items(), parts, strict=True)
        }

    def _size(self, shapes: Mapping[str, tuple[int | None, ...]]) -> tuple[int, int]:
        match shapes.get("picture"):
            case (1 | None, 3, int(height), int(width)) if len(shapes) == 1 and min(height, width) >= MIN_SIZE:
                return height, width
        raise ModelError(f"{self._path} takes {shapes}, not one picture (1, 3, height, width) of fixed size")


def measure(folder: Path, runtime: str, exam: Exam) -> Scores:
    """How a model does in an exam, with all arithmetic in ``f32``."""
    backend = create(runtime)
    pipeline = Pipeline(Bundle.open(folder), backend, inference_precision="f32")
    return score(readings(pipeline, Reader(exam, backend), exam.requests()), exam.captions)


def readings(pipeline: Pipeline, reader: Reader, requests: Sequence[Request]) -> list[Values]:
    """What the reader sees in the picture of each request, drawn at its own size."""
    sized = (replace(request, height=reader.height, width=reader.width) for request in requests)
    return [reader.read(np.asarray(pipeline.generate(request).images[0])) for request in sized]


def score(found: Sequence[Values], captions: Sequence[Caption]) -> Scores:
    """Count right answers; an attribute that no caption mentions is left out."""
    answers: dict[str, list[bool]] = {name: [] for name in found[0]}
    for reading, caption in zip(found, captions, strict=True):
        for name, value in caption.shows.items():
            answers[name].append(reading[name] == value)
    every = [right for some in answers.values() for right in some]
    return {ALL: float(np.mean(every)), **{name: float(np.mean(some)) for name, some in answers.items() if some}}


def _attributes(path: Path, found: Any) -> dict[str, tuple[str, ...]]:
    _require(isinstance(found, dict) and found and ALL not in found, path, f"attributes is no table, or has {ALL!r}")
    for name, values in found.items():
        plain = isinstance(values, list) and values and all(isinstance(value, str) for value in values)
        _require(plain and len(set(values)) == len(values), path, f"{name!r} is not a list of different values")
    return {name: tuple(values) for name, values in found.items()}


def _caption(path: Path, number: int, entry: Any, attributes: Mapping[str, tuple[str, ...]]) -> Caption:
    where = f"caption {number}"
    _require(isinstance(entry, dict) and set(entry) == {"text", "shows"}, path, f"{where} is not text and shows")
    shows = entry["shows"]
    _require(isinstance(shows, dict) and shows, path, f"{where} shows nothing")
    for name, value in shows.items():
        _require(value in attributes.get(name, ()), path, f"{where} shows {name!r} {value!r}, which is not listed")
    return Caption(entry["text"], shows)


def _require(condition: Any, path: Path, complaint: str) -> None:
    if not condition:
        raise ModelError(f"{path}: {complaint}")
