"""Laws that hold for whatever is typed: a value, or an error that names what is wrong, and nothing else."""

from __future__ import annotations

import json
import math
import string
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("hypothesis")

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ovenbird import Request, RequestError, cache, compiled, images, tensors
from ovenbird.errors import ModelError
from ovenbird.metadata import parameters
from ovenbird.prompts import LARGEST_WEIGHT, escape, plain, webui
from ovenbird.request import CONDITIONS, SIZE_STEP
from ovenbird.sizes import UNITS, parse_size, show_size
from ovenbird.text import PromptTokenizer

FIELDS = [name for name in Request.__dataclass_fields__ if name not in ("image", "mask_image")]
HUGE = st.sampled_from([10**400, -(10**400), 2**63, 2**64, -1])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | HUGE | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
SIDES = st.integers(8, 40).map(lambda eighth: 8 * eighth)
SHARES = st.floats(0, 1)
PROMPTS = st.text(max_size=12)
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "negative_prompt": PROMPTS,
    "height": st.none() | SIDES,
    "width": st.none() | SIDES,
    "num_inference_steps": st.integers(1, 1000),
    "guidance_scale": st.floats(0, 100) | st.integers(0, 100),
    "guidance_interval": st.none() | st.just((0.0, 0.7)),
    "eta": SHARES,
    "seed": st.none() | st.integers(0, 2**64 - 1) | st.just(2**64 - 1),
    "num_images_per_prompt": st.integers(1, 5),
    "clip_skip": st.integers(0, 22),
    "prompt_syntax": st.sampled_from(["plain", "webui"]),
    "variation_seed": st.none() | st.integers(0, 2**64 - 1),
    "variation_strength": SHARES,
    "to_prompt": st.none() | PROMPTS,
    "tile_size": st.none() | SIDES,
    "hires_scale": st.none() | st.floats(1, 4),
}
"""Field -> values that are right, as long as the others are."""
requests = st.fixed_dictionaries({"prompt": PROMPTS | st.lists(PROMPTS, min_size=1, max_size=3)}, optional=FITTING)


def _checked(given: dict[str, Any]) -> Request | None:
    """None where it is refused in words that begin with a field."""
    try:
        return Request(**given)
    except RequestError as error:
        name, colon, _ = str(error).partition(": ")
        assert colon
        assert name in Request.__dataclass_fields__
        assert len(str(error)) < 300
        return None


@given(st.sampled_from(FIELDS), JSON)
@example("negative_prompt", [])
@example("guidance_scale", 10**400)
@example("variation_strength", float("nan"))
def test_r2_r8_r12_any_value_of_any_field_is_taken_or_refused_by_name(field: str, value: Any) -> None:
    found = _checked({"prompt": "a house", field: value})
    if found is not None:
        assert found.settled(64).singles()


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=2, max_size=6))
def test_r2_values_that_are_wrong_together_are_refused_by_name(values: dict[str, Any]) -> None:
    _checked({"prompt": "a house"} | values)


@given(requests, SIDES)
@example({"prompt": ["a", "b"], "seed": 2**64 - 1}, 64)
@example({"prompt": "a", "variation_seed": 2**64 - 2, "variation_strength": 0.5, "num_images_per_prompt": 4}, 64)
def test_a_settled_request_is_its_pictures(values: dict[str, Any], default: int) -> None:
    found = _checked(values)
    if found is None:
        return
    settled = found.settled(default)
    assert settled.settled(default + 8) == settled
    assert settled.seed is not None
    assert settled.height and settled.width
    assert settled.height % SIZE_STEP == settled.width % SIZE_STEP == 0
    singles = settled.singles()
    prompts = [found.prompt] if isinstance(found.prompt, str) else found.prompt
    assert len(singles) == len(prompts) * found.num_images_per_prompt
    counted = "variation_seed" if found.variation_strength else "seed"
    first = getattr(settled, counted)
    assert [getattr(single, counted) for single in singles] == [(first + k) % 2**64 for k in range(len(singles))]
    for single in singles:
        assert single.settled(default) == single
        assert single.singles() == [single]
        assert 0 <= single.seed < 2**64  # type: ignore[operator]
        _check_passes(single)


def _check_passes(single: Request) -> None:
    *small, large = single.passes
    assert len(small) == (single.hires_scale is not None)
    for each in single.passes:
        assert each.hires_scale is None
        assert each.height and each.width
        assert each.height % SIZE_STEP == each.width % SIZE_STEP == 0
        assert each.seed == single.seed
    assert all(each.height <= large.height and each.width <= large.width for each in small)  # type: ignore[operator]


