from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovenbird import Cancelled, NumericError, Picture, Pipeline, Request, RequestError, Step, recall
from ovenbird.families import condition

QUICK: dict[str, Any] = {"prompt": "a red house in the snow", "num_inference_steps": 3, "seed": 5}
PHOTO = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
MASK = Image.new("L", (128, 128))
MASK.paste(255, (0, 0, 128, 64))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("nestling", inference_precision="f32")


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


def test_n4_the_same_seed_gives_the_same_bytes_whatever_ran_between(pipeline: Pipeline) -> None:
    first = pipeline.generate(Request(**QUICK)).images[0]
    pipeline.generate(Request(**QUICK | {"prompt": "a boat", "scheduler": "pndm"}))
    again = pipeline.generate(Request(**QUICK)).images[0]
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    "change", [{}, {"scheduler": "euler_a"}, {"scheduler": "heun", "guidance_scale": 1.0}], ids=str
)
def test_n5_a_picture_alone_equals_the_one_of_a_batch(pipeline: Pipeline, change: dict[str, Any]) -> None:
    wish = QUICK | change | {"prompt": ["a red house in the snow", "a boat", "a tent"], "num_images_per_prompt": 2}
    one_by_one = pipeline.generate(Request(**wish))
    aside = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", batch_size=4)
    batches = aside.generate(Request(**wish))
    assert one_by_one.seeds == batches.seeds == [5, 6, 7, 8, 9, 10]
    assert [picture.request.prompt for picture in batches.pictures] == [p for p in wish["prompt"] for _ in range(2)]
    assert batches.timings.unet_calls < one_by_one.timings.unet_calls / 2
    for ours, theirs in zip(batches.images, one_by_one.images, strict=True):
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1
    alone = pipeline.generate(batches.pictures[3].request)
    assert alone.images[0].tobytes() == one_by_one.images[3].tobytes()


def test_n5_latents_of_a_batch_are_those_of_its_pictures(pipeline: Pipeline) -> None:
    wish = Request(**QUICK, num_images_per_prompt=3, image=PHOTO, mask_image=MASK, scheduler="ddpm")
    aside = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", batch_size=3)
    *_, together = (event.latents for event in aside.stream(wish) if isinstance(event, Step))
    for k, single in enumerate(wish.settled(128).singles()):
        *_, alone = (event.latents for event in pipeline.stream(single) if isinstance(event, Step))
        assert np.abs(together[k] - alone[0]).max() < 1e-3


def test_only_pictures_of_a_kind_are_drawn_side_by_side(pipeline: Pipeline) -> None:
    aside = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", batch_size=8)
    wishes = [Request(**QUICK), Request(**QUICK), Request(**QUICK, width=64), Request(**QUICK | {"scheduler": "ddim"})]
    events = list(aside.stream([*wishes, Request(**QUICK | {"scheduler": "ddim", "prompt": "a boat"})]))
    batches = {event.pictures for event in events if isinstance(event, Step)}
    assert batches == {range(2), range(2, 3), range(3, 5)}
    assert [event.picture for event in events if isinstance(event, Picture)] == [0, 1, 2, 3, 4]


def test_the_stream_tells_every_step_and_every_picture(pipeline: Pipeline) -> None:
    events = list(pipeline.stream(Request(**QUICK, num_images_per_prompt=2)))
    shape = [(type(event), event.pictures[0] if isinstance(event, Step) else event.picture) for event in events]
    assert shape == [(Step, 0)] * 3 + [(Picture, 0)] + [(Step, 1)] * 3 + [(Picture, 1)]
    assert [event.index for event in events if isinstance(event, Step)] == [1, 2, 3] * 2
    assert all(event.latents.shape == (1, 4, 16, 16) for event in events if isinstance(event, Step))


def test_a_prompt_and_a_picture_are_encoded_once_for_all_that_share_them(pipeline: Pipeline) -> None:
    fresh = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32")
    wish = Request(
        **QUICK | {"prompt": ["a boat", "a tent"], "guidance_scale": 1.0}, image=PHOTO, num_images_per_prompt=3
    )
    fresh.generate(wish)
    seconds = fresh.timings.seconds
    assert len(seconds["text_encoder"]) == 2 and len(seconds["vae_encoder"]) == 1 and len(seconds["vae_decoder"]) == 6


