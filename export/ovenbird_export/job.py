"""What one export is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovenbird.backends import BACKENDS
from ovenbird_export.attributes import Exam
from ovenbird_export.precisions import Precision
from ovenbird_export.recipes import FREE, Shapes
from ovenbird_export.source import Source


@dataclass(frozen=True)
class Job:
    """What is read, what is made of it, for which runtimes, and where."""

    source: Source
    precisions: tuple[Precision, ...]
    variants: Mapping[str, Path]
    """Precision -> its folder."""
    scratch: Path
    """Room for what is not published."""
    shapes: Shapes = FREE
    runtimes: tuple[str, ...] = tuple(BACKENDS)
    prompts: Sequence[str] = ()
    """What the model draws while the ranges for eight bits are measured."""
    exam: Exam | None = None
    """What its pictures are scored with."""

    @property
    def reference(self) -> Path:
        """A model folder, never published: the graphs as traced, in float32, which every variant is made from."""
        return self.scratch / "reference"
