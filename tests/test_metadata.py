from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ovenbird import RequestError, ResourceError
from ovenbird.metadata import parameters, save_picture

FACTS: dict[str, Any] = {
    "prompt": "a tree, »grün«\nsecond line",
    "negative_prompt": "snow",
    "prompt_syntax": "plain",
    "num_inference_steps": 32,
    "sampler": "DPM++ 2M Karras",
    "guidance_scale": 7.5,
    "seed": 7,
    "width": 16,
    "height": 8,
    "strength": None,
    "variation_seed": None,
    "variation_strength": 0.0,
    "hires_scale": None,
    "clip_skip": 0,
    "eta": 0.0,
    "model": "nestling",
    "ovenbird": "0.1.0",
}
PICTURE = Image.new("RGB", (16, 8), (1, 2, 3))


def test_the_words_are_in_the_picture(tmp_path: Path) -> None:
    save_picture(PICTURE, tmp_path / "a.png", FACTS)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        text = image.text  # type: ignore[attr-defined]
    assert json.loads(text["ovenbird"]) == FACTS
    assert text["parameters"] == (
        "a tree, »grün«\nsecond line\nNegative prompt: snow\nSteps: 32, Sampler: DPM++ 2M Karras, CFG scale: 7.5, "
        "Seed: 7, Size: 16x8, Model: nestling, Version: ovenbird 0.1.0"
    )


def test_no_negative_prompt_no_line() -> None:
    assert "Negative" not in parameters(FACTS | {"negative_prompt": ""})


def test_the_web_ui_reads_both_prompts_as_they_were_meant() -> None:
    prompts = {"prompt": r"a (red) \ house", "negative_prompt": "[snow]"}
    assert parameters(FACTS | prompts).startswith("a \\(red\\) \\\\ house\nNegative prompt: \\[snow\\]\nSteps")
    weighed = parameters(FACTS | prompts | {"prompt_syntax": "webui"})
    assert weighed.startswith("a (red) \\ house\nNegative prompt: [snow]\nSteps")


def test_variations_and_enlarging_in_the_words_of_the_web_ui() -> None:
    varied = parameters(FACTS | {"variation_seed": 9, "variation_strength": 0.25})
    assert "Size: 16x8, Variation seed: 9, Variation seed strength: 0.25, Model" in varied
    hires = {"hires_scale": 2.0, "hires_upscaler": "latent", "hires_strength": 0.7, "hires_steps": 32}
    # The web UI's number is of the steps that are run: 22 of 32.
    expected = "Denoising strength: 0.7, Hires upscale: 2, Hires steps: 22, Hires upscaler: Latent, Model"
    assert f"Size: 16x8, {expected}" in parameters(FACTS | hires)


def test_i12_what_exists_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(RequestError, match="exists"):
        save_picture(PICTURE, path, FACTS)
    assert path.read_text() == "precious"
    save_picture(PICTURE, path, FACTS, overwrite=True)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_i12_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "a.png").symlink_to(target)
    with pytest.raises(RequestError, match="exists"):
        save_picture(PICTURE, tmp_path / "a.png", FACTS)
    save_picture(PICTURE, tmp_path / "a.png", FACTS, overwrite=True)
    assert target.read_text() == "precious"


def test_e5_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(ResourceError, match="disk is full"):
            save_picture(PICTURE, tmp_path / "a.png", FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", [errno.EPERM, errno.EOPNOTSUPP])
def test_i12_without_hard_links_a_picture_is_written_and_none_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(reason, "not here")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "a.png"
    save_picture(PICTURE, path, FACTS)
    before = path.read_bytes()
    assert before[:4] == b"\x89PNG"
    with pytest.raises(RequestError, match="exists"):
        save_picture(PICTURE, path, FACTS)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_i12_what_cannot_be_put_in_place_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", no)
    monkeypatch.setattr(os, "replace", no)
    with pytest.raises(ResourceError):
        save_picture(PICTURE, tmp_path / "a.png", FACTS)
    assert list(tmp_path.iterdir()) == []


def test_the_web_ui_is_told_what_it_would_take_to_be_otherwise() -> None:
    line = parameters(FACTS | {"sampler": "DPM++ 2M", "clip_skip": 1, "eta": 0.0}).splitlines()[-1]
    assert "Sampler: DPM++ 2M, Schedule type: Uniform, Clip skip: 2, CFG scale" in line
    line = parameters(FACTS | {"sampler": "DDIM", "clip_skip": 0, "eta": 0.5}).splitlines()[-1]
    assert "Sampler: DDIM, Eta DDIM: 0.5, CFG scale" in line
    for plain in ("Euler", "DPM++ 2M Karras"):
        assert f"Sampler: {plain}, CFG" in parameters(FACTS | {"sampler": plain, "clip_skip": 0, "eta": 0.0})
