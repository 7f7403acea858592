from __future__ import annotations

from typing import Any

import pytest
from pace import within
from PIL import Image

from ovenbird import Request, RequestError

BAD: list[tuple[str, Any, str]] = [
    ("prompt", None, "not a string"),
    ("prompt", ["a", 3], "not a string"),
    ("prompt", [], "0 prompts are not in 1 .. 1000"),
    ("prompt", ["a"] * 1001, "1001 prompts are not in 1 .. 1000"),
    ("negative_prompt", ["b"], "a list of as many prompts"),
    ("prompt", "x" * (64 << 10) + "x", "bytes"),
    ("prompt", "\ud800", "surrogate"),
    ("negative_prompt", 3, "not a string"),
    ("height", 100, "multiple of 8"),
    ("height", 0, "64 .. 4096"),
    ("height", -8, "64 .. 4096"),
    ("width", 65536, "64 .. 4096"),
    ("width", "128", "whole number"),
    ("width", True, "whole number"),
    ("width", 128.0, "whole number"),
    ("num_inference_steps", 0, "1 .. 1000"),
    ("num_inference_steps", 1001, "1 .. 1000"),
    ("guidance_scale", float("nan"), "0 .. 100"),
    ("guidance_scale", float("inf"), "0 .. 100"),
    ("guidance_scale", -1, "0 .. 100"),
    ("guidance_scale", 1e6, "0 .. 100"),
    ("eta", 1.5, "0 .. 1"),
    ("seed", -1, "0 .. 18446744073709551615"),
    ("seed", 2**64, "0 .. 18446744073709551615"),
    ("seed", 1.0, "whole number"),
    ("num_images_per_prompt", 10**6, "1 .. 1000"),
    ("scheduler", 7, "not a name"),
    ("prompt_syntax", "web", "plain, webui"),
    ("prompt_syntax", ["plain"], "plain, webui"),
    ("clip_skip", -1, "0 .. 22"),
    ("clip_skip", 23, "0 .. 22"),
    ("clip_skip", None, "whole number"),
    ("variation_seed", -1, "0 .. 18446744073709551615"),
    ("variation_strength", 1.5, "0 .. 1"),
    ("variation_strength", None, "not a number"),
    ("to_prompt", 3, "not a string"),
    ("to_prompt", ["a"], "not a string"),
    ("blend", 0.5, "no prompt to blend with"),
    ("hires_scale", 0.5, "1 .. 4"),
    ("hires_scale", "2", "not a number"),
    ("hires_upscaler", "latent", "nothing is enlarged"),
    ("hires_strength", 0.5, "nothing is enlarged"),
    ("hires_steps", 5, "nothing is enlarged"),
    ("tile_size", 100, "multiple of 8"),
    ("tile_size", 32, "64 .. 4096"),
    ("original_size", 1024, "a pair of whole numbers"),
    ("original_size", (0, 64), "1 .. 16384"),
    ("target_size", (64, 64, 64), "a pair of whole numbers"),
    ("crops_coords_top_left", (-1, 0), "0 .. 16384"),
    ("negative_target_size", (64, True), "whole number"),
    ("negative_original_size", (64, 64), "alone it has no effect"),
    ("negative_crops_coords_top_left", (1, 1), "alone it has no effect"),
]


@pytest.mark.parametrize(("field", "value", "rule"), BAD)
def test_r2_r3_r5_r7_to_r15_a_bad_value_names_field_value_and_rule(field: str, value: Any, rule: str) -> None:
    with pytest.raises(RequestError) as caught:
        Request(**{"prompt": "a house", field: value})
    assert str(caught.value).startswith(f"{field}: ")
    assert rule in str(caught.value)
    assert len(str(caught.value)) < 200
    assert caught.value.exit_code == 2


def test_r7_a_bad_size_gets_the_two_nearest() -> None:
    with pytest.raises(RequestError) as caught:
        Request(prompt="", height=500)
    assert caught.value.hint == "use 496 or 504"


def test_r3_a_huge_prompt_is_refused_at_once() -> None:
    with within(0.1), pytest.raises(RequestError):
        Request(prompt="x" * 10_000_000)


@pytest.mark.parametrize("size", range(1, 200))
def test_r7_sizes_that_are_not_multiples_of_8(size: int) -> None:
    fine = size >= 64 and size % 8 == 0
    if fine:
        assert Request(prompt="", width=size).width == size
    else:
        with pytest.raises(RequestError):
            Request(prompt="", width=size)


def test_settled_fills_what_is_open_and_keeps_the_rest() -> None:
    wish = Request(prompt="a", width=64, seed=0).settled(128)
    assert (wish.width, wish.height, wish.seed) == (64, 128, 0)
    assert Request(prompt="a").settled(128).seed != Request(prompt="a").settled(128).seed


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Request(prompt="a").prompt = "b"  # type: ignore[misc]


def test_a_list_is_a_request_for_each_picture_with_seeds_that_count_on() -> None:
    wish = Request(prompt=["a", "b"], negative_prompt=["c", "d"], num_images_per_prompt=2, seed=2**64 - 2).settled(64)
    assert [(single.texts, single.seed) for single in wish.singles()] == [
        (("c", "a"), 2**64 - 2),
        (("c", "a"), 2**64 - 1),
        (("d", "b"), 0),
        (("d", "b"), 1),
    ]
    assert {(single.num_images_per_prompt, single.width) for single in wish.singles()} == {(1, 64)}
    with pytest.raises(RequestError, match=r"num_images_per_prompt: 501 is not in 1 \.\. 500"):
        Request(prompt=["a", "b"], num_images_per_prompt=501)


def test_wishes_are_alike_but_for_what_is_named_and_pictures_by_identity() -> None:
    image = Image.new("RGB", (64, 64))
    wish = Request(prompt="a", seed=1, image=image).settled(64)
    other = Request(prompt="a", seed=2, image=image).settled(64)
    assert wish.like() == wish.singles()[0].like() and hash(wish.like()) == hash(wish.singles()[0].like())
    assert wish.like("seed") != other.like("seed")  # each has its own checked copy of the image
    assert wish.like("seed", "image") == other.like("seed", "image")
