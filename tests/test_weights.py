"""Weights in the type of the arithmetic: the same numbers, rounded once, in memory that can be given back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from ovenbird import compiled, machine, mapped
from ovenbird.backends import Edits, create
from ovenbird.backends.openvino import core
from ovenbird.backends.weights import _as_bf16, narrow, settle
from ovenbird.mapped import Mapped

RNG = np.random.default_rng(5)
KERNEL, BIAS = RNG.standard_normal((6, 4)).astype(np.float16), RNG.standard_normal((1, 4)).astype(np.float32)
SHAPES = {"sample": (1, 4, 8, 8), "encoder_hidden_states": (1, 77, 128)}


def in_memory(size: int) -> Mapped:
    return mapped.room(max(size, 1), None)


def half(weights: NDArray[Any]) -> Any:
    return ops.convert(ops.constant(weights.astype(np.float16)), np.float32)


def graph(weights: Any) -> ov.Model:
    """Sines of a timestep, their product with weights, a bias, and a scale that is made of a shape."""
    timestep = ops.parameter([2, 6], np.float32, "timestep")
    waves = ops.sin(ops.multiply(timestep, half(np.arange(6.0))))
    made = ops.add(ops.matmul(waves, weights, False, False), ops.constant(BIAS))
    width = ops.convert(ops.gather(ops.shape_of(made), np.array([1]), np.array(0)), np.float32)
    result = ops.result(ops.divide(made, ops.sqrt(width)))
    result.input_value(0).set_names({"out"})
    timestep.output(0).set_names({"timestep"})
    return ov.Model([result], [timestep], "graph")


def types(model: ov.Model) -> dict[str, set[str]]:
    """Kind of operator -> types of what it gives."""
    found: dict[str, set[str]] = {}
    for node in model.get_ordered_ops():
        if node.get_output_size():
            found.setdefault(node.get_type_name(), set()).add(node.get_output_element_type(0).get_type_name())
    return found


def bits(values: NDArray[Any]) -> list[int]:
    place = np.zeros(2 * values.size, np.uint8)
    _as_bf16(values, place)
    return [int(each) for each in place.view(np.uint16)]


def test_from_the_first_product_on_all_is_bf16() -> None:
    model = graph(half(KERNEL))
    settled, home = settle(model, "bf16", in_memory)
    assert home is not None and home.bytes.size == 128  # each begins at a multiple of 64
    found = types(settled)
    assert found["Sin"] == {"f32"} and found["Sqrt"] == {"f32"}
    assert found["MatMul"] == found["Add"] == found["Divide"] == {"bf16"}
    assert [port.get_names() for port in (*settled.inputs, *settled.outputs)] == [{"timestep"}, {"out"}]
    assert {port.get_element_type() for port in (*settled.inputs, *settled.outputs)} == {ov.Type.f32}
    assert types(model)["MatMul"] == {"f32"}


@pytest.mark.parametrize("precision", ["bf16", "f32"])
def test_the_numbers_are_those_of_the_graph_as_it_was(precision: str) -> None:
    timesteps = RNG.uniform(0, 999, (2, 6)).astype(np.float32)

    def run(model: ov.Model) -> NDArray[Any]:
        runs = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.array(runs([timesteps])[0])

    wanted = run(graph(half(KERNEL)))
    settled, home = settle(graph(half(KERNEL)), precision, in_memory)
    assert home is not None
    worst = float(np.abs(run(settled) - wanted).max() / np.abs(wanted).max())
    assert worst == 0 if precision == "f32" else 0 < worst < 0.02


def test_halves_become_f32_and_nothing_else_changes() -> None:
    settled, home = settle(graph(half(KERNEL)), "f32", in_memory)
    assert home is not None
    assert types(settled)["Constant"] == {"f32", "i64"} and types(settled)["Convert"] == {"f32"}


@pytest.mark.parametrize(
    "weights",
    [
        ops.multiply(ops.convert(ops.constant(np.ones((6, 4), np.int8)), np.float32), ops.constant(np.float32(0.1))),
        ops.fake_quantize(half(KERNEL), *(ops.constant(np.float32(end)) for end in (-1, 1, -1, 1)), 255),
    ],
)
def test_weights_in_eight_bits_stay(weights: Any) -> None:
    model = graph(weights)
    assert settle(model, "bf16", in_memory) == (model, None)


def eighths(weights: Any) -> Any:
    """What is rounded to eight bits, times weights that are stored so; 64 numbers in all."""
    ends = (ops.constant(np.float32(end)) for end in (0, 1, 0, 1))
    x = ops.parameter([1, 64], np.float32, name="x")
    made = ops.matmul(ops.fake_quantize(x, *ends, 256), weights, False, True)
    made.output(0).set_names({"y"})
    return ov.Model([made], [x], "eighths")


def loud() -> Any:
    stored = np.where(np.arange(64)[:, None] % 2, 127, -101).astype(np.int8) * np.ones((1, 64), np.int8)
    return ops.multiply(ops.convert(ops.constant(stored), np.float32), ops.constant(np.full((64, 1), 0.01, np.float32)))


def test_weights_in_eight_bits_are_rounded_to_seven_where_sums_would_overflow() -> None:
    model = eighths(loud())
    home = narrow(model, in_memory)
    assert home is not None
    [stored] = [op.data for op in model.get_ops() if op.get_type_name() == "Constant" and op.data.dtype == np.int8]
    assert np.unique(stored).tolist() == [-50, 64]  # halves go to the even ones
    assert narrow(graph(half(KERNEL)), in_memory) is None
    floats = ov.Model([ops.matmul(x := ops.parameter([1, 64], np.float32), loud(), False, True)], [x], "weights only")
    assert narrow(floats, in_memory) is None


@pytest.mark.skipif("avx2" not in machine.instruction_sets(), reason="the limit is one of x86 processors")
def test_eight_bits_do_not_overflow_on_a_processor_without_instructions_for_them(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    ov.save_model(eighths(loud()), tmp_path / "unet" / "openvino_model.xml", compress_to_fp16=False)
    script = """
