from __future__ import annotations

import csv
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ovenbird import NumericError, ResourceError, cli, journal, pipeline
from ovenbird.commands import batch, drawing
from ovenbird.jobs import MOST_TOLD, Jobs

# One thread: with two, OpenVINO's bf16 is not the same from run to run for pictures as small as these.
QUICK = ["--num-inference-steps", "1", "--width", "64", "--height", "64", "--threads", "1"]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and locks are others there")
LINES: list[dict[str, Any]] = [
    {"prompt": "a red house"},
    {"prompt": "a blue boat", "num_images": 3, "id": "boat"},
    {"prompt": "a tent", "width": 72, "seed": 7},
    {"prompt": "a tree", "variation_strength": 0.5},
    {"prompt": "a balloon", "negative_prompt": "snow", "output": "Ball ö.png"},
]
FILES = ["00000.png", "00002.png", "00003.png", "Ball ö.png", "boat-0.png", "boat-1.png", "boat-2.png"]


class Killed(BaseException):
    """What nobody is prepared for."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journal.secrets, "randbits", lambda _: 42)


@pytest.fixture(autouse=True, scope="module")
def _warm() -> Iterator[None]:
    """One pipeline for each size of a batch and all runs of this process: what is compiled stays."""
    genuine, known = batch.pipeline_of, dict[tuple[Any, ...], pipeline.Pipeline]()

    def pipeline_of(typed: Any, timings: Any) -> pipeline.Pipeline:
        key = (typed["batch_size"], typed["model"])
        known[key] = known.get(key) or genuine(typed, timings)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch, "pipeline_of", pipeline_of)
        yield


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["batch", *QUICK, *map(str, words)])


def ran(*words: str | Path) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


def write(path: str, lines: list[Any]) -> Path:
    Path(path).write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return Path(path)


def here() -> list[str]:
    return [path.name for path in Path().iterdir()]


def entries(folder: str) -> list[dict[str, Any]]:
    _, *lines = (Path(folder) / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def pictures(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.suffix == ".png"}


def done(folder: str) -> Counter[str]:
    return Counter(entry["file"] for entry in entries(folder) if entry["status"] == "done")


BAD: list[tuple[Any, str]] = [
    ({"prompt": "a", "height": 500}, "height: 500 is not a multiple of 8 (use 496 or 504)"),
    ({"prompt": "a", "num_inference_steps": "7"}, "num_inference_steps: '7' is not a whole number"),
    ({"prompt": "a", "seed": True}, "seed: True is not a whole number"),
    ({"prompt": "a", "stesp": 7}, "'stesp' is not a setting of a job"),
    ({"prompt": "a", "schduler": "ddim"}, "did you mean scheduler?"),
    ({"prompt": "a", "steps": 4}, "did you mean num_inference_steps?"),
    ({"prompt": "a", "n_samples": 4}, "did you mean num_images?"),
    ({"prompt": "a", "scheduler": "eulr"}, "did you mean 'euler'?"),
    ({"seed": 1}, "prompt: it is not given"),
    ({"prompt": ["a", "b"]}, "prompt: ['a', 'b'] is not a string"),
    ('{"prompt": "a", "guidance_scale": NaN}', "NaN is not a number of JSON's"),
    ('{"prompt": "a", "guidance_scale": -Infinity}', "-Infinity is not a number of JSON's"),
    ('{"prompt": "a", "guidance_scale": 1e999}', "guidance_scale: inf is not in"),
    ('{"prompt": "a", "seed": 1, "seed": 2}', "seed: it is given twice"),
    ('{"prompt": "a", "num_images": 1, "num_images_per_prompt": 2}', "num_images_per_prompt: it is given twice"),
    ('{"prompt": "a"', "not JSON: Expecting ',' delimiter at column"),
    ('["a"]', "it is not an object"),
    ("[" * 100_000, "not JSON"),
    ('{"prompt": "\\ud800"}', "prompt: '\\ud800' holds half a character"),
    ({"prompt": "a", "strength": 0.5}, "strength: there is no image"),
    ({"prompt": "a", "init_image": "nowhere.png"}, "nowhere.png is not a file"),
    ({"prompt": "a", "init_image": "jobs.jsonl"}, "jobs.jsonl is not a whole PNG, JPEG or WEBP file"),
    ({"prompt": "a", "init_image": 7}, "image: 7 is not a string"),
    ({"prompt": "a", "id": "00000"}, "id: '00000' is that of another line, too"),
    ({"prompt": "a", "output": "00000.PNG"}, "output: '00000.PNG' is that of another line, too"),
    ({"prompt": "a", "output": "a.jpg"}, "output: 'a.jpg' does not end in .png"),
    ({"prompt": "a", "output": "a-preview.png"}, "output: 'a-preview.png' is the name of a preview"),
    ({"prompt": "a", "id": "x" * 300}, "is longer than 200 bytes"),
]
HOSTILE = ["../x", "/etc/x", "a/b", "a\\b", "\0", "a\nb", "..", ".hidden", "\udcff"]
BAD += [({"prompt": "a", "id": name}, "is not the name of a file in the folder") for name in HOSTILE]
BAD += [({"prompt": "a", "output": f"{name}.png"}, "is not the name of a file in the folder") for name in HOSTILE]


@pytest.mark.parametrize(("line", "told"), BAD, ids=lambda value: ascii(value)[:40])
def test_b1_a_bad_line_stops_everything_before_any_model_is_read(
    line: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "pipeline_of", lambda *_, **__: pytest.fail("a model was opened"))
    write("jobs.jsonl", [{"prompt": "a red house"}, "", line])
    result = run("jobs.jsonl")
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert "error: jobs: lines of jobs.jsonl that cannot be done: 1\n  line 3: " in result.stderr
    assert told in result.stderr, result.stderr
    assert here() == ["jobs.jsonl"]


CSV_BAD = [
    ("prompt,hieght\na,64", "'hieght'", "did you mean height?"),
    ("prompt,seed\na,x", "line 2: seed: 'x' is not a whole number", ""),
    ("prompt,guidance_scale\na,nan", "line 2: guidance_scale: nan is not in", ""),
    ("prompt,seed\na,1,2", "line 2: it has 3 cells, and the first row 2", ""),
    ('prompt\n"a\nb"\n"c', "line 4: not CSV", ""),
    ("prompt,seed,seed\na,1,2", "line 2: seed: it is given twice", ""),
    ("prompt,seed\n,1", "line 2: prompt: it is not given", ""),
    ("prompt", "has no job in it", ""),
    ("", "has no job in it", ""),
]


@pytest.mark.parametrize(("text", "told", "hint"), CSV_BAD)
def test_b1_a_bad_row_of_csv(text: str, told: str, hint: str) -> None:
    Path("jobs.csv").write_text(text)
    result = run("jobs.csv")
    assert result.exit_code == 2 and told in result.stderr and hint in result.stderr, result.output
    assert here() == ["jobs.csv"]


def test_b1_bytes_that_are_no_text() -> None:
    Path("jobs.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    assert "line 2: it is not UTF-8" in run("jobs.jsonl").stderr
    Path("jobs.txt").write_text("a")
    assert "jobs.txt ends in none of" in run("jobs.txt").stderr
    assert "cannot be read" in run("nowhere.csv").stderr


def test_b1_all_bad_lines_are_told_up_to_a_number() -> None:
    write("jobs.jsonl", [{"prompt": "a", "height": k} for k in range(1, 30)])
    told = run("jobs.jsonl").stderr
    assert "cannot be done: 29" in told and told.count("\n  line ") == MOST_TOLD and "  and 9 more" in told


def test_b1_what_the_model_cannot_do_is_told_before_the_first_picture() -> None:
    write("jobs.jsonl", [{"prompt": "a"}, {"prompt": "b", "clip_skip": 5}, {"prompt": "c", "target_size": [64, 64]}])
    result = run("jobs.jsonl")
    assert result.exit_code == 2 and "line 2: clip_skip" in result.stderr and "line 3: target_size" in result.stderr
    assert here() == ["jobs.jsonl"]


def test_b1_options_are_for_lines_that_do_not_say_and_are_checked_once() -> None:
    write("jobs.jsonl", [{"prompt": "a"}, {"prompt": "b", "seed": 9}])
    assert CliRunner().invoke(cli.main, ["batch", "jobs.jsonl", "--height", "500"]).stderr.startswith("error: height")
    ran("jobs.jsonl", "--seed", "8", "--strength", "0.5", "--hires-steps", "9")  # for lines with images, enlarged ones
    assert [entry["seed"] for entry in entries("jobs")] == [8, 9]


def test_b1_a_folder_of_pictures_their_journal_and_what_is_printed() -> None:
    write("jobs.jsonl", LINES)
    result = ran("jobs.jsonl")
    assert list(pictures("jobs")) == FILES
    assert sorted(result.stdout.splitlines()) == [f"jobs/{name}" for name in FILES]
    assert "[7/7]" in result.stderr and "7 made" in result.stderr and "left" in result.stderr
    seeds = {entry["file"]: entry["seed"] for entry in entries("jobs")}
    assert seeds["00002.png"] == 7 and seeds["boat-2.png"] == seeds["boat-0.png"] + 2
    assert len({*seeds.values()}) == len(seeds)
    for entry in entries("jobs"):
        with Image.open(f"jobs/{entry['file']}") as image:
            assert json.loads(image.text["ovenbird"])["seed"] == entry["seed"]  # type: ignore[attr-defined]
    again = ran("jobs.jsonl", "--json")
    assert {json.loads(line)["status"] for line in again.stdout.splitlines()} == {"there"}
    assert "0 made, 7 there already, 0 failed" in again.stderr


def test_b1_a_picture_of_a_batch_is_the_one_that_generate_makes() -> None:
    write("jobs.jsonl", LINES[2:3])
    ran("jobs.jsonl")
    words = ["--prompt", "a tent", "--seed", "7", *QUICK, "--width", "72", "--output", "alone.png"]
    assert CliRunner().invoke(cli.main, ["generate", *words]).exit_code == 0
    assert Path("alone.png").read_bytes() == pictures("jobs")["00000.png"]


def test_b1_csv_and_json_agree() -> None:
    Image.new("RGB", (64, 64), (90, 160, 220)).save("sea.png")
    lines: list[dict[str, Any]] = [
        {"prompt": 'a "red"\nhouse, ü', "seed": 3, "guidance_scale": 2.5, "guidance_interval": [0.0, 1.0]},
        {"prompt": "a boat", "init_image": "sea.png", "strength": 1.0, "id": "boat"},
        {"prompt": "a (tree:1.2)", "prompt_syntax": "webui", "num_images": 2},
    ]
    names = list(dict.fromkeys(name for line in lines for name in line))
    write("a.jsonl", lines)
    with Path("b.csv").open("w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        rows.writerows(
            [" ".join(map(str, v)) if isinstance(v, list) else v for v in map(line.get, names)] for line in lines
        )
    ran("a.jsonl")
    ran("b.csv")
    assert pictures("a") == pictures("b") and len(pictures("a")) == 4


def test_e12_paths_with_spaces_and_letters_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "ein Ordner ñ 家"
    home.mkdir()
    Image.new("RGB", (64, 64)).save(home / "ein Bild.png")
    write(
        str(home / "viele Bilder ü.jsonl"),
        [{"prompt": "a", "init_image": "ein Bild.png", "strength": 1.0, "id": "é 1"}],
    )
    for name in ("HOME", "XDG_CACHE_HOME", "OVENBIRD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))  # nowhere to write but here
    result = ran(home / "viele Bilder ü.jsonl")
    assert result.stdout == f"{home}/viele Bilder ü/é 1.png\n"


@pytest.mark.parametrize("size", ["1", "2"])
def test_b1_a_run_that_is_killed_again_and_again_equals_an_unbroken_one(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("jobs.jsonl", LINES)
    ran("jobs.jsonl", "--outdir", "whole", "--batch-size", size)
    Path("jobs").mkdir()
    Path("jobs/.ovenbird-12345678.png").touch()  # as a kill leaves it that nothing catches
    dice, genuine, saved = random.Random(7), pipeline.Pipeline.stream, pipeline.save_picture

    def killing(where: str) -> None:
        if left.get(where) == 0:
            raise Killed
        left[where] = left.get(where, -1) - 1

    def stream(self: Any, *given: Any, **more: Any) -> Any:
        for event in genuine(self, *given, **more):
            killing("event")
            yield event

    def save(*given: Any, **more: Any) -> None:
        killing("before")
        saved(*given, **more)
        killing("after")

    def written(file: int, data: bytes) -> int:
        half = left.get("line") == 0
        count = os_write(file, data[: len(data) // 2] if half else data)
        killing("line")
        return count

    os_write = os.write
    monkeypatch.setattr(pipeline.Pipeline, "stream", stream)
    monkeypatch.setattr(pipeline, "save_picture", save)
    monkeypatch.setattr(journal.os, "write", written)
    for where in ("line", "event", "before", "after", "line", "event", "after", "line"):
        left = {where: dice.randrange(2)}
        with pytest.raises(Killed):
            run("jobs.jsonl", "--batch-size", size)
    left = {}
    ran("jobs.jsonl", "--batch-size", size)
    assert pictures("jobs") == pictures("whole") and len(pictures("jobs")) == len(FILES)
    assert done("jobs") == Counter(FILES)
    assert not list(Path("jobs").glob(".*"))


def test_b1_pictures_that_are_gone_or_damaged_are_made_again() -> None:
    write("jobs.jsonl", LINES)
    ran("jobs.jsonl")
    before = pictures("jobs")
    Path("jobs/00000.png").unlink()
    Path("jobs/00002.png").write_bytes(before["00002.png"][:-9])
    Path("precious").write_bytes(before["00003.png"])
    Path("jobs/00003.png").unlink()
    Path("jobs/00003.png").symlink_to("../precious")
    result = ran("jobs.jsonl")
    assert "3 made" in result.stderr and pictures("jobs") == before
    assert not Path("jobs/00003.png").is_symlink() and Path("precious").is_file()


def test_b1_a_half_written_line_of_the_journal_is_cut_off_and_a_damaged_one_passed_over() -> None:
    write("jobs.jsonl", LINES)
    ran("jobs.jsonl")
    path = Path("jobs/journal.jsonl")
    header, first, *others, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first.replace(b'"item"', b'"ite') + b"[]\n" + b"".join(others) + last[:20])
    assert "2 made" in ran("jobs.jsonl").stderr
    assert [json.loads(line) for line in path.read_bytes().splitlines()[-2:]]
    assert "0 made" in ran("jobs.jsonl").stderr


@pytest.mark.parametrize("change", ["file", "options", "image", "model"])
def test_b1_the_journal_of_another_run_is_refused(change: str, nestling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save("sea.png")
    lines = [{"prompt": "a", "init_image": "sea.png", "strength": 1.0}]
    write("jobs.jsonl", lines)
    ran("jobs.jsonl")
    before, more = pictures("jobs"), []
    if change == "file":
        write("jobs.jsonl", [*lines, {"prompt": "b"}])
    elif change == "image":
        Image.new("RGB", (64, 64), "red").save("sea.png")
    elif change == "options":
        more = ["--guidance-scale", "3"]
    else:
        genuine = batch.surroundings
        monkeypatch.setattr(batch, "surroundings", lambda pipeline: {**genuine(pipeline), "model_key": "another"})
    result = run("jobs.jsonl", *more)
    assert result.exit_code == 2 and "--restart" in result.stderr and pictures("jobs") == before
    told = {
        "file": "other jobs",
        "image": "other images",
        "options": "guidance_scale was 7.5",
        "model": "model_key was",
    }
    assert told[change] in result.stderr
    assert "0 there already" in ran("jobs.jsonl", *more, "--restart").stderr


def test_b1_the_file_may_change_while_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    write("jobs.jsonl", LINES[:3])
    ran("jobs.jsonl", "--outdir", "whole")
    genuine = pipeline.Pipeline.stream

    def stream(self: Any, *given: Any, **more: Any) -> Any:
        write("jobs.jsonl", [{"prompt": "something else"}])
        return genuine(self, *given, **more)

    monkeypatch.setattr(pipeline.Pipeline, "stream", stream)
    ran("jobs.jsonl")
    assert pictures("jobs") == pictures("whole")


@pytest.mark.parametrize("name", ["00000.png", "00000-preview.png"])
def test_i12_what_lies_in_the_folder_is_not_replaced(name: str) -> None:
    write("jobs.jsonl", LINES[:1])
    Path("jobs").mkdir()
    Path("jobs", name).symlink_to("nowhere")
    result = run("jobs.jsonl")
    assert result.exit_code == 2 and "exists" in result.stderr and not entries_or_none("jobs")
    assert Path("jobs", name).is_symlink()
    ran("jobs.jsonl", "--restart")
    assert Path("jobs/00000.png").read_bytes() and not Path("jobs/00000.png").is_symlink()
    assert not Path("jobs/nowhere").exists()


@POSIX
@pytest.mark.parametrize("name", ["journal.jsonl", "journal.lock"])
def test_i12_a_journal_is_no_link(name: str) -> None:
    write("jobs.jsonl", LINES[:1])
    Path("jobs").mkdir()
    Path("jobs", name).symlink_to("../elsewhere")
    assert run("jobs.jsonl").exit_code == 4
    assert not Path("elsewhere").exists() and not pictures("jobs")


def entries_or_none(folder: str) -> bytes:
    path = Path(folder, "journal.jsonl")
    return path.read_bytes() if path.exists() else b""


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, word: str = "boat") -> list[str]:
    """Every run of a request with that word in its prompt fails at its first step; what was tried."""
    genuine, tried = pipeline.Pipeline.stream, list[str]()

    def stream(self: Any, requests: Any, **more: Any) -> Any:
        tried.append(" ".join(request.prompt for request in requests))
        for event in genuine(self, requests, **more):
            if word in tried[-1]:
                raise error
            yield event

    monkeypatch.setattr(pipeline.Pipeline, "stream", stream)
    return tried


ERRORS = [(NumericError("not finite"), 5), (ResourceError("no memory"), 4), (MemoryError(), 4)]


@pytest.mark.parametrize(("error", "code"), ERRORS)
def test_e10_an_item_that_fails_is_marked_and_the_run_goes_on(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("jobs.jsonl", [{"prompt": "a house"}, {"prompt": "a boat"}, {"prompt": "a tent"}])
    with monkeypatch.context() as patched:
        failing(patched, error)
        result = run("jobs.jsonl", "--batch-size", "3", "--json")
        assert result.exit_code == code and "1 of 3 failed" in result.stderr and "--retry-failed" in result.stderr
        assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["done", "failed", "done"]
        tried = failing(patched, error)
        assert run("jobs.jsonl", "--batch-size", "3").exit_code == code and tried == []
    assert "1 made" in ran("jobs.jsonl", "--batch-size", "3", "--retry-failed").stderr
    assert done("jobs") == Counter(["00000.png", "00001.png", "00002.png"])
    assert run("jobs.jsonl", "--batch-size", "3").exit_code == 0


def test_e10_an_image_that_changes_meanwhile_fails_alone() -> None:
    Image.new("RGB", (64, 64)).save("sea.png")
    write("jobs.jsonl", [{"prompt": "a", "init_image": "sea.png", "strength": 1.0}, {"prompt": "b"}])
    with Jobs.read(Path("jobs.jsonl"), {}) as jobs:
        Image.new("RGB", (64, 64), "red").save("sea.png")
        jobs._read.cache_clear()
        with pytest.raises(ValueError, match="has changed"):
            jobs.single(0, 1, 64)
        assert jobs.single(1, 1, 64).prompt == "b"


def test_e5_a_full_disk_ends_the_run_and_marks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise ResourceError("the disk is full")

    write("jobs.jsonl", LINES)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "save_picture", full)
        assert run("jobs.jsonl").exit_code == 4
    assert entries("jobs") == []
    assert "7 made" in ran("jobs.jsonl").stderr


def test_e5_a_full_disk_that_a_preview_meets_marks_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: Any, path: Path, *_: Any, **__: Any) -> None:
        raise ResourceError(f"{path} cannot be written: the disk is full") from OSError(errno.ENOSPC, "full")

    write("jobs.jsonl", LINES)
    with monkeypatch.context() as patched:
        patched.setattr(drawing, "save_picture", full)
        refused = run("jobs.jsonl", "--preview-every", "1", "--num-inference-steps", "2")
    assert refused.exit_code == 4 and "preview.png cannot be written: the disk is full" in refused.stderr
    assert entries("jobs") == []


def test_b1_a_name_that_is_too_long_is_told_with_its_line() -> None:
    write("jobs.jsonl", [{"prompt": "a"}, {"prompt": "a", "init_image": "x" * 300 + ".png"}])
    refused = run("jobs.jsonl")
    assert refused.exit_code == 2 and "line 2: " in refused.stderr and "is not a file" in refused.stderr


@pytest.mark.parametrize("apart", [";", "\t"])
def test_b1_cells_that_are_apart_by_something_else_are_told(apart: str) -> None:
    Path("jobs.csv").write_text(f"prompt{apart}seed\na red house{apart}7\n")
    refused = run("jobs.csv")
    assert refused.exit_code == 2 and "hint: cells are apart by commas" in refused.stderr


@pytest.mark.parametrize("name", ["jobs.json", "jobs/journal.jsonl"])
def test_b1_the_report_replaces_neither_jobs_nor_journal(name: str) -> None:
    Path("jobs.json").write_text("".join(f"{json.dumps(line)}\n" for line in LINES[:1]))
    ran("jobs.json")
    before = Path(name).read_bytes()
    refused = run("jobs.json", "--report", name)
    assert refused.exit_code == 2 and "error: report: " in refused.stderr and Path(name).read_bytes() == before


def test_b1_previews_go_when_the_pictures_are_there() -> None:
    write("jobs.jsonl", LINES[:2])
    ran("jobs.jsonl", "--preview-every", "1", "--num-inference-steps", "2", "--report", "report.json")
    assert list(pictures("jobs")) == ["00000.png", "boat-0.png", "boat-1.png", "boat-2.png"]
    assert json.loads(Path("report.json").read_text())["previews"] >= 4


def started(*words: str, code: str = "", **more: Any) -> subprocess.Popen[str]:
    lines = f"from ovenbird import pipeline, journal; from ovenbird.cli import main\n{code}\nmain()"
    command = [sys.executable, "-c", lines, "batch", *words, *QUICK]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


TOGETHER = """
import os, time
from pathlib import Path
journal.secrets.randbits = lambda _: 42
genuine = journal.Journal.begin
def begin(*given, **more):
    genuine(*given, **more)
    Path(f"ready-{os.getpid()}").touch()
    while len(list(Path().glob("ready-*"))) < 2:
        time.sleep(0.01)
