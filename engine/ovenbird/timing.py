"""Where the seconds went: ``Timings`` collects, ``TimingReport`` prints or becomes JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import NamedTuple, ParamSpec, TypeVar

from ovenbird.sizes import counted

T = TypeVar("T")
P = ParamSpec("P")
Clock = Callable[[], float]
INT8 = "int8"


class Flop(NamedTuple):
    """The arithmetic of one call: multiplications and additions, counted apart, of convolutions and of matrices."""

    total: float
    int8: float
    """Those whose factors the graph rounds to eight bits, both of them."""


class Call(NamedTuple):
    """One call of a component whose arithmetic is known."""

    seconds: float
    flop: Flop

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flop.total / self.seconds


class Peak(NamedTuple):
    """The fastest product of matrices in one kind of arithmetic."""

    gflop_per_s: float
    measured: str
    """When, as ``2026-03-01 12:34``."""
    confirmed: bool = False
    """Whether it was seen more than once, so that it is not what other work on the machine had left over."""


class Timings:
    """Seconds by name, in the order in which names first came; the clock never goes back."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()
        self.seconds: dict[str, list[float]] = {}
        self.calls: dict[str, list[Call]] = {}
        """Of what was watched and has a known arithmetic, those that came back."""

    def add(self, name: str, seconds: float) -> None:
        """Count one stretch of time."""
        self.seconds.setdefault(name, []).append(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside a ``with``."""
        began = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - began)

    def watch(self, name: str, function: Callable[P, T], flop: Flop | None = None) -> Callable[P, T]:
        """The same function, timed at every call, which takes ``flop``."""

        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.stage(name):
                result = function(*args, **kwargs)
            if flop and flop.total:
                self.calls.setdefault(name, []).append(Call(self.seconds[name][-1], flop))
            return result

        return watched

    def each(self, name: str, items: Iterator[T]) -> Iterator[T]:
        """The same iterator, timed at every item; what the consumer does in between is not counted."""
        while True:
            began = self._clock()
            try:
                item = next(items)
            except StopIteration:
                return
            self.add(name, self._clock() - began)
            yield item

    def total(self) -> float:
        """Seconds since this object was made."""
        return self._clock() - self._began

    def sum(self, name: str) -> float:
        """All the seconds under a name; 0 when there were none."""
        return sum(self.seconds.get(name, ()))


REACHED = {"unet": "U-Net", "shallow_unet": "outermost", "vae_decoder": "decoder", "tiny_vae_decoder": "tiny decoder"}
"""Components whose share of the peak is reported -> how people call them."""


@dataclass(frozen=True)
class Reached:
    """How fast a component's median call was, next to the fastest products of matrices that this machine can do."""

    gflop_per_call: float
    int8_share: float
    """Of that arithmetic, what the graph does in eight bits."""
    gflop_per_s: float
    peak_of: str
    """Of a graph in mixed arithmetic the fastest, ``int8``, so that its share is not flattered."""
    peak_gflop_per_s: float | None = None
    """Measured with the runtime itself; None where it was not."""
    peak_measured: str | None = None
    share: float | None = None
    """Of the peak."""

    @classmethod
    def of(cls, calls: Sequence[Call], precision: str, peak: Callable[[str, float], Peak | None]) -> Reached:
        """Of one component, which runs in ``precision`` where it does not round to eight bits.

        ``peak`` is told the arithmetic, and the GFLOP/s that were reached in it.
        """
        call = sorted(calls, key=lambda call: call.rate)[(len(calls) - 1) // 2]
        kind = INT8 if call.flop.int8 else precision
        found = cls(call.flop.total / 1e9, call.flop.int8 / call.flop.total, call.rate / 1e9, kind)
        best = peak(kind, found.gflop_per_s)
        if best is None:
            return found
        share = found.gflop_per_s / best.gflop_per_s
        return replace(found, peak_gflop_per_s=best.gflop_per_s, peak_measured=best.measured, share=share)

    def __str__(self) -> str:
        speed = f"{_digits(self.gflop_per_call):>8} GFLOP a call, {_digits(self.gflop_per_s)} GFLOP/s"
        part = f", with {self.int8_share:.0%} of it in int8" if self.int8_share else ""
        if self.share is None:
            return f"{speed}{part}; the peak in {self.peak_of} was not measured"
        peak = f"{self.peak_of} peak, {_digits(self.peak_gflop_per_s or 0)} GFLOP/s, measured {self.peak_measured}"
        return f"{speed}: {self.share:.0%} of the {peak}{part}"


@dataclass(frozen=True)
class TimingReport:
    """One run, in seconds unless the name says otherwise; ``None`` is what this machine does not tell."""

    start_s: float | None
    """From the birth of the process to the command: interpreter and imports."""
    load_s: float
    compile_s: float
    compile_cache: dict[str, str]
    text_encoder_s: float
    first_step_s: float
    median_step_s: float
    steps: int
    unet_calls: int
    """Of the whole U-Net."""
    vae_s: float
    """Of encoders and decoders, previews included."""
    safety_checker_s: float
    save_s: float
    total_s: float
    """From the birth of the process, where known, to the last picture on disk."""
    pictures: int
    previews: int
    peak_rss_mib: float | None
    runtime: str
    runtime_version: str
    device: str
    """The one that was asked for."""
    devices: dict[str, str] = field(default_factory=dict)
    """Component -> where it really ran."""
    precision: dict[str, str] = field(default_factory=dict)
    """Component -> arithmetic that really ran."""
    reached: dict[str, Reached] = field(default_factory=dict)
    """U-Net and decoder -> the share of the machine's peak; those on a processor whose graphs were counted."""
    weights: str = ""
    chosen: str = ""
    """The variant and why it was taken, with runtime and threads where these were chosen, too; empty where somebody
    said which."""
    shallow_calls: int = 0
    """Of its outermost layers alone."""
    shortcuts: str = "none"
    """What was left out, or done more cheaply."""
    decoder: str = "full"
    vae_calls: int = 0
    vae_tile: int | None = None
    """The side in pixels, if anything was made in tiles."""
    vae_retries: int = 0
    """How often it was run again in f32, because what came out was not finite."""
    safety_checker: str = "none"
    threads: int = 0
    planned_peak_mib: float | None = None
    """Foreseen before anything was loaded; None where nothing can be."""
    cpu: str = ""
    instruction_sets: list[str] = field(default_factory=list)
    fastest_step_s: float = 0.0
    p90_step_s: float = 0.0
    """Nine of ten steps took no longer."""
    load_average: float | None = None
    """Of the last minute, when the report was made: how many threads of all programs wanted to run."""
    cpu_mhz: float | None = None
    """The fastest core then."""
    cpu_celsius: float | None = None
    """The hottest part of the processor then."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """For people."""
        return "\n".join(f"{name:<14}{value}" for name, value in self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        if self.start_s is not None:
            yield "start", f"{self.start_s:8.2f} s"
        yield "load", f"{self.load_s:8.2f} s"
        caches = ", ".join(f"{name} {state}" for name, state in self.compile_cache.items())
        yield "compile", f"{self.compile_s:8.2f} s   cache: {caches or 'nothing was compiled'}"
        yield "text encoder", f"{self.text_encoder_s:8.2f} s"
        yield "first step", f"{self.first_step_s:8.3f} s"
        shallow = f", {self.shallow_calls} of its outermost layers" if self.shallow_calls else ""
        calls = f"{counted(self.steps, 'step')}, {counted(self.unet_calls, 'U-Net call')}{shallow}"
        yield "median step", f"{self.median_step_s:8.3f} s   {calls}"
        if self.steps > 1:
            yield "steps", f"{self.fastest_step_s:8.3f} s the fastest, {self.p90_step_s:.3f} s for nine of ten"
        yield "VAE", f"{self.vae_s:8.2f} s   {', '.join(self._vae())}"
        if self.safety_checker != "none":
            yield "safety", f"{self.safety_checker_s:8.2f} s   {self.safety_checker}"
        yield "save", f"{self.save_s:8.2f} s"
        each = f"   {self.total_s / self.pictures:.2f} s a picture" if self.pictures > 1 else ""
        yield "total", f"{self.total_s:8.2f} s{each}"
        planned = f"   foreseen: {self.planned_peak_mib:.0f}" if self.planned_peak_mib else ""
        yield "peak memory", f"{self.peak_rss_mib:8.0f} MiB{planned}" if self.peak_rss_mib else "     not measured here"
        elsewhere = ", ".join(sorted({*self.devices.values()} - {self.device}))
        device = f"{self.device} (ran on {elsewhere})" if elsewhere else self.device
        yield "runtime", f"{self.runtime} {self.runtime_version} on {device}, {counted(self.threads, 'thread')}"
        ran = ", ".join(f"{name} {kind}" for name, kind in self.precision.items())
        yield "precision", f"{self.weights} weights; ran in: {ran}"
        if self.chosen:
            yield "chosen", self.chosen
        if self.shortcuts != "none":
            yield "shortcuts", self.shortcuts
        for name, reached in self.reached.items():
            yield REACHED.get(name, name), str(reached)
        yield "CPU", f"{self.cpu} ({', '.join(self.instruction_sets) or 'instruction sets unknown'})"

        state = ", ".join(self._machine())
        if state:
            yield "machine", state

    def _machine(self) -> Iterator[str]:
        """What else slows runs down."""
        if self.load_average is not None:
            yield f"load average {self.load_average:.1f}"
        if self.cpu_mhz is not None:
            yield f"{self.cpu_mhz / 1000:.1f} GHz"
        if self.cpu_celsius is not None:
            yield f"{self.cpu_celsius:.0f} °C"

    def _vae(self) -> Iterator[str]:
        yield f"{self.decoder} decoder"
        yield counted(self.vae_calls, "call")
        if self.vae_tile:
            yield f"in tiles of {self.vae_tile} pixels"
        if self.previews:
            yield f"{self.previews} previews"
        if self.vae_retries:
            yield f"{self.vae_retries} again in f32, not being finite"


def _digits(value: float) -> str:
    """At least three of them, and none behind the point that tell nothing."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def share(values: list[float], part: float) -> float:
    """What that part of them does not exceed, or 0 of nothing."""
    return sorted(values)[math.ceil(len(values) * part) - 1] if values else 0.0


def middle(values: list[float]) -> float:
    """The median, or 0 of nothing."""
    return median(values) if values else 0.0
