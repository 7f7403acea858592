"""How near each component comes to what the machine can do, and where the rest of the time goes, by operator type."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from statistics import fmean, median
from typing import Any

import openvino as ov

from ovenbird import Pipeline, Request, machine
from ovenbird.backends import Arrays, arithmetic, peak
from ovenbird.backends.arithmetic import NOTHING, PRODUCTS
from ovenbird.backends.openvino import OpenVINO, OpenVINOModel
from ovenbird.models import open_model
from ovenbird.timing import INT8

Figures = dict[str, Any]
GROUPS = {
    "transposed convolution": ("ConvolutionBackpropData", "GroupConvolutionBackpropData", "Deconvolution"),
    "convolution": ("Convolution", "GroupConvolution"),
    "linear": ("FullyConnected",),
    "attention": ("MatMul", "Softmax", "ScaledDotProductAttention"),
    "normalisation": ("MVN", "NormalizeL2", "GroupNormalization", "RMS"),
    "layout": ("Reorder", "Transpose"),
    "elementwise": (
        *("Subgraph", "Eltwise", "Add", "Multiply", "Subtract", "Divide", "Power", "Sqrt", "Sin", "Cos"),
        *("Swish", "Gelu", "Sigmoid", "HSwish", "Math", "Convert", "FakeQuantize", "Maximum", "Minimum", "Clamp"),
    ),
}
"""Group -> how types of nodes begin that belong to it, in OpenVINO's profiles; the first that fits."""
REST = "rest"


class Part:
    """A component that was compiled, what it was last called with, and what its graph holds."""

    def __init__(self, name: str, model: OpenVINOModel, runs: ov.CompiledModel, graph: ov.Model) -> None:
        self.name, self._model, self._runs = name, model, runs
        self.inputs, self.precision, self.cache, self.device = model.inputs, model.precision, model.cache, model.device
        self.flop = model.flop
        self.work = arithmetic.count(graph) or {}
        products = {node.get_friendly_name() for node in graph.get_ops() if node.get_type_name() in PRODUCTS}
        self._attention = {name for name, inside in _fused(runs) if inside & products}
        self._given: Arrays = {}
        self._calls = 0

    def __call__(self, inputs: Arrays) -> Any:
        """See ``CompiledModel``."""
        self._given = inputs
        self._calls += 1
        return self._model(inputs)

    def measure(self, calls: int) -> tuple[list[float], dict[str, Figures]]:
        """Seconds of each call, and what is spent in each group in the mean of them."""
        found, before, earlier = [], self._profile(), self._calls
        for _ in range(calls):
            began = time.perf_counter()
            self(self._given)
            found.append(time.perf_counter() - began)
        return found, self._grouped(earlier, before, self._profile(), sum(found) / calls)

    def _profile(self) -> list[Any]:
        return list(self._model._request.get_profiling_info())

    def _grouped(self, earlier: int, before: list[Any], after: list[Any], mean: float) -> dict[str, Figures]:
        """OpenVINO tells means over all calls since compiling, of which there were some before: they are taken out."""
        spent: dict[str, Counter[str]] = {name: Counter() for name in (*GROUPS, REST)}
        calls = self._calls - earlier
        for old, new in zip(before, after, strict=True):
            total = new.real_time.total_seconds() * self._calls - old.real_time.total_seconds() * earlier
            if total > 0:
                group = "attention" if new.node_name in self._attention else group_of(new.node_type)
                spent[group][f"{new.node_type} {new.exec_type}"] += total / calls
        # Between the nodes, and before and after them.
        spent[REST]["outside"] = max(0.0, mean - sum(sum(kernels.values()) for kernels in spent.values()))
        return {
            name: {"seconds": sum(kernels.values()), "kernels": dict(kernels.most_common())}
            for name, kernels in spent.items()
            if kernels
        }


