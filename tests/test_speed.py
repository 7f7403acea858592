"""The measuring of speed: fair order, pairs, failures, noise; and that tables and plots take what comes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import children, cold, compare, contestants, edits, plot, record, scaling, speed_tables, variants
from benchmarks.__main__ import main
from benchmarks.adapters import Wish
from benchmarks.contestants import SOURCE, Contestant
from ovenbird.bundle import Bundle
from ovenbird.errors import RequestError
from ovenbird_export.fidelity import LARGEST_PSNR

OURS, THEIRS = Contestant("ours", "ovenbird"), Contestant("theirs", "ovenbird", settings={"keep": False})
WISH = Wish("a red house", 4, 64)


@pytest.fixture
def bundle(nestling: Path) -> Bundle:
    return Bundle.open(nestling / "fp16")


class Fake:
    """Children that draw gray and take the seconds they are told to; what they were asked is kept."""

    def __init__(self, seconds: Callable[[dict[str, Any], int], float | str] = lambda job, count: 1.0) -> None:
        self.seconds = seconds
        self.asked: list[tuple[dict[str, Any], Mapping[str, str]]] = []

    def __call__(self, module: str, job: Any, environment: Mapping[str, str]) -> children.Answer:
        if module == "benchmarks.attributes":
            return {"scores": {"all": 0.5}, "seconds": 1.0}
        before = sum(other["settings"] == job["settings"] for other, _ in self.asked)
        self.asked.append((job, environment))
        seconds = self.seconds(job, before)
        if isinstance(seconds, str):
            return {"error": seconds}
        level = 100 if job["settings"].get("inference_precision") == "f32" else 110
        for number, wish in enumerate(job["wishes"]):
            if job["pictures"]:
                side = wish["size"]
                Image.new("RGB", (side, side), (level,) * 3).save(Path(job["pictures"], f"{number}.png"))
        report = {"first_step_s": 0.2, "median_step_s": 0.1}
        points = dict.fromkeys(("loaded_s", "warm_s", "first_step_s", "png_s"), seconds)
        drawn = {"pictures_s": [seconds] * len(job["wishes"]), "stages_s": {"text encoder": 0.1, "steps": 0.5}}
        return {
            **points,
            **drawn,
            "peak_mib": 2048.0,
            "drawing_peak_mib": 1024.0,
            "precision": "bf16",
            "report": report,
        }


def measured(bundle: Bundle, scratch: Path, fake: Fake, *entries: Contestant, rounds: int = 3) -> dict[str, Any]:
    return compare.measure([bundle], entries, WISH, rounds=rounds, scratch=scratch, reference="theirs", ask=fake)


def test_contestants_take_turns_and_who_fails_is_not_asked_again() -> None:
    asked: list[tuple[str, int]] = []

    def run(name: str, number: int) -> children.Answer:
        asked.append((name, number))
        return {"error": "no memory"} if (name, number) == ("b", 1) else {"seconds": number}

    found = children.in_turn("abc", 3, run)
    assert asked == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1), ("a", 2), ("c", 2)]
    assert children.failed(found["b"]) == "no memory"
    assert not children.failed(found["a"]) and len(found["a"]) == 3


def test_a_child_answers_fails_or_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import os, signal
        from benchmarks import children
        from ovenbird import machine
        def work(job):
            print("noise")
            if job == "raise": raise ValueError("on purpose")
            if job == "die": os.kill(os.getpid(), signal.SIGKILL)
            return {"job": job, "peak": machine.peak_rss_mib(), "told": os.environ["TOLD"]}
        children.answer(work)
    """
    (tmp_path / "worker.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    ballast = np.ones(200 << 17)  # 200 MiB; what a parent held is not its child's
    found = children.ask("worker", ["a", 1], {"TOLD": "this"})
    assert (found["job"], found["told"]) == (["a", 1], "this")
    assert 5 < found["peak"] < ballast.nbytes / 2**20
    assert children.ask("worker", "raise", {"TOLD": ""}) == {"error": "ValueError: on purpose"}
    assert children.ask("worker", "die", {"TOLD": ""}) == {"error": "killed by SIGKILL"}


def test_ratios_are_paired_by_round(bundle: Bundle, tmp_path: Path) -> None:
    # A machine that becomes four times slower, and one contestant that takes half of the other's time.
    fake = Fake(lambda job, count: 2.0**count * (1 if "keep" in job["settings"] else 0.5))
    row = measured(bundle, tmp_path, fake, OURS, THEIRS)["rows"]["ours"]
    assert row["seconds"] == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert row["ratio"] == {"median": 0.5, "min": 0.5, "max": 0.5}


def test_a_contestant_that_fails_or_cannot_start_is_a_row(bundle: Bundle, tmp_path: Path) -> None:
    fake = Fake(lambda job, count: "no memory" if "keep" in job["settings"] and count else 1.0)
    lacks = Contestant("eight bits", "ovenbird", "int8")
    torch = Contestant("torch", "ovenbird", SOURCE)
    figures = measured(bundle, tmp_path, fake, OURS, THEIRS, lacks, torch)
    rows = figures["rows"]
    assert list(rows) == ["ours", "theirs", "eight bits", "torch"]
    assert rows["theirs"]["error"] == "no memory"
    assert "int8" in rows["eight bits"]["absent"] and "--source" in rows["torch"]["absent"]
    assert len(rows["ours"]["rounds"]) == 3
    assert rows["ours"]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}  # of the one round that both have
    lines = speed_tables.comparison(figures).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "failed: no memory" in lines[3]


