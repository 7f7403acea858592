"""Pictures from pictures, against diffusers: nestling on both runtimes; the loop alone, with torch as its runtime."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ovenbird import Bundle, Picture, Pipeline, Request, Step, schedulers
from ovenbird.backends import BACKENDS
from ovenbird.noise import slerp
from ovenbird.request import CONDITIONS

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers and diffusers, which are other people's
]
torch = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

import export_tiny  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import parity  # noqa: E402

MOST_MEAN, MOST_MAX = 0.25, 3
PROMPT = "a large red house in the snow at night under the stars"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scene(width: int, height: int) -> Image.Image:
    """A sky over a meadow with a box."""
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    sky = np.stack([40 + across / 2, 90 + down / 2, 220 - down], axis=-1)
    sky[height // 2 :] = (60, 150, 50)
    sky[height // 3 : height // 2, width // 2 : width // 2 + 20] = (200, 40, 30)
    return Image.fromarray(sky.clip(0, 255).astype(np.uint8))


def hole(width: int, height: int) -> Image.Image:
    """A mask that is not aligned with cells, with a soft rim."""
    ramp = np.zeros((height, width), np.uint8)
    ramp[height // 4 + 3 :, width // 3 + 5 :] = 255
    ramp[height // 4 + 3 :, width // 3 + 1 : width // 3 + 5] = (60, 120, 130, 200)
    return Image.fromarray(ramp)


def theirs(pipeline: Any, engine: Pipeline, wish: Request) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pixels and latents by diffusers' pipeline for the task, of the parts of ``pipeline`` and with our sampler."""
    ours = engine.scheduler(wish)
    kind = type(pipeline).__name__.removesuffix("Pipeline").removesuffix("Inpaint")
    task: Any = getattr(diffusers, f"{kind}{'Img2Img' if wish.mask_image is None else 'Inpaint'}Pipeline")
    known = inspect.signature(task.__init__).parameters
    parts = {name: part for name, part in pipeline.components.items() if name in known}
    parts["scheduler"] = getattr(diffusers, ours.class_name).from_config(dict(ours.options))
    for optional in {"safety_checker", "feature_extractor", "image_encoder"} & set(known):
        parts[optional] = None
    told = {name: getattr(wish, name) for name in CONDITIONS} if "XL" in kind else {}
    given: dict[str, Any] = {"image": wish.image, **told}
    if wish.mask_image is not None:
        given |= {"mask_image": wish.mask_image, "height": wish.height, "width": wish.width}
    drawing = task(**parts, **({"requires_safety_checker": False} if "requires_safety_checker" in known else {}))
    drawing.set_progress_bar_config(disable=True)
    latents = drawing(
        wish.prompt,
        strength=wish.strength,
        num_inference_steps=wish.num_inference_steps,
        guidance_scale=wish.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(wish.seed),
        output_type="latent",
        **given,
    ).images
    with torch.no_grad():
        decoded = drawing.vae.decode(latents / drawing.vae.config.scaling_factor).sample
    pixels = drawing.image_processor.postprocess(decoded, output_type="np")[0]
    return (pixels * 255).round().astype(np.uint8), latents.numpy()


def agree(engine: Pipeline, pipeline: Any, wish: Request, relative: float = 1e-3) -> None:
    """Where something was made, it is what diffusers made; elsewhere nothing has changed."""
    expected, latents = theirs(pipeline, engine, wish)
    *_, step, made = engine.stream(wish)
    assert isinstance(step, Step) and isinstance(made, Picture)
    assert np.abs(step.latents - latents).max() <= relative * np.abs(latents).max()
    picture = np.asarray(made.image)
    assert picture.shape == expected.shape
    if wish.mask_image is not None:
        new = np.asarray(wish.mask_image) >= 128
        np.testing.assert_array_equal(picture[~new], np.asarray(wish.image)[~new])
        picture, expected = picture[new], expected[new]
    gap = parity.gap(picture, expected)
    assert gap.mean <= MOST_MEAN and gap.most <= MOST_MAX, gap
    assert expected.std() > 2  # levels: there is something to differ in


@pytest.fixture(scope="module")
def rounded() -> Any:
    """nestling in diffusers, computing in float32 with weights as its folder stores them."""
    pipeline = parity.reference()
    for name in ("text_encoder", "unet", "vae"):
        getattr(pipeline, name).half().float()
    return pipeline


