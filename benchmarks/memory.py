"""The most memory that a process held, next to what was foreseen: components alone and whole pictures, each case in a
process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ovenbird import Pipeline, Request, machine
from ovenbird.budget import KEEP, Setting, foresee
from ovenbird.bundle import COMPONENTS
from ovenbird.memory import MIB, Foresight, Need
from ovenbird.stages import TOGETHER, Stages

Case = dict[str, Any]
MOST = 0.9
"""Of the memory that is available: what takes more is foreseen and not tried."""
CONFIG = (
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "num_attention_heads",
    "attention_head_dim",
    "mid_block_add_attention",
)
"""What matters of a config."""
ROOT = Path(__file__).resolve().parents[1]


def cases(pipeline: Pipeline) -> Iterator[Case]:
    """Every component at several sizes, and pictures in every plan; sizes are shares of the model's own."""
    side = pipeline.bundle.default_size
    latents = side // pipeline.bundle.vae_scale_factor
    for name in ("text_encoder", "text_encoder_2"):
        if (pipeline.bundle.path / name).is_dir():
            yield {"component": name, "shape": [1, 77]}
    for rows, share in ((1, 2), (2, 2), (4, 2), (2, 1), (2, 3)):
        yield {"component": "unet", "shape": [rows, 4, latents * share // 2, latents * share // 2]}
    for share in (1, 2, 3):
        yield {"component": "vae_decoder", "shape": [1, 4, latents * share // 2, latents * share // 2]}
    for share in (1, 2):
        yield {"component": "vae_encoder", "shape": [1, 3, side * share // 2, side * share // 2]}
    for keep in ("all", "no encoders", "one stage"):
        yield {"keep": keep, "side": side, "pictures": 1, "batch_size": 1}
    for keep in ("all", "one size"):
        yield {"keep": keep, "side": side // 2, "hires_scale": 1.5, "pictures": 1, "batch_size": 1}
    yield {"keep": "one stage", "side": side // 2, "pictures": 4, "batch_size": 2}


def label(case: Case) -> str:
    """Of one measurement."""
    return f"{case['runtime']} {case['precision']}, cache {case['cache']}: {what(case)}"


def what(case: Case) -> str:
    """What is measured, for people."""
    if "component" in case:
        return f"{case['component']} {'x'.join(map(str, case['shape']))}"
    many = f"{case['pictures']} pictures, {case['batch_size']} at a time" if case["pictures"] > 1 else "a picture"
    larger = f", then {case['hires_scale']} times that" if "hires_scale" in case else ""
    return f"{many} of {case['side']}x{case['side']}{larger}: {KEEP[case['keep']].label}"


def facts(pipeline: Pipeline) -> dict[str, Any]:
    """What is foreseen from, of each component: so that it can be foreseen again without the model."""
    foresight = Foresight(pipeline.bundle, pipeline.backend.name, pipeline.precision)
    there = [name for name in COMPONENTS if (pipeline.bundle.path / name).is_dir()]
    found = {name: foresight.facts(name) for name in there}
    return {
        name: {"config": {key: config[key] for key in CONFIG if key in config}, "weights": weights._asdict()}
        for name, (config, weights) in found.items()
    }


def measure(folder: Path, backend: str, precision: str, case: Case) -> Iterator[Case]:
    """The case with an empty cache of compiled models, and, where the runtime has one, with a filled one."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "OVENBIRD_CACHE": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
        told = {"folder": str(folder), "backend": backend, "precision": precision, **case}
        for state in ("miss", "hit") if backend == "openvino" else ("off",):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", json.dumps(told)]
            done = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            yield {"runtime": backend, "precision": precision, "cache": state, **case, **json.loads(done.stdout)}


def run(case: Case) -> dict[str, float]:
    """One case, in this process; foreseen alone if it would take more than there is."""
    pipeline = Pipeline.open(case["folder"], case["backend"], inference_precision=case["precision"])
    foreseen, work = _component(pipeline, case) if "component" in case else _pictures(pipeline, case)
    found = {"foreseen_mib": round(foreseen / MIB)}
    if foreseen > MOST * (machine.available_memory() or foreseen):
        return found
    work()
    peak = machine.peak_rss_mib()
    assert peak is not None
    return {**found, "measured_mib": round(peak), "ratio": round(foreseen / MIB / peak, 3)}


def _component(pipeline: Pipeline, case: Case) -> tuple[int, Callable[[], object]]:
    bundle, need = pipeline.bundle, Need(case["component"], tuple(case["shape"]))
    foresight = Foresight(bundle, pipeline.backend.name, pipeline.precision)
    foreseen = foresee([need], KEEP["all"], foresight.cost, foresight.habits.base, [])
    shapes = _shapes(pipeline, need)

    def work() -> None:
        stages = Stages(
            bundle,
            pipeline.backend,
            pipeline.precision,
            pipeline.timings,
            TOGETHER,
            lambda _: None,
            pipeline.shortcuts.edits,
        )
        inputs = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        more = {"timestep": np.ones(1, np.float32)} if need.component == "unet" else {}
        stages.component(need.component, shapes)(inputs | more)

    return foreseen, work


def _shapes(pipeline: Pipeline, need: Need) -> dict[str, tuple[int, ...]]:
    """Of every input whose shape is not known from the graph."""
    rows, config = need.shape[0], pipeline.bundle.config(need.component)
    if need.component.startswith("text_encoder"):
        return {"input_ids": need.shape}
    if need.component != "unet":
        return {"latent_sample" if need.component == "vae_decoder" else "sample": need.shape}
    told = {"sample": need.shape, "encoder_hidden_states": (rows, 77, config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":
        summary = pipeline.bundle.config("text_encoder_2")["projection_dim"]
        told |= {"text_embeds": (rows, summary), "time_ids": (rows, 6)}
    return told | ({"timestep_cond": (rows, config["time_cond_proj_dim"])} if config.get("time_cond_proj_dim") else {})


def _pictures(pipeline: Pipeline, case: Case) -> tuple[int, Callable[[], object]]:
    pipeline.asked = setting(case)
    planned = pipeline.plan(wish(case))
    assert planned
    return planned.peak, lambda: pipeline.generate(wish(case))


def setting(case: Case) -> Setting:
    """How pictures are made."""
    return Setting(case["keep"], case["batch_size"], None)


def wish(case: Case) -> Request:
    """Pictures of one step."""
    return Request(
        prompt="a lighthouse",
        seed=1,
        num_inference_steps=1,
        height=case["side"],
        width=case["side"],
        num_images_per_prompt=case["pictures"],
        hires_scale=case.get("hires_scale"),
        hires_steps=2 if "hires_scale" in case else None,
    )


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
