"""Who is compared, and what each is given."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.adapters import LIBRARIES, ONNX, Wish
from ovenbird.bundle import Bundle
from ovenbird.errors import RequestError

SOURCE = "source"
"""In place of a precision: the torch weights that the folders were exported from."""


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison."""

    label: str
    library: str
    precision: str = "fp16"
    """Of the folder that it is given; or ``SOURCE``."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, bundles: Sequence[Bundle], source: Path | None) -> Path | str:
        """The first that it can draw from, or why there is none."""
        library = LIBRARIES[self.library]
        if not _installed(library.module):
            return f"{self.library} is not installed"
        if self.precision == SOURCE:
            return source or "no torch weights: give --source"
        graphs = {"onnxruntime": (ONNX,)}.get(self.settings.get("backend", ""), library.graphs)
        for bundle in bundles:
            if bundle.precision == self.precision and any((bundle.path / "unet" / name).is_file() for name in graphs):
                return bundle.path
        return f"no folder has {self.precision} weights in {' or '.join(graphs)}"


CONTESTANTS = (
    Contestant("ovenbird", "ovenbird"),
    Contestant("ovenbird, one stage at a time", "ovenbird", settings={"keep": False}),
    Contestant("ovenbird, f32", "ovenbird", settings={"inference_precision": "f32"}),
    Contestant("ovenbird, int8", "ovenbird", "int8"),
    Contestant("ovenbird, balanced", "ovenbird", "int8", {"preset": "balanced"}),
    Contestant("ovenbird, fast", "ovenbird", "int8", {"preset": "fast"}),
    Contestant("ovenbird, ONNX Runtime", "ovenbird", settings={"backend": "onnxruntime"}),
    Contestant("openvino-genai", "openvino-genai"),
    Contestant("openvino-genai, cache", "openvino-genai", settings={"cache": True}),
    Contestant("openvino-genai, int8", "openvino-genai", "int8"),
    Contestant("optimum-intel", "optimum-intel"),
    Contestant("optimum-onnx", "optimum-onnx"),
    Contestant("diffusers, bf16", "diffusers", SOURCE, {"torch_dtype": "bfloat16"}),
    Contestant("diffusers, f32", "diffusers", SOURCE, {"torch_dtype": "float32"}),
)
"""A row each; one more is one more line."""


def by_label(labels: Sequence[str]) -> list[Contestant]:
    """Of all, those.  Raises ``RequestError`` for an unknown one."""
    known = {contestant.label: contestant for contestant in CONTESTANTS}
    for label in labels:
        if label not in known:
            raise RequestError(f"contestant: {label!r} is not known", hint=f"known are: {'; '.join(known)}")
    return [contestant for label, contestant in known.items() if label in labels or not labels]


def job(
    contestant: Contestant, folder: Path, wishes: list[Wish], *, warm_up: bool, pictures: Path | None = None
) -> dict[str, Any]:
    """For ``children.ask``: with ``warm_up`` a picture of one step goes before; ``pictures`` is a folder for PNGs."""
    return {
        "library": contestant.library,
        "folder": str(folder),
        "settings": dict(contestant.settings),
        "wishes": [asdict(wish) for wish in wishes],
        "warm_up": warm_up,
        "pictures": pictures and str(pictures),
        "asked_at": time.time(),
    }


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        return False
