"""The engine against diffusers on nestling: fp32, both runtimes, a sampler of each class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ovenbird import Pipeline, Request, cli
from ovenbird.backends import BACKENDS

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and diffusers under a newer numpy
]
pytest.importorskip("optimum")
pytest.importorskip("diffusers")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import parity  # noqa: E402

MOST_MEAN, MOST_MAX = 0.25, 3


@pytest.fixture(scope="module")
def exported(nestling: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nestling in fp32, by the command that users type."""
    folder = tmp_path_factory.mktemp("exported") / "nestling"
    words = ["export", str(nestling / "source"), str(folder), "--precision", "fp32"]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def reference() -> Any:
    return parity.reference()


@pytest.fixture(scope="module")
def engines(exported: Path) -> dict[str, Pipeline]:
    return parity.fp32_engines(exported)


@pytest.mark.parametrize("scheduler", parity.SCHEDULERS)
def test_the_picture_is_that_of_diffusers(engines: dict[str, Pipeline], reference: Any, scheduler: str) -> None:
    gaps = parity.differences(reference, engines, scheduler, seed=0)
    assert gaps.keys() == BACKENDS.keys()
    assert all(gap.mean <= MOST_MEAN and gap.most <= MOST_MAX for gap in gaps.values())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Words, of two vectors and of one, near those of other words."""
    import torch
    from safetensors.torch import save_file

    table = parity.reference().text_encoder.get_input_embeddings().weight.detach()
    folder = tmp_path_factory.mktemp("learned")
    files = {"<barn>": folder / "barn.safetensors", "zqx": folder / "zqx.safetensors"}
    save_file({"<barn>": torch.stack([table[657], table[660]]) * 0.9}, files["<barn>"])  # red, house
    save_file({"emb_params": table[320:321] + 0.01}, files["zqx"])  # a
    return files


@pytest.fixture(scope="module")
def knowing(learned: dict[str, Path]) -> Any:
    """diffusers with these words; the web UI's file needs ``token``, since it names its tensor and not its word."""
    pipeline = parity.reference()
    pipeline.load_textual_inversion(str(learned["<barn>"]))
    pipeline.load_textual_inversion(str(learned["zqx"]), token="zqx")
    return pipeline


@pytest.mark.parametrize("backend", BACKENDS)
def test_learned_words_and_clip_skip_give_the_picture_of_diffusers(
    exported: Path, learned: dict[str, Path], knowing: Any, backend: str
) -> None:
    engine = Pipeline.open(
        exported, backend, inference_precision="f32", embeddings=[str(path) for path in learned.values()]
    )
    words: dict[str, Any] = {
        "prompt": "zqx large <barn> in the snow",
        "negative_prompt": "at night, <barn>",
        "clip_skip": 1,
    }
    wish = Request(**words, seed=4, num_inference_steps=4, scheduler="ddim")
    expected = parity.diffusers_picture(knowing, engine, wish)
    found = parity.gap(np.asarray(engine.generate(wish).images[0]), expected)
    assert found.mean <= MOST_MEAN and found.most <= MOST_MAX
    for change in ({"clip_skip": 0}, {"prompt": "zqx large <BARN> in the snow"}):
        other = engine.generate(Request(**words | change, seed=4, num_inference_steps=4, scheduler="ddim")).images[0]
        assert parity.gap(np.asarray(other), expected).mean > 1


def test_the_published_folder_is_what_the_source_exports_to(nestling: Path, tmp_path: Path) -> None:
    words = [
        "export",
        str(nestling / "source"),
        str(tmp_path / "nestling"),
        "--precision",
        "fp16",
        "--name",
        "nestling",
    ]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    ours, new = Pipeline.open(nestling, precision="fp16"), Pipeline.open(tmp_path / "nestling", precision="fp16")
    assert ours.bundle.manifest and new.bundle.manifest
    assert ours.bundle.clip_skip == new.bundle.clip_skip == 1
    assert ours.bundle.manifest["source"]["sha256"] == new.bundle.manifest["source"]["sha256"]