@given(requests, st.integers(2, 9))
def test_frames_lead_from_one_end_to_the_other(values: dict[str, Any], count: int) -> None:
    found = _checked(values)
    if found is None:
        return
    try:
        frames = found.frames(count)
    except RequestError as error:
        assert str(error).startswith(("to_prompt: ", "frames: "))
        return
    assert len(frames) == count
    for name, given_ in (("blend", found.to_prompt), ("variation_strength", found.variation_seed)):
        if given_ is not None:
            assert [getattr(frame, name) for frame in frames] == [k / (count - 1) for k in range(count)]
    assert len({frame.seed for frame in frames}) == 1


# Pictures

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "PA", "RGBX"]
sides = st.integers(1, 40) | st.sampled_from([1, 64, 500])


@given(st.sampled_from(MODES), sides, sides, st.none() | SIDES, st.none() | SIDES, st.integers(0, 255))
@example("RGB", 1, 500, None, None, 0)
@example("RGBA", 64, 64, 64, 72, 7)
@example("RGB", 70, 500, None, None, 7)
def test_i5_i6_i7_i9_a_picture_has_the_promised_size_or_is_refused(
    mode: str, width: int, height: int, wished_width: int | None, wished_height: int | None, fill: int
) -> None:
    bands = Image.getmodebands(mode)
    image = Image.new(mode, (width, height), fill if bands == 1 else (fill,) * bands)
    found = _checked({"prompt": "", "image": image, "width": wished_width, "height": wished_height})
    if found is None:
        assert wished_width or wished_height or min(width, height) < 64 or mode in ("I", "F")
        return
    assert found.image is not None
    assert found.image.mode == "RGB"
    assert found.width == wished_width or wished_width is None
    assert found.height == wished_height or wished_height is None
    fitted = images.fitted(found.image, found.width, found.height)  # type: ignore[arg-type]
    assert fitted.size == (found.width, found.height)
    if wished_width is wished_height is None:
        assert found.width == width // SIZE_STEP * SIZE_STEP


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBPVP8 "])
)
def test_i1_i2_bytes_are_a_picture_or_a_request_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, begin: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.png"
    path.write_bytes(begin + content)
    with pytest.raises(RequestError, match=r"^image: "):
        images.picture("image", images.read("image", path))


ARRAYS = [
    np.zeros((64, 64, 3), np.uint8),
    np.zeros((3, 64, 64), np.uint16),
    np.full((64, 64), np.nan),
    np.array(-1),
    np.array(["a"]),
]


@given(JSON | st.binary(max_size=4) | st.sampled_from(ARRAYS))
def test_i9_i11_what_is_no_pil_image_is_refused(value: Any) -> None:
    for name in ("image", "mask_image"):
        with pytest.raises(RequestError, match=rf"^{name}: "):
            Request(**{"prompt": "", "image": Image.new("RGB", (64, 64)), name: 0 if value is None else value})


# Words

marked = st.text(r"()[]:\.,|-+ 019aB<>é🏠", max_size=40) | st.lists(
    st.sampled_from(["(", ")", "[", "]", "<lora:", ":1.3)", ":-9e9)", ":99)", "\\", " BREAK ", " AND ", "a", " "]),
    max_size=30,
).map("".join)


