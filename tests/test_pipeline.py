from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovenbird import NumericError, Picture, Pipeline, Request, RequestError, Step
from ovenbird.families import condition

QUICK: dict[str, Any] = {"prompt": "a red house in the snow", "num_inference_steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("nestling", inference_precision="f32")


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


def test_the_same_seed_gives_the_same_bytes_whatever_ran_between(pipeline: Pipeline) -> None:
    first = pipeline.generate(Request(**QUICK)).images[0]
    pipeline.generate(Request(**QUICK | {"prompt": "a boat", "scheduler": "pndm"}))
    again = pipeline.generate(Request(**QUICK)).images[0]
    assert first.tobytes() == again.tobytes()


def test_n5_a_picture_alone_equals_the_one_of_a_batch(pipeline: Pipeline) -> None:
    batch = pipeline.generate(Request(**QUICK, num_images_per_prompt=2))
    alone = pipeline.generate(Request(**QUICK | {"seed": 6}))
    assert batch.seeds == [5, 6]
    assert batch.images[1].tobytes() == alone.images[0].tobytes()


def test_the_stream_tells_every_step_and_every_picture(pipeline: Pipeline) -> None:
    events = list(pipeline.stream(Request(**QUICK, num_images_per_prompt=2)))
    shape = [(type(event), event.picture) for event in events]
    assert shape == [(Step, 0)] * 3 + [(Picture, 0)] + [(Step, 1)] * 3 + [(Picture, 1)]
    assert [event.index for event in events if isinstance(event, Step)] == [1, 2, 3] * 2
    assert all(event.latents.shape == (1, 4, 16, 16) for event in events if isinstance(event, Step))


def test_text_encoders_can_be_let_go_before_the_unet_comes(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sparing = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", keep=False)
    compiled, there = sparing.backend.compile, []

    def spy(folder: Path, shapes: Any, **options: Any) -> Any:
        there.append((folder.name, [name for name, _ in sparing._compiled]))
        return compiled(folder, shapes, **options)

    monkeypatch.setattr(sparing.backend, "compile", spy)
    image = sparing.generate(Request(**QUICK)).images[0]
    assert there[:2] == [("text_encoder", []), ("unet", [])]
    assert image.tobytes() == pipeline.generate(Request(**QUICK)).images[0].tobytes()


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


def test_bad_names_and_counts_stop_before_compiling(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_report_says_what_really_ran(pipeline: Pipeline) -> None:
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
    with pytest.raises(RequestError, match="clip_skip: 1 is too many: a text encoder of nestling"):
        pipeline.stream(Request(**QUICK, clip_skip=1))


def test_a_stream_that_is_dropped_leaves_the_pipeline_usable(pipeline: Pipeline) -> None:
    stream: Iterator[Step | Picture] = pipeline.stream(Request(**QUICK))
    next(stream)
    del stream
    assert len(pipeline.generate(Request(**QUICK)).images) == 1
