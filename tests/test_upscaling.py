"""Larger pictures: made small, enlarged and made anew; and made tile by tile."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ovenbird import Picture, Pipeline, Request, RequestError, Step, cli
from ovenbird.canvas import bilinear
from ovenbird.denoiser import Latents, tiled
from ovenbird.families import sdxl
from ovenbird.images import fitted

SMALL: dict[str, Any] = {"prompt": "a red house", "num_inference_steps": 4, "seed": 5, "width": 64, "height": 64}
PHOTO = Image.linear_gradient("L").resize((64, 72)).convert("RGB")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("nestling", inference_precision="f32")


# Latents.


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 12), (13, 9), (24, 40), (32, 17)])
def test_latents_are_enlarged_as_in_torch(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    latents = np.random.default_rng(0).normal(size=(2, 4, 8, 9)).astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(latents), size=(height, width), mode="bilinear", antialias=False, align_corners=False
    )
    found = bilinear(latents, height, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, resized.numpy(), atol=1e-5)


def test_latents_of_the_same_size_are_the_same() -> None:
    latents = np.random.default_rng(0).normal(size=(1, 4, 8, 9)).astype(np.float32)
    np.testing.assert_array_equal(bilinear(latents, 8, 9), latents)


# Made small, enlarged and made anew.


@pytest.mark.parametrize("more", [{}, {"hires_steps": 6, "variation_seed": 9, "variation_strength": 0.3}], ids=str)
def test_in_pixels_it_is_two_requests_by_hand(pipeline: Pipeline, more: dict[str, Any]) -> None:
    hires = {"hires_scale": 2.0, "hires_upscaler": "lanczos", "hires_strength": 0.5}
    found = pipeline.generate(Request(**SMALL, **hires, **more))
    varied = {name: value for name, value in more.items() if name.startswith("variation")}
    first = pipeline.generate(Request(**SMALL, **varied)).images[0]
    by_hand = SMALL | varied | {"width": 128, "height": 128, "num_inference_steps": more.get("hires_steps", 4)}
    large = fitted(first, 128, 128)
    second = pipeline.generate(Request(**by_hand, image=large, strength=0.5)).images[0]
    assert found.images[0].size == (128, 128)
    assert found.images[0].tobytes() == second.tobytes()


def test_sides_are_rounded_down_to_a_multiple_of_8_as_in_the_web_ui(pipeline: Pipeline) -> None:
    small, large = Request(**SMALL | {"width": 72}, hires_scale=1.2).settled(128).passes
    assert (small.width, small.height, small.hires_scale, small.strength) == (72, 64, None, None)
    assert (large.width, large.height, large.strength, large.num_inference_steps) == (80, 72, 0.7, 4)  # of 86 and 76


def test_a_step_is_told_in_both_passes_and_only_what_is_alike_is_drawn_side_by_side(pipeline: Pipeline) -> None:
    aside = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", batch_size=8)
    hires = Request(**SMALL, hires_scale=2.0)
    events = list(aside.stream([hires, Request(**SMALL), hires, hires]))
    told = [(event.pictures, event.count, event.latents.shape) for event in events if isinstance(event, Step)]
    small = [(range(4), 4, (4, 4, 8, 8))] * 4
    large = [(range(1), 2, (1, 4, 16, 16))] * 2 + [(range(2, 4), 2, (2, 4, 16, 16))] * 2
    assert told == small + large
    pictures = [event for event in events if isinstance(event, Picture)]
    assert [(event.picture, event.image.size) for event in pictures] == [(0, (128, 128)), (1, (64, 64))] + [
        (k, (128, 128)) for k in (2, 3)
    ]
    alone = pipeline.generate(pictures[2].request).images[0]
    gap = np.abs(np.asarray(alone).astype(int) - np.asarray(pictures[2].image))
    assert pictures[2].request.hires_scale == 2 and gap.max() <= 1


@pytest.mark.parametrize(
    ("upscaler", "stages"),
    [
        ("latent", ["text_encoder", "unet", "unet", "vae_decoder"]),
        ("lanczos", ["text_encoder", "unet", "vae_decoder", "vae_encoder", "unet", "vae_decoder"]),
    ],
)
def test_one_stage_at_a_time(
    pipeline: Pipeline, upscaler: str, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = Request(**SMALL, num_images_per_prompt=2, hires_scale=2.0, hires_upscaler=upscaler)
    kept = pipeline.generate(wish).images
    sparing = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", keep=False)
    compiled, there = sparing.backend.compile, []

    def spy(folder: Path, shapes: Any, **options: Any) -> Any:
        there.append(folder.name)
        assert not sparing._stages._compiled
        return compiled(folder, shapes, **options)

    monkeypatch.setattr(sparing.backend, "compile", spy)
    images = sparing.generate(wish).images
    assert there == stages
    assert [image.tobytes() for image in images] == [image.tobytes() for image in kept]


def test_what_is_too_large_or_too_little_is_refused() -> None:
    with pytest.raises(RequestError, match="hires_scale: 2 makes a width of 4112, more than 4096"):
        Request(prompt="", width=2056, hires_scale=2)
    with pytest.raises(RequestError, match="hires_scale: 4 makes a height of 6144, more than 4096"):
        Request(prompt="", hires_scale=4).settled(1536)
    with pytest.raises(RequestError, match=r"hires_strength: 0\.2 of 4 steps is less than one step"):
        Request(prompt="", hires_scale=2, hires_strength=0.2, hires_steps=4)
    with pytest.raises(RequestError, match="hires_scale: it enlarges what was made of noise"):
        Request(prompt="", hires_scale=2, image=PHOTO)
    with pytest.raises(RequestError, match="hires_upscaler: 'esrgan' is not one of latent, lanczos"):
        Request(prompt="", hires_scale=2, hires_upscaler="esrgan")


# Tile by tile.


def noise(*shape: int) -> Latents:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (33, 40), (8, 100), (17, 16)])
def test_tiles_of_one_shape_cover_everything_and_their_answers_are_averaged(size: tuple[int, int]) -> None:
    tile = (min(16, size[0]), min(16, size[1]))
    seen: list[tuple[int, ...]] = []
    x, total, count = noise(2, 9, *size), np.zeros((2, 4, *size)), np.zeros(size)

    def model_at(corner: tuple[int, int]) -> Any:
        place = np.s_[..., corner[0] : corner[0] + tile[0], corner[1] : corner[1] + tile[1]]
        answer = noise(2, 4, *tile) * (1 + sum(corner))
        total[place] += answer
        count[place] += 1

        def model(given: Latents, t: float) -> Latents:
            seen.append(given.shape)
            np.testing.assert_array_equal(given, x[place])
            assert t == 7.0
            return answer

        return model

    found = tiled(model_at, *size, tile)(x, 7.0)
    assert set(seen) == {(2, 9, *tile)} and count.min() >= 1
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, total / count, rtol=1e-5)


@pytest.mark.parametrize(("side", "tile", "count"), [(16, 16, 1), (17, 16, 2), (28, 16, 2), (29, 16, 3), (128, 64, 3)])
def test_tiles_overlap_by_a_quarter_or_more(side: int, tile: int, count: int) -> None:
    corners: list[tuple[int, int]] = []
    tiled(lambda corner: corners.append(corner) or (lambda x, t: x), side, tile, (tile, tile))  # type: ignore[func-returns-value]
    starts = [top for top, _ in corners]
    assert len(starts) == count and starts[0] == 0 and starts[-1] == side - tile
    assert all(0 < b - a <= tile - tile // 4 for a, b in pairwise(starts))


@pytest.mark.parametrize("given", [{}, {"image": PHOTO, "width": 128, "height": 128}])
@pytest.mark.parametrize("tile", [128, 256])
def test_a_tile_as_large_as_the_picture_changes_nothing(pipeline: Pipeline, given: dict[str, Any], tile: int) -> None:
    wish = SMALL | {"width": 128, "height": 128} | given
    plain, whole = (pipeline.generate(Request(**wish, tile_size=size)).images[0] for size in (None, tile))
    assert plain.tobytes() == whole.tobytes()


def test_the_u_net_is_compiled_for_a_tile_and_called_for_each(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", batch_size=2)
    compiled, shapes = fresh.backend.compile, {}

    def spy(folder: Path, asked: Any, **options: Any) -> Any:
        shapes.setdefault(folder.name, []).append(asked)
        return compiled(folder, asked, **options)

    monkeypatch.setattr(fresh.backend, "compile", spy)
    wish = Request(**SMALL | {"width": 192, "height": 128}, tile_size=128, num_images_per_prompt=2)
    result = fresh.generate(wish)
    assert [asked["sample"] for asked in shapes["unet"]] == [(4, 4, 16, 16)]
    assert result.timings.unet_calls == 4 * 2 and result.images[0].size == (192, 128)
    alone = pipeline.generate(result.pictures[1].request).images[0]
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(result.images[1])).max() <= 1


def test_sdxl_is_told_where_a_tile_was_cropped() -> None:
    told = {"time_ids": np.array([[256, 128, 1, 2, 256, 128]] * 2, np.float32), "text_embeds": noise(2, 3)}
    found = sdxl.at(told, 64, 32)
    assert found["time_ids"].tolist() == [[256, 128, 65, 34, 256, 128]] * 2
    assert found["text_embeds"] is told["text_embeds"]


# The command.


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Type a command in a folder with a picture."""
    monkeypatch.chdir(tmp_path)
    PHOTO.save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"PNG")

    def typed(*words: str) -> Result:
        return CliRunner().invoke(cli.main, list(words))

    return typed