@given(marked | st.text())
def test_weights_are_finite_and_bounded_and_no_letter_is_lost(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sections = webui(text)
    assert all(piece.text and abs(piece.weight) <= LARGEST_WEIGHT for section in sections for piece in section)
    left = "".join(piece.text for section in sections for piece in section)
    for letter in set(text) - set(r"()[]:\.+-0123456789 BREAK"):
        assert left.count(letter) == text.count(letter)


@given(marked | st.text())
def test_what_is_escaped_is_read_as_it_stood(text: str) -> None:
    text = text.replace("BREAK", "BREAKS")  # a word, which a backslash does not change
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, as_it_stands = webui(escape(text)), plain(text)
    assert ["".join(piece.text for piece in section) for section in found] == [piece.text for [piece] in as_it_stands]
    assert all(piece.weight == 1 for section in found for piece in section)


@pytest.fixture(scope="module")
def tokenizer(nestling: Path) -> PromptTokenizer:
    return PromptTokenizer.open(nestling / "fp16" / "tokenizer")


@given(text=st.text(max_size=60) | st.text("ab \u00e9\U0001f3e0", min_size=70, max_size=90))
def test_r5_tokens_are_of_the_vocabulary_between_start_and_end(tokenizer: PromptTokenizer, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        [ids] = tokenizer(plain(text)).ids.tolist()
    assert len(ids) == 77
    assert ids[0] == tokenizer.start
    assert tokenizer.end in ids
    assert all(0 <= id <= max(tokenizer.start, tokenizer.end) for id in ids)


# Sizes, names, notes


@given(st.integers(0, 2**50))
def test_a_size_that_is_shown_is_read_within_its_rounding(size: int) -> None:
    shown = show_size(size)
    assert math.isclose(parse_size("limit", shown), size, rel_tol=0.05, abs_tol=0.5)
    assert float(shown.split()[0]) <= 1024 or shown.endswith(" GiB")


@given(st.integers(0, 10**6), st.sampled_from(list(UNITS)), st.sampled_from(["", " ", "  "]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str, gap: str) -> None:
    for spelled in (unit, unit.lower(), unit.upper()):
        assert parse_size("limit", f"{number}{gap}{spelled}") == number * UNITS[unit]


@given(st.text(max_size=30) | st.text(string.digits + ".eE KMGTiB", max_size=400) | st.just("9" * 400 + "TB"))
def test_any_other_size_is_refused(text: str) -> None:
    try:
        assert parse_size("limit", text) >= 0
    except RequestError as error:
        assert str(error).startswith("limit: ")


line = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    prompt=line,
    negative_prompt=line,
    sampler=st.sampled_from(["Euler", "DPM++ 2M Karras", "DDIM"]),
    syntax=st.sampled_from(["plain", "webui"]),
    guidance_scale=st.floats(0, 100),
    strength=st.none() | SHARES,
    clip_skip=st.integers(0, 11),
    eta=SHARES,
)
def test_the_settings_are_one_line_and_the_last(
    prompt: str,
    negative_prompt: str,
    sampler: str,
    syntax: str,
    guidance_scale: float,
    strength: float | None,
    clip_skip: int,
    eta: float,
) -> None:
    facts = {
        **{"prompt": prompt, "negative_prompt": negative_prompt, "prompt_syntax": syntax, "sampler": sampler},
        **{"num_inference_steps": 2, "seed": 2**64 - 1, "width": 64, "height": 72, "model": "m", "ovenbird": "0"},
        **{"guidance_scale": guidance_scale, "strength": strength, "variation_seed": 1, "variation_strength": 0.5},
        **{"hires_scale": None, "clip_skip": clip_skip, "eta": eta},
    }
    written = parameters(facts)
    *words, last = written.split("\n")
    assert last.startswith("Steps: 2, Sampler: ")
    pairs = dict(pair.split(": ", 1) for pair in last.split(", "))
    assert pairs["Seed"] == str(2**64 - 1)
    assert pairs["Size"] == "64x72"
    assert pairs.get("Clip skip") == (str(clip_skip + 1) if clip_skip else None)
    assert ("Eta DDIM" in pairs) == (sampler == "DDIM" and eta > 0)
    assert math.isclose(float(pairs["CFG scale"]), guidance_scale, rel_tol=1e-5)
    said = escape(prompt) if syntax == "plain" else prompt
    assert "\n".join(words).startswith(said)
    assert ("Negative prompt: " in written[len(said) :]) == bool(negative_prompt)


shapes = st.lists(st.integers(0, 4), max_size=3)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=6), shapes, st.sampled_from(["F64", "F32", "F16"])), max_size=4))
def test_m2_tensors_that_were_written_are_read(listed: list[tuple[str, list[int], str]]) -> None:
    header, data, values = {}, b"", {}
    for name, shape, kind in listed:
        if name in header or name == "__metadata__":
            continue
        values[name] = np.arange(math.prod(shape), dtype=tensors.DTYPES[kind]).reshape(shape)
        span = [len(data), len(data) + values[name].nbytes]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": span}
        data += values[name].tobytes()
    found = tensors.parse(Path("x"), _safetensors(header, data))
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=3), st.binary(max_size=16))
@example({"a": {"dtype": "F32", "shape": [0, 10**400], "data_offsets": [0, 0]}}, b"")
def test_m2_other_headers_are_a_model_error(header: dict[str, Any], data: bytes) -> None:
    try:
        content = _safetensors(header, data)
    except ValueError:  # a number that Python does not write
        return
    header.pop("__metadata__", None)
    if header or data:
        with pytest.raises(ModelError):
            tensors.parse(Path("x"), content)


def _safetensors(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


facts = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.lists(st.booleans(), max_size=3))


@given(facts, facts)
def test_compiled_models_have_one_name_each(one: dict[str, Any], other: dict[str, Any]) -> None:
    names = compiled.name(one), compiled.name(other)
    assert all(compiled.NAME.fullmatch(name) for name in names)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (names[0] == names[1]) == same
    assert compiled.name(dict(reversed(one.items()))) == names[0]
    assert cache.digest(one) == names[0].removesuffix(".blob")


@given(value=JSON)
def test_conditions_are_pairs_or_refused(value: Any) -> None:
    for name in CONDITIONS:
        found = _checked(
            {"prompt": "", "negative_original_size": (64, 64), "negative_target_size": (64, 64), name: value}
        )
        if found is not None and getattr(found, name) is not None:
            assert all(type(number) is int for number in getattr(found, name))


def test_the_profile_is_the_same_everywhere() -> None:
    assert settings.default is not None
    assert settings.default.deadline is None
    assert settings.default.derandomize
