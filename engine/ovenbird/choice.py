"""Which variant of a model is drawn with where nobody says: by what was measured here, else by a rule."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ovenbird import cache, machine
from ovenbird.backends import BACKENDS
from ovenbird.bundle import FORMATS, MANIFEST, PRECISIONS, manifest_hash, read_json
from ovenbird.sizes import counted

AUTO = "auto"
DEFAULT_BACKEND = "openvino"
QUICK = ("int8", "fp16", "fp32", "int8-weights")
"""Where the processor is quick at eight bits.  int8-weights calculates in float32."""
SLOW = ("fp16", "fp32", "int8-weights", "int8")
TIE = 1.03
"""What takes no more than this many times the least counts as equally quick."""
NO_INT8 = "the model has no int8, which ovenbird export --precision int8 makes"
NEEDED = ("text_encoder", "unet", "vae_decoder")
PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
"""Runtime -> what it is installed as."""
NOTE, NOTE_FORMAT = ".tuning", 1
Facts = Mapping[str, Any]
Variants = Mapping[str, Path]
"""Precision -> folder, which is not there yet where it would be downloaded."""


@dataclass(frozen=True)
class Way:
    """A way to run a model on the processor."""

    precision: str
    backend: str
    threads: int | None
    """None where the runtime's own number is all there are."""

    def __str__(self) -> str:
        count = self.threads or machine.usable_cores()
        return f"{self.precision} on {self.backend}, {counted(count, 'thread')}"

    @property
    def rank(self) -> tuple[int, int, float]:
        """Of what is equally quick the least comes first: the usual, and the most exact."""
        known = PRECISIONS.index(self.precision) if self.precision in PRECISIONS else len(PRECISIONS)
        return known, list(BACKENDS).index(self.backend), -(self.threads or float("inf"))


@dataclass(frozen=True)
class Measured:
    """What calls of the U-Net took."""

    way: Way
    arithmetic: str
    """That really ran."""
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the seconds."""
        return median(self.seconds)


@dataclass(frozen=True)
class Tuning:
    """What ``ovenbird tune`` measured of a model on this machine."""

    facts: Facts
    """All that it depends on."""
    date: str
    """Year, month and day."""
    size: int
    """Side of the picture in pixels."""
    measured: tuple[Measured, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    """Way -> why it cannot run."""

    @property
    def missing(self) -> list[str]:
        """Variants of which it is not known how quick they are, though they may run."""
        known = {each.way.precision for each in self.measured} | {way.partition(" ")[0] for way in self.failed}
        return [name for name in self.facts["variants"] if name not in known]

    def write(self) -> bool:
        """Whether it will be remembered."""
        return cache.write(note_name(self.facts), json.dumps({"format": NOTE_FORMAT, **asdict(self)}).encode())

    @classmethod
    def parse(cls, note: bytes) -> Tuning:
        """Raises ``ValueError``, ``TypeError``, ``LookupError``, ``AttributeError`` or ``OverflowError`` for none."""
        told = json.loads(note)
        if told.pop("format") != NOTE_FORMAT or not isinstance(told["facts"]["variants"], dict):
            raise ValueError("another format")
        measured = [
            Measured(Way(**each["way"]), str(each["arithmetic"]), tuple(map(float, each["seconds"])))
            for each in told["measured"]
        ]
        if not all(_is_sound(each) for each in measured) or not isinstance(told["date"], str):
            raise ValueError("no measurement")
        return cls(**told | {"measured": tuple(measured), "failed": dict(told["failed"])})


def _is_sound(measured: Measured) -> bool:
    way, seconds = measured.way, measured.seconds
    counted = way.threads is None or (type(way.threads) is int and way.threads > 0)
    known = isinstance(way.precision, str) and way.backend in BACKENDS
    return known and counted and bool(seconds) and all(0 < each < float("inf") for each in seconds)


class Choice(NamedTuple):
    """A variant, and how to run it."""

    precision: str
    """Empty for a folder that has no variants."""
    why: str = ""
    """What is told after it; empty where somebody said so."""
    backend: str = DEFAULT_BACKEND
    threads: int | None = None

    def __str__(self) -> str:
        return self.why and f"{self.precision}{self.why}"


@dataclass(frozen=True)
class Leeway:
    """What is left open; None is open."""

    backend: str | None = None
    threads: int | None = None
    device: str = "cpu"
    only_openvino: bool = False
    """Whether graphs are to be changed as no other runtime can."""

    def among(self, there: Variants) -> Choice:
        """The variant that was measured to be the fastest on this machine, or should be by its instruction sets."""
        apart, (precision, why) = "", self.ruled(there)
        if self.device.lower() == "cpu":
            tuning, apart = remembered(facts(there))
            # What would have to be downloaded first may be quicker than all that was measured.
            if tuning and precision in tuning.facts["variants"] and (choice := self._measured(tuning)):
                return choice._replace(why=f"{choice.why}; {why}") if why is NO_INT8 else choice
        return Choice(precision, f": {why}{apart}", self.backend or DEFAULT_BACKEND, self.threads)

    def _measured(self, tuning: Tuning) -> Choice | None:
        fitting = [each for each in tuning.measured if self._fits(each.way)]
        if not fitting:
            return None
        # A number of threads that was not measured leaves the order of the variants as it is.
        given = [each for each in fitting if self.threads in (None, each.way.threads or machine.usable_cores())]
        fitting = given or fitting
        best = fastest(fitting)
        others = [each for each in fitting if each.way.precision != best.way.precision]
        how = "" if self.backend else f" on {best.way.backend}"
        if not self.threads and best.way.threads:
            how += f" with {counted(best.way.threads, 'thread')}"
        why = f"{how}: measured by ovenbird tune on {tuning.date}{_compared(best, others)}"
        return Choice(best.way.precision, why, self.backend or best.way.backend, self.threads or best.way.threads)

    def _fits(self, way: Way) -> bool:
        backend = self.backend or (DEFAULT_BACKEND if self.only_openvino else way.backend)
        return way.backend == backend

    def ruled(self, there: Collection[str]) -> tuple[str, str]:
        """One of these variants, and why, by the processor's instruction sets alone."""
        quick = machine.quick_at_eight_bits() if self.device.lower() == "cpu" else None
        order = QUICK if quick else SLOW
        best = min(there, key=lambda name: order.index(name) if name in order else len(order))
        if best == "int8":
            return best, f"the processor has {quick}" if quick else "the model has no other variant"
        if quick:
            return best, NO_INT8
        if self.device.lower() != "cpu":
            return best, f"how quick {self.device} is at int8 is not known"
        if not machine.instruction_sets():
            return best, "the processor's instruction sets are not known here; ovenbird tune measures it"
        hidden = {*machine.EIGHT_BITS} & {*machine.instruction_sets()}
        limit = f", which ONEDNN_MAX_CPU_ISA={machine.isa_limit()} hides" if hidden else ""
        return best, f"int8 is slow without any of {', '.join(machine.EIGHT_BITS)}{limit}"