@pytest.mark.parametrize("runtime", BACKENDS)
def test_nestling_makes_the_pictures_of_diffusers(rounded: Any, runtime: str) -> None:
    engine = Pipeline.open("nestling", runtime, precision="fp16", inference_precision="f32")
    given: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "image": scene(128, 128), "num_inference_steps": 10}
    agree(engine, rounded, Request(**given, strength=0.65), relative=1e-2)
    agree(engine, rounded, Request(**given, mask_image=hole(128, 128)), relative=1e-2)
    agree(engine, rounded, Request(**given, mask_image=hole(128, 128), strength=0.75, scheduler="ddim"), relative=1e-2)


class Modules:
    """A runtime that is diffusers' own modules, for the loop alone."""

    name, version, device, threads = "torch", torch.__version__, "cpu", 1

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def best_precision(self, stored: str) -> str:
        return "f32"

    def compile(self, folder: Path, shapes: Any, *, precision: str, **_: Any) -> Module:
        return Module(getattr(self, folder.name))

    def text_encoder(self, input_ids: Any) -> dict[str, Any]:
        found = self.pipeline.text_encoder(input_ids, output_hidden_states=True)
        return {"last_hidden_state": found[0], **hidden(found)}

    def text_encoder_2(self, input_ids: Any) -> dict[str, Any]:
        found = self.pipeline.text_encoder_2(input_ids, output_hidden_states=True)
        return {"text_embeds": found[0], **hidden(found)}

    def unet(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **added: Any) -> dict[str, Any]:
        found = self.pipeline.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added)
        return {"out_sample": found.sample}

    def vae_encoder(self, sample: Any) -> dict[str, Any]:
        encoded = self.pipeline.vae.encode(sample)
        if hasattr(encoded, "latents"):
            return {"latent_sample": encoded.latents}
        return {"latent_parameters": encoded.latent_dist.parameters}

    def vae_decoder(self, latent_sample: Any) -> dict[str, Any]:
        return {"sample": self.pipeline.vae.decode(latent_sample).sample}


def hidden(found: Any) -> dict[str, Any]:
    return {f"hidden_states.{layer}": state for layer, state in enumerate(found.hidden_states)}


class Module:
    inputs: Mapping[str, Any] = {}
    precision, cache, device, flop = "f32", "off", "cpu", None

    def __init__(self, call: Callable[..., dict[str, Any]]) -> None:
        self.call = call

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            outputs = self.call(**{name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()})
        return {name: array.numpy() for name, array in outputs.items()}


