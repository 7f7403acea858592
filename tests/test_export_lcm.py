"""A latent consistency model, tiny: exported with pictures, and drawn as diffusers draws it, in one pass a step."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovenbird import Pipeline, Request, Step
from ovenbird.backends import BACKENDS
from ovenbird.bundle import Bundle

pytest.importorskip("torch")
pytest.importorskip("optimum")

import export_tiny

from ovenbird_export.export import Wish, export_folder
from ovenbird_export.precisions import PRECISIONS
from ovenbird_export.sources import Wanted

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and optimum, while they are imported
]

STEPS = 4
Wished = partial(Request, prompt="a red house", seed=7, num_inference_steps=STEPS, height=64, width=72)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "lcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_tiny.write_source(folder, "lcm")
    return folder


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "lcm"
    (published,) = export_folder(Wanted(str(source)), folder, Wish(precisions=(PRECISIONS["fp32"],)))
    return published


def final_latents(pipeline: Pipeline, wish: Request) -> Any:
    return [event.latents for event in pipeline.stream(wish) if isinstance(event, Step)][-1]


def test_its_pictures_are_compared_on_both_runtimes(exported: Path) -> None:
    manifest = Bundle.open(exported).manifest
    assert manifest and {*BACKENDS} <= manifest["verification"]["pictures"].keys()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_walk_is_that_of_diffusers(exported: Path, source: Path, backend: str) -> None:
    import diffusers
    import torch

    reference: Any = diffusers.LatentConsistencyModelPipeline.from_pretrained(source)
    reference.set_progress_bar_config(disable=True)
    expected = reference(
        "a red house",
        height=64,
        width=72,
        num_inference_steps=STEPS,
        guidance_scale=8.0,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="latent",
    ).images.numpy()
    got = final_latents(Pipeline.open(exported, backend), Wished(guidance_scale=8.0))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_guidance_is_told_in_the_one_pass_of_each_step(exported: Path) -> None:
    pipeline = Pipeline.open(exported)
    ends = [final_latents(pipeline, Wished(guidance_scale=scale)) for scale in (1.0, 8.0)]
    assert pipeline.report().unet_calls == 2 * STEPS
    assert {what[1:] for name, what in pipeline._stages._compiled if name == "unet"} == {
        (("encoder_hidden_states", (1, 77, 32)), ("sample", (1, 4, 8, 9)), ("timestep_cond", (1, 16)))
    }
    assert np.abs(ends[0] - ends[1]).max() > 1e-3
