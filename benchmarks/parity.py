"""The same prompt and seed through diffusers (torch, fp32) and through the engine: how far apart are the pictures?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovenbird import Pipeline, Request
from ovenbird.backends import BACKENDS
from ovenbird.schedulers import KINDS, sampler

SOURCE = Path(__file__).resolve().parents[1] / "models" / "nestling" / "source"
PROMPTS = (
    "a large red house in the snow at night under the stars",
    "a small yellow boat on the sea, on the left, at sunset",
)
# One of each class but flow matching, since nestling predicts v; and the one that it names itself.
SCHEDULERS = (*(sampler(kind).name for kind in KINDS if not kind.startswith("Flow")), "dpmpp_2m_karras")
STEPS = 20


class Gap(NamedTuple):
    """Mean and largest difference in levels of 255."""

    mean: float
    most: int


def reference(source: Path = SOURCE) -> Any:
    """The diffusers pipeline, in float32."""
    import diffusers
    import torch

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_picture(pipeline: Any, engine: Pipeline, wish: Request) -> NDArray[np.uint8]:
    """What diffusers draws with the scheduler that ``engine`` would use."""
    import diffusers
    import torch

    ours = engine.scheduler(wish)
    pipeline.scheduler = getattr(diffusers, ours.class_name).from_config(dict(ours.options))
    result = pipeline(
        wish.prompt,
        negative_prompt=wish.negative_prompt or None,
        clip_skip=wish.clip_skip or None,
        num_inference_steps=wish.num_inference_steps,
        guidance_scale=wish.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(wish.seed),
        output_type="np",
    )
    pixels: NDArray[np.uint8] = (result.images[0] * 255).round().astype(np.uint8)
    return pixels


def differences(pipeline: Any, engines: Mapping[str, Pipeline], scheduler: str, seed: int) -> dict[str, Gap]:
    """For each engine, how far its picture of ``PROMPTS[seed]`` is from that of diffusers."""
    wish = Request(prompt=PROMPTS[seed], num_inference_steps=STEPS, seed=seed, scheduler=scheduler)
    expected = diffusers_picture(pipeline, next(iter(engines.values())), wish)
    return {name: gap(np.asarray(engine.generate(wish).images[0]), expected) for name, engine in engines.items()}


def gap(picture: NDArray[np.uint8], expected: NDArray[np.uint8]) -> Gap:
    """The difference of two pictures."""
    off = np.abs(picture.astype(int) - expected)
    return Gap(float(off.mean()), int(off.max()))


def measure(folder: Path, source: Path = SOURCE) -> dict[str, Any]:
    """For a fp32 folder: runtime -> scheduler -> the worst mean and the worst maximum over the prompts."""
    pipeline, engines = reference(source), fp32_engines(folder)
    found: dict[str, Any] = {name: {} for name in engines}
    for scheduler in SCHEDULERS:
        gaps = [differences(pipeline, engines, scheduler, seed) for seed in range(len(PROMPTS))]
        for name in engines:
            means, most = zip(*(by_engine[name] for by_engine in gaps), strict=True)
            found[name][scheduler] = {"mean": max(means), "max": max(most)}
    return found


def fp32_engines(folder: Path) -> dict[str, Pipeline]:
    """A pipeline on every runtime."""
    return {name: Pipeline.open(folder, name, precision="fp32") for name in BACKENDS}
