"""Decoders, full and tiny, again in f32 where what came out was not finite; previews; the safety checker at work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ovenbird import Bundle, ModelError, NumericError, Picture, Pipeline, Request, RequestError, Step
from ovenbird.backends import BACKENDS
from ovenbird.safety import notice

QUICK: dict[str, Any] = {"prompt": "a red house in the snow", "num_inference_steps": 3, "seed": 5}


def with_parts(nestling: Path, folder: Path, **parts: Path) -> Path:
    """nestling's folder, as another tool may have written it, with some of its parts replaced or added."""
    folder.mkdir()
    for path in (nestling / "fp16").iterdir():
        if path.name not in ("ovenbird.json", *parts):
            (folder / path.name).symlink_to(path, target_is_directory=path.is_dir())
    for name, part in parts.items():
        (folder / name).symlink_to(part, target_is_directory=True)
    return folder


# Numbers that are not finite.


class Halving:
    """OpenVINO, which says that it runs in bf16, where the decoder of some components overflows."""

    def __init__(self, pipeline: Pipeline, broken: str, always: bool = False) -> None:
        self.compiled, self.broken, self.always = pipeline.backend.compile, broken, always

    def __call__(self, folder: Path, shapes: Any, *, precision: str, **others: Any) -> Any:
        model = self.compiled(folder, shapes, precision="f32", **others)
        broken = folder.name == self.broken and (precision == "bf16" or self.always)
        return Half(model, precision, broken)


class Half:
    cache, device, flop = "off", "cpu", None

    def __init__(self, model: Any, precision: str, broken: bool) -> None:
        self.model, self.precision, self.broken, self.inputs = model, precision, broken, model.inputs

    def __call__(self, inputs: Any) -> Any:
        return {name: value * (np.inf if self.broken else 1) for name, value in self.model(inputs).items()}


def halving(monkeypatch: pytest.MonkeyPatch, broken: str, always: bool = False) -> Pipeline:
    pipeline = Pipeline.open("nestling", inference_precision="bf16")
    monkeypatch.setattr(pipeline.backend, "compile", Halving(pipeline, broken, always))
    return pipeline


def test_n1_a_decoder_that_overflows_is_run_again_in_f32_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = halving(monkeypatch, "vae_decoder")
    with pytest.warns(
        UserWarning, match=r"vae_decoder: .* not finite after the last step of DPM\+\+ 2M Karras, in bf16"
    ):
        result = pipeline.generate(Request(**QUICK))
    exact = Pipeline.open("nestling", inference_precision="f32").generate(Request(**QUICK))
    assert result.images[0].tobytes() == exact.images[0].tobytes()
    developing = result.pictures[0].developing
    assert developing and developing.vae_retried and developing.vae_precision == "f32"
    assert result.timings.vae_retries == 1 and result.timings.precision["unet"] == "bf16"
    assert "1 again in f32" in result.timings.table()
    assert not exact.pictures[0].developing.vae_retried and exact.timings.vae_retries == 0  # type: ignore[union-attr]


def test_n1_an_encoder_that_overflows_is_run_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = halving(monkeypatch, "vae_encoder")
    with pytest.warns(UserWarning, match="vae_encoder: the latents are not finite of the image, in bf16"):
        result = pipeline.generate(Request(**QUICK, image=Image.new("RGB", (128, 128), "teal")))
    assert result.timings.vae_retries == 1


@pytest.mark.parametrize("tile", [None, 64])
def test_n1_a_decoder_that_overflows_in_f32_stops_the_run(monkeypatch: pytest.MonkeyPatch, tile: int | None) -> None:
    pipeline = Pipeline.open("nestling", inference_precision="f32", vae_tile=tile)
    monkeypatch.setattr(pipeline.backend, "compile", Halving(pipeline, "vae_decoder", always=True))
    with pytest.raises(
        NumericError, match=r"vae_decoder: .* after the last step of DPM\+\+ 2M Karras, in f32"
    ) as caught:
        pipeline.generate(Request(**QUICK))
    assert "--precision fp32" in str(caught.value.hint)
    once = halving(monkeypatch, "vae_decoder", always=True)
    with pytest.raises(NumericError, match="in f32"), pytest.warns(UserWarning, match="made again"):
        once.generate(Request(**QUICK))


