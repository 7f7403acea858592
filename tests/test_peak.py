"""The machine's peak: measured by the kernels that run, remembered, and next to what a run reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ovenbird import Pipeline, Request, cache, machine
from ovenbird.backends import arithmetic, peak
from ovenbird.backends.openvino import core
from ovenbird.cli import main
from ovenbird.timing import Peak


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next measurements will find, in place of measuring."""
    found: list[float] = []
    monkeypatch.setattr(peak, "_rates", lambda *_: [found.pop(0)])
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path))
    return tmp_path


def best(kind: str = "f32", threads: int = 2, reached: float = 1.0, *, measured: bool = True) -> float | None:
    found = peak.best(kind, threads, reached, measured=measured)
    return found and found.gflop_per_s


@pytest.mark.usefixtures("home")
def test_a_peak_is_measured_until_it_is_seen_twice(rates: list[float]) -> None:
    rates += [100.0, 200.0, 150.0, 195.0]
    assert best(measured=False) is None and len(rates) == 4
    # Something else ran during the first and the third.
    assert [best() for _ in range(4)] == [100.0, 200.0, 200.0, 200.0] and not rates
    assert [best(), best(measured=False)] == [200.0, 200.0]


@pytest.mark.usefixtures("home")
def test_each_arithmetic_and_setting_has_its_own(rates: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    rates += [100.0, 200.0, 300.0, 400.0]
    assert [best(), best("int8"), best(threads=1)] == [100.0, 200.0, 300.0]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert best(measured=False) is None and best() == 400.0
    assert best("bf16+f16") is None and not rates


@pytest.mark.usefixtures("home")
def test_what_was_reached_corrects_a_peak_that_was_measured_too_low(rates: list[float]) -> None:
    rates += [100.0, 99.0, 90.0, 150.0, 149.0]
    assert [best(), best(), best()] == [100.0, 100.0, 100.0] and len(rates) == 3
    assert best(reached=120.0, measured=False) == 100.0
    assert best(reached=120.0) == 100.0  # measured again, and lower: the most ever seen stays
    assert [best(reached=120.0), best(reached=120.0)] == [150.0, 150.0] and not rates


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_note_is_measured_again(home: Path, rates: list[float], damage: bytes | None) -> None:
    rates += [100.0, 50.0]
    best()
    (note,) = home.iterdir()
    if damage is None:
        note.write_bytes(note.read_bytes()[:-1] + b"]")
    else:
        note.write_bytes(damage)
    assert best(measured=False) is None
    assert best() == 50.0


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"3",
        b'{"gflop_per_s": "many", "measured": "", "confirmed": true}',
        b'{"measured": "", "confirmed": true}',
        b"{",
    ],
)
def test_a_note_that_says_something_else_is_none(home: Path, rates: list[float], body: bytes) -> None:
    rates += [100.0, 50.0]
    best()
    (note,) = home.iterdir()
    cache.write(note.name, body)
    assert best() == 50.0


def test_a_cache_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "file" / "cache"))
    rates += [100.0, 50.0]
    with pytest.warns(UserWarning, match="cannot be written"):
        assert best() == 100.0
    assert best() == 50.0


@pytest.mark.usefixtures("home")
def test_it_is_measured_with_the_runtimes_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "MEASURED_S", 0.02)
    found = peak.measure("f32", 1)
    assert 0.1 < found.gflop_per_s < 1e6
    assert peak.remembered("f32", 1) == found


@pytest.mark.skipif("avx2" not in machine.instruction_sets(), reason="elsewhere kernels have other names")
@pytest.mark.parametrize("model", [peak.products, peak.convolutions])
def test_eight_bits_run_in_eight_bits(model: Any) -> None:
    graph = model("int8", 1)
    flop = arithmetic.flop(graph)
    assert flop and flop.int8 == flop.total > 1e9
    request = core().compile_model(graph, "CPU", {"PERF_COUNT": True}).create_infer_request()
    request.infer()
    kinds = [
        node.exec_type.lower()
        for node in request.get_profiling_info()
        if node.node_type.startswith(("FullyConnected", "Convolution", "MatMul")) and node.real_time.total_seconds()
    ]
    assert len(kinds) == peak.DEPTH and all(kind.endswith("i8") for kind in kinds)


def test_bandwidth_is_what_memory_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "COPIED_BYTES", 64 << 20)
    assert 0.1 < peak.bandwidth(2) < 1e4


@pytest.fixture
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peak is known, in the cache of all tests with its compiled models."""
    notes: dict[str, Peak] = {}  # None of them is ever confirmed.
    monkeypatch.setattr(peak, "remembered", lambda kind, _: notes.get(kind))
    monkeypatch.setattr(peak, "measure", lambda kind, _: notes.setdefault(kind, Peak(1000.0, "2026-03-01 12:34")))


def report(folder: Path, *more: str) -> tuple[str, dict[str, Any]]:
    words = ["generate", "--prompt", "a red house", "--num-inference-steps", "2", "--output", str(folder / "a.png")]
    done = CliRunner().invoke(main, [*words, "--overwrite", "--report", str(folder / "r.json"), *more])
    assert done.exit_code == 0, done.output
    return done.stderr, json.loads((folder / "r.json").read_text())


@pytest.mark.usefixtures("_forgotten")
def test_the_report_of_a_command_has_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, measure = [], peak.measure
    monkeypatch.setattr(peak, "measure", lambda kind, threads: measured.append(kind) or measure(kind, threads))
    shown, found = report(tmp_path)
    assert measured == [found["precision"]["unet"]]  # once, although two components are next to it
    assert set(found["reached"]) == {"unet", "vae_decoder"}
    for name, label in (("unet", "U-Net"), ("vae_decoder", "decoder")):
        reached = found["reached"][name]
        assert reached["share"] == reached["gflop_per_s"] / 1000
        assert reached["peak_of"] == found["precision"][name] and reached["peak_measured"] == "2026-03-01 12:34"
        (line,) = [line for line in shown.splitlines() if line.startswith(label)]
        assert f"{reached['share']:.0%} of the {reached['peak_of']} peak, 1000" in line
    assert found["reached"]["unet"]["gflop_per_call"] == pytest.approx(1.41, abs=0.01)


@pytest.mark.usefixtures("_forgotten")
def test_in_python_nothing_is_measured_unless_asked_for() -> None:
    pipeline = Pipeline.open("nestling", inference_precision="f32")
    result = pipeline.generate(Request(prompt="a red house", seed=1, num_inference_steps=2, guidance_scale=1))
    first = result.timings.reached
    assert first["unet"].share is None and first["unet"].gflop_per_s > 0
    assert "the peak in f32 was not measured" in result.timings.table()
    assert pipeline.report(measured=True).reached["unet"].share is not None
    assert pipeline.report().reached["unet"].share is not None


def test_what_is_not_counted_has_no_share(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, found = report(tmp_path, "--backend", "onnxruntime")
    assert found["reached"] == {}