def test_pictures_are_compared_with_float32(bundle: Bundle, tmp_path: Path) -> None:
    row = measured(bundle, tmp_path, Fake(), OURS)["rows"]["ours"]
    figures = {"settings": {"reference": "theirs"}, "rows": {"ours": {**row, "ratio": row["seconds"]}}}
    header, _, cells = (
        [cell.strip() for cell in line.split("|")] for line in speed_tables.comparison(figures).split("\n")
    )
    assert len(set(header)) == len(header) - 2  # two ends, and one cell without a name
    assert dict(zip(header, cells, strict=True))["SSIM"] == f"{row['ssim']:.3f}"
    assert row["psnr_db"] == row["least_psnr_db"] == pytest.approx(20 * np.log10(255 / 10))
    row = measured(bundle, tmp_path / "other", Fake(lambda job, count: 1.0 if count else "dead"), OURS)["rows"]["ours"]
    assert row == {**row, "error": "dead"}


def test_one_round_has_no_later_ones(bundle: Bundle, tmp_path: Path) -> None:
    figures = measured(bundle, tmp_path, Fake(), OURS, THEIRS, rounds=1)
    assert figures["rows"]["ours"]["again"] is None
    assert "then" not in speed_tables.comparison(figures)
    assert plot._peak_mib(figures["rows"]["ours"]) == 2048.0


def test_a_limit_of_instructions_reaches_every_child(bundle: Bundle, tmp_path: Path) -> None:
    fake = Fake()
    compare.measure([bundle], [OURS, THEIRS], WISH, rounds=1, scratch=tmp_path, isa="AVX2_VNNI", ask=fake)
    assert {told["ONEDNN_MAX_CPU_ISA"] for _, told in fake.asked} == {"AVX2_VNNI"}
    assert len({told["OVENBIRD_CACHE"] for _, told in fake.asked}) == 3  # exact, and each of the two
    assert compare.title(bundle, WISH, "AVX2_VNNI") == "nestling, 64x64, 4 steps, at most AVX2_VNNI"


def test_the_real_child_draws_what_float32_draws(bundle: Bundle, tmp_path: Path) -> None:
    only = Contestant("again", "ovenbird", settings={"inference_precision": "f32"})
    figures = compare.measure([bundle], [only], WISH, rounds=1, scratch=tmp_path, reference="again")
    row = figures["rows"]["again"]
    assert (row["psnr_db"], row["ssim"]) == (LARGEST_PSNR, pytest.approx(1.0))
    (told,) = row["rounds"]
    assert (told["precision"], told["cache"]) == ("f32", "miss")
    assert 0 < told["loaded_s"] < told["warm_s"] < told["first_step_s"] < told["png_s"]
    assert 0 < sum(told["stages_s"].values()) <= told["pictures_s"][0]
    assert set(told["stages_s"]) == {"text encoder", "steps", "VAE"} and all(told["stages_s"].values())
    assert 50 < told["peak_mib"] < 2000


