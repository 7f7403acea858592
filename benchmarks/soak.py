"""Many small pictures of random sizes in one process: whether its memory grows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ovenbird import Pipeline, Request
from ovenbird.machine import resident
from ovenbird.memory import MIB

SIDES = range(64, 129, 8)
STEPS = (1, 2)
PROMPTS = ("a large red house in the snow", "a small blue boat on the sea at sunset", "a tree", "")
MOST_MIB = 1.0
"""For each 100 pictures."""
COUNTS = range(1, 9)
"""Of pictures of one size, which is compiled, or loaded, for them."""


def requests(pictures: int, seed: int) -> Iterator[Request]:
    """So many pictures: of each request a random size, number of steps, number of pictures and prompts."""
    chance, number = random.Random(seed), 0
    while number < pictures:
        count = min(chance.choice(COUNTS), pictures - number)
        yield Request(
            prompt=chance.choice(PROMPTS),
            negative_prompt=chance.choice(PROMPTS),
            height=chance.choice(SIDES),
            width=chance.choice(SIDES),
            num_inference_steps=chance.choice(STEPS),
            num_images_per_prompt=count,
            seed=number,
        )
        number += count


def measure(
    pipeline: Pipeline, pictures: int, warm_up: int, tell: Callable[[str], None], seed: int = 0
) -> dict[str, Any]:
    """Resident memory after each request, and how it grows behind the ``warm_up``: the slope of the nearest line."""
    started, number = time.process_time(), 0
    samples: list[tuple[int, float]] = []
    for request in requests(pictures, seed):
        number += len(pipeline.generate(request).images)
        samples.append((number, (resident() or 0) / MIB))
        if len(samples) % 20 == 0:
            tell(f"{number} pictures, {samples[-1][1]:.0f} MiB, {time.process_time() - started:.0f} s of the processor")
    warm = np.array([sample for sample in samples if sample[0] > warm_up])
    slope, error = line(warm[:, 0], warm[:, 1])
    return {
        "pictures": pictures,
        "requests": len(samples),
        "warm_up": warm_up,
        "sides": [SIDES[0], SIDES[-1]],
        "threads": pipeline.backend.threads,
        "processor_seconds": round(time.process_time() - started, 1),
        "mib_per_100": round(100 * slope, 3),
        "standard_error": round(100 * error, 3),
        "mib": {"least": warm[:, 1].min(), "most": warm[:, 1].max(), "mean": round(warm[:, 1].mean(), 1)},
        "samples": [f"{number} {mib:.1f}" for number, mib in samples],
    }


def line(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The slope of the nearest line, and its standard error."""
    (slope, start), residuals = np.polyfit(x, y, 1), y.copy()
    residuals -= slope * x + start
    spread = np.sqrt((residuals**2).sum() / (len(x) - 2))
    return float(slope), float(spread / np.sqrt(((x - x.mean()) ** 2).sum()))