def test_a_given_picture_is_enlarged(run: Any, tmp_path: Path) -> None:
    words = ["--scale", "2.2", "--prompt", "a red house", "--seed", "3", "--num-inference-steps", "10", "--quiet"]
    result = run("upscale", "photo.png", *words)
    assert result.exit_code == 0 and result.stdout == "output.png\n", result.output
    with Image.open("output.png") as image:
        image.load()
        facts = json.loads(image.text["ovenbird"])  # type: ignore[attr-defined]
    assert image.size == (136, 152)  # of 140.8 and 158.4
    assert (facts["tile_size"], facts["strength"], facts["width"], facts["height"]) == (128, 0.3, 136, 152)
    given = {"image": PHOTO, "width": 136, "height": 152, "strength": 0.3, "tile_size": 128, "seed": 3}
    by_hand = Pipeline.open("nestling").generate(Request(prompt="a red house", num_inference_steps=10, **given))
    assert by_hand.images[0].tobytes() == image.tobytes()
    assert by_hand.timings.unet_calls == 3 * 4


def test_enlarging_what_is_made_is_said_in_the_picture(run: Any) -> None:
    small = ["--width", "64", "--height", "64", "--num-inference-steps", "4", "--quiet"]
    assert run("generate", "--prompt", "a tent", "--hires-scale", "2", *small).exit_code == 0
    with Image.open("output.png") as image:
        image.load()
        words = image.text["parameters"]  # type: ignore[attr-defined]
    assert image.size == (128, 128)
    assert "Size: 64x64, Denoising strength: 0.7, Hires upscale: 2, Hires steps: 2, Hires upscaler: Latent" in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png", "--scale", "1"], "scale: 1 is not above 1 and up to 8"),
        (["photo.png", "--scale", "nan"], "scale: nan"),
        (["photo.png", "--tile-size", "100"], "tile_size: 100 is not a multiple of 8"),
        (["photo.png", "--strength", "0"], "strength: 0 of 32 steps is less than one step"),
        (["nowhere.png"], "picture: nowhere.png is not a file"),
        (["broken.png"], "picture: broken.png is not a whole PNG"),
    ],
)
def test_what_cannot_be_enlarged_is_refused_before_any_model_is_read(
    run: Any, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("a model was opened"))
    result = run("upscale", *words)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {message}"), result.output
