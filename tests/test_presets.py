"""Shortcuts, one by one and by their presets: which parts of the U-Net run, and that nothing changes without them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ovenbird import Pipeline, Request, RequestError, schedulers
from ovenbird.backends import Arrays
from ovenbird.cli import main
from ovenbird.denoiser import guided, guided_within, reusing
from ovenbird.denoiser import plain as plain_model
from ovenbird.families import halves
from ovenbird.presets import PRESETS, Shortcuts

PROMPT = "a small blue boat on the sea at sunset"
STEPS = 6


def pipeline(**ways: Any) -> Pipeline:
    return Pipeline.open("nestling", inference_precision="f32", **ways)


def picture(ways: Mapping[str, Any], **wishes: Any) -> tuple[np.ndarray, Pipeline]:
    made = pipeline(**ways)
    result = made.generate(Request(**{"prompt": PROMPT, "seed": 3, "num_inference_steps": STEPS, **wishes}))
    return np.asarray(result.images[0], np.int16), made


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return picture({})[0]


def like(found: np.ndarray, wanted: np.ndarray, most: float = 1.0) -> bool:
    return float(np.abs(found - wanted).max()) <= most


def test_exact_edits_give_the_same_picture(plain: np.ndarray) -> None:
    assert like(picture({"exact": ()})[0], plain)


@pytest.mark.parametrize("ways", [{"pool_attention": "all"}, {"reuse_every": 2}, {"reuse_every": 2, "reuse_depth": 1}])
def test_shortcuts_give_another_picture_that_is_like_it(ways: dict[str, Any], plain: np.ndarray) -> None:
    found, _ = picture(ways)
    assert 0 < np.abs(found - plain).mean() < 25


@pytest.mark.parametrize(("every", "full"), [(1, 6), (2, 3), (3, 2), (4, 2), (10, 1)])
def test_the_whole_unet_runs_at_every_so_many_steps(every: int, full: int) -> None:
    made = picture({"reuse_every": every})[1]
    report = made.report()
    assert (report.unet_calls, report.shallow_calls) == (full, STEPS - full)
    assert ("all at every" in report.shortcuts) == (every > 1)


def test_deep_features_are_taken_from_the_last_whole_run() -> None:
    told: list[tuple[str, Any]] = []

    def full(inputs: Arrays) -> Arrays:
        told.append(("full", inputs["timestep"]))
        return {"out_sample": np.zeros(1), "deep_features": inputs["timestep"]}

    def shallow(inputs: Arrays) -> Arrays:
        told.append(("shallow", inputs["deep_features"]))
        return {"out_sample": np.zeros(1)}

    unet = reusing(full, shallow, 3)
    for timestep in range(7):
        unet({"timestep": np.array(timestep)})
    kinds = ["full", "shallow", "shallow"]
    assert [(kind, int(at)) for kind, at in told] == list(
        zip([*kinds, *kinds, "full"], [0, 0, 0, 3, 3, 3, 6], strict=True)
    )


def test_of_several_pictures_and_tiles_each_has_its_own_deep_features() -> None:
    made = pipeline(reuse_every=2, batch_size=2)
    wish = Request(prompt=[PROMPT, "a red house"], seed=3, num_inference_steps=STEPS, num_images_per_prompt=2)
    for single in made.generate(wish).pictures:
        alone = made.generate(single.request).images[0]
        assert like(np.asarray(single.image, np.int16), np.asarray(alone, np.int16), 2)
    tiled = Request(prompt=PROMPT, seed=3, num_inference_steps=2, height=128, width=192, tile_size=128)
    before = made.report()
    after = made.generate(tiled).timings
    assert after.unet_calls - before.unet_calls == after.shallow_calls - before.shallow_calls == 2


def test_guidance_within_all_of_it_is_guidance(plain: np.ndarray) -> None:
    assert like(picture({}, guidance_interval=(0.0, 1.0))[0], plain)


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.3, 0.8)])
def test_guidance_within_an_interval_takes_fewer_calls(interval: tuple[float, float]) -> None:
    _, made = picture({}, guidance_interval=interval)
    timesteps = made.scheduler(Request(prompt="")).timesteps(STEPS)
    guided = sum(interval[0] <= 1 - t / 999 <= interval[1] for t in timesteps)
    assert 0 < guided < STEPS and made.report().unet_calls == STEPS + guided


def test_guidance_in_two_calls_is_guidance_in_one() -> None:
    made = np.random.default_rng(2)
    told, x = (
        {"encoder_hidden_states": made.standard_normal((4, 1, 1, 1), np.float32)},
        np.ones((2, 4, 2, 2), np.float32),
    )

    def unet(inputs: Arrays) -> Arrays:
        return {"out_sample": inputs["sample"] * inputs["encoder_hidden_states"] + inputs["timestep"]}

    without, given = (plain_model(unet, half) for half in halves(told))
    wanted = guided(unet, told, 7.5)(x, 3.0)
    np.testing.assert_allclose(guided_within(without, given, 7.5, lambda t: t == 3)(x, 3.0), wanted, rtol=1e-6)
    np.testing.assert_array_equal(guided_within(without, given, 7.5, lambda t: t != 3)(x, 3.0), given(x, 3.0))


def test_guidance_nowhere_is_none() -> None:
    found, made = picture({}, guidance_interval=(0.2, 0.3))  # between the second step and the third
    assert made.report().unet_calls == STEPS and like(found, picture({}, guidance_scale=1.0)[0], 2)


def test_a_request_goes_before_the_preset() -> None:
    made = pipeline(guidance_interval=(0.0, 0.5))
    [single] = made.generate(Request(prompt=PROMPT, seed=1, num_inference_steps=2)).pictures
    assert single.request.guidance_interval == (0.0, 0.5)
    [single] = made.generate(
        Request(prompt=PROMPT, seed=1, num_inference_steps=2, guidance_interval=(0.0, 0.9))
    ).pictures
    assert single.request.guidance_interval == (0.0, 0.9)


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ({"preset": "turbo"}, "preset: 'turbo' is not one of exact, balanced, fast"),
        ({"reuse_every": 0}, "reuse_every: 0 is not a whole number from 1 to 10"),
        ({"reuse_depth": True}, "reuse_depth: True is not"),
        ({"exact": ("gates", "doors")}, "exact: 'doors' is not one of gates, upsampling"),
        ({"guidance_interval": (0.5, 0.5)}, "guidance_interval: 0.5 is not less than 0.5"),
    ],
)
def test_r15_wrong_shortcuts_are_refused_before_a_model_is_looked_for(ways: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Pipeline.open("no-such-model", **ways)


@pytest.mark.parametrize(
    "interval", [(0.5,), (0.5, 0.5), (0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.0, float("nan")), 0.5]
)
def test_r12_intervals_that_are_none(interval: Any) -> None:
    with pytest.raises(RequestError, match="guidance_interval: "):
        Request(prompt="", guidance_interval=interval)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_differ_and_say_how(name: str) -> None:
    assert str(PRESETS["exact"].shortcuts) == "none"
    assert (str(PRESETS[name].shortcuts) == "none") == (name == "exact")


def test_what_is_given_goes_before_the_preset() -> None:
    made = pipeline(preset="fast", precision="fp16", reuse_every=1, pool_attention="off")
    assert made.shortcuts == Shortcuts(guidance_interval=PRESETS["fast"].shortcuts.guidance_interval)


def test_the_command_says_what_it_left_out(tmp_path: Path) -> None:
    words = [
        "generate",
        "--prompt",
        PROMPT,
        "--seed",
        "1",
        "--num-inference-steps",
        "3",
        "--preset",
        "fast",
        "--precision",
        "fp16",
    ]
    done = CliRunner().invoke(main, [*words, "--output", str(tmp_path / "a.png"), "--report", str(tmp_path / "a.json")])
    assert done.exit_code == 0, done.output
    shortcuts = str(PRESETS["fast"].shortcuts)
    assert f"shortcuts     {shortcuts}" in done.output
    assert json.loads((tmp_path / "a.json").read_text())["shortcuts"] == shortcuts
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.text["ovenbird"])["shortcuts"] == shortcuts


def test_an_interval_from_the_beginning_has_steps_beyond_the_last_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    made, flow = pipeline(), schedulers.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    monkeypatch.setattr(made, "scheduler", lambda _: flow)
    made.generate(Request(prompt=PROMPT, seed=1, num_inference_steps=2, guidance_interval=(0.0, 1.0 - 1e-9)))
    assert made.report().unet_calls == 4  # the first is at 1000, and the timesteps end at 999
