"""Pictures between two: noise between two seeds, prompts between two prompts, and frames on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from test_families import Encoders, bundle
from test_families import wish as family_wish

from ovenbird import Cancelled, Picture, Pipeline, Request, RequestError, cli
from ovenbird.canvas import Canvas
from ovenbird.denoiser import Conditioning
from ovenbird.families import blended, condition
from ovenbird.noise import TorchNoise, slerp, varied
from ovenbird.pipeline import Sheet

QUICK: dict[str, Any] = {"prompt": "a red house in the snow", "num_inference_steps": 3, "seed": 5}
OTHER = "a small blue boat on the sea"
PHOTO = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
MASK = Image.new("L", (128, 128))
MASK.paste(255, (0, 0, 128, 64))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("nestling", inference_precision="f32")


def drawn(pipeline: Pipeline, **wish: Any) -> bytes:
    return pipeline.generate(Request(**QUICK | wish)).images[0].tobytes()


# The formula.


def test_slerp_is_that_of_the_web_ui_column_by_column_of_each_channel() -> None:
    low, high = TorchNoise(1)((4, 8, 6)), TorchNoise(2)((4, 8, 6))
    found = varied(TorchNoise(1), TorchNoise(2), 0.3)((4, 8, 6))
    for channel in range(4):
        for column in range(6):
            a, b = low[channel, :, column].astype(float), high[channel, :, column].astype(float)
            omega = np.arccos(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))
            expected = (np.sin(0.7 * omega) * a + np.sin(0.3 * omega) * b) / np.sin(omega)
            np.testing.assert_allclose(found[channel, :, column], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.999])
def test_slerp_keeps_lengths_and_knows_no_direction(share: float) -> None:
    low, high = TorchNoise(1)((3, 50)), TorchNoise(2)((3, 50))
    low, high = (5 * each / np.linalg.norm(each, axis=1, keepdims=True) for each in (low, high))
    found = slerp(low, high, share, axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 5, rtol=1e-5)
    np.testing.assert_allclose(found, slerp(high, low, 1 - share, axis=1), rtol=1e-5, atol=1e-6)


def test_slerp_ends_in_the_very_arrays_and_goes_straight_where_there_is_no_angle() -> None:
    low, high = TorchNoise(1)((3, 50)), TorchNoise(2)((3, 50))
    assert slerp(low, high, 0, axis=1) is low and slerp(low, high, 1.0, axis=1) is high
    np.testing.assert_array_equal(slerp(low, low, 0.3, axis=1), low)
    np.testing.assert_allclose(slerp(low, low * 3, 0.5, axis=1), low * 2, rtol=1e-6)
    assert np.isfinite(slerp(low, -low, 0.5, axis=1)).all()
    assert np.isfinite(slerp(low, np.zeros_like(low), 0.5, axis=1)).all()


# Variations.


@pytest.mark.parametrize("given", [{}, {"image": PHOTO, "strength": 0.7}, {"image": PHOTO, "mask_image": MASK}])
def test_variations_lead_from_one_seed_to_the_other(pipeline: Pipeline, given: dict[str, Any]) -> None:
    plain, other = drawn(pipeline, **given), drawn(pipeline, **given, seed=9)
    assert plain != other
    assert drawn(pipeline, **given, variation_seed=9, variation_strength=0) == plain
    assert drawn(pipeline, **given, variation_seed=9, variation_strength=1) == other
    assert drawn(pipeline, **given, variation_seed=9, variation_strength=0.5) not in (plain, other)


def test_fresh_noise_is_that_of_the_seed(pipeline: Pipeline) -> None:
    wish = Request(**QUICK, variation_seed=9, variation_strength=0.5).settled(128)
    sheet = Sheet(0, wish, {}, Canvas((1, 4, 16, 16)))
    start, noise = sheet.start(pipeline.scheduler(wish), 3, 0)
    seed, other = TorchNoise(5), TorchNoise(9)
    sigma = np.float32(pipeline.scheduler(wish).init_noise_sigma(3))
    expected = slerp(seed((1, 4, 16, 16)), other((1, 4, 16, 16)), 0.5, axis=-2)
    np.testing.assert_array_equal(start.latents, expected * sigma)
    np.testing.assert_array_equal(noise((1, 4, 16, 16)), seed((1, 4, 16, 16)))


def test_a_variation_seed_that_is_left_open_is_drawn_and_recorded() -> None:
    wish = Request(**QUICK, variation_strength=0.1)
    first, second = wish.settled(128).variation_seed, wish.settled(128).variation_seed
    assert first is not None and first != second
    assert Request(**QUICK).settled(128).variation_seed is None


def test_as_in_the_web_ui_variations_have_one_seed_and_variation_seeds_that_count_on() -> None:
    wish = Request(**QUICK, variation_seed=2**64 - 1, variation_strength=0.1, num_images_per_prompt=3).settled(128)
    assert [(single.seed, single.variation_seed) for single in wish.singles()] == [(5, 2**64 - 1), (5, 0), (5, 1)]


# Two prompts.


def test_both_ends_are_the_plain_pictures_bit_for_bit_though_one_is_longer(pipeline: Pipeline) -> None:
    long = ", ".join(["a large red house in the snow"] * 12)
    ways = {"prompt_syntax": "webui", "to_prompt": long}
    ends = [drawn(pipeline, prompt_syntax="webui", prompt=prompt) for prompt in (QUICK["prompt"], long)]
    assert [drawn(pipeline, **ways, blend=blend) for blend in (0, 1)] == ends
    middle = pipeline.generate(Request(**QUICK, **ways)).pictures[0]
    assert middle.request.blend == 0.5 and middle.image.tobytes() not in ends


def at(told: Conditioning, blend: float) -> dict[str, Any]:
    return dict(blended(told, blend))


def test_states_are_blended_token_by_token_and_the_negative_prompt_stays(nestling: Path, tmp_path: Path) -> None:
    model = bundle(nestling, tmp_path / "sd", "sd", {}, {})
    rng = np.random.default_rng(0)

    def encoders(name: str) -> Any:
        return lambda inputs: {"last_hidden_state": rng.normal(size=(1, 77, 8)).astype(np.float32)}

    told = condition(model, encoders, family_wish(to_prompt=OTHER))
    states = told["encoder_hidden_states"]
    assert states.shape == (3, 77, 8)
    found = at(told, 0.25)["encoder_hidden_states"]
    assert found.shape == (2, 77, 8)
    np.testing.assert_array_equal(found[0], states[0])
    np.testing.assert_allclose(found[1], slerp(states[1], states[2], 0.25, axis=1))
    alone = condition(model, encoders, family_wish(to_prompt=OTHER, guidance_scale=1.0))
    assert at(alone, 0.25)["encoder_hidden_states"].shape == (1, 77, 8)


@pytest.mark.parametrize("negative", ["", "a tree"])
def test_sdxl_blends_the_summary_too(nestling: Path, tmp_path: Path, negative: str) -> None:
    model = bundle(nestling, tmp_path / "xl", "sdxl", {}, {"force_zeros_for_empty_prompt": True})
    told = condition(model, Encoders(), family_wish(to_prompt=OTHER, negative_prompt=negative, clip_skip=1))
    one, other = (
        condition(model, Encoders(), family_wish(prompt=prompt, negative_prompt=negative, clip_skip=1))
        for prompt in ("a red house", OTHER)
    )
    found = at(told, 0.5)
    assert {name: array.shape for name, array in found.items()} == {n: array.shape for n, array in one.items()}
    for name in found:
        np.testing.assert_array_equal(found[name][0], one[name][0])
        np.testing.assert_allclose(found[name][1], slerp(one[name][1], other[name][1], 0.5, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(found["time_ids"], one["time_ids"])


def test_a_distilled_model_is_told_the_scale_of_both_ends(nestling: Path, tmp_path: Path) -> None:
    model = bundle(nestling, tmp_path / "lcm", "sd", {"time_cond_proj_dim": 8}, {})
    found = at(condition(model, Encoders(), family_wish(to_prompt=OTHER)), 0.5)
    plain = condition(model, Encoders(), family_wish())
    np.testing.assert_array_equal(found["timestep_cond"], plain["timestep_cond"])
    assert found["encoder_hidden_states"].shape == plain["encoder_hidden_states"].shape


# Frames.


def test_frames_are_plain_requests_and_each_makes_its_picture_alone(pipeline: Pipeline) -> None:
    frames = Request(**QUICK, to_prompt=OTHER, variation_seed=9).frames(3)
    assert [(frame.blend, frame.variation_strength) for frame in frames] == [(0, 0), (0.5, 0.5), (1, 1)]
    fresh = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", batch_size=1)
    pictures = fresh.generate(frames).pictures
    assert pictures[0].image.tobytes() == drawn(pipeline)
    assert pictures[2].image.tobytes() == drawn(pipeline, prompt=OTHER, seed=9)
    assert pictures[1].image.tobytes() == pipeline.generate(pictures[1].request).images[0].tobytes()


def test_frames_between_the_ends_read_their_prompts_once(pipeline: Pipeline) -> None:
    fresh = Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32", batch_size=8)
    steps = fresh.generate(Request(**QUICK, to_prompt=OTHER, guidance_scale=1.0).frames(6)).timings
    assert len(fresh.timings.seconds["text_encoder"]) == 1 + 2 + 1
    assert steps.steps == 3  # six frames side by side


def test_frames_share_one_seed_though_it_is_left_open() -> None:
    wish = Request(prompt="a", to_prompt="b", variation_strength=0.2)
    frames = wish.frames(4)
    assert len({(frame.seed, frame.variation_seed, frame.variation_strength) for frame in frames}) == 1
    assert None not in (frames[0].seed, frames[0].variation_seed)


@pytest.mark.parametrize(
    ("wish", "count", "message"),
    [
        (Request(prompt="a"), 3, "to_prompt: there is nowhere to go"),
        (Request(prompt="a", to_prompt="b"), 1, r"frames: 1 is not in 2 \.\. 1000"),
        (Request(prompt=["a", "b"], to_prompt="b"), 3, "frames: they lead from one picture"),
        (Request(prompt="a", to_prompt="b", num_images_per_prompt=2), 3, "frames: they lead from one picture"),
    ],
)
def test_frames_that_lead_nowhere(wish: Request, count: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        wish.frames(count)


WALK = ["--prompt", QUICK["prompt"], "--to-prompt", OTHER, "--seed", "5", "--num-inference-steps", "2"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> Result:
        return CliRunner().invoke(cli.main, list(words))

    return typed


def shown(path: Path) -> tuple[int, set[int], Any]:
    with Image.open(path) as image:
        times = set()
        for frame in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(frame)
            image.load()
            times.add(image.info["duration"])
        return image.n_frames, times, image.info.get("loop")  # type: ignore[attr-defined]


def test_a_walk_is_an_animation_and_frames_that_can_be_repeated_alone(run: Any, tmp_path: Path) -> None:
    result = run("frames", *WALK, "--to-seed", "9", "--frames", "3", "--fps", "4", "--quiet")
    assert result.exit_code == 0, result.output
    names = [str(Path("walk", f"0000{k}.png")) for k in range(3)]
    assert result.stdout.split() == [*names, "walk.webp"] and result.stderr == ""
    assert shown(tmp_path / "walk.webp") == (3, {250}, 0)
    with Image.open(names[1]) as middle:
        middle.load()
        facts = json.loads(middle.text["ovenbird"])  # type: ignore[attr-defined]
    assert "Variation seed: 9, Variation seed strength: 0.5" in middle.text["parameters"]  # type: ignore[attr-defined]
    words = ["--blend", str(facts["blend"]), "--to-prompt", facts["to_prompt"]]
    words += ["--variation-seed", str(facts["variation_seed"])]
    words += ["--variation-strength", str(facts["variation_strength"]), "--output", "again.png"]
    again = run("generate", *WALK, *words)
    assert again.exit_code == 0, again.output
    with Image.open("again.png") as image:
        assert image.tobytes() == middle.tobytes()


def test_there_and_back_once_as_a_gif(run: Any, tmp_path: Path) -> None:
    words = ["--bounce", "--no-loop", "--output", "a.gif", "--quiet"]
    assert run("frames", *WALK, "--frames", "3", *words).exit_code == 0
    assert shown(tmp_path / "a.gif") == (4, {120}, None)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["00000.png", "00001.png", "00002.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "walk.mp4"], "output: walk.mp4 does not end in .webp or .gif"),
        (["--output", "nowhere/walk.gif"], "output: the folder nowhere does not exist"),
        (["--output", "file.gif"], "output: file, where the frames would go, is not a folder"),
        (["--output", "there.gif"], "output: there.gif exists"),
        (["--output", "folder.gif"], f"output: {Path('folder', '00001.png')} exists"),
        (["--frames", "1"], "frames: 1 is not in 2 .. 1000"),
        (["--fps", "0"], "fps: 0 is not above 0 and up to 50"),
        (["--fps", "nan"], "fps: nan is not above 0"),
        (["--to-seed", "-1"], "variation_seed: -1 is not in 0"),
    ],
)
def test_bad_walks_stop_before_any_model_is_read(
    run: Any, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("a model was opened"))
    (tmp_path / "folder").mkdir()
    for name in ("file", "there.gif", "folder/00001.png"):
        (tmp_path / name).write_text("precious")
    result = run("frames", *WALK, *words)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {message}"), result.output
    assert (tmp_path / "there.gif").read_text() == "precious"


def test_e9_a_walk_that_is_stopped_keeps_its_frames(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = Pipeline.stream

    def stopping(self: Pipeline, requests: Any, **how: Any) -> Any:
        for event in streamed(self, requests, **how):
            yield event
            if isinstance(event, Picture) and event.picture == 1:
                raise Cancelled("the run was stopped")

    monkeypatch.setattr(Pipeline, "stream", stopping)
    assert run("frames", *WALK, "--frames", "4").exit_code == 130
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.png", "00001.png", "walk"]


def test_e5_an_animation_that_cannot_be_written_leaves_nothing_half_done(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("frames", *WALK, "--frames", "2").exit_code == 0
    before = (tmp_path / "walk.webp").read_bytes()
    shutil.rmtree(tmp_path / "walk")
    saved = Image.Image.save

    def full(self: Image.Image, file: Any, **how: Any) -> None:
        if how["format"] == "WEBP":
            raise OSError(28, "No space left on device")
        saved(self, file, **how)

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("frames", *WALK, "--frames", "2", "--overwrite")
    assert result.exit_code == 4 and "the disk is full" in result.stderr
    assert (tmp_path / "walk.webp").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["walk", "walk.webp"]


def test_frames_of_a_longer_animation_go_when_it_is_replaced(run: Any, tmp_path: Path) -> None:
    assert run("frames", *WALK, "--frames", "4", "--quiet").exit_code == 0
    assert run("frames", *WALK, "--frames", "3", "--quiet", "--overwrite").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "walk").iterdir()) == [f"0000{k}.png" for k in range(3)]
