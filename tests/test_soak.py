from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from click.testing import CliRunner

from benchmarks import record, soak
from benchmarks.__main__ import main
from ovenbird import Request


class Leaky:
    """A pipeline of which every picture takes so much memory."""

    backend = SimpleNamespace(threads=1)

    def __init__(self, mib: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        monkeypatch.setattr(soak, "resident", lambda: int((400 + mib * self.made) * (1 << 20)))

    def generate(self, request: Request) -> Any:
        self.made += request.num_images_per_prompt
        return SimpleNamespace(images=[None] * request.num_images_per_prompt)


def test_s11_every_size_comes_in_a_run_that_is_the_same_every_time() -> None:
    found = list(soak.requests(2000, 0))
    assert found == list(soak.requests(2000, 0))
    assert sum(request.num_images_per_prompt for request in found) == 2000
    assert {request.height for request in found} == {request.width for request in found} == set(soak.SIDES)
    assert {request.num_inference_steps for request in found} == {1, 2}


def test_s11_the_slope_is_that_of_the_nearest_line() -> None:
    x = np.arange(100.0)
    slope, error = soak.line(x, 3 + 0.25 * x + np.where(x % 2, 0.1, -0.1))
    assert slope == pytest.approx(0.25, abs=0.001)
    assert 0 < error < 0.001


@pytest.mark.parametrize(("mib", "code"), [(0.002, 0), (0.02, 1)])
def test_s11_memory_that_grows_by_more_than_1_mib_per_100_fails(
    mib: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.__main__.Pipeline.open", lambda *_, **__: Leaky(mib, monkeypatch))
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    done = CliRunner().invoke(main, ["soak", "--pictures", "600", "--warm-up", "100"])
    assert done.exit_code == code, done.output
    assert record.read("soak")["mib_per_100"] == pytest.approx(100 * mib, rel=0.01)
