"""The arithmetic of graphs, against what one gets by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from ovenbird.backends import arithmetic, create
from ovenbird.backends.arithmetic import Work
from ovenbird.timing import Flop


def parameter(*shape: int) -> Any:
    return ops.parameter(list(shape), np.float32)


def weights(*shape: int, dtype: Any = np.float32) -> Any:
    return ops.constant(np.ones(shape, dtype))


def counted(result: Any, *inputs: Any) -> dict[str, Work] | None:
    return arithmetic.count(ov.Model([result], list(inputs)))


def rounded(node: Any, levels: int = 256) -> Any:
    ends = (np.float32(0), np.float32(1))
    return ops.fake_quantize(node, *ends, *ends, levels)


def eight_bits(*shape: int) -> Any:
    """As NNCF stores weights: whole numbers, and a scale for each row."""
    scales = weights(shape[0], *(1 for _ in shape[1:]))
    return ops.multiply(ops.convert(weights(*shape, dtype=np.int8), "f32"), scales)


def test_a_convolution() -> None:
    x = parameter(2, 3, 8, 10)
    made = ops.convolution(x, weights(5, 3, 3, 3), [2, 2], [1, 1], [1, 1], [1, 1])  # (2, 5, 4, 5)
    flop = 2 * (2 * 5 * 4 * 5) * (3 * 3 * 3)
    assert counted(made, x) == {"convolution": Work(flop, 0, 5 * 3 * 9 * 4, 2 * 3 * 8 * 10 + 2 * 5 * 4 * 5)}


def test_a_convolution_in_groups() -> None:
    x = parameter(1, 6, 4, 4)
    made = ops.group_convolution(x, weights(3, 4, 2, 1, 1), [1, 1], [0, 0], [0, 0], [1, 1])  # (1, 12, 4, 4)
    flop = 2 * (12 * 4 * 4) * 2
    assert counted(made, x) == {"convolution": Work(flop, 0, 3 * 4 * 2 * 4, (6 + 12) * 16)}


def test_a_transposed_convolution_has_the_taps_of_what_comes_in() -> None:
    x = parameter(1, 4, 6, 6)
    kernel = weights(4, 5, 4, 4, dtype=np.float16)
    made = ops.convolution_backprop_data(x, ops.convert(kernel, "f32"), [2, 2], pads_begin=[1, 1], pads_end=[1, 1])
    assert list(made.output(0).shape) == [1, 5, 12, 12]
    flop = 2 * (4 * 6 * 6) * (5 * 4 * 4)
    stored = 4 * 5 * 4 * 4 * 2
    assert counted(made, x) == {"transposed convolution": Work(flop, 0, stored, 4 * 36 + 5 * 144)}
    y = parameter(1, 4, 6, 6)
    grouped = ops.group_convolution_backprop_data(y, weights(2, 2, 3, 2, 2), [2, 2])  # (1, 6, 12, 12)
    found = counted(grouped, y)
    assert found and found["transposed convolution"].flop == 2 * (4 * 6 * 6) * (3 * 2 * 2)


@pytest.mark.parametrize("turned", [False, True])
def test_a_product_with_weights_and_without(turned: bool) -> None:
    x = parameter(2, 16, 7) if turned else parameter(2, 7, 16)
    linear = ops.matmul(x, weights(16, 9), turned, False)
    assert counted(linear, x) == {"linear": Work(2 * (2 * 7 * 9) * 16, 0, 16 * 9 * 4, 2 * 7 * 16 + 2 * 7 * 9)}
    x, y = parameter(2, 16, 7) if turned else parameter(2, 7, 16), parameter(2, 16, 9)
    found = counted(ops.matmul(x, y, turned, False), x, y)
    assert found == {"attention": Work(2 * (2 * 7 * 9) * 16, 0, 0, 2 * (7 * 16 + 16 * 9 + 7 * 9))}


def test_attention_is_the_same_in_one_piece_and_in_two() -> None:
    shapes = [(2, 8, 64, 40), (2, 8, 77, 40), (2, 8, 77, 32)]
    flop = 2 * (2 * 8) * (64 * 77 * 40 + 64 * 77 * 32)
    inputs = [parameter(*shape) for shape in shapes]
    whole = counted(ops.scaled_dot_product_attention(*inputs), *inputs)
    assert whole == {"attention": Work(flop, 0, 0, 16 * (64 * 40 + 77 * 40 + 77 * 32 + 64 * 32))}
    q, k, v = (parameter(*shape) for shape in shapes)
    parts = counted(ops.matmul(ops.softmax(ops.matmul(q, k, False, True), -1), v, False, False), q, k, v)
    assert parts and parts["attention"].flop == flop


def test_eight_bits_are_counted_where_both_factors_have_them() -> None:
    x = parameter(4, 16)
    flop = 2 * 4 * 8 * 16

    def int8(left: Any, right: Any) -> float:
        return arithmetic.flop(ov.Model([ops.matmul(left, right, False, True)], [x])).int8

    assert int8(rounded(x), eight_bits(8, 16)) == flop
    assert int8(ops.reshape(rounded(x), [4, 16], False), eight_bits(8, 16)) == flop
    assert int8(rounded(x), rounded(weights(8, 16))) == flop
    assert int8(x, eight_bits(8, 16)) == 0  # weights alone: they are widened before they are multiplied
    assert int8(rounded(x), weights(8, 16)) == 0
    assert int8(rounded(x, levels=65536), eight_bits(8, 16)) == 0
    assert int8(ops.multiply(rounded(x), x), eight_bits(8, 16)) == 0
    found = counted(ops.matmul(rounded(x), eight_bits(8, 16), False, True), x)
    assert found == {"linear": Work(flop, flop, 8 * 16 + 8 * 4, 4 * 16 + 4 * 8)}


def test_what_is_constant_is_no_arithmetic() -> None:
    x = parameter(4, 8)
    found = counted(ops.add(x, ops.matmul(weights(4, 16), weights(16, 8), False, False)), x)
    assert found is not None and sum(found.values(), arithmetic.NOTHING) == arithmetic.NOTHING


def test_free_shapes_and_hidden_products_are_not_counted() -> None:
    free = ops.parameter([-1, 16], np.float32)
    assert counted(ops.matmul(free, weights(16, 8), False, False), free) is None
    x = parameter(4, 16)
    assert counted(ops.einsum([x, weights(16, 8)], "ab,bc->ac"), x) is None
    assert arithmetic.flop(ov.Model([ops.einsum([x, weights(16, 8)], "ab,bc->ac")], [x])) is None


SHAPES = {"sample": (2, 4, 16, 16), "encoder_hidden_states": (2, 77, 128)}


def test_nestlings_count_survives_the_cache(nestling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path))
    unet = nestling / "fp16" / "unet"
    first, again = (create("openvino").compile(unet, SHAPES, precision="f32", cache_key="one") for _ in range(2))
    assert (first.cache, again.cache) == ("miss", "hit")
    assert isinstance(again.flop, Flop) and again.flop == first.flop
    assert first.flop is not None and first.flop.total > 1e9 and first.flop.int8 == 0


def test_two_pictures_take_twice_the_arithmetic(nestling: Path) -> None:
    model = ov.Core().read_model(nestling / "fp16" / "unet" / "openvino_model.xml")
    found = []
    for batch in (1, 2):
        shapes = {name: (batch, *shape[1:]) for name, shape in SHAPES.items()}
        model.reshape({port: shapes.get(port.any_name, (1,)) for port in model.inputs})
        found.append(arithmetic.flop(model))
    assert found[1] == Flop(2 * found[0].total, 0)


def test_an_entry_of_before_has_no_count(nestling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path))
    words = {"precision": "f32", "cache_key": "one"}
    encoder = nestling / "fp16" / "text_encoder"
    monkeypatch.setattr(arithmetic, "flop", lambda _: None)
    assert create("openvino").compile(encoder, {"input_ids": (1, 77)}, **words).flop is None
    again = create("openvino").compile(encoder, {"input_ids": (1, 77)}, **words)
    assert (again.cache, again.flop) == ("hit", None)
