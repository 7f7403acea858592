"""Changes of graphs: the exact ones give the same numbers, the others what they promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from ovenbird.backends import DEEP, EXACT, Edits, create, rewrites
from ovenbird.backends.openvino import core
from ovenbird.errors import ModelError, RequestError

Array = NDArray[np.float32]
RNG = np.random.default_rng(3)


def numbers(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def run(model: ov.Model, *inputs: Array) -> list[Array]:
    runs = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(output) for output in runs(list(inputs)).values()]


def close(found: Array, wanted: Array) -> bool:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max()) < 1e-6


def half(weights: Array) -> Any:
    return ops.convert(ops.constant(weights.astype(np.float16)), np.float32)


def eighth(weights: Array) -> Any:
    scale = np.abs(weights).max(1, keepdims=True) / 127
    whole = ops.convert(ops.constant(np.round(weights / scale).astype(np.int8)), np.float32)
    return ops.multiply(whole, ops.constant(scale))


def fake(weights: Array) -> Any:
    most = ops.constant(np.abs(weights).max(1, keepdims=True))
    least = ops.constant(-np.abs(weights).max(1, keepdims=True))
    return ops.fake_quantize(half(weights), least, most, least, most, 255)


def geglu(weights: Any, across: bool, *, swapped: bool = False) -> ov.Model:
    x = ops.parameter([2, 6, 8], np.float32)
    made = ops.add(ops.matmul(x, weights, False, across), ops.constant(numbers(1, 1, 12)))
    halves = [
        ops.slice(made, np.array([start]), np.array([start + 6]), np.array([1]), np.array([2])) for start in (0, 6)
    ]
    value, gate = reversed(halves) if swapped else halves
    return ov.Model([ops.multiply(value, ops.gelu(gate, "erf"))], [x])


@pytest.mark.parametrize(("stored", "across"), [(half, True), (half, False), (eighth, True), (fake, True)])
def test_a_gate_is_split_and_the_same(stored: Callable[[Array], Any], across: bool) -> None:
    weights = stored(numbers(12, 8) if across else numbers(8, 12))
    model, x = geglu(weights, across), numbers(2, 6, 8)
    [wanted] = run(model, x)
    assert rewrites.split_gates(model) == 1
    model.validate_nodes_and_infer_types()
    assert not [node for node in model.get_ops() if node.get_type_name() == "Slice"]
    assert close(run(model, x)[0], wanted)


@pytest.mark.parametrize("kind", [ov.Type.bf16, ov.Type.i4])
def test_weights_that_numpy_does_not_show_as_they_are_stay(kind: ov.Type) -> None:
    weights = ops.convert(ops.constant(np.clip(np.round(3 * numbers(12, 8)), -8, 7), kind), np.float32)
    model, x = geglu(weights, True), numbers(2, 6, 8)
    [wanted] = run(model, x)
    assert rewrites.split_gates(model) == 0
    model.validate_nodes_and_infer_types()
    assert (run(model, x)[0] == wanted).all()


def test_a_gate_that_is_the_first_half_stays() -> None:
    assert rewrites.split_gates(geglu(half(numbers(12, 8)), True, swapped=True)) == 0


def upsampling(height: int, width: int, *, factor: int = 2, mode: str = "nearest", kernel: int = 3) -> ov.Model:
    x = ops.parameter([2, 4, height, width], np.float32)
    scales = np.array([factor, factor], np.float32)
    larger = ops.interpolate(
        x,
        scales,
        mode,
        "scales",
        axes=np.array([2, 3]),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    pad = [kernel // 2] * 2
    return ov.Model([ops.convolution(larger, half(numbers(5, 4, kernel, kernel)), [1, 1], pad, pad, [1, 1])], [x])


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (1, 6)])
def test_upsampling_and_convolution_are_one_and_the_same(size: tuple[int, int]) -> None:
    model, x = upsampling(*size), numbers(2, 4, *size)
    [wanted] = run(model, x)
    assert rewrites.upsample_by_convolution(model) == 1
    assert not [node for node in model.get_ops() if node.get_type_name() == "Interpolate"]
    assert close(run(model, x)[0], wanted)


@pytest.mark.parametrize("others", [{"factor": 3}, {"mode": "linear_onnx"}, {"kernel": 1}])
def test_other_upsampling_stays(others: dict[str, Any]) -> None:
    assert rewrites.upsample_by_convolution(upsampling(4, 4, **others)) == 0


def attention(height: int, width: int, *, quantised: bool = False) -> tuple[ov.Model, list[Array]]:
    """Of (1, H W, 6), with 2 heads, and a sample that says how it lies."""
    sample = ops.parameter([1, 6, height, width], np.float32, "sample")
    sample.output(0).set_names({"sample"})
    x: Any = ops.reshape(ops.transpose(sample, np.array([0, 2, 3, 1])), np.array([1, height * width, 6]), False)
    if quantised:
        x = ops.fake_quantize(x, *map(ops.constant, np.array([-4, 4, -4, 4], np.float32)), 256)
    weights = [numbers(6, 6) for _ in range(3)]
    heads = [
        ops.transpose(
            ops.reshape(ops.matmul(x, ops.constant(weight), False, False), np.array([1, -1, 2, 3]), False),
            np.array([0, 2, 1, 3]),
        )
        for weight in weights
    ]
    return ov.Model([ops.scaled_dot_product_attention(*heads)], [sample]), weights


def by_hand(x: Array, weights: list[Array]) -> Array:
    """(1, 6, H, W) -> (1, 2, H W, 3), with means of 2x2 cells for keys and values."""
    _, channels, height, width = x.shape
    means = x.reshape(1, channels, height // 2, 2, width // 2, 2).mean((3, 5))
    q, k, v = (
        (seen.reshape(channels, -1).T @ weight).reshape(-1, 2, 3).transpose(1, 0, 2)
        for seen, weight in zip((x, means, means), weights, strict=True)
    )
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(3))
    return (scores / scores.sum(-1, keepdims=True) @ v)[None]


@pytest.mark.parametrize("size", [(4, 4), (2, 8), (6, 4)])
def test_pooled_attention_is_over_means(size: tuple[int, int]) -> None:
    model, weights = attention(*size)
    x = numbers(1, 6, *size)
    assert rewrites.pool_keys(model) == 1
    assert np.abs(run(model, x)[0] - by_hand(x, weights)).max() < 1e-5


def test_pooled_attention_of_equal_cells_changes_nothing() -> None:
    x = numbers(1, 6, 3, 4).repeat(2, 2).repeat(2, 3)
    model, _ = attention(6, 8, quantised=True)
    [wanted] = run(model, x)
    assert rewrites.pool_keys(model) == 1
    assert np.abs(run(model, x)[0] - wanted).max() < 0.05  # the mean of what is quantised is quantised again


def test_where_nothing_attends_nothing_is_pooled() -> None:
    assert rewrites.pool_keys(upsampling(4, 4)) == 0
    x = ops.parameter([1, 4, 8, 8], np.float32)
    deep = ops.parameter([1, 4, 8, 8], np.float32)
    model = ov.Model([ops.concat([ops.relu(ops.concat([deep, x], 1)), x], 1)], [x, deep])
    assert rewrites.edited(model, Edits(pooled=True, depth=1, shallow=True)).inputs[-1].any_name == DEEP


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (1, 2)])
def test_cells_that_are_not_even_are_not_pooled(size: tuple[int, int]) -> None:
    model, _ = attention(*size)
    assert rewrites.pool_keys(model) == 0
    with pytest.raises(ModelError, match="no self-attention over 2x2 cells"):
        rewrites.edited(model, Edits(pooled=True))


SHAPES = {"sample": (2, 4, 16, 16), "timestep": (), "encoder_hidden_states": (2, 77, 128)}


@pytest.fixture(scope="module")
def unet(nestling: Path) -> Callable[[Edits], Any]:
    backend, folder = create("openvino"), nestling / "fp16" / "unet"
    return lambda edits: backend.compile(folder, SHAPES, precision="f32", cache_key=None, edits=edits)


@pytest.fixture(scope="module")
def inputs(unet: Callable[[Edits], Any]) -> dict[str, Array]:
    made = np.random.default_rng(1)
    shapes = {name: port.shape for name, port in unet(Edits(())).inputs.items() if name != "timestep"}
    given = {name: made.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**given, "timestep": np.array(321.0, np.float32)}


@pytest.mark.parametrize("name", EXACT)
def test_each_exact_edit_of_nestling_only_rounds(
    name: str, unet: Callable[[Edits], Any], inputs: dict[str, Array]
) -> None:
    wanted = unet(Edits(()))(inputs)["out_sample"]
    assert close(unet(Edits((name,)))(inputs)["out_sample"], wanted)


@pytest.mark.parametrize(("component", "name", "places"), [("unet", "gates", 7), ("unet", "upsampling", 2)])
def test_exact_edits_find_their_places(nestling: Path, component: str, name: str, places: int) -> None:
    model = core().read_model(nestling / "fp16" / component / "openvino_model.xml")
    model.reshape({port: [2, *(4, 16, 16)] for port in model.inputs if "sample" in port.get_names()})
    assert rewrites.REWRITES[name](model) == places


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_outermost_layers_go_on_from_deep_features(
    depth: int, unet: Callable[[Edits], Any], inputs: dict[str, Array]
) -> None:
    full = unet(Edits(depth=depth))(inputs)
    shallow = unet(Edits(depth=depth, shallow=True))
    assert set(shallow.inputs) == {*inputs, DEEP} and set(full) == {"out_sample", DEEP}
    assert close(shallow({**inputs, DEEP: full[DEEP]})["out_sample"], full["out_sample"])
    other = shallow({**inputs, DEEP: 0 * full[DEEP]})["out_sample"]
    assert not close(other, full["out_sample"])


def test_there_are_only_so_many_layers(unet: Callable[[Edits], Any]) -> None:
    with pytest.raises(ModelError, match=r"reuse_depth: 10 is not from 1 to \d"):
        unet(Edits(depth=10))


def test_onnxruntime_refuses_what_it_has_not(nestling: Path) -> None:
    pytest.importorskip("onnxruntime")
    backend, folder = create("onnxruntime"), nestling / "fp16" / "unet"
    for edits in (Edits(pooled=True), Edits(depth=2)):
        with pytest.raises(RequestError, match="no pooled attention"):
            backend.compile(folder, SHAPES, precision="f32", cache_key=None, edits=edits)