def overflowing(folder: Path, nestling: Path) -> Path:
    """A decoder whose numbers reach twice 2 ** 127 less a little, which f32 can hold and bf16 cannot."""
    folder.mkdir()
    tensors = {
        "colour": np.full((3, 4, 1, 1), 0.05, np.float32),
        "zero": np.zeros((2, 4, 1, 1), np.float32),
        "one": np.ones(2, np.float32),
        "up": np.full((2, 2, 1, 1), 2.0**63, np.float32) * np.eye(2, dtype=np.float32)[..., None, None],
        "over": np.array([[[[2.0**64 * (2 - 2**-7)]], [[2.0**64 * (2**-7 - 2**-16)]]]], np.float32),
        "down": np.full((1, 1, 1, 1), 2.0**-64, np.float32),
        "last": np.full((3, 1, 1, 1), 2.0**-64, np.float32),
        "scales": np.array([1, 1, 8, 8], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["latent_sample", "zero", "one"], ["a"]),
        helper.make_node("Conv", ["a", "up"], ["b"]),
        helper.make_node("Conv", ["b", "over"], ["c"]),
        helper.make_node("Conv", ["c", "down"], ["d"]),
        helper.make_node("Conv", ["d", "last"], ["e"]),
        helper.make_node("Conv", ["latent_sample", "colour"], ["f"]),
        helper.make_node("Mul", ["e", "f"], ["g"]),
        helper.make_node("Resize", ["g", "", "scales"], ["sample"], mode="nearest"),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, f"{name}_h", f"{name}_w"])
        for name, channels in (("latent_sample", 4), ("sample", 3))
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "decoder", ports[:1], ports[1:], initializers)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    (folder / "config.json").write_bytes((nestling / "fp16" / "vae_decoder" / "config.json").read_bytes())
    return folder


def test_n1_weights_that_bf16_cannot_hold(nestling: Path, tmp_path: Path) -> None:
    folder = with_parts(nestling, tmp_path / "model", vae_decoder=overflowing(tmp_path / "decoder", nestling))
    exact = Pipeline.open(folder, inference_precision="f32")
    image = exact.generate(Request(**QUICK)).images[0]
    assert np.asarray(image).std() > 2
    if "BF16" not in exact.backend.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):  # type: ignore[attr-defined]
        pytest.skip("this processor does not multiply in bf16")
    half = Pipeline.open(folder, inference_precision="bf16")
    with pytest.warns(UserWarning, match="in bf16; it is made again in f32"):
        [picture] = half.generate(Request(**QUICK)).pictures
    assert picture.developing and picture.developing.vae_retried
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(image)).mean() < 8  # the U-Net ran in bf16


# Tiles, as asked for.


def test_tiles_are_said_where_they_were_used(nestling: Path) -> None:
    pipeline = Pipeline.open("nestling", inference_precision="f32", vae_tile=96)
    shapes: list[Any] = []
    compiled = pipeline.backend.compile
    pipeline.backend.compile = lambda folder, asked, **more: (
        shapes.append((folder.name, asked))
        or compiled(  # type: ignore[method-assign]
            folder, asked, **more
        )
    )
    small, large = pipeline.generate([Request(**QUICK, width=96, height=64), Request(**QUICK)]).pictures
    assert small.developing and small.developing.vae_tile is None
    assert large.developing and large.developing.vae_tile == 96
    assert [asked["latent_sample"] for name, asked in shapes if name == "vae_decoder"] == [
        (1, 4, 8, 12),
        (1, 4, 12, 12),
    ]
    report = pipeline.report()
    assert (report.vae_calls, report.vae_tile, report.pictures) == (1 + 5, 96, 2)
    assert "in tiles of 96 pixels" in report.table()


@pytest.mark.parametrize(("tile", "hint"), [(100, "use 96 or 104"), (8, "nearest is 64"), (1 << 20, "nearest is 4096")])
def test_impossible_tiles_are_refused(tile: int, hint: str) -> None:
    with pytest.raises(RequestError, match=f"vae_tile: {tile}") as caught:
        Pipeline.open("nestling", vae_tile=tile)
    assert hint in str(caught.value.hint)