def test_unknown_contestants_are_refused_and_known_ones_kept_in_order() -> None:
    with pytest.raises(RequestError, match="contestant: 'nobody'"):
        contestants.by_label(["nobody"])
    assert [each.label for each in contestants.by_label(["openvino-genai", "ovenbird"])] == [
        "ovenbird",
        "openvino-genai",
    ]
    assert contestants.by_label([]) == list(contestants.CONTESTANTS)
    assert len({each.label for each in contestants.CONTESTANTS}) == len(contestants.CONTESTANTS)


def test_variants_are_drawn_with_every_preset(bundle: Bundle, tmp_path: Path) -> None:
    fake = Fake(lambda job, count: "unknown preset" if job["settings"].get("preset") == "b" else 1.0)
    wishes = variants.wishes(2, 4, 64)
    assert len({(wish.prompt, wish.seed) for wish in wishes}) == 2
    figures = variants.measure([bundle], wishes, rounds=2, scratch=tmp_path, presets="ab", captions=3, ask=fake)
    rows = figures["rows"]
    assert list(rows) == ["fp16", "fp16, a", "fp16, b"]
    assert rows["fp16, b"] == {"error": "unknown preset"}
    assert rows["fp16"]["attributes"]["scores"] == {"all": 0.5}
    assert rows["fp16"]["bytes"] > 1e6 and rows["fp16"]["ssim"] > 0.9
    assert len({line.count("|") for line in speed_tables.variants(figures).splitlines()}) == 1


def test_a_second_start_has_the_cache_of_the_first_and_no_other(bundle: Bundle, tmp_path: Path) -> None:
    fake, found = Fake(), []

    def ask(module: str, job: Any, environment: Mapping[str, str]) -> children.Answer:
        cache = Path(environment["OVENBIRD_CACHE"])
        found.append((job["library"], cache.exists()))
        cache.mkdir(exist_ok=True)
        return fake(module, job, environment)

    figures = cold.measure(bundle, WISH, rounds=2, scratch=tmp_path, ask=ask)
    assert [kept for library, kept in found if library == "ovenbird"] == [False, True, False, True]
    assert not any(job["warm_up"] for job, _ in fake.asked)
    assert "ovenbird, second start" in speed_tables.starts(figures)


def test_one_thing_at_a_time_is_scaled(bundle: Bundle, tmp_path: Path) -> None:
    usual = scaling.Case(4, 1, 64)
    wanted = scaling.cases(scaling.up_to(4), [1, 2], [64, 128], usual)
    assert wanted == [(1, 1, 64), (2, 1, 64), usual, (4, 2, 64), (4, 1, 128)]
    assert scaling.up_to(6) == [1, 2, 4, 6] and scaling.up_to(1) == [1]
    fake = Fake(lambda job, count: "no" if job["settings"]["threads"] == 2 else 60.0)
    figures = scaling.measure(bundle, wanted, 4, rounds=2, scratch=tmp_path, ask=fake)
    row = figures["rows"]["4 threads, batch 2, 64x64"]
    assert (row["minutes"], row["pictures_an_hour_a_core"]) == (0.5, 30.0)
    assert "failed: no" in speed_tables.scales(figures)


def timed(low: float, middle: float, high: float) -> dict[str, Any]:
    return {"seconds": {"min": low, "median": middle, "max": high}}


@pytest.mark.parametrize(
    ("then", "now", "slower"),
    [
        ((9.9, 10.0, 10.1), (10.9, 11.0, 11.1), True),
        ((9.9, 10.0, 10.1), (9.0, 9.1, 9.2), False),  # faster
        ((9.0, 10.0, 11.0), (10.0, 11.0, 12.0), False),  # rounds that differ as much as this
        ((9.0, 10.0, 11.0), (14.0, 15.0, 15.5), True),
        ((10.0, 10.0, 10.0), (10.2, 10.2, 10.2), False),  # no machine is that quiet
        ((10.0, 10.0, 10.0), (10.4, 10.4, 10.4), True),
    ],
)
def test_a_regression_is_found_and_noise_is_not(then: tuple[float, ...], now: tuple[float, ...], slower: bool) -> None:
    assert bool(list(scaling.regressions({"a": timed(*now)}, {"a": timed(*then)}))) == slower


