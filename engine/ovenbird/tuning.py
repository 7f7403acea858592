"""Which variant, runtime and number of threads are quick here: calls of the U-Net, measured turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from statistics import median
from typing import NamedTuple

import numpy as np

from ovenbird import machine, progress
from ovenbird.backends import BACKENDS, Arrays, Shapes, create, short_of_memory
from ovenbird.bundle import Bundle
from ovenbird.choice import Measured, Way, reads
from ovenbird.errors import OvenbirdError, ResourceError
from ovenbird.memory import HABITS, Foresight, Need
from ovenbird.presets import NO_SHORTCUTS
from ovenbird.sizes import show_size
from ovenbird.timing import Clock

CALLS = 3
"""That are timed at a visit, behind one that is not."""
ROUNDS = 3
CLOSE = 1.25
"""What took more than this many times the least in the first round cannot win, and is not measured again."""
TIMESTEP = np.array(500.0)


class Subject(NamedTuple):
    """What is measured."""

    call: Callable[[], object]
    arithmetic: str


def thread_counts() -> list[int | None]:
    """Every physical core, every thread of them, half of the cores, one; those that differ.

    None, the runtime's own number, where that can be no other.
    """
    cores, threads = machine.physical_cores(), machine.usable_cores()
    counts = dict.fromkeys(count for count in (cores, threads, cores // 2, 1) if count)
    return [None if count == cores == threads else count for count in counts]


def ways(bundles: Sequence[Bundle]) -> list[Way]:
    """All that the folders and this installation allow; first those with every core, which should be the fastest."""
    pairs = [(bundle, name) for bundle, name in product(bundles, BACKENDS) if reads(name, bundle.path)]
    return [Way(bundle.precision, name, count) for count in thread_counts() for bundle, name in pairs]


def shapes(bundle: Bundle, size: int | None = None) -> Shapes:
    """Of what the U-Net takes for one picture of so many pixels a side, else of the model's own size, with guidance.

    What a config does not say is as in Stable Diffusion 1.5.
    """
    config, side = bundle.config("unet"), (size or bundle.default_size) // bundle.vae_scale_factor
    width = config.get("time_cond_proj_dim")
    rows = 1 if width else 2  # a distilled model has learned guidance
    found: dict[str, tuple[int, ...]] = {
        "sample": (rows, config.get("in_channels", 4), side, side),
        "encoder_hidden_states": (rows, 77, config.get("cross_attention_dim", 768)),
    }
    if width:
        found["timestep_cond"] = (rows, width)
    if bundle.family == "sdxl":
        times = 6 * config.get("addition_time_embed_dim", 256)
        found["text_embeds"] = (rows, config.get("projection_class_embeddings_input_dim", 2816) - times)
        found["time_ids"] = (rows, 6)
    return found


def prepare(bundle: Bundle, way: Way, *, allow_foreign: bool = False) -> Subject:
    """The U-Net, compiled as it is for pictures but not kept in the cache, where it would take gigabytes.

    Raises what ``Backend.compile`` does, and ``ResourceError`` where memory is short.
    """
    backend, given = create(way.backend, "cpu", way.threads, allow_foreign=allow_foreign), shapes(bundle)
    precision = backend.best_precision(bundle.precision)
    _check_memory(bundle, way.backend, precision, given)
    with short_of_memory("unet"):
        model = backend.compile(
            bundle.path / "unet", given, precision=precision, cache_key=None, edits=NO_SHORTCUTS.edits("unet")
        )
    return Subject(partial(_called, model, _inputs(given)), model.precision)


def _called(model: Callable[[Arrays], object], inputs: Arrays) -> object:
    with short_of_memory("unet"):
        return model(inputs)


def _inputs(given: Shapes) -> Arrays:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal(shape, np.float32) for name, shape in given.items()} | {"timestep": TIMESTEP}


def _check_memory(bundle: Bundle, runtime: str, precision: str, given: Shapes) -> None:
    """Raises ``ResourceError`` for what the system would end the process for."""
    available, foresight = machine.available_memory(), Foresight(bundle, runtime, precision)
    try:
        cost = foresight.cost(Need.of("unet", given))
    except (KeyError, TypeError, ValueError, IndexError):  # nothing is foreseen of some folders of other tools
        return
    most = HABITS[runtime].base + max(cost.making, cost.held)
    if available is not None and most > available + (machine.resident() or 0):
        raise ResourceError(f"it takes about {show_size(most)} of memory, and {show_size(available)} is available")


@dataclass
class Race:
    """Ways against one another: all of them, then those that are close, there and back, while there is time.

    One is in memory at a time.  What was measured stays when somebody stops it.
    """

    ways: Sequence[Way]
    prepare: Callable[[Way], Subject]
    budget: float
    """Seconds."""
    clock: Clock = time.perf_counter
    seconds: dict[Way, list[float]] = field(default_factory=dict)
    failed: dict[Way, str] = field(default_factory=dict)
    """Why some cannot run."""
    late: list[Way] = field(default_factory=list)
    """For which there was no time."""
    _arithmetic: dict[Way, str] = field(default_factory=dict)
    _cost: dict[Way, float] = field(default_factory=dict)

    def run(self) -> None:
        """Until everything is measured, or the time is over."""
        end = self.clock() + self.budget
        for number in range(ROUNDS):
            for way in self._turn(number):
                left = end - self.clock()
                if self._cost and self._expected(way) > left:
                    self.late += [way] if way not in self.seconds else []
                else:
                    self._visit(way, number, left)

    @property
    def measured(self) -> tuple[Measured, ...]:
        """What was measured."""
        return tuple(Measured(way, self._arithmetic[way], tuple(found)) for way, found in self.seconds.items())

    def _turn(self, number: int) -> Sequence[Way]:
        if not number:
            return self.ways
        least = min((median(found) for found in self.seconds.values()), default=0.0)
        close = [way for way, found in self.seconds.items() if median(found) <= CLOSE * least]
        again = close if len(close) > 1 else []
        return again[::-1] if number % 2 else again

    def _expected(self, way: Way) -> float:
        """Seconds that a visit takes: as the last one, or one of its kind, or the longest of all."""
        alike = [
            cost * _threads(other) / _threads(way)
            for other, cost in self._cost.items()
            if (other.precision, other.backend) == (way.precision, way.backend)
        ]
        return self._cost.get(way) or max(alike, default=max(self._cost.values()))

    def _visit(self, way: Way, number: int, left: float) -> None:
        began = self.clock()
        try:
            with progress.stage(f"{way}: round {number + 1}, {_minutes(left)} left"):
                subject = self.prepare(way)
                subject.call()
                found = [self._timed(subject.call) for _ in range(CALLS)]
        except OvenbirdError as error:
            self.failed[way] = str(error)
            self.seconds.pop(way, None)
            return
        self._arithmetic[way] = subject.arithmetic
        self.seconds.setdefault(way, []).extend(found)
        self._cost[way] = self.clock() - began
        del subject
        machine.give_back()

    def _timed(self, call: Callable[[], object]) -> float:
        began = self.clock()
        call()
        return self.clock() - began


def _threads(way: Way) -> int:
    return way.threads or machine.usable_cores()


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    return f"{minutes}:{rest:02}"
