"""What one export is about."""

from __future__ import annotations

from dataclasses import dataclass

from ovenbird_export.precisions import Precision
from ovenbird_export.publish import Workspace
from ovenbird_export.recipes import FREE, Shapes
from ovenbird_export.source import Source


@dataclass(frozen=True)
class Job:
    """What is read, what is made of it, and where."""

    source: Source
    precisions: tuple[Precision, ...]
    workspace: Workspace
    shapes: Shapes = FREE