journal.Journal.begin = begin
"""


@POSIX
def test_b1_two_processes_share_a_folder_and_one_of_them_is_killed() -> None:
    write("jobs.jsonl", [{"prompt": f"a house {k}"} for k in range(24)])
    ran("jobs.jsonl", "--outdir", "whole")
    with started("jobs.jsonl", code=TOGETHER) as one, started("jobs.jsonl", code=TOGETHER) as two:
        assert one.stdout and one.stdout.readline().startswith("jobs/") and two.stdout
        assert two.stdout.readline().startswith("jobs/")
        one.kill()
        told, said = two.communicate(timeout=60)
    assert two.returncode == 0, said
    assert pictures("jobs") == pictures("whole")
    assert done("jobs") == Counter(f"{k:05}.png" for k in range(24))
    assert 0 < len(told.splitlines()) < 23


@POSIX
def test_e12_a_folder_without_locks_costs_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def lockf(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    write("jobs.jsonl", LINES[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = ran("jobs.jsonl").stderr
    assert said.count("warning: jobs has no locks") == 1 and "let one process at a time draw there" in said
    assert done("jobs") == Counter(["00000.png"])


@POSIX
def test_b1_nothing_begins_anew_under_somebody_who_draws() -> None:
    write("jobs.jsonl", LINES[:1])
    ran("jobs.jsonl")
    holding = "import fcntl; f = open('jobs/journal.lock', 'r+'); fcntl.lockf(f, fcntl.LOCK_SH, 1, 1); print(); input()"
    with subprocess.Popen([sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        result = run("jobs.jsonl", "--restart")
        other.kill()
    assert result.exit_code == 2 and "somebody draws in jobs" in result.stderr and done("jobs")


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_e9_a_signal_ends_a_supervised_run_at_its_next_step(number: int) -> None:
    write("jobs.jsonl", [{"prompt": "a house", "num_images": 900}])
    with started("jobs.jsonl", "--restarts", "2") as process:
        assert process.stdout and process.stdout.readline() == "jobs/00000-0.png\n"
        began = time.monotonic()
        process.send_signal(number)
        told, said = process.communicate(timeout=120)
    assert time.monotonic() - began < 60  # all 900 would take many minutes
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said, said
    assert ["jobs/00000-0.png", *told.splitlines()] == [f"jobs/00000-{k}.png" for k in range(len(pictures("jobs")))]


WORKER = """
import os, sys
from ovenbird.journal import Journal
from pathlib import Path
journal = Journal(Path("jobs"))
journal.append({"status": "started", "by": journal.me, "items": [1]})
print(os.environ["OVENBIRD_SUPERVISED"], flush=True)
if journal.deaths[(1,)] < 2:
    os.kill(os.getpid(), 9)
