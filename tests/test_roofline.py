"""The benchmark's own parts: shares, and groups of operators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import roofline, tables
from ovenbird.backends import peak
from ovenbird.timing import Peak


@pytest.mark.parametrize(
    ("node_type", "group"),
    [
        ("Convolution", "convolution"),
        ("GroupConvolution", "convolution"),
        ("ConvolutionBackpropData", "transposed convolution"),
        ("Deconvolution", "transposed convolution"),
        ("FullyConnectedQuantizedLegacy", "linear"),
        ("MatMul", "attention"),
        ("Softmax", "attention"),
        ("MVN", "normalisation"),
        ("Reorder", "layout"),
        ("Transpose", "layout"),
        ("Subgraph", "elementwise"),
        ("SwishCPU", "elementwise"),
        ("VariadicSplit", "rest"),
    ],
)
def test_groups_of_operators(node_type: str, group: str) -> None:
    assert roofline.group_of(node_type) == group


@pytest.fixture(scope="module")
def figures(nestling: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "measure", lambda *_: Peak(1000.0, "2026-03-01 12:34"))
        patch.setattr(peak, "bandwidth", lambda _: 20.0)
        label, found = roofline.measure(nestling / "fp16", "f32", 3)
    return {label: found}


def test_every_component_has_its_figures(figures: dict[str, Any]) -> None:
    found = figures["nestling fp16, f32"]
    assert found["peak_gflop_per_s"]["f32"] == found["peak_gflop_per_s"]["int8"] == 1000
    assert set(found["components"]) == {"text_encoder", "unet", "vae_decoder"}
    for row in found["components"].values():
        assert row["share"] == row["gflop"] / row["seconds"] / 1000 and 0 < row["share"] < 10
        assert row["floor_arithmetic_s"] == pytest.approx(row["gflop"] / 1000)
        assert row["floor_memory_s"] == pytest.approx(row["bytes"] / 20e9)
        assert row["flop_per_byte"] == pytest.approx(row["gflop"] * 1e9 / row["bytes"])
        assert (row["precision"], row["int8_share"], row["peak_of"]) == ("f32", 0, "f32")
    unet = found["components"]["unet"]
    assert unet["inputs"]["sample"] == [2, 4, 16, 16]
    assert unet["gflop"] == pytest.approx(1.41, abs=0.01)
    assert sum(group.get("gflop", 0) for group in unet["groups"].values()) == pytest.approx(unet["gflop"])


def test_all_of_a_call_is_in_a_group(figures: dict[str, Any]) -> None:
    for row in figures["nestling fp16, f32"]["components"].values():
        assert sum(group["seconds"] for group in row["groups"].values()) == pytest.approx(row["mean_s"], rel=0.2)
    groups = figures["nestling fp16, f32"]["components"]["unet"]["groups"]
    # Attention is fused with what is around it, and found all the same.
    assert groups["attention"]["seconds"] > 0 and any("Subgraph" in name for name in groups["attention"]["kernels"])
    assert all("Convolution" in name for name in groups["convolution"]["kernels"])
    assert groups["elementwise"]["seconds"] > 0


def test_tables_have_a_row_for_each_component(figures: dict[str, Any]) -> None:
    for table in (tables.shares(figures), tables.groups(figures)):
        for name in ("text_encoder", "unet", "vae_decoder"):
            assert f"| nestling fp16, f32: {name} |" in table
    assert "f32 1,000" in tables.shares(figures) and "20.0 GB/s" in tables.shares(figures)
