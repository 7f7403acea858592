"""What one export is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovenbird.backends import BACKENDS
from ovenbird_export.precisions import Precision
from ovenbird_export.publish import Workspace
from ovenbird_export.recipes import FREE, Shapes
from ovenbird_export.source import Source


@dataclass(frozen=True)
class Job:
    """What is read, what is made of it, for which runtimes, and where."""

    source: Source
    precisions: tuple[Precision, ...]
    workspace: Workspace
    shapes: Shapes = FREE
    runtimes: tuple[str, ...] = tuple(BACKENDS)
    prompts: Sequence[str] = ()
    """What the model draws while the ranges for eight bits are measured."""

    @property
    def reference(self) -> Path:
        """A model folder, never published: the graphs as traced, in float32, which every variant is made from."""
        return self.workspace.scratch / "reference"

    @property
    def folders(self) -> list[Path]:
        """The reference, and every variant."""
        return [self.reference, *(self.workspace.variant(precision.name) for precision in self.precisions)]