# Previews.


def test_previews_come_every_so_many_steps_and_have_no_noise() -> None:
    pipeline = Pipeline.open("nestling", inference_precision="f32")
    wish = Request(**QUICK | {"num_inference_steps": 9, "num_images_per_prompt": 2})
    aside = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", batch_size=2)
    events = list(aside.stream(wish, preview_every=3))
    steps = [event for event in events if isinstance(event, Step)]
    assert [len(step.previews) for step in steps] == [0, 0, 2, 0, 0, 2, 0, 0, 0]
    final = [event.image for event in events if isinstance(event, Picture)]

    def gap(one: Image.Image, other: Image.Image) -> float:
        return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean())

    for k in range(2):
        noisy = pipeline.autoencoder.decode(steps[5].latents[k : k + 1], "full", "").pixels
        assert gap(steps[5].previews[k], final[k]) < gap(steps[2].previews[k], final[k])
        assert gap(steps[5].previews[k], final[k]) < gap(Image.fromarray(noisy), final[k])
        assert gap(steps[5].previews[k], final[k]) < gap(steps[5].previews[k], final[1 - k])
    report = aside.report()
    assert (report.previews, report.pictures, report.vae_calls) == (4, 2, 6) and "4 previews" in report.table()
    assert [image.tobytes() for image in final] == [image.tobytes() for image in aside.generate(wish).images]


def test_a_preview_of_an_inpainting_keeps_what_is_known() -> None:
    pipeline = Pipeline.open("nestling", inference_precision="f32")
    photo = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 128, 64))
    seen = [
        np.asarray(preview)
        for event in pipeline.stream(Request(**QUICK, image=photo, mask_image=mask), preview_every=1)
        if isinstance(event, Step)
        for preview in event.previews
    ]
    assert len(seen) == 2
    for preview in seen:
        np.testing.assert_array_equal(preview[64:], np.asarray(photo)[64:])
        assert (preview[:64] != np.asarray(photo)[:64]).mean() > 0.5


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_impossible_previews_are_refused(every: Any) -> None:
    with pytest.raises(RequestError, match="preview_every"):
        Pipeline.open("nestling").stream(Request(**QUICK), preview_every=every)


