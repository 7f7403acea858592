"""Does nestling show what the words say?  A small network that knows only rendered pictures is the judge."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovenbird import Pipeline, Request
from ovenbird.cli import DEFAULT_STEPS

NESTLING = Path(__file__).resolve().parents[1] / "models" / "nestling"
sys.path.insert(0, str(NESTLING / "recipe"))

from drawing import render  # noqa: E402
from scenes import ATTRIBUTES, Scene, caption, random_scene  # noqa: E402

Wish = tuple[Scene, str, set[str]]  # what was meant, how it was said, which attributes were mentioned
Scores = dict[str, float]


def held_out_wishes(count: int) -> list[Wish]:
    """Captions of scenes whose combination of thing, colour and ground was kept from training."""
    rng = random.Random(2026)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    return [(scene, *caption(scene, rng)) for scene in scenes]


class Reader:
    """The attribute reader of ``models/nestling/reader``."""

    def __init__(self, pipeline: Pipeline) -> None:
        shape = {"picture": (1, 3, 128, 128)}
        self._model = pipeline.backend.compile(NESTLING / "reader", shape, precision="f32", cache_key=None)
        self._splits = np.cumsum([len(values) for values in ATTRIBUTES.values()])[:-1]

    def __call__(self, picture: Image.Image) -> list[int]:
        """The index of each attribute's value."""
        x = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        logits = self._model({"picture": x})["logits"][0]
        return [int(part.argmax()) for part in np.split(logits, self._splits)]


def score(readings: Sequence[list[int]], wishes: Sequence[Wish]) -> Scores:
    """Share of right answers per attribute among the captions that mention it, and over all mentions."""
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for reading, (scene, _, said) in zip(readings, wishes, strict=True):
        for name, found, meant in zip(ATTRIBUTES, reading, scene.labels(), strict=True):
            if name in said:
                right[name].append(found == meant)
    every = [answer for answers in right.values() for answer in answers]
    return {"all": float(np.mean(every)), **{name: float(np.mean(answers)) for name, answers in right.items()}}


def readings(pipeline: Pipeline, reader: Reader, prompts: Sequence[str], **settings: Any) -> list[list[int]]:
    """What the reader sees when each prompt is generated with its own seed."""
    wish = {"num_inference_steps": DEFAULT_STEPS, **settings}
    return [
        reader(pipeline.generate(Request(prompt=prompt, seed=seed, **wish)).images[0])
        for seed, prompt in enumerate(prompts)
    ]


def measure(pipeline: Pipeline, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """All the scores of the model card."""
    reader, wishes = Reader(pipeline), held_out_wishes(count)
    prompts = [words for _, words, _ in wishes]
    progress("default settings")
    seen = readings(pipeline, reader, prompts)
    progress("without guidance")
    plain = readings(pipeline, reader, prompts, guidance_scale=1.0)
    progress("negative prompts")
    return {
        "captions": count,
        "default settings": score(seen, wishes),
        "without guidance": score(plain, wishes),
        "shuffled captions": score(seen, [*wishes[1:], wishes[0]]),
        "reader on rendered pictures": score(*rendered(reader, count)),
        "share of night pictures": night_share(pipeline, reader, max(8, count // 5)),
    }


def rendered(reader: Reader, count: int) -> tuple[list[list[int]], list[Wish]]:
    """The reader's own examination: drawings of held-out scenes, every attribute asked for."""
    rng = random.Random(2027)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    return [reader(render(scene, rng)) for scene in scenes], [(scene, "", set(ATTRIBUTES)) for scene in scenes]


def night_share(pipeline: Pipeline, reader: Reader, count: int) -> Scores:
    """How often prompts that leave the time open give a night, without and with ``at night`` as negative prompt."""
    rng = random.Random(5)
    colours, kinds = ATTRIBUTES["colour"], ATTRIBUTES["kind"]
    prompts = [f"a {rng.choice(colours)} {rng.choice(kinds)}" for _ in range(count)]
    position = list(ATTRIBUTES).index("time")
    night = ATTRIBUTES["time"].index("night")

    def share(negative: str) -> float:
        seen = readings(pipeline, reader, prompts, negative_prompt=negative)
        return float(np.mean([reading[position] == night for reading in seen]))

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
