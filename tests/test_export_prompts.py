"""What the engine tells the U-Net of a prompt is what diffusers tells it, also with ``clip_skip``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import export_tiny  # noqa: E402

from ovenbird import Bundle, Request  # noqa: E402
from ovenbird.families import check, condition  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]  # other people's warnings

PROMPT, NEGATIVE = "a red house (a cat)", "cat"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "sdxl"
    export_tiny.write_source(folder, "sdxl")
    return folder


@pytest.fixture(scope="module")
def theirs(source: Path) -> Any:
    pipeline: Any = diffusers.StableDiffusionXLPipeline
    return pipeline.from_pretrained(source)


@torch.no_grad()
def encode(module: Any, inputs: Any) -> dict[str, Any]:
    """What the exported graph gives."""
    outputs = dict(module(torch.from_numpy(inputs["input_ids"]), output_hidden_states=True))
    states = {f"hidden_states.{layer}": state for layer, state in enumerate(outputs.pop("hidden_states"))}
    return {name: tensor.numpy() for name, tensor in {**outputs, **states}.items()}


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("negative", ["", NEGATIVE])
def test_sdxl_conditions_as_diffusers_does(source: Path, theirs: Any, skip: int, negative: str) -> None:
    bundle = Bundle.open(source)
    wish = Request(prompt=PROMPT, negative_prompt=negative, clip_skip=skip, height=64, width=64, seed=0)
    check(bundle, wish)
    found = condition(bundle, lambda name: lambda inputs: encode(getattr(theirs, name), inputs), wish)
    with torch.no_grad():
        states, without, pooled, pooled_without = theirs.encode_prompt(
            PROMPT, device="cpu", negative_prompt=negative or None, clip_skip=skip
        )
    for name, expected in {
        "encoder_hidden_states": torch.cat([without, states]),
        "text_embeds": torch.cat([pooled_without, pooled]),
    }.items():
        np.testing.assert_allclose(found[name], expected.numpy(), atol=1e-5)