# A tiny decoder and a safety checker, exported from random weights.


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A source folder with both, and a function that converts one of them to a folder."""
    pytest.importorskip("torch")
    pytest.importorskip("optimum")
    import export_tiny

    from ovenbird_export.convert import convert
    from ovenbird_export.job import Job
    from ovenbird_export.precisions import PRECISIONS
    from ovenbird_export.source import Source

    folder = tmp_path_factory.mktemp("parts")
    extra = {
        name: export_tiny.TINIES["inpaint"].components[name]
        for name in ("tiny_vae", "safety_checker", "feature_extractor")
    }
    components = {**export_tiny.LEAST.components, "vae": ("AutoencoderKL", export_tiny.VAE), **extra}
    export_tiny.write_tiny(
        folder / "source",
        export_tiny.Tiny("StableDiffusionPipeline", components, entries={"requires_safety_checker": True}),
    )

    def converted(name: str, to: str) -> Path:
        source = Source.open(folder / "source")
        job = Job(source, (PRECISIONS["fp32"],), {"fp32": folder / to}, folder / f"{to}-scratch")
        part = next(part for part in source.parts if part.name == name)
        convert(job, part)
        from ovenbird_export.modules import configuration_json, read_module

        (folder / to / name / "config.json").write_text(configuration_json(read_module(source, part.origin)))
        return folder / to / name

    return folder / "source", converted


@pytest.fixture(scope="module")
def tiny_decoder(parts: Any) -> Path:
    _, converted = parts
    found: Path = converted("tiny_vae_decoder", "tiny")
    return found


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # of torch and diffusers, which are other people's
@pytest.mark.parametrize("runtime", BACKENDS)
def test_the_tiny_decoder_makes_the_pictures_of_diffusers(
    parts: Any, tiny_decoder: Path, nestling: Path, tmp_path: Path, runtime: str
) -> None:
    import torch
    from diffusers import AutoencoderTiny
    from diffusers.image_processor import VaeImageProcessor

    folder = with_parts(nestling, tmp_path / "model", tiny_vae_decoder=tiny_decoder)
    pipeline = Pipeline.open(folder, runtime, decoder="tiny", inference_precision="f32")
    *_, step, picture = pipeline.stream(Request(**QUICK))
    assert isinstance(step, Step) and isinstance(picture, Picture)
    module: Any = AutoencoderTiny.from_pretrained(parts[0] / "tiny_vae")
    with torch.no_grad():  # as in StableDiffusionPipeline.__call__
        decoded = module.decode(torch.from_numpy(step.latents) / module.config.scaling_factor).sample
    processor: Any = VaeImageProcessor()
    [expected] = processor.postprocess(decoded, output_type="pil")
    gap = np.abs(np.asarray(picture.image).astype(int) - np.asarray(expected))
    assert gap.max() <= 1 and np.asarray(expected).std() > 2
    assert picture.developing and picture.developing.decoder == "tiny"
    assert pipeline.report().decoder == "tiny" and "tiny decoder" in pipeline.report().table()
    assert set(pipeline.report().precision) == {"text_encoder", "unet", "tiny_vae_decoder"}


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")
def test_previews_are_by_the_tiny_decoder_where_there_is_one(
    tiny_decoder: Path, nestling: Path, tmp_path: Path
) -> None:
    folder = with_parts(nestling, tmp_path / "model", tiny_vae_decoder=tiny_decoder)
    pipeline = Pipeline.open(folder, inference_precision="f32")
    steps = [event for event in pipeline.stream(Request(**QUICK), preview_every=2) if isinstance(event, Step)]
    assert [len(step.previews) for step in steps] == [0, 1, 0]
    seconds = pipeline.timings.seconds
    assert len(seconds["tiny_vae_decoder"]) == 1 and len(seconds["vae_decoder"]) == 1
    quick = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", decoder="tiny")
    fast = Pipeline.open(folder, precision="fp16", preset="fast")
    assert (fast.autoencoder.decoder, pipeline.autoencoder.decoder) == ("tiny", "full")
    assert Pipeline.open(folder, precision="fp16", preset="fast", decoder="full").autoencoder.decoder == "full"
    assert (
        quick.generate(Request(**QUICK)).images[0].tobytes() != pipeline.generate(Request(**QUICK)).images[0].tobytes()
    )


def test_a_decoder_that_is_not_there_is_refused(nestling: Path) -> None:
    with pytest.raises(RequestError, match=r"decoder: .* has no tiny_vae_decoder") as caught:
        Pipeline.open("nestling", decoder="tiny")
    assert "--tiny-vae" in str(caught.value.hint)
    with pytest.raises(RequestError, match="decoder: 'small' is not one of full, tiny"):
        Pipeline.open("nestling", decoder="small")


def test_a_tiny_decoder_for_other_latents_is_refused(nestling: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"latent_channels": 4, "block_out_channels": [8, 8]}))
    folder = with_parts(nestling, tmp_path / "model", tiny_vae_decoder=other)
    with pytest.raises(ModelError, match="tiny_vae_decoder is for latents of another VAE"):
        Pipeline.open(folder, decoder="tiny")


@pytest.fixture(scope="module")
def drawn(nestling: Path) -> Any:
    wish = Request(**QUICK | {"num_inference_steps": 2}, num_images_per_prompt=6, width=96)
    return wish, Pipeline.open("nestling", inference_precision="f32").generate(wish)


@pytest.fixture(scope="module")
def checker(parts: Any, drawn: Any) -> tuple[Path, Path, list[bool]]:
    """The converted checker, its processor, and what diffusers' own says of the pictures: it flags half of them."""
    import safetensors.torch
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    source, converted = parts
    images = drawn[1].images
    processor: Any = CLIPImageProcessor.from_pretrained(source / "feature_extractor")
    prepared = processor(images, return_tensors="pt").pixel_values
    module: Any = StableDiffusionSafetyChecker.from_pretrained(source / "safety_checker")
    with torch.no_grad():
        states = module.visual_projection(module.vision_model(prepared)[1])
        likeness = torch.nn.functional.cosine_similarity(states, module.concept_embeds[:1])
    module.special_care_embeds_weights.data.fill_(9)
    module.concept_embeds_weights.data.fill_(9)
    low, high = likeness.sort().values[2:4]
    module.concept_embeds_weights.data[0] = (low + high) / 2
    safetensors.torch.save_file(module.state_dict(), source / "safety_checker" / "model.safetensors")
    _, flags = module(clip_input=prepared, images=np.ones((6, 8, 8, 3)))
    return converted("safety_checker", "checker"), source / "feature_extractor", flags


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # of torch, transformers and diffusers, which are other people's
@pytest.mark.parametrize("runtime", BACKENDS)
def test_flags_are_those_of_diffusers_and_flagged_pictures_are_not_shown(
    checker: Any, drawn: Any, nestling: Path, tmp_path: Path, runtime: str
) -> None:
    graph, processor, flags = checker
    wish, unchecked = drawn
    assert sum(flags) == 3 and unchecked.nsfw_content_detected is None
    folder = with_parts(nestling, tmp_path / "model", safety_checker=graph, feature_extractor=processor)
    pipeline = Pipeline.open(folder, runtime, inference_precision="f32")
    there = compiles(pipeline)
    stream = pipeline.stream(wish)
    assert isinstance(next(stream), Step) and "safety_checker" not in there
    stream.close()
    result = pipeline.generate(wish)
    assert result.nsfw_content_detected == flags
    for picture, before, flagged in zip(result.pictures, unchecked.images, flags, strict=True):
        assert picture.nsfw_content_detected is flagged
        assert (picture.image.tobytes() == notice(before.size).tobytes()) is flagged
        assert picture.developing and picture.developing.safety_checker == "on"
    report = pipeline.report()
    assert report.safety_checker == "on" and report.safety_checker_s > 0 and report.precision["safety_checker"] == "f32"
    trusting = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", safety_checker=False)
    shown = trusting.generate(wish)
    assert shown.nsfw_content_detected is None and trusting.report().safety_checker == "off"
    for ours, before in zip(shown.images, unchecked.images, strict=True):
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(before)).max() <= 1