def test_failing_now_is_a_regression_and_a_new_row_is_not() -> None:
    then = {"a": timed(1, 1, 1), "b": {"error": "no"}, "gone": timed(1, 1, 1)}
    now = {"a": {"error": "no memory"}, "b": {"error": "no"}, "new": timed(9, 9, 9)}
    assert list(scaling.regressions(now, then)) == ["a: no memory"]


def test_a_baseline_of_another_machine_or_model_is_refused(tmp_path: Path) -> None:
    path, here = tmp_path / "scaling.json", record.machine_facts()
    path.write_text(json.dumps({"figures": {"m": {"machine": {**here, "cores": -1}, "rows": {}}}}))
    with pytest.raises(RequestError, match="is of -1, not of"):
        scaling.baseline(path, "m", here)
    with pytest.raises(RequestError, match="has no 'other'"):
        scaling.baseline(path, "other", here)
    path.write_text(json.dumps({"figures": {"m": {"machine": here, "rows": {"a": {}}}}}))
    assert scaling.baseline(path, "m", here) == {"a": {}}


def test_the_command_fails_on_a_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    seconds = iter((1.0, 1.0, 2.0))
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(scaling.children, "ask", None)  # no child is started here

    def measure(*_: Any, **__: Any) -> dict[str, Any]:
        took = next(seconds)
        case = scaling.Case(1, 1, 64)
        answer = {"pictures_s": [took], "peak_mib": 1.0, "precision": "f32"}
        return {"settings": {}, "rows": {case.label: scaling._row(case, [answer])}}

    monkeypatch.setattr(scaling, "measure", measure)
    command = ["scaling", "--folder", "nestling"]
    assert CliRunner().invoke(main, command).exit_code == 0
    kept = (tmp_path / "scaling.json").read_bytes()
    against = [*command, "--baseline", str(tmp_path / "scaling.json")]
    assert CliRunner().invoke(main, against).exit_code == 0
    failed = CliRunner().invoke(main, against)
    assert failed.exit_code == 1 and "1.00 s a picture became 2.00" in failed.output
    assert (tmp_path / "scaling.json").read_bytes() == kept


def test_torch_weights_are_given_named_or_made(bundle: Bundle, nestling: Path, tmp_path: Path) -> None:
    source = nestling / "source"
    assert compare.torch_weights(source, bundle, tmp_path) == source
    assert compare.torch_weights(None, bundle, tmp_path) is None  # its manifest names no folder
    named = Bundle(bundle.path, "x", "sd", "fp16", {"source": {"name": str(source)}})
    assert compare.torch_weights(None, named, tmp_path) == source


def test_a_plot_shows_who_was_drawn(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fake = Fake(lambda job, count: "no memory" if "keep" in job["settings"] else 1.0 + count)
    rows = measured(bundle, tmp_path, fake, OURS, THEIRS)["rows"]
    plot.draw("a title", rows, tmp_path / "plot.png")
    plot.draw("a title", {}, tmp_path / "none.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1000, 550) and len(image.getcolors(1 << 20) or []) > 50
    assert plot.path_of("nestling, 64x64, 4 steps").name == "compare-nestling-64x64-4-steps.png"


def test_the_document_names_every_command(root: Path) -> None:
    text = (root / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert isinstance(main, click.Group)
    for name, command in main.commands.items():
        line = next(line for line in text.splitlines() if f"python -m benchmarks {name}" in line)
        known = {option for parameter in command.params for option in parameter.opts}
        known |= {option for parameter in command.params for option in parameter.secondary_opts}
        mentioned = {word.strip("`,;.)") for word in line.split("`") for word in word.split() if word.startswith("--")}
        assert mentioned <= known | {"--precision"}, name


def test_edits_are_timed_beside_the_graph_as_it_was_exported(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path))
    wanted = {name: edits.OF_ALL[name] for name in (edits.NONE, "upsampling")}
    rows = edits.timed(bundle, "vae_decoder", {"latent_sample": (1, 4, 16, 16)}, wanted, 2)
    assert rows[edits.NONE]["ratio"] == {"median": 1, "min": 1, "max": 1}
    assert rows["upsampling"]["flop"] < rows[edits.NONE]["flop"]
    shown = speed_tables.edited({"rows": {"vae_decoder": rows}})
    assert shown.count("\n") == 3 and "1.00 (1.00 to 1.00)" in shown
