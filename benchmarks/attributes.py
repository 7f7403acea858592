"""Does nestling show what the words say?  A small network that knows only rendered pictures is the judge."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import children
from ovenbird import Pipeline, Request
from ovenbird_export.attributes import Caption, Exam, Reader, Scores, Values, readings, score

NESTLING = Path(__file__).resolve().parents[1] / "models" / "nestling"
sys.path.insert(0, str(NESTLING / "recipe"))

from drawing import render  # noqa: E402
from scenes import ATTRIBUTES, random_scene  # noqa: E402


def held_out(count: int) -> Exam:
    """The first captions of nestling's exam."""
    exam = Exam.open(NESTLING / "reader")
    return replace(exam, captions=exam.captions[:count])


def at_guidance(pipeline: Pipeline, count: int, guidance_scale: float) -> Scores:
    """The scores at one guidance scale."""
    exam = held_out(count)
    wishes = [replace(wish, guidance_scale=guidance_scale) for wish in exam.requests()]
    return score(readings(pipeline, Reader(exam, pipeline.backend), wishes), exam.captions)


def of_settings(told: dict[str, Any]) -> dict[str, Any]:
    """For ``children.ask``: the scores of a folder opened with some settings, and the seconds that this took."""
    pipeline, exam = Pipeline.open(told["folder"], **told["settings"]), held_out(told["captions"])
    began = time.perf_counter()
    scores = score(readings(pipeline, Reader(exam, pipeline.backend), exam.requests()), exam.captions)
    return {"scores": scores, "seconds": time.perf_counter() - began}


def measure(pipeline: Pipeline, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """All the scores of the model card."""
    exam = held_out(count)
    reader = Reader(exam, pipeline.backend)
    progress("default settings")
    seen = readings(pipeline, reader, exam.requests())
    progress("without guidance")
    plain = at_guidance(pipeline, count, 1.0)
    progress("negative prompts")
    return {
        "captions": count,
        "default settings": score(seen, exam.captions),
        "without guidance": plain,
        "shuffled captions": score(seen, [*exam.captions[1:], exam.captions[0]]),
        "reader on rendered pictures": score(*rendered(reader, count)),
        "share of night pictures": night_share(pipeline, reader, max(8, count // 5)),
    }


def rendered(reader: Reader, count: int) -> tuple[list[Values], list[Caption]]:
    """The reader's own examination: drawings of held-out scenes, every attribute asked for."""
    rng = random.Random(2027)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    found = [reader.read(np.asarray(render(scene, rng))) for scene in scenes]
    return found, [Caption("", asdict(scene)) for scene in scenes]


def night_share(pipeline: Pipeline, reader: Reader, count: int) -> Scores:
    """How often prompts that leave the time open give a night, without and with ``at night`` as negative prompt."""
    rng = random.Random(5)
    colours, kinds = ATTRIBUTES["colour"], ATTRIBUTES["kind"]
    prompts = [f"a {rng.choice(colours)} {rng.choice(kinds)}" for _ in range(count)]
    steps = held_out(1).steps

    def share(negative: str) -> float:
        wishes = [
            Request(prompt=prompt, negative_prompt=negative, seed=seed, num_inference_steps=steps)
            for seed, prompt in enumerate(prompts)
        ]
        return float(np.mean([reading["time"] == "night" for reading in readings(pipeline, reader, wishes)]))

    return {"no negative prompt": share(""), "negative prompt 'at night'": share("at night")}


def reconstruction(pipeline: Pipeline, count: int) -> list[float]:
    """PSNR in dB of held-out pictures through the exported encoder and decoder."""
    rng = random.Random(2028)
    compile_ = pipeline.backend.compile
    folder, shape = pipeline.bundle.path, (1, 3, 128, 128)
    encoder = compile_(folder / "vae_encoder", {"sample": shape}, precision="f32", cache_key=None)
    decoder = compile_(folder / "vae_decoder", {"latent_sample": (1, 4, 16, 16)}, precision="f32", cache_key=None)
    values = []
    for _ in range(count):
        picture = np.asarray(render(random_scene(rng, held_out=True), rng), np.float32)
        x = picture.transpose(2, 0, 1)[None] / 127.5 - 1
        latents: NDArray[np.float32] = encoder({"sample": x})["latent_parameters"][:, :4]
        again = decoder({"latent_sample": latents})["sample"][0].transpose(1, 2, 0)
        error = np.clip((again + 1) * 127.5, 0, 255).round() - picture
        values.append(float(10 * np.log10(255**2 / np.mean(error**2))))
    return values


if __name__ == "__main__":
    children.answer(of_settings)
