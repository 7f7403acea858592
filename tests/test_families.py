"""What each family tells the U-Net, with encoders that are five lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovenbird import Bundle, NumericError, Request, RequestError
from ovenbird.families import FAMILIES, check, condition, guidance_embedding
from ovenbird.families.texts import weigh


def bundle(nestling: Path, folder: Path, family: str, unet: dict[str, Any], index: dict[str, Any]) -> Bundle:
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).symlink_to(nestling / "fp16" / "tokenizer", target_is_directory=True)
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps(unet))
    (folder / "model_index.json").write_text(json.dumps(index))
    return Bundle(folder, "test", family, "fp32", None)


class Encoders:
    """Answers with its own number and the sum of the ids; writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, name: str) -> Any:
        def encode(inputs: Any) -> dict[str, Any]:
            self.asked.append(name)
            total = float(inputs["input_ids"].sum())
            width = 3 if name == "text_encoder" else 5
            states = {f"hidden_states.{k}": np.full((1, 77, width), total + k, np.float32) for k in (0, 9, 10, 2, 1)}
            last = np.full((1, 77, width), total, np.float32)
            return {"last_hidden_state": last, "text_embeds": np.full((1, 4), total, np.float32), **states}

        return encode


def wish(**changes: Any) -> Request:
    return Request(**{"prompt": "a red house", "height": 96, "width": 128, "seed": 1} | changes)


def test_sd_gives_one_row_without_guidance_and_the_negative_first_with_it(nestling: Path, tmp_path: Path) -> None:
    model = bundle(nestling, tmp_path / "sd", "sd", {}, {})
    alone = condition(model, Encoders(), wish(guidance_scale=1.0))
    both = condition(model, Encoders(), wish(negative_prompt="a blue boat"))
    assert set(both) == {"encoder_hidden_states"}
    assert alone["encoder_hidden_states"].shape == (1, 77, 3) and both["encoder_hidden_states"].shape == (2, 77, 3)
    np.testing.assert_array_equal(both["encoder_hidden_states"][1], alone["encoder_hidden_states"][0])
    assert (both["encoder_hidden_states"][0] != both["encoder_hidden_states"][1]).any()


def test_sdxl_joins_the_last_hidden_states_but_one(nestling: Path, tmp_path: Path) -> None:
    model = bundle(nestling, tmp_path / "xl", "sdxl", {}, {})
    found = condition(model, Encoders(), wish(negative_prompt="a blue boat"))
    assert {name: array.shape for name, array in found.items()} == {
        "encoder_hidden_states": (2, 77, 8),
        "text_embeds": (2, 4),
        "time_ids": (2, 6),
    }
    assert (found["encoder_hidden_states"] == found["text_embeds"][:, :1, None] + 9).all()
    assert found["time_ids"].tolist() == [[96, 128, 0, 0, 96, 128]] * 2


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_without_a_negative_prompt_does_what_the_index_says(nestling: Path, tmp_path: Path, zeros: bool) -> None:
    model = bundle(nestling, tmp_path / "xl", "sdxl", {}, {"force_zeros_for_empty_prompt": zeros})
    encoders = Encoders()
    found = condition(model, encoders, wish())
    assert bool((found["encoder_hidden_states"][0] == 0).all()) == zeros
    assert bool((found["text_embeds"][0] == 0).all()) == zeros
    assert encoders.asked == ["text_encoder", "text_encoder_2"] * (1 if zeros else 2)


def test_sdxl_leaves_out_layers_as_diffusers_counts_them(nestling: Path, tmp_path: Path) -> None:
    model = bundle(nestling, tmp_path / "xl", "sdxl", {}, {})
    plain, skipped = (condition(model, Encoders(), wish(clip_skip=skip)) for skip in (0, 2))
    # The fake's states are 0, 1, 2, 9, 10; diffusers takes number -(skip + 2).
    lower = plain["encoder_hidden_states"] - skipped["encoder_hidden_states"]
    assert (lower[0] == 0).all() and (lower[1] == 9 - 1).all()
    np.testing.assert_array_equal(plain["text_embeds"], skipped["text_embeds"])