import sys
from pathlib import Path
import numpy as np
from ovenbird.backends import create
from ovenbird.machine import overflows_at_eight_bits
assert overflows_at_eight_bits()
model = create("openvino").compile(Path(sys.argv[1]), {}, precision="f32", cache_key=None)
found = model({"x": np.ones((1, 64), np.float32)})["y"]
np.testing.assert_allclose(found, np.tile([-64.64, 81.28], 32)[None], rtol=0.015)
"""
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "unet")], env=limited, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_takes_float32_alone_stays() -> None:
    x = ops.parameter([1, 4], np.float32)
    made = ops.matmul(x, half(KERNEL[:4, :4]), False, False)
    cell = ops.lstm_sequence(
        ops.unsqueeze(made, np.array(1)),
        *(ops.constant(np.zeros((1, 1, 4), np.float32)) for _ in range(2)),
        ops.constant(np.array([1])),
        *(ops.constant(np.zeros(shape, np.float32)) for shape in ((1, 16, 4), (1, 16, 4), (1, 16))),
        4,
        "forward",
    )
    model = ov.Model([cell.output(0)], [x], "inside")
    assert settle(model, "bf16", in_memory) == (model, None)
    assert settle(graph(half(KERNEL)), "f16", in_memory)[1] is None


def test_bf16_is_rounded_to_the_nearest_and_what_is_finite_stays_so() -> None:
    torch = pytest.importorskip("torch")
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    assert bits(finite) == torch.from_numpy(finite).to(torch.bfloat16).view(torch.uint16).tolist()
    ties = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 1, 0x80000000], np.uint32).view(np.float32)
    assert bits(ties) == [0x3F80, 0x3F82, 0x3F81, 0, 0x8000]
    ends = np.array([np.finfo(np.float32).max, np.finfo(np.float32).min, np.inf, -np.inf], np.float32)
    assert bits(ends) == [0x7F7F, 0xFF7F, 0x7F80, 0xFF80]
    for dtype in (np.float16, np.float32):
        assert np.isnan((np.array(bits(np.array([np.nan], dtype)), np.uint32) << 16).view(np.float32)).all()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "compiled"


def test_room_lies_in_a_file_that_is_gone_at_once(home: Path) -> None:
    found = compiled.scratch(5000)
    assert found.in_file and not [*home.iterdir()]
    found.bytes[:] = 7
    found.drop_pages()
    assert found.bytes.size == 5000 and (found.bytes == 7).all()


@pytest.mark.parametrize("how", ["no room on the disk", "no folder", "over the limit"])
def test_else_in_memory_where_nothing_is_dropped(how: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    if how == "no folder":
        home.parent.write_bytes(b"a file")
    monkeypatch.setenv("OVENBIRD_CACHE_LIMIT", "4KiB" if how == "over the limit" else "1GiB")
    monkeypatch.setattr("os.posix_fallocate", full if how == "no room on the disk" else None)
    found = compiled.scratch(5000)
    found.bytes[:] = 7
    found.drop_pages()
    assert not found.in_file and (found.bytes == 7).all()
    assert not home.is_dir() or not [*home.iterdir()]


def test_it_can_be_switched_off(nestling: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(compiled, "scratch", lambda size: asked.append(size) or in_memory(size))  # type: ignore[func-returns-value]
    backend, given = create("openvino"), {"timestep": np.array(321.0, np.float32)}
    given |= {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    found = []
    for edits in (Edits(()), Edits(("weights",))):
        model = backend.compile(nestling / "fp16" / "unet", SHAPES, precision="f32", cache_key=None, edits=edits)
        found.append(model(given)["out_sample"])
    assert len(asked) == 1 and asked[0] > 20e6
    assert np.array_equal(*found)
