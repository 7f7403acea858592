"""Tiles: exact where nothing looks further than a tile, and near the whole picture where group norms do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovenbird import Pipeline, Request, vae
from ovenbird.tiles import Component, tile_shape, tiled

BAR = 2.0  # of 255, along the seams
SIZE, SIDE = 384, 288  # of pictures, of tiles


def field(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def larger(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder that looks at one cell at a time, eight pixels to a cell."""
    return {"sample": np.tanh(inputs["x"][:, :3]).repeat(8, axis=2).repeat(8, axis=3)}


def smaller(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder that looks at one cell at a time."""
    x = inputs["x"]
    cells = x.reshape(*x.shape[:2], x.shape[2] // 8, 8, x.shape[3] // 8, 8)
    return {"mean": cells.mean(axis=(3, 5)), "most": cells.max(axis=(3, 5))}


class Counted:
    """The component, and the shapes it was asked for."""

    def __init__(self, component: Component) -> None:
        self.component, self.shapes = component, list[tuple[int, ...]]()

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        self.shapes.append(inputs["x"].shape)
        return self.component(inputs)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (23, 9), (7, 31), (9, 8), (8, 9), (40, 17)])
def test_what_looks_at_single_cells_is_not_changed_by_tiles(height: int, width: int) -> None:
    for component, shape, cell in (
        (larger, (2, 4, height, width), 1),
        (smaller, (1, 3, 8 * height, 8 * width), 8),
    ):
        x, counted = field(*shape), Counted(component)
        tile = tile_shape(shape, 8 * cell)
        found, whole = tiled(counted, tile, cell)({"x": x}), component({"x": x})
        assert found.keys() == whole.keys()
        for port in whole:
            np.testing.assert_allclose(found[port], whole[port], atol=2e-6)
        assert set(counted.shapes) == {tile}  # so one shape is compiled


def test_what_fits_into_a_tile_is_not_tiled() -> None:
    assert tile_shape((1, 4, 16, 8), 16) == (1, 4, 16, 8)
    assert tile_shape((1, 4, 17, 8), 16) == (1, 4, 16, 8)
    assert tile_shape((1, 4, 170, 80), None) == (1, 4, 170, 80)


def level(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder with a norm: colours depend on all that is seen."""
    x = inputs["x"][:, :3]
    normed = (x - x.mean(axis=(2, 3), keepdims=True)) / x.std(axis=(2, 3), keepdims=True)
    return {"sample": normed.repeat(8, axis=2).repeat(8, axis=3)}


def without_the_small_picture(
    component: Component, tile: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> Component:
    def run(inputs: Mapping[str, Any]) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr("ovenbird.tiles._Blend.with_colours_of", lambda blend, small: blend._mean)
            return tiled(component, tile)(inputs)

    return run


def test_tiles_that_contradict_one_another_get_the_colours_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    slope = np.linspace(-2, 2, 64, dtype=np.float32)[None, None, :, None] + 0.1 * field(1, 4, 64, 64)
    whole = level({"x": slope})["sample"]
    alone, found = (
        run({"x": slope})["sample"]
        for run in (without_the_small_picture(level, (1, 4, 32, 32), monkeypatch), tiled(level, (1, 4, 32, 32)))
    )
    assert np.abs(alone - whole).mean() > 0.2
    assert np.abs(found - whole).mean() < 0.2 * np.abs(alone - whole).mean()


def test_tiles_that_agree_know_better_than_a_small_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def rough(inputs: Mapping[str, Any]) -> dict[str, Any]:  # brightness is contrast, which a small picture lacks
        return {"sample": np.square(inputs["x"][:, :3]).repeat(8, axis=2).repeat(8, axis=3)}

    x = field(1, 4, 64, 64)
    found = tiled(rough, (1, 4, 32, 32))({"x": x})["sample"]
    np.testing.assert_allclose(found, rough({"x": x})["sample"], atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_n1_what_is_not_finite_in_one_tile_is_not_hidden(bad: float) -> None:
    x = field(1, 4, 24, 24)
    x[0, 0, 20, 3] = bad
    assert not np.isfinite(tiled(lambda inputs: {"sample": inputs["x"]}, (1, 4, 8, 8))({"x": x})["sample"]).all()


# Real pictures.


@pytest.fixture(scope="module")
def nestling() -> Pipeline:
    return Pipeline.open("nestling", inference_precision="f32")


@pytest.fixture(scope="module")
def large(nestling: Pipeline) -> list[tuple[Any, Any]]:
    """Pictures by nestling, enlarged, and their latents; the benchmark measures more and larger ones."""
    prompts = ["a large red house on the left in the snow at night", "a small blue boat on the sea at sunset"]
    result = nestling.generate(Request(prompt=prompts, seed=1, num_inference_steps=8))
    enlarged = [image.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for image in result.images]
    values = [vae.from_uint8(np.asarray(image)) for image in enlarged]
    return [(value, nestling.autoencoder.encode(value).mean) for value in values]


def along_the_seams(gap: Any) -> Any:
    """What lies within four pixels of where a tile begins or ends inside the picture."""
    near = np.zeros(gap.shape[:2], bool)
    for edge in (SIZE - SIDE, SIDE):
        near[edge - 4 : edge + 4] = near[:, edge - 4 : edge + 4] = True
    return gap[near]


def test_nestlings_decoder_in_tiles_is_near_the_whole(nestling: Pipeline, large: Any) -> None:
    small = Pipeline(nestling.bundle, nestling.backend, inference_precision="f32", vae_tile=SIDE)
    gaps = []
    for _, latents in large:
        whole, found = (one.autoencoder.decode(latents, "full", "") for one in (nestling, small))
        assert (found.tile, whole.tile) == (SIDE, None)
        gaps.append(np.abs(found.pixels.astype(int) - whole.pixels))
    seams = np.concatenate([along_the_seams(gap) for gap in gaps])
    assert 0 < seams.mean() < BAR and np.mean(gaps) < BAR
    assert seams.max() < 60


def test_nestlings_encoder_in_tiles_is_near_the_whole(nestling: Pipeline, large: Any) -> None:
    values, latents = large[0]
    small = Pipeline(nestling.bundle, nestling.backend, inference_precision="f32", vae_tile=SIDE)
    found = small.autoencoder.encode(values)
    assert np.abs(found.mean - latents).mean() < 0.05 * latents.std()
    whole, again = (nestling.autoencoder.decode(each, "full", "").pixels.astype(int) for each in (latents, found.mean))
    assert np.abs(again - whole).mean() < BAR


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # of diffusers, which is other people's
def test_a_decoder_with_attention_in_tiles_is_near_the_whole(root: Path, large: Any) -> None:
    """nestling's, with an attention in its middle as Stable Diffusion's has: it adds a third to what goes through."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    plain = diffusers.AutoencoderKL.from_pretrained(root / "models" / "nestling" / "source" / "vae")
    torch.manual_seed(0)
    module = diffusers.AutoencoderKL.from_config({**plain.config, "mid_block_add_attention": True})
    module.load_state_dict(plain.state_dict(), strict=False)
    attention = module.decoder.mid_block.attentions[0]
    for layer, width in (("to_q", 0.35), ("to_k", 0.35), ("to_v", 0.125)):
        getattr(attention, layer).weight.data.normal_(0, width)
    attention.to_out[0].weight.data.normal_(0, 0.0625)
    added: list[float] = []
    attention.register_forward_hook(
        lambda _, given, made: added.append(float((made - given[0]).std() / given[0].std()))
    )

    @torch.no_grad()
    def decode(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"sample": module.decode(torch.from_numpy(np.ascontiguousarray(inputs["latent_sample"]))).sample.numpy()}

    _, latents = large[0]
    whole = vae.decode(decode, latents, plain.config).astype(int)
    found = vae.decode(tiled(decode, tile_shape(latents.shape, SIDE // 8)), latents, plain.config)
    assert 0.2 < added[0] < 0.6
    gap = np.abs(found - whole)
    assert 0 < along_the_seams(gap).mean() < BAR and gap.mean() < BAR
