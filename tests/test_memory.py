"""What is foreseen of a component's memory: from its files, and next to what was measured."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import memory, record
from ovenbird import Pipeline, Request, RequestError, compiled, mapped
from ovenbird.backends import SHALLOW, rewrites
from ovenbird.budget import KEEP, Cast, Job, foresee, needs
from ovenbird.bundle import Bundle
from ovenbird.memory import HABITS, MIB, Cost, Foresight, Need, Weights, read_weights

WISH = Request(prompt="a red house", num_inference_steps=2, seed=5)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open("nestling")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests compiled would hold less than what is compiled anew."""
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))


def cost(bundle: Bundle, component: str, *shape: int, runtime: str = "openvino", precision: str = "f32") -> Cost:
    return Foresight(bundle, runtime, precision).cost(Need(component, shape))


def test_weights_are_counted_in_the_graph_and_as_many_as_the_file_holds(nestling: Path) -> None:
    folder = nestling / "fp16/unet"
    found = read_weights(folder, {}, "fp16")
    assert 2 * found.whole == pytest.approx((folder / "openvino_model.bin").stat().st_size, rel=0.01)
    assert found.eighths == found.looked_up == 0 and not found.convolutions
    assert found.graph == (folder / "openvino_model.xml").stat().st_size


@pytest.mark.parametrize(("variant", "bytes_each"), [("fp16", 2), ("fp32", 4), ("unknown", 4), ("int8", 1)])
def test_without_an_ir_weights_are_counted_by_the_files(tmp_path: Path, variant: str, bytes_each: int) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(1000))
    (folder / "model.onnx_data").write_bytes(bytes(3000))
    (folder / "config.json").write_text("{}")
    found = read_weights(folder, {}, variant)
    assert found.whole + found.eighths == 4000 / bytes_each
    assert (found.eighths > 0) == (variant == "int8")


def test_calls_grow_with_what_goes_through(bundle: Bundle) -> None:
    def call(runtime: str, component: str, *shape: int) -> int:
        return cost(bundle, component, *shape, runtime=runtime).held - cost(bundle, component, 1, 4, 0, 0).held

    for runtime in HABITS:
        free = cost(bundle, "vae_decoder", 1, 4, 0, 0, runtime=runtime).held
        maps = [cost(bundle, "vae_decoder", 1, 4, side, side, runtime=runtime).held - free for side in (16, 32)]
        assert maps[1] == pytest.approx(4 * maps[0], rel=0.01)
    for rows in (1, 2):
        assert call("openvino", "unet", 2 * rows, 4, 32, 32) == pytest.approx(
            2 * call("openvino", "unet", rows, 4, 32, 32)
        )
    free = cost(bundle, "unet", 1, 4, 0, 0, runtime="onnxruntime").held
    matrices = [cost(bundle, "unet", 1, 4, side, side, runtime="onnxruntime").held - free for side in (128, 256)]
    assert matrices[1] == pytest.approx(16 * matrices[0], rel=0.2)  # every cell by every other


def test_outermost_layers_are_few_and_their_calls_are_large(bundle: Bundle, nestling: Path) -> None:
    whole, few = (cost(bundle, name, 2, 4, 16, 16) for name in ("unet", SHALLOW))
    assert few.making < whole.making / 3
    model = rewrites.reuse_deep(ov.Core().read_model(nestling / "fp16/unet/openvino_model.xml"), 2)
    stored = sum(node.data.nbytes for node in model.get_ops() if node.get_type_name() == "Constant")
    assert 2 * Foresight(bundle, "openvino", "f32").facts(SHALLOW)[1].whole == pytest.approx(stored, rel=0.5)


def test_half_the_arithmetic_takes_less(bundle: Bundle) -> None:
    assert cost(bundle, "unet", 2, 4, 64, 64, precision="bf16").held < cost(bundle, "unet", 2, 4, 64, 64).held


def test_what_is_in_the_cache_holds_less(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.open("nestling", inference_precision="f32")
    need = Need("unet", (2, 4, 16, 16))
    in_a_file = cost(pipeline.bundle, *need[:1], *need.shape)
    monkeypatch.setattr(compiled, "scratch", lambda size: mapped.room(size, None))
    before = cost(pipeline.bundle, *need[:1], *need.shape)
    pipeline.generate(WISH)
    after = cost(pipeline.bundle, *need[:1], *need.shape)
    assert after.making < before.making - 20 * MIB and after.held < before.held - 20 * MIB
    assert cost(pipeline.bundle, "unet", 2, 4, 8, 8).held > after.held
    assert in_a_file == after


def test_nothing_is_foreseen_from_a_strange_config_and_the_run_goes_on(nestling: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(nestling / "fp16", folder)
    (folder / "ovenbird.json").unlink()
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"layers_per_block": "many"}))
    pipeline = Pipeline.open(folder)
    assert pipeline.plan(WISH) is None
    assert pipeline.generate(WISH).timings.planned_peak_mib is None
    pipeline.max_memory = 8 << 30
    with pytest.raises(RequestError, match=r"max_memory: .* cannot be foreseen"):
        pipeline.plan(WISH)


def rows() -> Iterator[Any]:
    for model, figures in record.read("memory").items():
        for label, row in figures["runs"].items():
            if "ratio" in row:
                yield pytest.param(model, row, id=f"{model}: {label}")


@pytest.mark.parametrize(("model", "row"), list(rows()))
def test_r8_what_is_foreseen_today_is_near_what_was_measured(
    model: str, row: dict[str, Any], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = record.read("memory")[model]["components"]
    monkeypatch.setattr(Foresight, "_read", lambda _, name: (known[name]["config"], Weights(**known[name]["weights"])))
    foresight = Foresight(bundle, row["runtime"], row["precision"])
    foresight._is_cached = lambda *_: row["cache"] == "hit"
    base = foresight.habits.base
    if "component" in row:
        found = foresee([Need(row["component"], tuple(row["shape"]))], KEEP["all"], foresight.cost, base, [])
    else:
        cast = Cast(("text_encoder",), "vae_decoder", None, False, 4, 4, 8)
        jobs = [Job(memory.wish(row).settled(row["side"]), row["pictures"], 2)]
        called = list(needs(cast, jobs, memory.setting(row)))
        found = foresee(called * 2, KEEP[row["keep"]], foresight.cost, base, [])
    assert found / MIB == pytest.approx(row["measured_mib"], rel=0.25)