def test_sdxl_weighs_each_encoder_by_itself_and_sums_up_the_first_chunk(nestling: Path, tmp_path: Path) -> None:
    model = bundle(nestling, tmp_path / "xl", "sdxl", {}, {"force_zeros_for_empty_prompt": True})
    asked = Encoders()
    found = condition(model, asked, wish(prompt="(red:2) BREAK house", prompt_syntax="webui"))
    assert asked.asked == ["text_encoder"] * 2 + ["text_encoder_2"] * 2
    states = found["encoder_hidden_states"]
    assert states.shape == (2, 154, 8) and (states[0] == 0).all()
    first, second = float(found["text_embeds"][1, 0]) + 9, float(states[1, 77, 0])
    assert first - 9 != second - 9  # sums of ids: of red, and of house
    weights = np.ones(77)
    weights[1] = 2
    # States are all the same number, so the mean is restored by 77 / 78.
    np.testing.assert_allclose(states[1, :77, 0], first * weights * 77 / 78, rtol=1e-6)
    np.testing.assert_array_equal(states[1, 77:], second)


def test_both_prompts_have_as_many_chunks(nestling: Path, tmp_path: Path) -> None:
    model = bundle(nestling, tmp_path / "sd", "sd", {}, {})
    found = condition(model, Encoders(), wish(negative_prompt="boat " * 151, prompt_syntax="webui"))
    assert found["encoder_hidden_states"].shape == (2, 231, 3)
    empty = condition(model, Encoders(), wish(prompt="", guidance_scale=1.0))["encoder_hidden_states"]
    np.testing.assert_array_equal(found["encoder_hidden_states"][1, 77:], np.tile(empty[0], (2, 1)))


