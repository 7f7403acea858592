"""The engine against diffusers on nestling: fp32, both runtimes, every sampler."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ovenbird import Pipeline, cli, schedulers

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


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def engine(request: pytest.FixtureRequest, exported: Path) -> Pipeline:
    return Pipeline.open(exported, request.param, precision="fp32")


@pytest.mark.parametrize("scheduler", schedulers.SAMPLERS)
def test_the_picture_is_that_of_diffusers(engine: Pipeline, reference: Any, scheduler: str) -> None:
    mean, most = parity.difference(reference, engine, scheduler, parity.PROMPTS[0], seed=3)
    assert mean <= MOST_MEAN and most <= MOST_MAX


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
    assert ours.bundle.manifest["source"]["sha256"] == new.bundle.manifest["source"]["sha256"]
