"""The memory that the cache of compiled models takes: a large model compiled without it, kept in it, loaded from it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

SIDE, LAYERS = 1600, 20
RUN = """
import sys
from pathlib import Path
from ovenbird import machine
from ovenbird.backends import create
folder, side, key = sys.argv[1:]
model = create("openvino").compile(Path(folder), {"x": (1, int(side))}, precision="f32", cache_key=key or None)
print(model.cache, machine.peak_rss_mib())
"""


def measure() -> dict[str, Any]:
    """The largest resident memory of a process, in MiB, for each of ``off``, ``miss`` and ``hit``."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "unet")
        size = _write(model)
        peaks = dict(_run(model, key) for key in ("", "one", "one"))
    return {"model_bytes": size, "peak_mib": peaks}


def _write(folder: Path) -> int:
    draw = np.random.default_rng(0)
    x = ops.parameter([1, SIDE], np.float32, name="x")
    y = x
    for _ in range(LAYERS):
        y = ops.relu(ops.matmul(y, ops.constant(draw.standard_normal((SIDE, SIDE), np.float32)), False, True))
    folder.mkdir()
    ov.save_model(ov.Model([y], [x], "large"), folder / "openvino_model.xml", compress_to_fp16=False)
    return (folder / "openvino_model.bin").stat().st_size


def _run(model: Path, key: str) -> tuple[str, float]:
    environment = {**os.environ, "OVENBIRD_CACHE": str(model.parent / "cache")}
    words = [sys.executable, "-c", RUN, str(model), str(SIDE), key]
    state, peak = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout.split()
    return state, float(peak)