@pytest.mark.parametrize(
    ("family", "manifest", "deepest"), [("sd", None, 0), ("sd", {}, 0), ("sd", {"clip_skip": 3}, 3), ("sdxl", None, 2)]
)
def test_layers_that_cannot_be_left_out_are_refused(
    nestling: Path, tmp_path: Path, family: str, manifest: Any, deepest: int
) -> None:
    model = replace(bundle(nestling, tmp_path / family, family, {}, {}), manifest=manifest)
    for name, layers in (("text_encoder", 3), ("text_encoder_2", 4)):
        (tmp_path / family / name).mkdir()
        (tmp_path / family / name / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    assert FAMILIES[family].deepest_skip(model) == deepest
    check(model, wish(clip_skip=deepest))
    with pytest.raises(RequestError, match=rf"clip_skip: {deepest + 1} is too many") as caught:
        check(model, wish(clip_skip=deepest + 1))
    hint = f"the nearest is {deepest}" + ("" if deepest else "; a new export may give more: ovenbird export")
    assert caught.value.hint and caught.value.hint.startswith(hint)


def test_sd_takes_the_state_without_so_many_layers_for_the_prompt_alone(nestling: Path, tmp_path: Path) -> None:
    model = replace(bundle(nestling, tmp_path / "sd", "sd", {}, {}), manifest={"clip_skip": 2})
    states = {"last_hidden_state": 0.0, "clip_skip.1": 1.0, "clip_skip.2": 2.0}

    def encoders(_: str) -> Any:
        return lambda inputs: {name: np.full((1, 77, 3), value, np.float32) for name, value in states.items()}

    found = condition(model, encoders, wish(clip_skip=2))["encoder_hidden_states"]
    assert (found[0] == 0).all() and (found[1] == 2).all()
    assert (condition(model, encoders, wish(clip_skip=1, guidance_scale=1.0))["encoder_hidden_states"] == 1).all()
    between = condition(model, encoders, wish(clip_skip=2, to_prompt="a boat", blend=0.5))["encoder_hidden_states"]
    assert [row.mean() for row in between] == [0, 2, 2]


# Weights, against the rule of the web UI written out.


def states_of(seed: int) -> Any:
    return np.random.default_rng(seed).normal(0.3, 1, (1, 77, 5)).astype(np.float32)


def test_weights_multiply_and_the_mean_is_restored() -> None:
    states, weights = states_of(0), np.ones(77, np.float32)
    weights[3:9] = 1.3
    weights[20] = -0.5
    rows = [[float(value) * float(weight) for value in row] for row, weight in zip(states[0], weights, strict=True)]
    mean = sum(map(float, states.ravel())) / states.size
    ratio = mean / (sum(map(sum, rows)) / states.size)
    np.testing.assert_allclose(weigh(states, weights)[0], np.array(rows) * ratio, rtol=1e-5)
    assert weigh(states, weights).dtype == np.float32
    assert float(weigh(states, weights).mean(dtype=np.float64)) == pytest.approx(mean, rel=1e-6)


def test_without_weights_the_states_are_the_very_same() -> None:
    states = states_of(1)
    assert weigh(states, np.ones(77, np.float32)) is states


def test_n1_weights_that_leave_no_mean_are_refused() -> None:
    with pytest.raises(NumericError, match="mean"):
        weigh(states_of(2), np.zeros(77, np.float32))


def test_a_distilled_model_is_told_the_scale_and_needs_one_row(nestling: Path, tmp_path: Path) -> None:
    model = bundle(nestling, tmp_path / "lcm", "sd", {"time_cond_proj_dim": 8}, {})
    found = condition(model, Encoders(), wish(guidance_scale=7.5))
    assert found["encoder_hidden_states"].shape == (1, 77, 3)
    np.testing.assert_array_equal(found["timestep_cond"], guidance_embedding(7.5, 8))


def test_the_embedded_scale_has_the_published_form() -> None:
    # w = 7.5 - 1; sin and cos of 1000 w at frequencies 10000^(-k/3), k = 0 .. 3
    angles = [6500.0 * 10000.0 ** (-k / 3) for k in range(4)]
    expected = [[*np.sin(angles), *np.cos(angles)]]
    np.testing.assert_allclose(guidance_embedding(7.5, 8), expected, atol=1e-6)
    assert guidance_embedding(7.5, 9).shape == (1, 9) and guidance_embedding(7.5, 9)[0, -1] == 0


GIVEN: dict[str, Any] = {"original_size": (512, 640), "crops_coords_top_left": (8, 16), "target_size": (1024, 1000)}
NEGATIVE: dict[str, Any] = {
    "negative_original_size": (64, 72),
    "negative_crops_coords_top_left": (1, 2),
    "negative_target_size": (80, 88),
}


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, [[96, 128, 0, 0, 96, 128]] * 2),
        (GIVEN, [[512, 640, 8, 16, 1024, 1000]] * 2),
        (NEGATIVE, [[64, 72, 1, 2, 80, 88], [96, 128, 0, 0, 96, 128]]),
        (GIVEN | NEGATIVE | {"guidance_scale": 1.0}, [[512, 640, 8, 16, 1024, 1000]]),
    ],
    ids=["size", "given", "negative", "alone"],
)
def test_sdxl_is_told_sizes_and_crops(nestling: Path, tmp_path: Path, changes: Any, rows: Any) -> None:
    model = bundle(nestling, tmp_path / "xl", "sdxl", {}, {})
    told = condition(model, Encoders(), wish(**changes))["time_ids"]
    np.testing.assert_array_equal(told, np.array(rows, np.float32))


@pytest.mark.parametrize("name", GIVEN)
def test_others_are_not_told_sizes(nestling: Path, tmp_path: Path, name: str) -> None:
    model = bundle(nestling, tmp_path / "sd", "sd", {}, {})
    with pytest.raises(RequestError, match=f"{name}: test is not told of sizes"):
        check(model, wish(**{name: GIVEN[name]}))


def test_sdxl_has_zeros_where_the_index_says_nothing_as_in_diffusers(nestling: Path, tmp_path: Path) -> None:
    found = condition(bundle(nestling, tmp_path / "xl", "sdxl", {}, {}), Encoders(), wish())
    assert (found["encoder_hidden_states"][0] == 0).all() and (found["text_embeds"][0] == 0).all()
