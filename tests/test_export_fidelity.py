from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ovenbird.errors import NumericError
from ovenbird_export import fidelity, proof
from ovenbird_export.precisions import PRECISIONS


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def test_a_picture_is_like_itself() -> None:
    assert fidelity.psnr(picture(0), picture(0)) == fidelity.LARGEST_PSNR
    assert fidelity.ssim(picture(0), picture(0)) == pytest.approx(1.0)


def test_psnr_of_a_known_error() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert fidelity.psnr(grey + np.uint8(10), grey) == pytest.approx(20 * np.log10(25.5))
    assert fidelity.psnr(grey, grey + np.uint8(10)) == pytest.approx(20 * np.log10(25.5))  # no wrap below 0


def test_ssim_knows_light_from_structure() -> None:
    base = picture(1) // 2 + 32
    assert fidelity.ssim(base + np.uint8(6), base) > 0.95
    assert abs(fidelity.ssim(picture(2), picture(3))) < 0.1
    assert fidelity.ssim(255 - picture(2), picture(2)) < -0.5


def test_ssim_of_two_flat_pictures_is_the_closed_form() -> None:
    x, y = np.full((9, 9, 3), 60, np.uint8), np.full((9, 9, 3), 120, np.uint8)
    c1 = 2.55**2
    assert fidelity.ssim(x, y) == pytest.approx((2 * 60 * 120 + c1) / (60**2 + 120**2 + c1))


def test_the_worst_prompt_counts() -> None:
    def run(shift: int) -> fidelity.Run:
        return fidelity.Run(np.full((1, 4, 2, 2), 1.0 + shift, np.float32), np.full((16, 16, 3), 50 + shift, np.uint8))

    found = fidelity.compare([run(0), run(3)], [run(0), run(0)])
    assert found["latents_relative"] == pytest.approx(3.0)
    assert found["psnr_db"] == pytest.approx(20 * np.log10(255 / 3))
    with pytest.raises(ValueError, match="zip"):
        fidelity.compare([run(0)], [run(0), run(0)])


@pytest.mark.parametrize(("precision", "calibrated"), [("int8", True), ("fp16", False)])
def test_pictures_under_the_gate_are_refused_with_what_may_help(
    precision: str, calibrated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_draw", lambda *_: [fidelity.Run(np.zeros((1, 4, 2, 2), np.float32), picture(1))])
    job: Any = SimpleNamespace(precisions=(PRECISIONS[precision],), runtimes=("openvino",))
    with pytest.raises(NumericError, match=rf"^{precision} on openvino: pictures have \d+\.\d dB") as caught:
        proof.prove_pictures(job, [fidelity.Run(np.ones((1, 4, 2, 2), np.float32), picture(2))])
    assert ("--calibration FILE" in str(caught.value.hint)) == calibrated
    same = [fidelity.Run(np.ones((1, 4, 2, 2), np.float32), picture(1))]
    assert proof.prove_pictures(job, same)[precision]["openvino"]["psnr_db"] == fidelity.LARGEST_PSNR
