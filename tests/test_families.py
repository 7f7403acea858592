"""What each family tells the U-Net, with encoders that are five lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovenbird import Bundle, Request
from ovenbird.families import condition, guidance_embedding


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
