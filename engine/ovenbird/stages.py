"""Which components are in memory: compiled when they are first called for, let go when others need the room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from ovenbird.backends import SHALLOW, Arrays, Backend, CompiledModel, Edits, Rows, Shapes, short_of_memory
from ovenbird.bundle import COMPONENTS, Bundle
from ovenbird.machine import give_back
from ovenbird.memory import Need
from ovenbird.timing import Timings

Key = TypeVar("Key", bound=tuple[str, Hashable])
Groups = Sequence[Collection[str]]
"""Components that may be in memory at the same time."""

FOLDERS = {SHALLOW: "unet"}
"""Where the files of a component are that has no folder of its own name."""
TOGETHER: Groups = ((*COMPONENTS, SHALLOW),)
ONE_BY_ONE: Groups = (
    ("text_encoder", "text_encoder_2"),
    ("vae_encoder",),
    ("unet", SHALLOW),
    ("vae_decoder", "tiny_vae_decoder"),
    ("safety_checker",),
)
ENCODERS_APART: Groups = (
    ("text_encoder", "text_encoder_2", "vae_encoder"),
    ("unet", SHALLOW, "vae_decoder", "tiny_vae_decoder", "safety_checker"),
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
        edits: Callable[[str], Edits],
    ) -> None:
        """For each component ``rows`` are what its table of tokens gets behind its last row, ``edits`` what becomes
        of its graph."""
        self.precision, self.groups, self.most_shapes = precision, groups, MOST_SHAPES
        self.ran: dict[str, Ran] = {}
        """Of each component the last that was called for, whether it is still in memory or not."""
        self._bundle, self._backend, self._timings, self._rows, self._edits = bundle, backend, timings, rows, edits
        self._compiled: dict[tuple[str, tuple[Any, ...]], CompiledModel] = {}

    @property
    def present(self) -> list[Need]:
        """What is in memory."""
        return [Need.of(name, dict(shapes)) for name, (_, *shapes) in self._compiled]

    def release(self, all_but: Collection[Need]) -> None:
        """Let go of what will not be called for."""
        held = zip(self._compiled, self.present, strict=True)
        self._drop([key for key, need in held if need not in all_but])

    def component(self, name: str, shapes: Shapes, precision: str | None = None) -> Callable[[Arrays], Arrays]:
        """The component for inputs of these shapes, timed at every call.  Raises ``ModelError``.

        ``precision`` is the arithmetic, if not that of the others.
        """
        precision = precision or self.precision
        key = (name, (precision, *sorted(shapes.items())))
        model = self._compiled.pop(key, None) or self._compile(name, shapes, precision)
        self._compiled[key] = model  # the latest is last
        self.ran[name] = Ran(model.cache, model.precision, model.device, frozenset(model.inputs))
        return self._timings.watch(name, short_of_memory(name)(model), model.flop)

    def _compile(self, name: str, shapes: Shapes, precision: str) -> CompiledModel:
        self._bundle.require_unchanged()
        self._drop(leaving(self._compiled, name, self.groups, self.most_shapes))
        with self._timings.stage("compile"), short_of_memory(name):
            model = self._backend.compile(
                self._bundle.path / FOLDERS.get(name, name),
                shapes,
                precision=precision,
                cache_key=self._bundle.key,
                rows=self._rows(name),
                edits=self._edits(name),
            )
            give_back()
        return model

    def _drop(self, keys: Collection[tuple[str, Any]]) -> None:
        for key in keys:
            del self._compiled[key]
        if keys:
            give_back()


def leaving(present: Iterable[Key], name: str, groups: Groups, most_shapes: int) -> set[Key]:
    """Which of the components that are present, the latest last, leave before ``name`` comes."""
    beside = {other for group in groups if name in group for other in group}
    same = [key for key in present if key[0] == name]
    return {key for key in present if key[0] not in beside} | set(same[: max(0, len(same) + 1 - most_shapes)])