def compiles(pipeline: Pipeline) -> list[str]:
    there: list[str] = []
    compiled = pipeline.backend.compile

    def spy(folder: Path, shapes: Any, **more: Any) -> Any:
        there.append(folder.name)
        return compiled(folder, shapes, **more)

    pipeline.backend.compile = spy  # type: ignore[method-assign]
    return there


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")
def test_previews_are_checked_too(checker: Any, drawn: Any, nestling: Path, tmp_path: Path) -> None:
    graph, processor, _ = checker
    folder = with_parts(nestling, tmp_path / "model", safety_checker=graph, feature_extractor=processor)
    pipeline = Pipeline.open(folder, inference_precision="f32")
    pipeline.safety_checker._compile = lambda shape: flagging  # type: ignore[assignment]
    seen = [event.previews for event in pipeline.stream(drawn[0], preview_every=1) if isinstance(event, Step)]
    assert seen[0][0].tobytes() == notice((96, 128)).tobytes()


class Flagging:
    inputs = frozenset({"clip_input"})

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"has_nsfw_concepts": np.array([True])}


flagging = Flagging()


def test_a_checker_of_another_tool_is_said_not_to_be_used(nestling: Path, tmp_path: Path) -> None:
    torch_form = tmp_path / "checker"
    torch_form.mkdir()
    (torch_form / "model.safetensors").touch()
    folder = with_parts(nestling, tmp_path / "model", safety_checker=torch_form)
    with pytest.warns(UserWarning, match="safety_checker: pictures are not checked: .* holds no graph"):
        pipeline = Pipeline.open(folder, inference_precision="f32")
    result = pipeline.generate(Request(**QUICK))
    assert result.nsfw_content_detected is None and result.timings.safety_checker == "not used"
    assert Pipeline(Bundle.open(folder), pipeline.backend, safety_checker=False).safety_checker.state == "off"
