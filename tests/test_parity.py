"""The engine against diffusers on nestling: fp32, both runtimes, a sampler of each class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ovenbird import Pipeline, cli
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
