"""How a run fits into the memory that it may take: what stays, how many pictures side by side, the decoder's tiles."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from ovenbird import families
from ovenbird.backends import Backend
from ovenbird.bundle import Bundle
from ovenbird.errors import RequestError, ResourceError
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
        side = "one picture" if setting.batch_size == 1 else f"{setting.batch_size} pictures"
        tiles = f"; decoded in tiles of {setting.vae_tile} pixels" if setting.vae_tile else ""
        of = f" of {show_size(self.limit)}" if self.limit else ""
        return f"{KEEP[setting.keep].label}; {side} at a time{tiles}; about {show_size(self.peak)}{of}"


def needs(bundle: Bundle, jobs: Sequence[Job], setting: Setting) -> Iterator[Need]:
    """What is called for, in this order, until it repeats itself."""
    encoders = [name for name in ("text_encoder", "text_encoder_2") if (bundle.path / name).is_dir()]
    for wish, pictures in jobs:
        for batches in _rounds(pictures, setting):
            yield from (Need(name, (1, 77)) for name in encoders)
            yield from _drawing(bundle, wish, batches, setting.vae_tile)


def _drawing(bundle: Bundle, wish: Request, batches: Sequence[int], vae_tile: int | None) -> Iterator[Need]:
    """What the passes of a request call for."""
    small, *larger = wish.passes
    halves = 2 if families.guides(bundle, wish) else 1
    if small.image is not None:
        yield _encoder(small)
    yield from (_unet(bundle, small, halves * size) for size in batches)
    for large in larger:
        if wish.hires_upscaler != LATENT:
            yield _decoder(bundle, small, vae_tile)
            yield _encoder(large)
        yield from (_unet(bundle, large, halves * size) for size in batches)
    yield _decoder(bundle, (small, *larger)[-1], vae_tile)


def _encoder(wish: Request) -> Need:
    assert wish.height and wish.width
    return Need("vae_encoder", (1, 3, wish.height, wish.width))


def _unet(bundle: Bundle, wish: Request, rows: int) -> Need:
    channels = int(bundle.config("unet").get("in_channels", 4))
    return Need("unet", (rows, channels, *_cells(bundle, wish, wish.tile_size)))


def _decoder(bundle: Bundle, wish: Request, tile: int | None) -> Need:
    channels = int(bundle.config("vae_decoder").get("latent_channels", 4))
    return Need("vae_decoder", (1, channels, *_cells(bundle, wish, tile)))


def _cells(bundle: Bundle, wish: Request, tile: int | None) -> tuple[int, int]:
    """Height and width of the latents that a component sees at once."""
    assert wish.height and wish.width
    height, width = (min(side, tile or side) // bundle.vae_scale_factor for side in (wish.height, wish.width))
    return height, width


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


def settings(asked: Setting, jobs: Sequence[Job]) -> Iterator[Setting]:
    """What could be done instead, the fastest first: tiles are the last resort, for they change the picture."""
    largest = max(side or 0 for wish, _ in jobs for part in wish.passes for side in (part.height, part.width))
    smaller = [tile for tile in TILES if tile < (asked.vae_tile or largest)]
    sizes = [asked.batch_size]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    keeps = list(KEEP)[list(KEEP).index(asked.keep) :]
    for tile, size, keep in product([asked.vae_tile, *smaller], sizes, keeps):
        yield Setting(keep, size, tile)


def plan(
    bundle: Bundle,
    backend: Backend,
    precision: str,
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
        if limit is not None:
            raise RequestError(
                f"max_memory: what {backend.name} takes on {backend.device} cannot be foreseen",
                hint="it can for the processor: --device cpu",
            )
        return None
    foresight = Foresight(bundle, backend.name, precision)

    def peak(setting: Setting, jobs: Sequence[Job]) -> int:
        called = list(needs(bundle, jobs, setting))
        stay = present if limit is None else [need for need in present if need in called]
        return foresee(called * 2, KEEP[setting.keep], foresight.cost, foresight.habits.base, stay)

    return warned(asked, jobs, peak) if limit is None else choose(asked, jobs, limit, peak)


Peak = Callable[[Setting, Sequence[Job]], int]
"""Bytes that a process will hold at the most."""


def choose(asked: Setting, jobs: Sequence[Job], limit: int, peak: Peak) -> Plan:
    """The fastest setting that stays within the limit.

    Raises ``ResourceError`` with the smallest limit that would do, and a size of picture that would fit.
    """
    tried: list[Plan] = []
    for setting in settings(asked, jobs):
        plan = Plan(setting, peak(setting, jobs), limit)
        if plan.peak <= limit:
            return plan
        tried.append(plan)
    least = min(plan.peak for plan in tried)
    raise ResourceError(
        f"max_memory: {show_size(limit)} is not enough: this run takes about {show_size(least)} at the least",
        hint=f"--max-memory {_enough(least)} would do{_smaller(asked, jobs, limit, peak)}",
    )


def warned(asked: Setting, jobs: Sequence[Job], peak: Peak) -> Plan:
    """What was asked for, with a warning if it takes more memory than is available now.

    Raises ``ResourceError`` for what takes far more than there is at all.
    """
    plan = Plan(asked, peak(asked, jobs), None)
    total, available = total_memory(), available_memory()
    if total is not None and plan.peak > ABSURD * total:
        raise ResourceError(
            f"memory: this run takes about {show_size(plan.peak)}, and the machine has {show_size(total)}",
            hint=f"smaller pictures or a smaller batch_size{_smaller(asked, jobs, total, peak)}",
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


def _smaller(asked: Setting, jobs: Sequence[Job], limit: int, peak: Peak) -> str:
    """The largest pictures of the same shape that would fit, down to half the size."""
    sizes = {(wish.height or 0, wish.width or 0) for wish, _ in jobs}
    if len(sizes) > 1:
        return ""
    [size] = sizes
    for share in range(15, 7, -1):
        height, width = (side * share // 16 // SIZE_STEP * SIZE_STEP for side in size)
        smaller = [Job(wish.sized(height, width), pictures) for wish, pictures in jobs]
        if any(peak(setting, smaller) <= limit for setting in settings(asked, smaller)):
            return f"; {width}x{height} pixels would fit"
    return ""
