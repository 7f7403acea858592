"""Which components are in memory: compiled when they are first called for, let go when others need the room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from ovenbird.backends import Arrays, Backend, CompiledModel, Rows, Shapes
from ovenbird.bundle import COMPONENTS, Bundle
from ovenbird.timing import Timings

Groups = Sequence[Collection[str]]
"""Components that may be in memory at the same time."""

TOGETHER: Groups = (COMPONENTS,)
ONE_BY_ONE: Groups = (
    ("text_encoder", "text_encoder_2"),
    ("vae_encoder",),
    ("unet",),
    ("vae_decoder", "tiny_vae_decoder"),
    ("safety_checker",),
)
MOST_SHAPES = 3
"""Of one component, where it may stay; without an end, pictures of many sizes would fill the memory."""


class Ran(NamedTuple):
    """What is worth knowing of a component that was compiled."""

    cache: str
    precision: str
    device: str
    inputs: frozenset[str]


class Stages:
    """The components of a model on a runtime."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        precision: str,
        timings: Timings,
        groups: Groups,
        rows: Callable[[str], Rows | None],
    ) -> None:
        """``rows``: what a component's table of tokens gets behind its last row."""
        self.precision, self.groups = precision, groups
        self.ran: dict[str, Ran] = {}
        """Of each component the last that was called for, whether it is still in memory or not."""
        self._bundle, self._backend, self._timings, self._rows = bundle, backend, timings, rows
        self._compiled: dict[tuple[str, tuple[Any, ...]], CompiledModel] = {}

    @property
    def together(self) -> bool:
        """Whether all that a picture needs may stay in memory."""
        return len(self.groups) == 1

    def component(self, name: str, shapes: Shapes, precision: str | None = None) -> Callable[[Arrays], Arrays]:
        """The component for inputs of these shapes, timed at every call.  Raises ``ModelError``.

        ``precision`` is the arithmetic, if not that of the others.
        """
        precision = precision or self.precision
        key = (name, (precision, *sorted(shapes.items())))
        model = self._compiled.pop(key, None) or self._compile(name, shapes, precision)
        self._compiled[key] = model  # the latest is last
        self.ran[name] = Ran(model.cache, model.precision, model.device, frozenset(model.inputs))
        return self._timings.watch(name, model)

    def _compile(self, name: str, shapes: Shapes, precision: str) -> CompiledModel:
        self._make_room(name)
        with self._timings.stage("compile"):
            return self._backend.compile(
                self._bundle.path / name,
                shapes,
                precision=precision,
                cache_key=self._bundle.key,
                rows=self._rows(name),
            )

    def _make_room(self, name: str) -> None:
        beside = {other for group in self.groups if name in group for other in group}
        same, most = [key for key in self._compiled if key[0] == name], MOST_SHAPES if self.together else 1
        gone = {key for key in self._compiled if key[0] not in beside} | set(same[: len(same) + 1 - most])
        for key in gone:
            del self._compiled[key]
