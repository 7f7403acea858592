"""Rows of the table of faults (docs/faults.md) that belong to no part alone: requests, numbers, the command line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from test_metadata import FACTS, PICTURE

from ovenbird import Bundle, ModelError, Pipeline, Request, RequestError, ResourceError, Step, cli, families, machine
from ovenbird.metadata import save_picture, whole
from ovenbird.text import PromptTokenizer

QUICK: dict[str, Any] = {"seed": 3, "width": 64, "height": 64, "num_inference_steps": 2}
WORDS = ["--seed", "3", "--width", "64", "--height", "64", "--num-inference-steps", "1"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("nestling", inference_precision="f32")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Type ``ovenbird generate`` in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def typed(*words: str) -> Result:
        return CliRunner().invoke(cli.main, ["generate", *words, *WORDS])

    return typed


def drawn(pipeline: Pipeline, prompt: str = "a red house", **fields: Any) -> Any:
    return np.asarray(pipeline.generate(Request(prompt=prompt, **QUICK | fields)).images[0]).astype(int)


# Requests.


def test_r1_an_empty_prompt_is_the_picture_without_guidance(pipeline: Pipeline) -> None:
    found = drawn(pipeline, "", guidance_scale=7.5)
    assert np.abs(found - drawn(pipeline, "", guidance_scale=1.0)).max() <= 1
    assert np.abs(found - drawn(pipeline)).max() > 1


def test_r3_a_huge_prompt_takes_no_memory() -> None:
    prompt = "ü" * 10_000_000
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="bytes are more than 65536"):
            Request(prompt=prompt)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_r4_strict_refuses_what_would_be_cut(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovenbird.stages.Stages._compile", lambda *_: pytest.fail("a model was read"))
    for words in (["--prompt", "house " * 76], ["--prompt", "a", "--negative-prompt", "house " * 76]):
        found = run("--strict", *words)
        assert found.exit_code == 2, found.output
        assert "prompt: the prompt is longer than 75 tokens; this would be cut off: 'house" in found.stderr
        assert "--prompt-syntax webui" in found.stderr
    with pytest.raises(RequestError, match="strict: 1 is neither"):
        Request(prompt="", strict=1)  # type: ignore[arg-type]


def test_r4_strict_lets_pass_what_fits(pipeline: Pipeline) -> None:
    assert drawn(pipeline, "house " * 75, strict=True).shape == (64, 64, 3)
    # Without guidance nobody reads the negative prompt, however long.
    with pytest.warns(UserWarning, match="negative_prompt: it has no effect"):
        drawn(pipeline, "house", strict=True, negative_prompt="house " * 76, guidance_scale=1.0)


@pytest.mark.filterwarnings("always:the prompt is longer")
def test_r4_what_was_cut_is_in_the_report(run: Any) -> None:
    found = run("--prompt", "house " * 75 + "lost words", "--report", "report.json", "--quiet")
    assert found.exit_code == 0 and "warning: the prompt is longer" in found.stderr
    [told] = [line for line in json.loads(Path("report.json").read_text())["warnings"] if "longer" in line]
    assert told.endswith("this was cut off: 'lost words'")


def test_r5_a_lone_surrogate_is_refused_and_nul_is_kept(nestling: Path) -> None:
    for prompt in ("\ud800", "a\udfff"):
        with pytest.raises(RequestError, match="half a character"):
            Request(prompt=prompt)
    tokenizer = PromptTokenizer.open(nestling / "fp16" / "tokenizer").tokenizer
    assert len(tokenizer.encode("a\0b", add_special_tokens=False).ids) == 3


def test_r6_no_text_becomes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    (tmp_path / "out").mkdir()
    chance, parts = (
        np.random.default_rng(6),
        ["../", "/etc/", "..\\", "\0", "\n", "$(x)", "`x`", "%s", "{0}", "CON", "a"],
    )
    for number in range(500):
        prompt = "".join(chance.choice(parts, 4))
        facts = FACTS | {"prompt": prompt, "negative_prompt": prompt[::-1]}
        save_picture(PICTURE, tmp_path / "out" / "a.png", facts, overwrite=True)
        if number % 50 == 0:
            with Image.open(tmp_path / "out" / "a.png") as image:
                assert json.loads(image.text["ovenbird"])["prompt"] == prompt  # type: ignore[attr-defined]
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("out"), Path("out/a.png")]


def test_r12_a_negative_prompt_that_nothing_comes_of_is_said(pipeline: Pipeline, monkeypatch: Any) -> None:
    wish = Request(prompt="a", negative_prompt="b").settled(64)
    families.check(pipeline.bundle, wish)
    with pytest.warns(UserWarning, match="negative_prompt: it has no effect, for guidance_scale is not above 1"):
        pipeline.stream(Request(prompt="a", negative_prompt=["", "b"][1], guidance_scale=1.0, **QUICK))
    monkeypatch.setattr(Bundle, "config", lambda *_: {"time_cond_proj_dim": 256})
    with pytest.warns(UserWarning, match="nestling has learned guidance"):
        families.check(pipeline.bundle, wish)


# Numbers.


def test_n3_a_run_is_the_same_each_time_and_nearly_so_on_one_thread(pipeline: Pipeline) -> None:
    first = drawn(pipeline)
    for _ in range(2):
        np.testing.assert_array_equal(drawn(pipeline), first)
    alone = Pipeline.open("nestling", inference_precision="f32", threads=1)
    assert np.abs(drawn(alone) - first).max() <= 1
    report = alone.report()
    assert report.threads == 1 and report.cpu and report.runtime_version


def test_n4_pipelines_in_two_threads_do_not_disturb_each_other(pipeline: Pipeline) -> None:
    prompts = ["a red house", "a blue boat"]
    expected = [drawn(pipeline, prompt, scheduler="pndm") for prompt in prompts]
    found: dict[int, list[Any]] = {0: [], 1: []}
    others = [Pipeline(pipeline.bundle, pipeline.backend, inference_precision="f32") for _ in prompts]

    def draw(number: int) -> None:
        for _ in range(2):
            found[number].append(drawn(others[number], prompts[number], scheduler="pndm"))

    threads = [threading.Thread(target=draw, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, pictures in found.items():
        assert len(pictures) == 2
        for picture in pictures:
            np.testing.assert_array_equal(picture, expected[number])


# Pictures that are given and made.


@pytest.mark.parametrize("place", ["http://127.0.0.1:{port}/a.png", "http:/127.0.0.1:{port}/a.png", "file://{file}",
                                   "data:image/png;base64,iVBORw0KGgo=", "//127.0.0.1:{port}/a.png"])  # fmt: skip
def test_i11_what_is_given_as_a_url_is_not_fetched(run: Any, tmp_path: Path, place: str) -> None:
    PICTURE.save(tmp_path / "a.png")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.01)
        words = place.format(port=listener.getsockname()[1], file=tmp_path / "a.png")
        found = run("--prompt", "a", "--init-image", words)
        assert found.exit_code == 2 and "is not a file" in found.stderr, found.output
        with pytest.raises(TimeoutError):
            listener.accept()


def test_i12_outputs_that_cannot_be_are_refused_before_any_work(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("a model was opened"))
    (tmp_path / "work" / "folder.png").mkdir()
    (tmp_path / "work" / "link.png").symlink_to("nowhere")
    refusals = {
        "folder.png": "is a folder",
        "link.png": "exists",
        "no/a.png": "does not exist",
        "../x": "does not end in",
    }
    for name, message in refusals.items():
        found = run("--prompt", "a", "--output", name)
        assert found.exit_code == 2 and message in found.stderr, found.output
    monkeypatch.setattr(os, "access", lambda *_: False)
    for option in ("--output", "--report"):
        found = run("--prompt", "a", option, "a.png")
        assert found.exit_code == 4 and "cannot be written" in found.stderr, found.output
    assert sorted(path.name for path in Path().iterdir()) == ["folder.png", "link.png"]


def test_i12_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match="no file that could be replaced"):
        save_picture(PICTURE, tmp_path / "pipe.png", FACTS, overwrite=True)
    assert (tmp_path / "pipe.png").is_fifo() and len([*tmp_path.iterdir()]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_e5_i12_a_report_that_cannot_be_written_is_an_error_and_the_picture_stays(run: Any) -> None:
    found = run("--prompt", "a", "--report", "/dev/full", "--quiet")
    assert found.exit_code == 4 and "No space left" in found.stderr, found.output
    assert [path.name for path in Path().iterdir()] == ["output.png"]
    assert Path("/dev/full").is_char_device()


def test_e5_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("before")

    def full() -> None:
        with whole(tmp_path / "report.json", overwrite=True) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="the disk is full"):
        full()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


# Files and processes.


@pytest.fixture
def copy(nestling: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nestling / "fp16", tmp_path / "model"))


def replaced(folder: Path) -> None:
    """As an export does: another folder, with other bytes, under the same name."""
    folder.rename(folder.with_name("old"))
    shutil.copytree(folder.with_name("old"), folder)
    path = folder / "ovenbird.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "other"}))
    (folder / "vae_decoder" / "openvino_model.bin").write_bytes(b"other")


def test_e8_a_model_that_is_replaced_during_a_run(copy: Path, pipeline: Pipeline) -> None:
    """What is in memory draws as before; what must still be read is not taken from another generation."""
    expected = drawn(pipeline)
    whole_one = Pipeline.open(copy, inference_precision="f32")
    np.testing.assert_array_equal(drawn(whole_one), expected)
    half = Pipeline.open(copy, inference_precision="f32").stream(Request(prompt="a red house", **QUICK))
    assert isinstance(next(iter(half)), Step)
    replaced(copy)
    np.testing.assert_array_equal(drawn(whole_one), expected)
    with pytest.raises(ModelError, match="was replaced while it was in use"):
        list(half)


def test_e11_the_report_says_what_else_slows_a_run(pipeline: Pipeline, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "thermal_zone0").mkdir()
    (tmp_path / "thermal_zone0" / "type").write_text("x86_pkg_temp\n")
    (tmp_path / "thermal_zone0" / "temp").write_text("54000\n")
    (tmp_path / "cpuinfo").write_text("cpu MHz\t\t: 2599.998\nflags\t: avx2\ncpu MHz\t\t: 3100.0\n")
    monkeypatch.setattr(machine, "THERMAL", tmp_path)
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.25, 0.0, 0.0), raising=False)
    drawn(pipeline, num_inference_steps=3)
    report = pipeline.report()
    assert (report.load_average, report.cpu_mhz, report.cpu_celsius) == (1.25, 3100.0, 54.0)
    assert 0 < report.fastest_step_s <= report.median_step_s <= report.p90_step_s
    assert "load average 1.2, 3.1 GHz, 54 °C" in report.table() and "for nine of ten" in report.table()
    for name, value in (("THERMAL", tmp_path / "no"), ("PROC", tmp_path / "no")):
        monkeypatch.setattr(machine, name, value)
    monkeypatch.delattr(os, "getloadavg")
    assert machine.load_average() is machine.cpu_mhz() is machine.cpu_celsius() is None


def test_e12_paths_of_any_bytes_another_locale_and_no_home(copy: Path, tmp_path: Path, root: Path) -> None:
    place = tmp_path / "with a space" / os.fsdecode(b"\xff\xfe not utf-8") / ("long" * 60)
    place.mkdir(parents=True)
    model = copy.rename(place / "modèle")
    (model / "ovenbird.json").unlink()
    env = {
        name: value for name, value in os.environ.items() if name not in ("OVENBIRD_CACHE", "XDG_CACHE_HOME", "LANG")
    }
    env |= {"HOME": "/proc/nowhere", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["generate", "--model", str(model), "--prompt", "a house", "--output", str(place / "ö.png"), *WORDS]
    done = subprocess.run(
        [sys.executable, "-c", "from ovenbird.cli import main; main()", *words],
        env=env, cwd=place, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (place / "ö.png").stat().st_size > 1000
    assert len(str(place)) > 260 - len("/ö.png")


def test_e13_manifests_of_every_released_version_are_read(root: Path, tmp_path: Path) -> None:
    """``tests/manifests`` has one of each, for ever: N.json, of format N, and the files that it lists."""
    kept = sorted((root / "tests" / "manifests").glob("*.json"))
    assert [path.stem for path in kept] == ["1"]
    for path in kept:
        folder = tmp_path / path.stem
        for name in json.loads(path.read_text())["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text('{"_class_name": "StableDiffusionPipeline"}' if "index" in name else "graph")
        shutil.copy(path, folder / "ovenbird.json")
        bundle = Bundle.open(folder)
        bundle.verify()
        assert (bundle.name, bundle.family, bundle.precision, bundle.clip_skip) == ("first", "sd", "fp16", 11)


@pytest.mark.parametrize("format", [0, 2, 10**9, "1", None, True, [1]])
def test_e13_other_formats_are_refused(copy: Path, format: Any) -> None:
    path = copy / "ovenbird.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": format}))
    with pytest.raises(ModelError, match="this ovenbird reads 1"):
        Bundle.open(copy)


# Hostile folders.

NAMES = ["a\0b", "..\\outside", "unet\\x", "C:\\x", "C:x", "unet/x:stream", "a\nb", "\u202eb", "", ".", "unet/.."]


@pytest.mark.parametrize("name", NAMES)
def test_m7_names_of_no_or_another_system_are_refused(copy: Path, name: str) -> None:
    path = copy / "ovenbird.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {name: {"size": 0, "sha256": ""}}}))
    with pytest.raises(ModelError, match="outside its folder"):
        Bundle.open(copy)


VOCABULARIES: dict[str, tuple[dict[str, Any], str]] = {
    "merges of nothing": ({"merges.txt": "#version\nzz qq\n"}, "out of vocabulary"),
    "an id that is none": ({"vocab.json": '{"a": "1"}'}, "not every token has a number"),
    "an id of a billion": ({"a": 10**9}, "not every token has a number"),
    "an id below nothing": ({"a": -1}, "not every token has a number"),
    "an id with a fraction": ({"a": 0.5}, "not every token has a number"),
    "a list": ({"vocab.json": "[]"}, "not an object"),
    "no room": ({"tokenizer_config.json": '{"model_max_length": 2}'}, "no room"),
    "room that is none": ({"tokenizer_config.json": '{"model_max_length": "many"}'}, "no room"),
    "no number": ({"tokenizer_config.json": '{"model_max_length": NaN}'}, "no room"),
    "an end that is not there": ({"tokenizer_config.json": '{"eos_token": "<no>"}'}, "not in the vocabulary"),
    "merges of 16 MiB": ({"merges.txt": "a b\n" * (1 << 22) + "a"}, "larger than 16 MiB"),
    "a vocabulary of 16 MiB": ({"vocab.json": " " * ((16 << 20) + 1)}, "larger than 16 MiB"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_m10_vocabularies_that_are_none_are_refused(nestling: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(nestling / "fp16" / "tokenizer", tmp_path / "tokenizer")
    changes, message = VOCABULARIES[kind]
    for name, value in changes.items():
        if name == "a":
            known = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
            (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(known | {name: value}))
        else:
            (tmp_path / "tokenizer" / name).write_text(value)
    with pytest.raises(ModelError, match=message):
        PromptTokenizer.open(tmp_path / "tokenizer")


def test_m10_merges_that_go_round_end(nestling: Path, tmp_path: Path) -> None:
    """Each pair once more, and backwards: what is read of a long word comes to its end."""
    folder = Path(shutil.copytree(nestling / "fp16" / "tokenizer", tmp_path / "tokenizer"))
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    (folder / "merges.txt").write_text("\n".join([*lines, *lines, *reversed(lines)]))
    assert 1000 < len(PromptTokenizer.open(folder).tokenizer.encode("house" * 2000).ids) <= 5 * 2000


def test_m6_settings_that_name_code_are_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the index and the configs of a folder they change nothing; in the scheduler's they are refused."""
    (copy / "ovenbird.json").unlink()
    evil = {
        "auto_map": {"AutoModel": "evil--modeling.Evil"},
        "custom_pipeline": "evil",
        "_attn_implementation": "evil/k",
    }
    for name in ("model_index.json", "unet/config.json", "text_encoder/config.json"):
        (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | evil))
    bundle = Bundle.open(copy)
    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("something was imported"))
    families.check(bundle, Request(prompt="a").settled(64))
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | evil))
    fresh = Pipeline.__new__(Pipeline)
    fresh.bundle, fresh.scheduler_overrides = Bundle.open(copy), {}
    with pytest.raises(ModelError, match="option 'auto_map' is not known"):
        fresh.scheduler(Request(prompt="a"))


def test_warnings_are_errors_here() -> None:
    """So that what is warned of above is warned of there alone."""
    with pytest.raises(UserWarning), warnings.catch_warnings():
        warnings.warn("x", stacklevel=1)
