"""Which variant is taken where nobody says: by the processor, by what was measured, and never without a word."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ovenbird import Bundle, ModelError, Pipeline, Request, RequestError, ResourceError, cache, choice, machine, tuning
from ovenbird.choice import NO_INT8, NOTE, Leeway, Measured, Tuning, Way, facts, note_name, notes
from ovenbird.cli import main
from ovenbird.commands import tune as command
from ovenbird.tuning import CALLS, Race, Subject

VNNI, PLAIN = ["avx512_vnni", "avx512f", "avx2"], ["avx512f", "avx2"]


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with VNNI and four cores, and a cache in which nothing was measured."""
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(machine, "instruction_sets", lambda: VNNI)
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(machine, "physical_cores", lambda: 4)
    cache.warn_once.cache_clear()


def add_shell(model: Path, name: str) -> None:
    """A variant with everything but graphs that could be read."""
    for part in ("text_encoder", "unet", "vae_decoder"):
        (model / name / part).mkdir(parents=True)
        for graph in ("openvino_model.xml", "model.onnx"):
            (model / name / part / graph).touch()
        (model / name / part / "config.json").write_text('{"sample_size": 16}')
    (model / name / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    manifest = {"format": 1, "name": "shell", "precision": name, "files": {}}
    (model / name / "ovenbird.json").write_text(json.dumps(manifest))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with two variants of which nothing is compiled."""
    for name in ("fp16", "int8"):
        add_shell(tmp_path / "shell", name)
    return tmp_path / "shell"


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, nestling: Path) -> Path:
    """A folder with two variants that make pictures: both nestling's."""
    folder = tmp_path_factory.mktemp("twins")
    for name in ("fp16", "int8"):
        shutil.copytree(nestling / "fp16", folder / name)
        manifest = json.loads((folder / name / "ovenbird.json").read_text())
        (folder / name / "ovenbird.json").write_text(json.dumps(manifest | {"name": "twins", "precision": name}))
    return folder


def there(model: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(model.iterdir())}


def tuned(model: Path, seconds: dict[Way, float]) -> Tuning:
    """As if it had been measured, and remembered."""
    measured = tuple(Measured(way, "bf16", (took, 1.1 * took, 0.9 * took)) for way, took in seconds.items())
    made = Tuning(facts(there(model)), "2026-11-21", 128, measured)
    assert made.write()
    return made


FP16, INT8 = Way("fp16", "openvino", None), Way("int8", "openvino", None)
INT8_ORT, INT8_2 = Way("int8", "onnxruntime", None), Way("int8", "openvino", 2)


# By the processor.


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        (["amx_int8", *VNNI], "", "amx_int8"),
        (["amx_int8", *VNNI], "AVX512_CORE_BF16", "avx512_vnni"),
        (["amx_int8", *VNNI, "avx_vnni"], "avx2_vnni", "avx_vnni"),
        (["amx_int8", *VNNI, "avx_vnni"], "AVX2", None),
        (VNNI, "AVX2_VNNI", None),
        (VNNI, "DEFAULT", "avx512_vnni"),
        (["avx_vnni", "avx2"], "", "avx_vnni"),
        (["avx_vnni", "avx2"], "AVX512_CORE", None),
        (PLAIN, "", None),
        (["asimd"], "", None),
        ([], "", None),
    ],
)
def test_a_processor_is_quick_at_eight_bits_as_far_as_its_limit_lets_it(
    flags: list[str], limit: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instruction_sets", lambda: flags)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert machine.quick_at_eight_bits() == expected


@pytest.mark.parametrize(
    ("processor", "flags", "expected"),
    [("x86_64", PLAIN, True), ("AMD64", [], True), ("x86_64", VNNI, False), ("aarch64", ["asimd"], False)],
)
def test_sums_of_eight_bits_overflow_on_older_x86_processors(
    processor: str, flags: list[str], expected: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instruction_sets", lambda: flags)
    monkeypatch.setattr("platform.machine", lambda: processor)
    assert machine.overflows_at_eight_bits() == expected
    weights = Pipeline.open(model, precision="int8").report().weights
    assert weights == ("int8 (7 bits here)" if expected else "int8")
    assert Pipeline.open(model, precision="fp16").report().weights == "fp16"


SLOW_TEXT = "int8 is slow without any of amx_int8, avx512_vnni, avx_vnni"


@pytest.mark.parametrize(
    ("names", "flags", "expected"),
    [
        (("fp16", "fp32", "int8", "int8-weights"), VNNI, "int8: the processor has avx512_vnni"),
        (("fp16", "fp32", "int8", "int8-weights"), PLAIN, f"fp16: {SLOW_TEXT}"),
        (("fp32", "int8", "int8-weights"), PLAIN, f"fp32: {SLOW_TEXT}"),
        (("int8", "int8-weights"), PLAIN, f"int8-weights: {SLOW_TEXT}"),
        (("fp16", "fp32"), VNNI, f"fp16: {NO_INT8}"),
        (("unknown",), VNNI, f"unknown: {NO_INT8}"),
        (("int8",), PLAIN, "int8: the model has no other variant"),
        (("fp16", "int8"), [], "fp16: the processor's instruction sets are not known here; ovenbird tune measures it"),
    ],
)
def test_the_rule(
    names: tuple[str, ...], flags: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instruction_sets", lambda: flags)
    assert str(Leeway().among({name: tmp_path / name for name in names})) == expected


def test_the_rule_says_what_hides_the_instruction_set_and_knows_no_other_device(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(Leeway(device="gpu").among(there(model))) == "fp16: how quick gpu is at int8 is not known"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert str(Leeway().among(there(model))) == f"fp16: {SLOW_TEXT}, which ONEDNN_MAX_CPU_ISA=avx2 hides"


def test_physical_cores_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    assert machine.physical_cores() == 4  # nothing can be read
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{number}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / machine.SIBLINGS).write_text(f"{siblings}\n")
    assert machine.physical_cores() == 2


# By what was measured.


@pytest.mark.parametrize(
    ("leeway", "expected", "told"),
    [
        (
            Leeway(),
            ("int8", "onnxruntime", None),
            "int8 on onnxruntime: measured by ovenbird tune on 2026-11-21, 2.00x",
        ),
        (Leeway(only_openvino=True), ("int8", "openvino", 2), "int8 on openvino with 2 threads: measured"),
        (Leeway("openvino"), ("int8", "openvino", 2), "int8 with 2 threads: measured"),
        (Leeway("openvino", 4), ("fp16", "openvino", 4), "fp16: measured by ovenbird tune on 2026-11-21, 1.10x faster"),
        (Leeway("openvino", 3), ("int8", "openvino", 3), "int8: measured"),
    ],
)
def test_the_fastest_of_what_is_left_open_is_taken(
    leeway: Leeway, expected: tuple[str, str, int | None], told: str, model: Path
) -> None:
    tuned(model, {FP16: 1.0, INT8: 1.1, INT8_2: 0.8, INT8_ORT: 0.5})
    found = leeway.among(there(model))
    assert (found.precision, found.backend, found.threads) == expected
    assert str(found).startswith(told)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({FP16: 1.02, INT8: 1.0}, "fp16 on openvino: measured by ovenbird tune on 2026-11-21, as fast as int8"),
        ({FP16: 1.21, INT8: 1.0}, "int8 on openvino: measured by ovenbird tune on 2026-11-21, 1.21x faster than fp16"),
        ({FP16: 1.0, INT8: 1.21}, "fp16 on openvino: measured by ovenbird tune on 2026-11-21, 1.21x faster than int8"),
        ({FP16: 2.0, INT8_2: 0.99, INT8: 1.0}, "int8 on openvino: measured by ovenbird tune on 2026-11-21, 2.00x"),
    ],
)
def test_what_differs_by_noise_is_equal_and_the_usual_is_taken(
    seconds: dict[Way, float], expected: str, model: Path
) -> None:
    tuned(model, seconds)
    assert str(Leeway().among(there(model))).startswith(expected)


def test_of_a_runtime_that_was_not_measured_nothing_is_known(model: Path) -> None:
    tuned(model, {FP16: 1.0, INT8: 2.0})
    assert str(Leeway("onnxruntime").among(there(model))) == "int8: the processor has avx512_vnni"
    assert str(Leeway(device="gpu").among(there(model))).startswith("fp16: how quick gpu")


def test_variants_that_would_have_to_be_downloaded_are_not_passed_over(model: Path) -> None:
    shutil.rmtree(model / "int8")
    tuned(model, {FP16: 1.0})
    on_the_hub = {"fp16": model / "fp16", "int8": model / "int8"}
    assert str(Leeway().among(on_the_hub)) == "int8: the processor has avx512_vnni"
    assert str(Leeway().among(there(model))).endswith(f", 1 s a call of the U-Net; {NO_INT8}")


@pytest.mark.parametrize("change", ["limit", "processor", "version", "files", "another variant"])
def test_what_is_out_of_date_is_not_used_and_that_is_said(
    change: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(model, {FP16: 1.0, INT8: 2.0})
    assert Leeway().among(there(model)).precision == "fp16"
    if change == "limit":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    elif change == "processor":
        monkeypatch.setattr(machine, "cpu_name", lambda: "another")
    elif change == "version":
        monkeypatch.setattr(choice, "version_of", lambda _: "next year's")
    elif change == "files":
        path = model / "int8" / "ovenbird.json"
        path.write_text(path.read_text() + "\n")
    else:
        add_shell(model, "fp32")
    names = {"limit": "isa limit", "processor": "cpu", "version": "runtimes"}
    assert str(Leeway().among(there(model))) == (
        "int8: the processor has avx512_vnni; what ovenbird tune measured on 2026-11-21 is out of date, "
        f"with other {names.get(change, 'variants')}"
    )


@pytest.mark.parametrize("damage", ["bits", "json", "format", "seconds", "list", "backend"])
def test_e7_a_damaged_note_is_removed_with_a_warning(damage: str, model: Path) -> None:
    made = tuned(model, {FP16: 1.0, INT8: 2.0})
    name = note_name(made.facts)
    path = Path(str(cache.root())) / name
    told = json.loads(cache.read(name) or b"")
    wrong = {
        "json": b"{",
        "list": b"[]",
        "format": json.dumps(told | {"format": 2}).encode(),
        "seconds": json.dumps(told | {"measured": [told["measured"][0] | {"seconds": []}]}).encode(),
        "backend": json.dumps(told | {"measured": [told["measured"][0] | {"way": ["fp16"]}]}).encode(),
    }
    if damage == "bits":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        assert cache.write(name, wrong[damage])
    with pytest.warns(UserWarning, match=r"\.tuning is damaged or cannot be read; tune again"):
        assert Leeway().among(there(model)).precision == "int8"
    assert not path.exists()


def test_folders_without_a_manifest_go_by_their_place(model: Path, tmp_path: Path) -> None:
    for name in ("fp16", "int8"):
        (model / name / "ovenbird.json").unlink()
    tuned(model, {FP16: 1.0, INT8: 2.0})
    assert Leeway().among(there(model)).precision == "fp16"
    moved = shutil.move(model, tmp_path / "moved")
    assert Leeway().among(there(Path(moved))).precision == "int8"


def test_a_model_with_a_manifest_may_move(model: Path, tmp_path: Path) -> None:
    tuned(model, {FP16: 1.0, INT8: 2.0})
    assert Leeway().among(there(Path(shutil.move(model, tmp_path / "moved")))).precision == "fp16"


# Measuring.


class World:
    """A clock that moves when something is compiled or called."""

    def __init__(self, seconds: dict[Way, float], compiling: float = 10.0) -> None:
        self.now, self.compiling, self.seconds = 0.0, compiling, seconds
        self.seen: list[Way] = []
        self.stop_at: int | None = None

    def prepare(self, way: Way) -> Subject:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(way)
        self.now += self.compiling
        if self.seconds[way] < 0:
            raise ResourceError("it takes about 9 GiB")

        def call() -> None:
            self.now += self.seconds[way]

        return Subject(call, "bf16")

    def race(self, minutes: float) -> Race:
        return Race(list(self.seconds), self.prepare, 60 * minutes, lambda: self.now)


def test_all_ways_are_measured_then_those_that_are_close_back_and_forth() -> None:
    world = World({FP16: 1.0, INT8: 0.9, INT8_ORT: 3.0, INT8_2: 1.1})
    race = world.race(100)
    race.run()
    assert world.seen == [FP16, INT8, INT8_ORT, INT8_2, INT8_2, INT8, FP16, FP16, INT8, INT8_2]
    assert {way: len(found) for way, found in race.seconds.items()} == {
        FP16: 3 * CALLS,
        INT8: 3 * CALLS,
        INT8_ORT: CALLS,
        INT8_2: 3 * CALLS,
    }
    assert [each.median for each in race.measured] == pytest.approx([1.0, 0.9, 3.0, 1.1])
    assert not race.late and not race.failed


def test_a_clear_winner_is_not_measured_again() -> None:
    world = World({FP16: 1.0, INT8: 0.5})
    world.race(100).run()
    assert world.seen == [FP16, INT8]


@pytest.mark.parametrize(
    ("minutes", "seen", "late"),
    [(0.1, 1, 3), (0.5, 1, 3), (0.75, 2, 2), (1.1, 3, 1), (1.2, 4, 1), (1.5, 5, 0), (2.2, 7, 0)],
)
def test_nothing_is_begun_that_would_end_too_late(minutes: float, seen: int, late: int) -> None:
    """A visit takes 18 s; with half of the threads twice that is expected, until it was tried."""
    world = World({FP16: 2.0, INT8: 2.0, INT8_ORT: 2.0, INT8_2: 2.0})
    race = world.race(minutes)
    race.run()
    assert (len(world.seen), race.late) == (seen, list(world.seconds)[4 - late :])
    assert world.now <= max(60 * minutes, 18)


def test_what_cannot_run_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    world = World({FP16: -1.0, INT8: 1.0})
    race = world.race(100)
    race.run()
    assert race.failed == {FP16: "it takes about 9 GiB"} and list(race.seconds) == [INT8]
    shown = capsys.readouterr().err
    assert "fp16 on openvino, 4 threads: round 1, 100:00 left ... failed" in shown
    assert "int8 on openvino, 4 threads: round 1, 99:50 left ... " in shown


def test_ways_are_those_of_folder_and_installation(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.setattr(machine, "physical_cores", lambda: 8)
    (model / "int8/unet/model.onnx").unlink()
    bundles = [Bundle.open(model, name) for name in ("fp16", "int8")]
    installed = choice.find_spec("onnxruntime") is not None
    pairs = [("fp16", "openvino"), *([("fp16", "onnxruntime")] if installed else []), ("int8", "openvino")]
    assert tuning.ways(bundles) == [Way(*pair, count) for count in (8, 16, 4, 1) for pair in pairs]
    monkeypatch.setattr(choice, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert {way.backend for way in tuning.ways(bundles)} == {"openvino"}


@pytest.mark.parametrize(
    ("cores", "threads", "counts"), [(1, 1, [None]), (2, 2, [None, 1]), (2, 4, [2, 4, 1]), (9, 9, [None, 4, 1])]
)
def test_thread_counts_that_differ(
    cores: int, threads: int, counts: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: threads)
    monkeypatch.setattr(machine, "physical_cores", lambda: cores)
    assert tuning.thread_counts() == counts


def test_the_unet_is_measured_as_it_runs(nestling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(nestling / "fp16")
    subject = tuning.prepare(bundle, Way("fp16", "openvino", 1))
    result: Any = subject.call()
    assert result["out_sample"].shape == (2, 4, 16, 16) and np.isfinite(result["out_sample"]).all()
    assert not list(Path(str(cache.root())).rglob("*.blob"))
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    monkeypatch.setattr(machine, "resident", lambda: 1 << 20)
    with pytest.raises(ResourceError, match=r"it takes about .* of memory, and 1.0 MiB is available"):
        tuning.prepare(bundle, Way("fp16", "openvino", 1))


@pytest.mark.parametrize(
    ("name", "unet", "expected"),
    [
        ("StableDiffusionPipeline", {}, {"sample": (2, 4, 64, 64), "encoder_hidden_states": (2, 77, 768)}),
        (
            "StableDiffusionXLPipeline",
            {
                "sample_size": 128,
                "cross_attention_dim": 2048,
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            {
                "sample": (2, 4, 128, 128),
                "encoder_hidden_states": (2, 77, 2048),
                "text_embeds": (2, 1280),
                "time_ids": (2, 6),
            },
        ),
        (
            "LatentConsistencyModelPipeline",
            {"time_cond_proj_dim": 256, "sample_size": 96},
            {"sample": (1, 4, 96, 96), "encoder_hidden_states": (1, 77, 768), "timestep_cond": (1, 256)},
        ),
    ],
)
def test_every_family_is_measured_with_its_inputs(
    name: str, unet: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    for part, config in (("unet", unet), ("vae_decoder", {})):
        (tmp_path / "other" / part).mkdir(parents=True)
        (tmp_path / "other" / part / "config.json").write_text(json.dumps(config))
    (tmp_path / "other/model_index.json").write_text(json.dumps({"_class_name": name}))
    assert tuning.shapes(Bundle.open(tmp_path / "other")) == expected


# In a pipeline.


def test_nothing_is_chosen_where_somebody_says_or_nobody_asks(model: Path) -> None:
    tuned(model, {FP16: 1.0, INT8_2: 0.5})
    for pipeline in (
        Pipeline.open(model),
        Pipeline.open(model, precision="fp16", preset="balanced"),
        Pipeline.open(model, precision="fp16"),
    ):
        report = pipeline.report()
        assert (report.weights, report.chosen, report.threads) == ("fp16", "", pipeline.backend.threads)
        assert "chosen" not in report.table()


@pytest.mark.parametrize("ways", [{"precision": "auto"}, {"preset": "balanced"}, {"preset": "fast"}])
def test_the_report_says_what_was_chosen_and_why(ways: dict[str, str], model: Path) -> None:
    report = Pipeline.open(model, **ways).report()
    assert (report.weights, report.chosen) == ("int8", "int8: the processor has avx512_vnni")
    assert "\nchosen        int8: the processor has avx512_vnni\n" in report.table()


def test_a_preset_says_when_it_takes_another_variant(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "instruction_sets", lambda: PLAIN)
    with pytest.warns(UserWarning, match="preset fast, which would have int8, takes fp16: int8 is slow without"):
        assert Pipeline.open(model, preset="fast").bundle.precision == "fp16"
    monkeypatch.undo()
    monkeypatch.setattr(machine, "instruction_sets", lambda: VNNI)
    with pytest.warns(UserWarning, match="takes fp16: the model has no int8, which ovenbird export"):
        Pipeline.open(model / "fp16", preset="balanced")
    assert Pipeline.open(model / "fp16", precision="auto").chosen.startswith("fp16: the model has no int8")
    assert Pipeline.open(model / "int8", preset="balanced").chosen == "int8: the processor has avx512_vnni"


def test_threads_come_from_the_tuning_unless_they_are_given(model: Path) -> None:
    tuned(model, {FP16: 1.0, INT8_2: 0.5})
    chosen = Pipeline.open(model, precision="auto")
    assert (chosen.bundle.precision, chosen.backend.threads) == ("int8", 2)
    assert chosen.chosen == (
        "int8 on openvino with 2 threads: measured by ovenbird tune on 2026-11-21, 2.00x faster than fp16"
    )
    given = Pipeline.open(model, "openvino", precision="auto", threads=1)
    assert given.backend.threads == 1 and given.chosen.startswith("int8: measured")


def test_the_runtime_comes_from_the_tuning_unless_a_preset_needs_the_other(twins: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = twins
    tuned(model, {FP16: 1.0, INT8: 0.9, INT8_ORT: 0.5})
    pipeline = Pipeline.open(model, precision="auto")
    assert pipeline.backend.name == "onnxruntime"
    assert pipeline.generate(Request(prompt="a red house", num_inference_steps=1)).timings.chosen.startswith(
        "int8 on onnxruntime: measured"
    )
    assert Pipeline.open(model, preset="balanced").backend.name == "openvino"


@pytest.mark.parametrize("wrong", [{"backend": "tpu"}, {"device": "tpu"}, {"threads": 0}])
def test_what_is_wrong_stops_before_a_model_is_looked_for(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"^{next(iter(wrong))}: "):
        Pipeline.open("no-such-model", precision="auto", **wrong)


def test_choosing_imports_no_runtime_that_is_not_chosen() -> None:
    code = (
        "import sys; from ovenbird import Pipeline\n"
        "made = Pipeline.open('nestling', precision='auto')\n"
        "print(made.chosen[:4], 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fp16 False\n"


# The command.


def test_strange_graphs_are_measured_where_they_are_allowed(run: Any, model: Path) -> None:
    found = run(str(model), foreign=1.0)
    assert "left out: int8 on openvino, 1 thread: it has 'Evil'" in found.stdout
    assert "--precision auto takes int8" in run(str(model), "--allow-foreign-ir").stdout


def test_it_is_the_backend_that_is_told_of_strange_graphs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: object, allow_foreign: bool) -> Any:
        raise ModelError(str(allow_foreign))

    monkeypatch.setattr(tuning, "create", create)
    for allowed in (False, True):
        with pytest.raises(ModelError, match=str(allowed)):
            tuning.prepare(Bundle.open(model, "fp16"), Way("fp16", "openvino", 1), allow_foreign=allowed)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``ovenbird tune`` on models that only take time."""
    seconds = {"fp16": 0.004, "int8": 0.002}

    def prepare(bundle: Bundle, way: Way, *, allow_foreign: bool) -> Subject:
        if bundle.precision == "int8" and not allow_foreign and "foreign" in seconds:
            raise ModelError("it has 'Evil', which no export has")
        took = seconds[bundle.precision] * 4 / (way.threads or 4)
        if took < 0:
            raise ResourceError("it takes about 9 GiB")
        return Subject(lambda: __import__("time").sleep(took), "bf16")

    def typed(*words: str, **other: float) -> Result:
        seconds.update(other)
        return CliRunner().invoke(main, ["tune", *words])

    monkeypatch.setattr(command, "prepare", prepare)
    return typed


def test_the_command_measures_and_remembers(run: Any, model: Path) -> None:
    found = run(str(model))
    assert found.exit_code == 0, found.output
    first, head, *rows = found.stdout.splitlines()
    [best] = [row for row in rows if row.endswith("taken")]
    assert first.startswith("shell, 128x128, on ") and head.split()[:3] == ["variant", "runtime", "threads"]
    assert best.split()[0] == "int8"
    assert "--precision auto takes int8 on " in found.stdout
    assert "fp16 on openvino, 1 thread: round 1, 4:" in found.stderr
    again = Pipeline.open(model, precision="auto")
    assert again.chosen in found.stdout and again.bundle.precision == "int8"


def test_a_busy_machine_is_noted(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "load_average", lambda: 0.1)
    assert "note:" not in run(str(model)).stdout
    monkeypatch.setattr(machine, "load_average", lambda: 900.0)
    assert (
        "note: the load average was 900.0 before anything began: other work slows this down" in run(str(model)).stdout
    )


def test_json_is_all_that_is_printed(run: Any, model: Path) -> None:
    told = json.loads(run(str(model), "--json", int8=0.02).stdout)
    assert told["remembered"] and not told["stopped"] and told["late"] == [] and told["failed"] == {}
    assert told["chosen"].startswith("fp16 on ") and told["size"] == 128
    assert {each["way"]["precision"] for each in told["measured"]} == {"fp16", "int8"}


def test_what_was_measured_can_be_forgotten(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned(model, {FP16: 1.0, INT8: 2.0})
    monkeypatch.setattr(machine, "cpu_name", lambda: "another")
    tuned(model, {FP16: 1.0, INT8: 2.0})
    assert run(str(model), "--forget").stdout == "shell: 2 tunings forgotten\n"
    assert json.loads(run(str(model), "--forget", "--json").stdout) == {"model": "shell", "forgotten": 0}
    assert not list(notes("shell"))


def test_a_variant_that_cannot_run_is_named_and_the_rest_remembered(run: Any, model: Path) -> None:
    found = run(str(model), int8=-1.0)
    assert found.exit_code == 0 and "left out: int8 on openvino, 4 threads: it takes about 9 GiB" in found.stdout
    assert Leeway().among(there(model)).precision == "fp16"


def test_a_variant_for_which_there_was_no_time_leaves_everything_as_it_was(run: Any, model: Path) -> None:
    tuned(model, {FP16: 1.0, INT8: 2.0})
    found = run(str(model), "--minutes", "0.0000001")
    assert found.exit_code == 0 and "not remembered, without int8: --minutes gives more time" in found.stdout
    assert "left out for want of time (--minutes): " in found.stdout
    assert Leeway().among(there(model)).why.endswith("2.00x faster than int8")


@pytest.mark.parametrize(("after", "kept"), [(0, False), (1, False), (3, True)])
def test_e9_ctrl_c_keeps_what_knows_every_variant(
    after: int, kept: bool, run: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ways", lambda _: [FP16, INT8, INT8_ORT, INT8_2])
    genuine, count = command.prepare, iter(range(9))

    def prepare(bundle: Bundle, way: Way, **options: bool) -> Subject:
        if next(count) == after:
            raise KeyboardInterrupt
        return genuine(bundle, way, **options)

    monkeypatch.setattr(command, "prepare", prepare)
    found = run(str(model))
    assert found.exit_code == 130, found.output
    fate = "what was measured is remembered" if kept else "nothing of it is remembered"
    assert f"error: tune was stopped; {fate}\n" in found.stderr
    assert bool(list(notes("shell"))) == kept


@pytest.mark.filterwarnings("default")
def test_a_cache_that_cannot_be_written_is_said(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "file" / "cache"))
    found = run(str(model))
    assert found.exit_code == 0 and "warning: the cache" in found.stderr and "cannot be written" in found.stderr
    assert "not remembered: there is no cache that can be written; set OVENBIRD_CACHE to a folder" in found.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["sd16"], 2, "error: model: 'sd16' is neither a folder nor a known name"),
        (["./empty"], 3, "error: empty is not an exported model: no model_index.json"),
        (["--minutes", "0"], 2, "error: minutes: 0 is not more than 0"),
        (["--minutes", "nan"], 2, "error: minutes: nan is not more than 0"),
        (["owner/name"], 2, "error: "),
        (["owner/name@"], 2, "error: "),
    ],
)
def test_r15_what_cannot_be_measured(
    words: list[str], code: int, message: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    found = run(*words)
    assert found.exit_code == code and found.stderr.startswith(message), found.stderr


def test_a_folder_without_graphs_is_refused(run: Any, model: Path) -> None:
    for path in [*model.rglob("unet/openvino_model.xml"), *model.rglob("unet/model.onnx")]:
        path.unlink()
    for path in model.rglob("ovenbird.json"):
        path.unlink()
    found = run(str(model))
    assert found.exit_code == 3 and "has no graphs that an installed runtime reads" in found.stderr


def test_where_nothing_can_run_it_says_why(run: Any, model: Path) -> None:
    found = run(str(model), int8=-1.0, fp16=-1.0)
    assert found.exit_code == 3 and "nothing could be measured: it takes about 9 GiB" in found.stderr
    assert not list(Path(str(cache.root())).glob(f"*{NOTE}"))
