"""How a run fits into the memory that it may take: what stays, how many pictures side by side, the decoder's tiles."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

from ovenbird.backends import SHALLOW, Backend
from ovenbird.bundle import Bundle
from ovenbird.errors import OvenbirdError, RequestError, ResourceError
from ovenbird.machine import available_memory, resident, total_memory
from ovenbird.memory import HABITS, MIB, Cost, Foresight, Need
from ovenbird.request import LATENT, SIZE_STEP, Request
from ovenbird.sizes import show_size
from ovenbird.stages import ENCODERS_APART, MOST_SHAPES, ONE_BY_ONE, TOGETHER, Groups, leaving

ROUND = 16
"""Pictures of which all are sampled before the first is decoded, where the U-Net must leave for that."""


class Job(NamedTuple):
    """Pictures of one kind."""

    wish: Request
    """Settled; one of them."""
    pictures: int
    rows: int
    """Of the U-Net's batch for one picture: 2 with guidance, else 1."""


class Cast(NamedTuple):
    """The components of a model that take part, and what is the same for all pictures."""

    encoders: tuple[str, ...]
    decoder: str
    glance: str | None
    """What decodes previews, if there are any."""
    checked: bool
    """Whether the safety checker is asked."""
    channels: int
    """That the U-Net takes."""
    latent_channels: int
    cell: int
    """Side in pixels."""
    reuses: bool = False
    """Whether the U-Net's outermost layers run alone, too."""

    @classmethod
    def of(cls, bundle: Bundle, decoder: str, glance: str | None, checked: bool, reuses: bool) -> Cast:
        """Of a folder."""
        encoders = tuple(name for name in ("text_encoder", "text_encoder_2") if (bundle.path / name).is_dir())
        latents = int(bundle.config("vae_decoder").get("latent_channels", 4))
        channels = int(bundle.config("unet").get("in_channels", latents))
        return cls(encoders, decoder, glance, checked, channels, latents, bundle.vae_scale_factor, reuses)


@dataclass(frozen=True)
class Setting:
    """How a run is made."""

    keep: str
    """A row of ``KEEP``."""
    batch_size: int
    vae_tile: int | None
    """Side in pixels, None for whole pictures."""

    @property
    def round(self) -> int:
        """Pictures of which all are sampled before the first is decoded."""
        stays = KEEP[self.keep].groups is TOGETHER
        return self.batch_size if stays else max(ROUND, self.batch_size)


class Kept(NamedTuple):
    """What stays in memory."""

    label: str
    groups: Groups
    most_shapes: int
    """Of one component."""


KEEP = {
    "all": Kept("everything stays", TOGETHER, MOST_SHAPES),
    "one size": Kept("everything stays, for one size of picture at a time", TOGETHER, 1),
    "no encoders": Kept("encoders leave before the U-Net comes", ENCODERS_APART, 1),
    "one stage": Kept("one stage at a time", ONE_BY_ONE, 1),
}
"""From the fastest to the one that takes least."""
TILES = (512, 384, 256)
ABSURD = 2
"""Times the memory of the machine: no error of what is foreseen is as large."""


@dataclass(frozen=True)
class Plan:
    """What a run was found to fit in, and what is foreseen of it."""

    setting: Setting
    peak: int
    """Bytes that the process will hold at the most."""
    limit: int | None

    def __str__(self) -> str:
        setting = self.setting
        many = "one picture" if setting.batch_size == 1 else f"up to {setting.batch_size} pictures"
        tiles = f"; larger ones decoded in tiles of {setting.vae_tile} pixels" if setting.vae_tile else ""
        of = f" of {show_size(self.limit)}" if self.limit else ""
        return f"{KEEP[setting.keep].label}; {many} at a time{tiles}; about {show_size(self.peak)}{of}"