def test_one_stage_at_a_time(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sparing = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", keep=False)
    compiled, there = sparing.backend.compile, []

    def spy(folder: Path, shapes: Any, **options: Any) -> Any:
        there.append((folder.name, [name for name, _ in sparing._stages._compiled]))
        return compiled(folder, shapes, **options)

    monkeypatch.setattr(sparing.backend, "compile", spy)
    monkeypatch.setattr("ovenbird.budget.ROUND", 2)
    images = sparing.generate(Request(**QUICK, num_images_per_prompt=3)).images
    stages = ["text_encoder", "unet", "vae_decoder"]
    assert there == [(name, []) for name in [*stages, "unet", "vae_decoder"]]
    kept = pipeline.generate(Request(**QUICK, num_images_per_prompt=3)).images
    assert [image.tobytes() for image in images] == [image.tobytes() for image in kept]


def test_s11_pictures_of_many_sizes_do_not_pile_up(pipeline: Pipeline) -> None:
    fresh = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32")
    fresh.generate([Request(**QUICK, width=64 + 8 * k, height=64) for k in range(6)])
    names = [name for name, _ in fresh._stages._compiled]
    assert (names.count("unet"), names.count("vae_decoder"), names.count("text_encoder")) == (3, 3, 1)


def test_e9_a_callback_ends_the_run_at_the_next_step_and_finished_pictures_are_kept(pipeline: Pipeline) -> None:
    seen: list[Step | Picture] = []

    def callback(event: Step | Picture) -> bool:
        seen.append(event)
        return not (isinstance(event, Step) and event.pictures[0] == 1 and event.index == 2)

    with pytest.raises(Cancelled) as caught:
        pipeline.generate(Request(**QUICK, num_images_per_prompt=3), callback)
    assert len(seen) == 3 + 1 + 2
    assert [picture.seed for picture in caught.value.result.pictures] == [5]
    assert len(pipeline.generate(Request(**QUICK)).images) == 1


def test_e9_cancelling_stops_before_the_next_component_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Pipeline.open("nestling")
    compiled = fresh.backend.compile

    def spy(folder: Path, shapes: Any, **options: Any) -> Any:
        fresh.cancel()
        assert folder.name == "text_encoder"
        return compiled(folder, shapes, **options)

    monkeypatch.setattr(fresh.backend, "compile", spy)
    with pytest.raises(Cancelled):
        fresh.generate(Request(**QUICK))


@pytest.mark.parametrize("size", [0, -1, 1.5, "2"])
def test_a_batch_size_that_is_none(pipeline: Pipeline, size: Any) -> None:
    with pytest.raises(RequestError, match="batch_size: "):
        Pipeline(pipeline.bundle, pipeline.backend, batch_size=size)


def test_other_sizes(pipeline: Pipeline) -> None:
    result = pipeline.generate(Request(**QUICK, width=96, height=152))
    assert result.images[0].size == (96, 152)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_r12_no_guidance_is_one_unet_pass_of_half_the_size(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.open("nestling")
    shapes: list[tuple[int, ...]] = []
    compiled = pipeline.backend.compile

    def spy(folder: Path, asked: Any, **options: Any) -> Any:
        if folder.name == "unet":
            shapes.append(asked["sample"])
        return compiled(folder, asked, **options)

    monkeypatch.setattr(pipeline.backend, "compile", spy)
    report = pipeline.generate(Request(**QUICK, guidance_scale=scale)).timings
    assert shapes == [(1, 4, 16, 16)] and report.unet_calls == 3


def test_guidance_and_the_negative_prompt_change_the_picture(pipeline: Pipeline) -> None:
    plain = pixels(pipeline.generate(Request(**QUICK)).images[0])
    for change in ({"guidance_scale": 3.0}, {"negative_prompt": "a blue boat"}):
        assert np.abs(pixels(pipeline.generate(Request(**QUICK, **change)).images[0]) - plain).mean() > 1


def test_pndm_reports_its_extra_call(pipeline: Pipeline) -> None:
    fresh = Pipeline.open("nestling")
    report = fresh.generate(Request(**QUICK | {"num_inference_steps": 10, "scheduler": "pndm"})).timings
    assert report.unet_calls == 11


def test_r15_bad_names_and_counts_stop_before_compiling(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Pipeline.open("nestling")
    monkeypatch.setattr(fresh.backend, "compile", lambda *_, **__: pytest.fail("compiled"))
    for change in ({"scheduler": "euler b"}, {"eta": 0.5, "scheduler": "euler"}):
        with pytest.raises(RequestError):
            fresh.stream(Request(**QUICK, **change))


def test_n1_latents_that_are_not_finite_stop_the_run_at_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.open("nestling")
    genuine = pipeline._component

    def poisoned(name: str, shapes: Any) -> Any:
        model = genuine(name, shapes)
        calls = iter(range(100))

        def call(inputs: Any) -> Any:
            outputs = model(inputs)
            if name == "unet" and next(calls) == 1:
                outputs["out_sample"][0, 0, 0, 0] = np.nan
            return outputs

        return call

    monkeypatch.setattr(pipeline, "_component", poisoned)
    with pytest.raises(NumericError, match=r"unet: .* after step 2 of DPM\+\+ 2M Karras"):
        list(pipeline.stream(Request(**QUICK)))


def test_n2_the_report_says_what_really_ran(pipeline: Pipeline) -> None:
    pipeline.generate(Request(**QUICK))
    report = pipeline.report()
    assert set(report.precision.values()) == {"f32"}
    assert report.runtime == "openvino" and report.threads >= 1
    table = report.table()
    for word in ("compile", "median step", "U-Net calls", "peak memory", "precision", "CPU"):
        assert word in table


def states(pipeline: Pipeline, prompt: str, syntax: str) -> Any:
    wish = Request(**QUICK | {"prompt": prompt, "guidance_scale": 1.0, "prompt_syntax": syntax}).settled(128)
    return condition(pipeline.bundle, pipeline._encoder, wish)["encoder_hidden_states"]


def test_a_prompt_without_marks_is_bit_for_bit_what_the_encoder_gives(pipeline: Pipeline) -> None:
    ids = [804, 320, 657, 660, *[805] * 73]  # a red house
    [found] = pipeline._encoder("text_encoder")({"input_ids": np.array([ids])})["last_hidden_state"]
    for syntax in ("plain", "webui"):
        np.testing.assert_array_equal(states(pipeline, "a red house", syntax), [found])


def test_weights_are_those_of_the_web_ui_on_the_encoders_states(pipeline: Pipeline) -> None:
    z = states(pipeline, "a red house", "plain")
    heavy = z * np.array([1, 1, 1.3, 1 / 1.1, *[1] * 73])[None, :, None]
    expected = heavy * (z.astype(np.float64).mean() / heavy.mean())
    np.testing.assert_allclose(states(pipeline, "a (red:1.3) [house]", "webui"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_long_prompt_is_drawn_in_chunks_on_both_runtimes(backend: str) -> None:
    fresh = Pipeline.open("nestling", backend, inference_precision="f32")
    first = "a large red house on the left in the snow at night, " * 5
    long = {"prompt": first + "a small blue boat on the sea at sunset " * 8, "prompt_syntax": "webui"}
    assert states(fresh, long["prompt"], "webui").shape == (1, 154, 128)
    found = pixels(fresh.generate(Request(**QUICK | long)).images[0])
    assert np.abs(found - pixels(fresh.generate(Request(**QUICK | {"prompt": first})).images[0])).mean() > 1


def test_clip_skip_is_refused_before_compiling_where_the_graph_lacks_the_layers(pipeline: Pipeline) -> None:
    with pytest.raises(RequestError, match="clip_skip: 2 is too many: a text encoder of nestling can leave out 1"):
        pipeline.stream(Request(**QUICK, clip_skip=2))
    plain, skipped = (pixels(pipeline.generate(Request(**QUICK, clip_skip=skip)).images[0]) for skip in (0, 1))
    assert np.abs(skipped - plain).mean() > 1


def test_a_saved_picture_has_its_settings_and_can_be_made_again(pipeline: Pipeline, tmp_path: Path) -> None:
    [picture] = pipeline.generate(Request(prompt="a red house", seed=3, num_inference_steps=2)).pictures
    for end in (".png", ".jpg", ".webp"):
        pipeline.save(picture, str(tmp_path / f"a{end}"))
        told = recall.read(tmp_path / f"a{end}").settings
        assert (told["prompt"], told["seed"], told["model"]) == ("a red house", 3, "nestling")
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == picture.image.tobytes()
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(RequestError, match=r"a\.png exists"):
        pipeline.save(picture, tmp_path / "a.png")
    pipeline.save(picture, tmp_path / "a.png", overwrite=True)
    assert (tmp_path / "a.png").read_bytes() == before
    with pytest.raises(RequestError, match=r"a\.gif does not end in \.png") as caught:
        pipeline.save(picture, tmp_path / "a.gif")
    assert str(caught.value.hint).endswith("a.png") and not (tmp_path / "a.gif").exists()


@pytest.mark.parametrize("wrong", ["a red house", ["a red house"], [Request(prompt=""), None]])
def test_what_is_no_request_is_refused_in_words(pipeline: Pipeline, wrong: Any) -> None:
    with pytest.raises(RequestError, match="is no Request") as caught:
        pipeline.generate(wrong)
    assert "hint: such as Request(" in "".join(traceback.format_exception(caught.value))


def test_a_stream_that_is_dropped_leaves_the_pipeline_usable(pipeline: Pipeline) -> None:
    stream: Iterator[Step | Picture] = pipeline.stream(Request(**QUICK))
    next(stream)
    del stream
    assert len(pipeline.generate(Request(**QUICK)).images) == 1
