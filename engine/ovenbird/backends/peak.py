"""How fast this machine multiplies matrices and moves memory: measured with the runtime itself, and remembered."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ovenbird import cache, machine
from ovenbird.backends import arithmetic
from ovenbird.backends.openvino import core
from ovenbird.timing import INT8, Peak

KINDS = ("f32", "bf16", "f16", INT8)
"""In ``int8`` numbers without a sign are multiplied by weights with one."""
MEASURED_S = 0.3
ALIKE = 0.95
"""Two measurements that differ by less are of the same peak."""
DEPTH = 4
"""Layers in a row, next to which what happens before and after them is small."""
MATRIX, ROWS_PER_THREAD = 1024, 256
CHANNELS, SIDE = 256, 32
COPIED_BYTES = 256 << 20
COPIES = 5


def best(kind: str, threads: int, reached: float, *, measured: bool) -> Peak | None:
    """What is remembered; with ``measured`` it is measured unless it was seen twice and is more than was ``reached``.

    In GFLOP/s.  None where nothing is remembered, or there is no such arithmetic.
    """
    found = remembered(kind, threads)
    if measured and kind in KINDS and not (found and found.confirmed and found.gflop_per_s >= reached):
        return measure(kind, threads)
    return found


def remembered(kind: str, threads: int) -> Peak | None:
    """What was measured before with this processor, these instruction sets, threads and OpenVINO, or None."""
    try:
        note = json.loads(cache.read(_key(kind, threads)) or b"")
        return Peak(float(note["gflop_per_s"]), str(note["measured"]), bool(note["confirmed"]))
    except (ValueError, KeyError, TypeError):
        return None


def measure(kind: str, threads: int) -> Peak:
    """Measure for half a second and remember.  Other work can only slow it down, so the most ever seen stays."""
    now = Peak(max(_rates(kind, threads)), time.strftime("%Y-%m-%d %H:%M"))
    before = remembered(kind, threads)
    if before:
        most, less = sorted([before, now], key=lambda found: found.gflop_per_s, reverse=True)
        alike = less.gflop_per_s > ALIKE * most.gflop_per_s
        now = most._replace(confirmed=alike or most.confirmed)
    cache.write(_key(kind, threads), json.dumps(now._asdict() | {"facts": _facts(kind, threads)}).encode())
    return now


def bandwidth(threads: int) -> float:
    """GB/s that are read and written when more is copied than caches hold."""
    source = np.ones(COPIED_BYTES // 8)
    target = np.zeros_like(source)
    pieces = np.array_split(target, threads), np.array_split(source, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(COPIES):
            began = time.perf_counter()
            list(pool.map(np.copyto, *pieces))
            best = min(best, time.perf_counter() - began)
    return (source.nbytes + target.nbytes) / best / 1e9


def _facts(kind: str, threads: int) -> dict[str, Any]:
    """All that a peak depends on."""
    return {
        "arithmetic": kind,
        "threads": threads,
        "cpu": machine.cpu_name(),
        "instruction_sets": machine.instruction_sets(),
        "isa_limit": machine.isa_limit(),
        "runtime": ov.get_version(),
    }


def _key(kind: str, threads: int) -> str:
    return f"peak-{cache.digest(_facts(kind, threads))[:16]}"


def _rates(kind: str, threads: int) -> Iterator[float]:
    """GFLOP/s of products of matrices and of convolutions in turn: either may be faster."""
    properties = {
        "INFERENCE_PRECISION_HINT": "f32" if kind == INT8 else kind,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    draw = np.random.default_rng(0)
    runs = []
    for model in (products(kind, threads), convolutions(kind, threads)):
        flop = arithmetic.flop(model)
        assert flop
        request = core().compile_model(model, "CPU", properties).create_infer_request()
        # Zeros would let a processor run faster than numbers do.
        request.set_input_tensor(ov.Tensor(draw.random(model.input(0).shape, np.float32)))
        request.infer()  # the first call is slower
        runs.append((flop.total / 1e9, request))
    ends = time.perf_counter() + MEASURED_S
    while True:
        for gflop, request in runs:
            began = time.perf_counter()
            request.infer()
            yield gflop / (time.perf_counter() - began)
        if time.perf_counter() > ends:
            return


def products(kind: str, threads: int) -> ov.Model:
    """Matrices by one matrix, again and again."""
    values = layer = ops.parameter([max(MATRIX, ROWS_PER_THREAD * threads), MATRIX], np.float32)
    weights = _weights((MATRIX, MATRIX), kind)
    for _ in range(DEPTH):
        layer = ops.matmul(_values(layer, kind), weights, False, True)
    return ov.Model([layer], [values])


def convolutions(kind: str, threads: int) -> ov.Model:
    """3x3, as U-Nets have them."""
    values = layer = ops.parameter([max(1, threads // 8), CHANNELS, SIDE, SIDE], np.float32)
    kernel = _weights((CHANNELS, CHANNELS, 3, 3), kind)
    for _ in range(DEPTH):
        layer = ops.convolution(_values(layer, kind), kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    return ov.Model([layer], [values])


def _values(node: Any, kind: str) -> Any:
    """As NNCF rounds what flows between layers."""
    ends = (np.float32(0), np.float32(1))
    return ops.fake_quantize(node, *ends, *ends, 256) if kind == INT8 else node


def _weights(shape: tuple[int, ...], kind: str) -> Any:
    """In eight bits with a scale for each row, as NNCF keeps them."""
    draw = np.random.default_rng(0)
    if kind != INT8:
        # So that layer after layer the numbers stay of one size.
        return ops.constant(draw.standard_normal(shape, np.float32) / np.float32(np.prod(shape[1:]) ** 0.5))
    scales = np.full((shape[0], *(1 for _ in shape[1:])), 1e-3, np.float32)
    eight = ops.constant(draw.integers(-127, 128, shape, np.int8))
    return ops.multiply(ops.convert(eight, "f32"), ops.constant(scales))
