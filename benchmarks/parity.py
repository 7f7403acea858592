"""The same prompt and seed through diffusers (torch, fp32) and through the engine: how far apart are the pictures?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovenbird import Pipeline, Request

SOURCE = Path(__file__).resolve().parents[1] / "models" / "nestling" / "source"
PROMPTS = (
    "a large red house in the snow at night under the stars",
    "a small yellow boat on the sea, on the left, at sunset",
)
SCHEDULERS = ("ddim", "pndm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras")
STEPS = 20


def reference(source: Path = SOURCE) -> Any:
    """The diffusers pipeline, in float32."""
    import diffusers
    import torch

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_picture(pipeline: Any, engine: Pipeline, scheduler: str, prompt: str, seed: int) -> NDArray[np.uint8]:
    """What diffusers draws with the scheduler that ``engine`` would use under this name."""
    import diffusers
    import torch

    ours = engine.scheduler(Request(prompt=prompt, scheduler=scheduler))
    pipeline.scheduler = getattr(diffusers, ours.class_name).from_config(dict(ours.options))
    generator = torch.Generator("cpu").manual_seed(seed)
    result = pipeline(prompt, num_inference_steps=STEPS, guidance_scale=7.5, generator=generator, output_type="np")
    pixels: NDArray[np.uint8] = (result.images[0] * 255).round().astype(np.uint8)
    return pixels


def difference(pipeline: Any, engine: Pipeline, scheduler: str, prompt: str, seed: int) -> tuple[float, int]:
    """Mean and largest difference in levels of 255."""
    wish = Request(prompt=prompt, num_inference_steps=STEPS, seed=seed, scheduler=scheduler)
    ours = np.asarray(engine.generate(wish).images[0]).astype(int)
    gap = np.abs(ours - diffusers_picture(pipeline, engine, scheduler, prompt, seed))
    return float(gap.mean()), int(gap.max())


def measure(folder: Path, source: Path = SOURCE) -> dict[str, Any]:
    """For a fp32 folder: runtime -> scheduler -> the worst mean and the worst maximum over the prompts."""
    pipeline, found = reference(source), {}
    for backend in ("openvino", "onnxruntime"):
        engine = Pipeline.open(folder, backend, precision="fp32")
        rows = {}
        for scheduler in SCHEDULERS:
            gaps = [difference(pipeline, engine, scheduler, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
            rows[scheduler] = {"mean": max(mean for mean, _ in gaps), "max": max(most for _, most in gaps)}
        found[backend] = rows
    return found