sys.exit(5)
"""


@POSIX
def test_e10_a_killed_worker_begins_again_and_what_killed_it_is_counted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", WORKER])
    write("jobs.jsonl", LINES)
    ran("jobs.jsonl")
    Path("jobs/boat-0.png").unlink()
    result = run("jobs.jsonl", "--restarts", "2")
    assert result.exit_code == 5 and result.stderr.count("was killed by signal 9") == 2
    assert capfd.readouterr().out.split() == ["first", "again", "again"]
    with pytest.MonkeyPatch.context() as patched:
        tried = failing(patched, NumericError("never"), "never")
        assert run("jobs.jsonl").exit_code == 4 and tried == []
    assert entries("jobs")[-1]["error"] == "2 processes were killed while they drew it"
    assert "1 made" in ran("jobs.jsonl", "--retry-failed").stderr


@POSIX
def test_e10_a_worker_that_is_killed_too_often_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "import os; os.kill(os.getpid(), 9)"])
    before = signal.getsignal(signal.SIGINT)
    result = run("jobs.jsonl", "--restarts", "1")
    assert signal.getsignal(signal.SIGINT) is before
    assert result.exit_code == 4 and "killed 2 times" in result.stderr and "--max-memory" in result.stderr


@POSIX
@pytest.mark.slow
def test_e10_what_kills_its_process_twice_is_marked_and_the_rest_is_made() -> None:
    deadly = """
import os
genuine = pipeline.Pipeline.stream
def stream(self, requests, **more):
    for event in genuine(self, requests, **more):
        if any("boat" in request.prompt for request in requests):
            os.kill(os.getpid(), 9)
        yield event
pipeline.Pipeline.stream = stream
"""
    write("jobs.jsonl", [{"prompt": "a house"}, {"prompt": "a boat"}, {"prompt": "a tent"}])
    with started("jobs.jsonl", "--restarts", "3", code=deadly) as process:
        told, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert told.splitlines() == ["jobs/00000.png", "jobs/00002.png"]
    assert said.count("was killed by signal 9") == 2 and "2 processes were killed while they drew it" in said