def _fused(runs: ov.CompiledModel) -> list[tuple[str, set[str]]]:
    """Nodes that stand for several operators of the graph, and which."""
    nodes = [(node.get_friendly_name(), node.get_rt_info()) for node in runs.get_runtime_model().get_ops()]
    fused = [(name, facts) for name, facts in nodes if facts["layerType"].value == "Subgraph"]
    return [(name, set(facts["originalLayersNames"].value.split(","))) for name, facts in fused]


def group_of(node_type: str) -> str:
    """Of a type of node, as OpenVINO's profiles call it."""
    return next((name for name, starts in GROUPS.items() if node_type.startswith(starts)), REST)


class Profiled(OpenVINO):
    """The runtime as pipelines use it, with a profile of every call, and nothing from the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Part] = []
        self._made: list[tuple[ov.CompiledModel, ov.Model]] = []

    def compile(self, folder: Path, shapes: Any, **options: Any) -> Any:
        """See ``Backend``."""
        model = super().compile(folder, shapes, **options | {"cache_key": None})
        part = Part(folder.name, model, *self._made.pop())
        self.parts.append(part)
        return part

    def _compile(self, model: ov.Model, properties: Any, folder: Path) -> ov.CompiledModel:
        runs = super()._compile(model, {**properties, "PERF_COUNT": True}, folder)
        self._made.append((runs, model))
        return runs


def measure(folder: Path, precision: str | None, calls: int) -> tuple[str, Figures]:
    """One exported model in one arithmetic, None for the best: a name for it, and its figures.

    Every component runs in a picture first, so that shapes, inputs and graph are those of real runs.
    """
    backend = Profiled()
    bundle = open_model(folder, None, backend.name, offline=True)
    pipeline = Pipeline(bundle, backend, inference_precision=precision)
    kinds = dict.fromkeys(["f32", backend.best_precision("fp16"), pipeline.precision, INT8])
    pipeline.generate(Request(prompt="a lighthouse", seed=1, num_inference_steps=2))
    measured = []
    for part in backend.parts:
        measured.append((part, *part.measure(calls)))
        # Each time, since other work may disturb it: the most ever seen is kept.
        peaks = {kind: peak.measure(kind, backend.threads).gflop_per_s for kind in kinds}
    figures: Figures = {
        "cpu": machine.cpu_name(),
        "threads": backend.threads,
        "side": bundle.default_size,
        "calls": calls,
        "peak_gflop_per_s": peaks,
        "gb_per_s": peak.bandwidth(backend.threads),
        "components": {},
    }
    for part, seconds, groups in measured:
        found = figures["components"]
        name = part.name if part.name not in found else f"{part.name} {len(found)}"
        found[name] = component(part, seconds, groups, peaks, figures["gb_per_s"])
    return f"{bundle.name} {bundle.precision}, {pipeline.precision}", figures


def component(
    part: Part, seconds: list[float], groups: dict[str, Figures], peaks: dict[str, float], bandwidth: float
) -> Figures:
    """Its figures: arithmetic, bytes, the least seconds that either takes, what was measured, and the share."""
    work = sum(part.work.values(), NOTHING)
    width = 4 if part.precision == "f32" else 2
    kind = INT8 if work.int8 else part.precision
    for name, each in part.work.items():
        groups.setdefault(name, {"seconds": 0.0, "kernels": {}})["gflop"] = each.flop / 1e9
    middle = median(seconds)
    size = work.weights + width * work.values
    return {
        "precision": part.precision,
        "inputs": {name: list(port.shape) for name, port in part.inputs.items()},
        "gflop": work.flop / 1e9,
        "int8_share": work.int8 / work.flop,
        "weights_bytes": work.weights,
        "bytes": size,
        "flop_per_byte": work.flop / size,
        "floor_arithmetic_s": (work.int8 / peaks[INT8] + (work.flop - work.int8) / peaks[part.precision]) / 1e9,
        "floor_memory_s": size / bandwidth / 1e9,
        "seconds": middle,
        "mean_s": fmean(seconds),
        "peak_of": kind,
        "share": work.flop / 1e9 / middle / peaks[kind],
        "groups": groups,
    }