def needs(cast: Cast, jobs: Sequence[Job], setting: Setting) -> Iterator[Need]:
    """What is called for, in this order, until it repeats itself."""
    for wish, pictures, rows in jobs:
        small, *larger = wish.passes
        for batches in _rounds(pictures, setting):
            yield from (Need(name, (1, 77)) for name in cast.encoders)
            if small.image is not None:
                yield _encoder(small, setting)
            yield from _drawing(cast, small, [rows * size for size in batches], setting)
            for large in larger:
                if wish.hires_upscaler != LATENT:
                    yield _decoder(cast.decoder, cast, small, setting)
                    yield _encoder(large, setting)
                yield from _drawing(cast, large, [rows * size for size in batches], setting)
            yield _decoder(cast.decoder, cast, (small, *larger)[-1], setting)
            yield from _checker(cast)


def _drawing(cast: Cast, wish: Request, batches: Sequence[int], setting: Setting) -> Iterator[Need]:
    for rows in batches:
        shape = (rows, cast.channels, *(side // cast.cell for side in _seen(wish, wish.tile_size)))
        yield from (Need(name, shape) for name in ("unet", SHALLOW)[: 1 + cast.reuses])
        if cast.glance is not None:
            yield _decoder(cast.glance, cast, wish, setting)
            yield from _checker(cast)


def _encoder(wish: Request, setting: Setting) -> Need:
    return Need("vae_encoder", (1, 3, *_seen(wish, setting.vae_tile)))


def _decoder(name: str, cast: Cast, wish: Request, setting: Setting) -> Need:
    return Need(name, (1, cast.latent_channels, *(side // cast.cell for side in _seen(wish, setting.vae_tile))))


def _checker(cast: Cast) -> Iterator[Need]:
    if cast.checked:
        yield Need("safety_checker", (1, 3, 224, 224))


def _seen(wish: Request, tile: int | None) -> tuple[int, int]:
    """Height and width in pixels of what goes through a component at once."""
    assert wish.height and wish.width
    return min(wish.height, tile or wish.height), min(wish.width, tile or wish.width)


def _rounds(count: int, setting: Setting) -> Iterator[list[int]]:
    """How many pictures are drawn side by side, one batch after the other: of two rounds, and of the last."""
    full, left = divmod(count, setting.round)
    for size in [setting.round] * min(full, 2) + [left] * bool(left):
        whole, rest = divmod(size, setting.batch_size)
        yield [setting.batch_size] * whole + [rest] * bool(rest)


def foresee(
    called: Iterable[Need], keep: Kept, cost: Callable[[Need], Cost], base: int, present: Iterable[Need]
) -> int:
    """The most that a process holds, in bytes, as components come and go; some may be ``present`` from before."""
    held = {need: cost(need).held for need in present}
    most = base + sum(held.values())
    for need in called:
        if need not in held:
            for other in leaving(held, need.component, keep.groups, keep.most_shapes):
                del held[other]
            most = max(most, base + sum(held.values()) + cost(need).making)
        held[need] = held.pop(need, cost(need).held)  # the latest is last, as in Stages
        most = max(most, base + sum(held.values()))
    return most


def settings(asked: Setting, jobs: Sequence[Job], previews: bool = False) -> Iterator[Setting]:
    """What could be done instead, the fastest first: tiles are the last resort, for they change the picture.

    Where there are previews, the U-Net and a decoder are in memory at once.
    """
    largest = max(max(_seen(part, None)) for job in jobs for part in job.wish.passes)
    smaller = [tile for tile in TILES if tile < (asked.vae_tile or largest)]
    sizes = [asked.batch_size]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    keeps = list(KEEP)[list(KEEP).index(asked.keep) : -1 if previews else None] or ["no encoders"]
    for tile, size, keep in product([asked.vae_tile, *smaller], sizes, keeps):
        yield Setting(keep, size, tile)


def plan(
    bundle: Bundle,
    backend: Backend,
    precision: str,
    cast: Cast,
    asked: Setting,
    jobs: Sequence[Job],
    limit: int | None,
    present: Sequence[Need],
) -> Plan | None:
    """How to make these pictures; nothing is loaded.  None where nothing can be foreseen, if there is no limit.

    ``present`` are the components in memory; with a limit those that are not called for must leave.
    Raises ``ResourceError`` when there is no way, ``RequestError`` for a limit where nothing can be foreseen.
    """
    if backend.name not in HABITS or backend.device != "cpu":
        if limit is None:
            return None
        raise RequestError(
            f"max_memory: what {backend.name} takes on {backend.device} cannot be foreseen",
            hint="it can for the processor: --device cpu",
        )
    try:
        return _planned(Foresight(bundle, backend.name, precision), cast, asked, jobs, limit, present)
    except OvenbirdError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:  # of a folder that another tool wrote
        if limit is None:
            return None
        raise RequestError(
            f"max_memory: a config of {bundle.path} says {error}; what it takes cannot be foreseen"
        ) from error


def _planned(
    foresight: Foresight,
    cast: Cast,
    asked: Setting,
    jobs: Sequence[Job],
    limit: int | None,
    present: Sequence[Need],
) -> Plan:
    def peak(setting: Setting, jobs: Sequence[Job]) -> int:
        called = list(needs(cast, jobs, setting))
        stay = present if limit is None else [need for need in present if need in called]
        return foresee(called * 2, KEEP[setting.keep], foresight.cost, foresight.habits.base, stay)

    ways = partial(settings, asked, previews=cast.glance is not None)
    return warned(ways, jobs, peak) if limit is None else choose(ways, jobs, limit, peak)


Ways = Callable[[Sequence[Job]], Iterator[Setting]]
"""How some pictures could be made: first as they were asked for, then ever more sparingly."""
Peak = Callable[[Setting, Sequence[Job]], int]
"""Bytes that a process will hold at the most."""


def choose(ways: Ways, jobs: Sequence[Job], limit: int, peak: Peak) -> Plan:
    """The first way that stays within the limit.

    Raises ``ResourceError`` with the smallest limit that would do, and a size of picture that would fit.
    """
    tried: list[Plan] = []
    for setting in ways(jobs):
        plan = Plan(setting, peak(setting, jobs), limit)
        if plan.peak <= limit:
            return plan
        tried.append(plan)
    least = min(plan.peak for plan in tried)
    raise ResourceError(
        f"max_memory: {show_size(limit)} is not enough: this run takes about {show_size(least)} at the least",
        hint=f"--max-memory {_enough(least)} would do{_smaller(ways, jobs, limit, peak)}",
    )


def warned(ways: Ways, jobs: Sequence[Job], peak: Peak) -> Plan:
    """What was asked for, with a warning if it takes more memory than is available now.

    Raises ``ResourceError`` for what takes far more than there is at all.
    """
    asked = next(ways(jobs))
    plan = Plan(asked, peak(asked, jobs), None)
    total, available = total_memory(), available_memory()
    if total is not None and plan.peak > ABSURD * total:
        raise ResourceError(
            f"memory: this run takes about {show_size(plan.peak)}, and the machine has {show_size(total)}",
            hint=f"--max-memory {_enough(total)} finds a way to do with less{_smaller(ways, jobs, total, peak)}",
        )
    if available is not None and plan.peak > available + (resident() or 0):
        warnings.warn(
            f"this run takes about {show_size(plan.peak)} of memory, and {show_size(available)} is available; "
            "--max-memory SIZE finds a way to do with less",
            stacklevel=2,
        )
    return plan


def _enough(count: int) -> str:
    """As one types it, and not less."""
    return f"{-(-count // (10 * MIB)) * 10}MiB"


def _smaller(ways: Ways, jobs: Sequence[Job], limit: int, peak: Peak) -> str:
    """The largest pictures of the same shape that would fit, down to half the size."""
    sizes = {_seen(job.wish, None) for job in jobs}
    if len(sizes) > 1:
        return ""
    [size] = sizes
    for share in range(15, 7, -1):
        height, width = (side * share // 16 // SIZE_STEP * SIZE_STEP for side in size)
        if not (height and width):
            break
        smaller = [job._replace(wish=job.wish.sized(height, width)) for job in jobs]
        if any(peak(setting, smaller) <= limit for setting in ways(smaller)):
            return f"; {width}x{height} pixels would fit"
    return ""