def fastest(measured: Iterable[Measured]) -> Measured:
    """The first, in the usual order, of those that are equally quick within what noise makes."""
    measured = list(measured)
    least = min(each.median for each in measured)
    return min((each for each in measured if each.median <= TIE * least), key=lambda each: each.way.rank)


def _compared(best: Measured, others: Iterable[Measured]) -> str:
    """With the best of the other variants."""
    other = min(others, key=lambda each: each.median, default=None)
    if other is None:
        return f", {best.median:.3g} s a call of the U-Net"
    ratio = other.median / best.median
    return f", {ratio:.2f}x faster than {other.way.precision}" if ratio > TIE else f", as fast as {other.way.precision}"


def facts(there: Variants) -> Facts:
    """All that decides how quick the variants are; those that are not on the disk are passed over."""
    here = {name: folder for name, folder in there.items() if folder.is_dir()}
    return {
        "model": _model_name(here),
        "variants": {name: _key(folder) for name, folder in here.items()},
        "cpu": machine.cpu_name(),
        "instruction_sets": machine.instruction_sets(),
        "isa_limit": machine.isa_limit(),
        "cores": machine.usable_cores(),
        "runtimes": {name: version_of(name) for name in BACKENDS if any(reads(name, one) for one in here.values())},
    }


def reads(runtime: str, folder: Path) -> bool:
    """Whether a runtime is installed, and can read this variant; it is not imported."""
    readable = all(any((folder / part / names[0]).is_file() for names in FORMATS[runtime]) for part in NEEDED)
    return readable and find_spec(runtime) is not None


def version_of(runtime: str) -> str:
    """Of an installed runtime, by what its package says of itself."""
    for package in PACKAGES[runtime]:
        with suppress(PackageNotFoundError):
            return f"{package} {version(package)}"
    return "unknown"


def _key(folder: Path) -> str:
    """The hash of a manifest names these bytes and no others; what has none goes by its place."""
    return manifest_hash(folder) or str(folder.resolve())


def _model_name(here: Variants) -> str:
    for folder in here.values():
        if (folder / MANIFEST).is_file():
            return str(read_json(folder / MANIFEST).get("name"))
    return str(next(iter(here.values())).resolve()) if here else ""


def note_name(facts: Facts) -> str:
    """Of the note about just this, in the cache."""
    return cache.digest(facts) + NOTE


def remembered(facts: Facts) -> tuple[Tuning | None, str]:
    """What was measured of just this; else a remark about what is there instead, or nothing."""
    tuning = _read(note_name(facts))
    if tuning:
        return tuning, ""
    last = max(notes(facts["model"]), key=lambda pair: pair[1].date, default=None)
    if last is None:
        return None, ""
    other = [name.replace("_", " ") for name in facts if facts[name] != last[1].facts.get(name)]
    return None, f"; what ovenbird tune measured on {last[1].date} is out of date, with other {', '.join(other)}"


def notes(model: str) -> Iterator[tuple[Path, Tuning]]:
    """All that is remembered of a model, in whatever state and by whatever machine it was measured."""
    root = cache.root()
    for path in sorted(root.glob(f"*{NOTE}")) if root else ():
        tuning = _read(path.name)
        if tuning and tuning.facts.get("model") == model:
            yield path, tuning


def _read(name: str) -> Tuning | None:
    """A note, if it is there; a damaged one is removed, with a warning."""
    root = cache.root()
    if root is None or not (root / name).is_file():
        return None
    try:
        note = cache.read(name)
        if note is not None:
            return Tuning.parse(note)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        with suppress(OSError):
            (root / name).unlink()
    cache.warn_once(f"what ovenbird tune remembered in {root / name} is damaged or cannot be read; tune again")
    return None