def engine_over(pipeline: Any, source: Path, folder: Path) -> Pipeline:
    """The engine, reading a source folder's configs as those of an export, and computing with torch."""
    folder.mkdir()
    index = json.loads((source / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    parts = {path.name: path.name for path in source.iterdir() if path.is_dir()}
    for name, part in (parts | {"vae_encoder": "vae", "vae_decoder": "vae"}).items():
        (folder / name).symlink_to(source / part, target_is_directory=True)
    return Pipeline(Bundle.open(folder), Modules(pipeline))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Any]:
    """nestling's modules in the engine and in diffusers."""
    pipeline = parity.reference()
    return engine_over(pipeline, parity.SOURCE, tmp_path_factory.mktemp("loop") / "nestling"), pipeline


SAMPLERS = [name for name in schedulers.SAMPLERS if name != "flow_euler"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_what_is_known_as_in_diffusers(loop: tuple[Pipeline, Any], name: str) -> None:
    image, mask = scene(64, 64), hole(64, 64)
    wish = Request(prompt=PROMPT, seed=1, image=image, mask_image=mask, num_inference_steps=4, scheduler=name)
    agree(*loop, wish)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_starts_late_as_in_diffusers(loop: tuple[Pipeline, Any], name: str) -> None:
    wish = Request(prompt=PROMPT, seed=2, image=scene(64, 72), num_inference_steps=6, strength=0.55, scheduler=name)
    agree(*loop, wish)


def test_enlarged_latents_are_made_anew_as_in_diffusers(loop: tuple[Pipeline, Any]) -> None:
    engine, pipeline = loop
    given: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 6, "guidance_scale": 7.5}
    wish = Request(**given, seed=3, width=64, height=72, hires_scale=1.5, hires_strength=0.55, scheduler="euler_a")
    parts = pipeline.components | {
        "scheduler": diffusers.EulerAncestralDiscreteScheduler.from_config(dict(engine.scheduler(wish).options))
    }

    def latents(task: Any, **more: Any) -> Any:
        drawing = task(**parts, requires_safety_checker=False)
        drawing.set_progress_bar_config(disable=True)
        more |= {"generator": torch.Generator("cpu").manual_seed(3), "output_type": "latent"}
        return drawing(**given, **more).images

    small = latents(diffusers.StableDiffusionPipeline, width=64, height=72)
    enlarged = torch.nn.functional.interpolate(small, size=(13, 12), mode="bilinear", antialias=False)
    expected = latents(diffusers.StableDiffusionImg2ImgPipeline, image=enlarged, strength=0.55).numpy()
    *_, found = (event.latents for event in engine.stream(wish) if isinstance(event, Step))
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_model_for_inpainting_is_shown_what_it_is_shown_in_diffusers(tmp_path: Path, strength: float) -> None:
    source = tmp_path / "source"
    export_tiny.write_source(source, "inpaint")
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(source, safety_checker=None)
    pipeline.unet.conv_in.weight.data[:, 4:] *= 4  # what is beside the latents counts
    engine = engine_over(pipeline, source, tmp_path / "engine")
    image, mask = scene(72, 64), hole(72, 64)
    wish = Request(prompt="a red house", seed=4, image=image, mask_image=mask, strength=strength, num_inference_steps=3)
    agree(engine, pipeline, wish)


def test_an_autoencoder_without_doubts_draws_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    export_tiny.write_tiny(source, export_tiny.LEAST)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    engine = engine_over(pipeline, source, tmp_path / "engine")
    given: dict[str, Any] = {"prompt": "a red house", "seed": 4, "image": scene(64, 64), "num_inference_steps": 3}
    agree(engine, pipeline, Request(**given, scheduler="euler_a"))
    agree(engine, pipeline, Request(**given, scheduler="euler_a", mask_image=hole(64, 64)))


def test_sdxl_does_the_same(tmp_path: Path) -> None:
    source = tmp_path / "source"
    export_tiny.write_source(source, "sdxl")
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(source)
    engine = engine_over(pipeline, source, tmp_path / "engine")
    given: dict[str, Any] = {"prompt": "a red house", "seed": 4, "image": scene(72, 64), "num_inference_steps": 3}
    agree(engine, pipeline, Request(**given))
    agree(engine, pipeline, Request(**given, mask_image=hole(72, 64)))
    small: dict[str, Any] = {"original_size": (32, 40), "crops_coords_top_left": (5, 6), "target_size": (80, 88)}
    agree(engine, pipeline, Request(**given, **small))
    other: dict[str, Any] = {"negative_original_size": (500, 400), "negative_target_size": (48, 56)}
    # Of the negative prompt, diffusers' image to image takes the other one's crop.
    agree(engine, pipeline, Request(**given, **small, **other, negative_crops_coords_top_left=(5, 6)))


def test_sdxl_is_told_of_both_prompts_and_of_every_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    export_tiny.write_source(source, "sdxl")
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(source)
    engine = engine_over(pipeline, source, tmp_path / "engine")
    asked: list[tuple[Any, Any]] = []
    unet = engine.backend.unet  # type: ignore[attr-defined]

    def spy(**inputs: Any) -> Any:
        asked.append((inputs["time_ids"].tolist(), inputs["text_embeds"].numpy()))
        return unet(**inputs)

    monkeypatch.setattr(engine.backend, "unet", spy)
    ends = ("a red house", "a cat")
    given: dict[str, Any] = {"seed": 4, "num_inference_steps": 2, "negative_prompt": "red"}
    for prompt in ends:
        engine.generate(Request(prompt=prompt, width=64, height=64, **given))
    summaries = [asked[0][1], asked[-1][1]]
    asked.clear()
    between = Request(prompt=ends[0], to_prompt=ends[1], blend=0.25, width=96, height=64, tile_size=64, **given)
    engine.generate(between)
    assert [ids for ids, _ in asked] == [[[64, 96, 0, left, 64, 96]] * 2 for left in (0, 32)] * 2
    expected = slerp(summaries[0][1], summaries[1][1], 0.25, axis=0)
    np.testing.assert_allclose(asked[0][1], [summaries[0][0], expected], rtol=1e-4, atol=1e-5)
