from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pace import within
from PIL import Image

from ovenbird import Cancelled, Pipeline, cli, machine, pipeline

QUICK = ["--num-inference-steps", "2"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> Result:
        return CliRunner().invoke(cli.main, ["generate", "--prompt", "a red house", *words])

    return typed


BAD = [
    (["--height", "500"], "height: 500", "use 496 or 504"),
    (["--num-inference-steps", "0"], "num_inference_steps: 0", "the nearest is 1"),
    (["--guidance-scale", "nan"], "guidance_scale: nan", ""),
    (["--clip-skip", "23"], "clip_skip: 23", "the nearest is 22"),
    (["--seed", "-1"], "seed: -1", "the nearest is 0"),
    (["--num-images", "0"], "num_images_per_prompt: 0", "the nearest is 1"),
    (["--scheduler", "dpmpp 2m"], "scheduler", "dpmpp_2m"),
    (["--preset", "fats"], "--preset: 'fats' is not one of", "did you mean fast?"),
    (["--beta-schedule", "scaled_linera"], "beta_schedule: 'scaled_linera'", "did you mean scaled_linear?"),
    (["--beta-start", "5"], "beta_start: 5 is not between 0 and 1", ""),
    (["--beta-start", "0.9", "--beta-end", "0.1"], "beta_start: 0.9 is more than beta_end, 0.1", ""),
    (["--output", "a.png", "--report", "a.png"], "report: a.png is the --output, too", "ends in .json"),
    (["--output", "nowhere/a.png"], "output", "mkdir -p nowhere"),
    (["--output", "a.gif"], "output", "a.png"),
    (["--output", "a.jpg", "--negative-prompt", "x" * 40_000], "output: a.jpg has no room", "a.png"),
    (["--params-from", "nowhere.png"], "params-from: nowhere.png is not a file", ""),
    (["--tokenizer", "no/such/words"], "tokenizer: no/such/words is not a folder with", "leave --tokenizer out"),
    (["--tokenizer", "owner/name@" + "x" * 300], "revision: 'xxx", "leave it out for main"),
    (["--report", "nowhere/a.json"], "report", "mkdir -p nowhere"),
    (["--prompt", "\ud800"], "prompt", ""),
    (["--init-image", "nowhere.png"], "init-image: nowhere.png is not a file", ""),
    (["--strength", "0.5"], "strength", "give an image"),
    (["--vae-tile", "100"], "vae_tile: 100", "use 96 or 104"),
    (["--preview-every", "0"], "preview_every: 0", ""),
    (["--width", "0"], "width: 0", "the nearest is 64"),
    (["--width", "99999999999999999999"], "width: 99999999999999999999", "the nearest is 4096"),
    (["--num-images", "1000000"], "num_images_per_prompt: 1000000", "the nearest is 1000"),
    (["--prompt", "x" * 100_000], "prompt: 100000 bytes", ""),
    (["--guidance-interval", "0.7", "0.3"], "guidance_interval: 0.7 is not less than 0.3", ""),
    (["--eta", "2"], "eta: 2", "the nearest is 1"),
    (["--variation-strength", "-1"], "variation_strength: -1", "the nearest is 0"),
    (["--blend", "0.5"], "blend", "give to_prompt"),
    (["--hires-scale", "9"], "hires_scale: 9", "the nearest is 4"),
    (["--tile-size", "7"], "tile_size: 7", "the nearest is 64"),
    (["--threads", "0"], "threads: 0", ""),
    (["--batch-size", "-3"], "batch_size: -3", ""),
    (["--max-memory", "lots"], "max_memory: 'lots'", ""),
    (["--reuse-every", "0"], "reuse_every: 0", ""),
    (["--output", "x" * 300 + ".png"], "output: 'xxx", "too long"),
    (["--init-image", "x" * 300], "init-image: xxx", "is not a file"),
]


def test_more_memory_than_the_limit_is_told(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("--prompt", "x", "--num-inference-steps", "1", "--max-memory", "64GiB", "--report", "r.json")
    monkeypatch.setattr(machine, "peak_rss_mib", lambda: 64 * 1024.0)
    assert "at the most" not in run(*words).stderr
    monkeypatch.setattr(machine, "peak_rss_mib", lambda: 64 * 1024.0 + 1)
    told = "this took 65537 MiB of memory at the most, and --max-memory is 64.0 GiB"
    assert f"warning: {told}\n" in run(*words).stderr
    assert told in json.loads((tmp_path / "r.json").read_text())["warnings"]


@pytest.mark.parametrize(("words", "message", "hint"), BAD)
def test_r2_r5_r7_to_r15_bad_values_stop_before_any_model_is_read(
    run: Any, words: list[str], message: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline.Pipeline, "open", lambda *_, **__: pytest.fail("a model was opened"))
    with within(0.1):
        result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: {message}"), result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_i12_an_existing_output_is_refused_before_any_work(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("precious")
    result = run("--output", "a.png")
    assert result.exit_code == 2 and "--overwrite" in result.stderr
    assert (tmp_path / "a.png").read_text() == "precious"


def test_an_unknown_model_says_what_there_is(run: Any) -> None:
    result = run("--model", "sd16")
    assert result.exit_code == 2
    assert "nestling" in result.stderr


def test_a_folder_that_is_no_model_is_refused(run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("--model", "./empty")
    assert result.exit_code == 3
    assert "ovenbird export" in result.stderr


def test_a_picture_its_words_and_its_report(run: Any, tmp_path: Path) -> None:
    result = run("--seed", "7", "--report", "report.json", *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout == "output.png  seed 7\n"
    assert "nestling" in result.stderr and "--model FOLDER" in result.stderr and "median step" in result.stderr
    with Image.open(tmp_path / "output.png") as image:
        image.load()
        facts = json.loads(image.text["ovenbird"])  # type: ignore[attr-defined]
        assert image.size == (128, 128)
    assert (facts["prompt"], facts["seed"], facts["num_inference_steps"]) == ("a red house", 7, 2)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] == 2 and report["unet_calls"] == 2 and report["pictures"] == 1
    assert set(report["precision"]) == {"text_encoder", "unet", "vae_decoder"}
    stages = ("load_s", "compile_s", "text_encoder_s", "first_step_s", "vae_s", "save_s")
    assert 0 < sum(report[name] for name in stages) <= report["total_s"]


def test_tiles_decoder_and_checker_are_in_the_picture(run: Any, tmp_path: Path) -> None:
    assert run("--vae-tile", "64", "--no-safety-checker", "--decoder", "full", *QUICK).exit_code == 0
    with Image.open(tmp_path / "output.png") as image:
        facts = json.loads(image.text["ovenbird"])  # type: ignore[attr-defined]
    assert facts["vae_tile"] == 64 and facts["decoder"] == "full" and facts["vae_retried"] is False
    assert facts["safety_checker"] == "none" and facts["nsfw_content_detected"] is None
    refused = run("--decoder", "tiny", *QUICK)
    assert refused.exit_code == 2 and "has no tiny_vae_decoder" in refused.stderr and "--tiny-vae" in refused.stderr


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What lies in the folder at each event; a run may be stopped after so many of them."""
    seen: list[list[str]] = []
    genuine = pipeline.Pipeline.stream

    def watching(stop: int | None = None) -> list[list[str]]:
        def stream(self: Any, *given: Any, **more: Any) -> Any:
            for number, event in enumerate(genuine(self, *given, **more)):
                if number == stop:
                    raise Cancelled("the run was stopped")
                seen.append(sorted(path.name for path in tmp_path.iterdir()))
                yield event

        monkeypatch.setattr(pipeline.Pipeline, "stream", stream)
        return seen

    return watching


def test_previews_are_replaced_and_go_when_the_picture_is_there(run: Any, watched: Any, tmp_path: Path) -> None:
    seen = watched()
    assert run("--num-images", "2", "--output", "a.png", "--preview-every", "1", *QUICK).exit_code == 0
    first, second = ["a-0.png"], ["a-1-preview.png"]
    assert seen == [[], ["a-0-preview.png"], ["a-0-preview.png"], first, first + second, first + second]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.png", "a-1.png"]


def test_a_preview_stays_when_the_run_is_stopped_and_nothing_is_written_over_it(
    run: Any, watched: Any, tmp_path: Path
) -> None:
    watched(stop=1)
    assert run("--preview-every", "1", *QUICK).exit_code == 130
    kept = (tmp_path / "output-preview.png").read_bytes()
    with Image.open(tmp_path / "output-preview.png") as image:
        image.load()
        assert image.size == (128, 128) and not image.text  # type: ignore[attr-defined]
    watched()
    refused = run("--preview-every", "1", "--output", "output.png", *QUICK)
    assert refused.exit_code == 2 and "output-preview.png exists" in refused.stderr
    assert run("--preview-every", "1", *QUICK).stdout.startswith("output-1.png")
    assert (tmp_path / "output-preview.png").read_bytes() == kept


def test_a_second_picture_takes_the_next_name(run: Any, tmp_path: Path) -> None:
    assert run("--quiet", *QUICK).stdout == "output.png\n"
    assert run("--quiet", "--num-images", "2", *QUICK).stdout == "output-1.png\noutput-2.png\n"


def test_quiet_says_nothing_else(run: Any) -> None:
    assert run("--quiet", *QUICK).stderr == ""


def test_betas_reach_the_sampler_and_the_picture(run: Any, tmp_path: Path) -> None:
    run("--seed", "1", "--output", "a.png", *QUICK)
    run("--seed", "1", "--output", "b.png", "--beta-end", "0.02", *QUICK)
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.tobytes() != b.tobytes()
        assert json.loads(b.text["ovenbird"])["scheduler_config"]["beta_end"] == 0.02  # type: ignore[attr-defined]


def test_a_picture_from_a_picture_says_so(run: Any, tmp_path: Path) -> None:
    given, mask = Image.new("RGB", (64, 72), (90, 160, 220)), Image.new("L", (64, 72))
    mask.paste(255, (0, 0, 64, 40))
    given.save(tmp_path / "sea.jpg")
    mask.save(tmp_path / "sky.webp", lossless=True)
    result = run("--init-image", "sea.jpg", "--mask", "sky.webp", "--strength", "0.5", *QUICK)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "output.png") as image, Image.open(tmp_path / "sea.jpg") as sea:
        facts, words = (json.loads(image.text["ovenbird"]), image.text["parameters"])  # type: ignore[attr-defined]
        below = (0, 40, 64, 72)
        assert image.size == (64, 72) and image.crop(below).tobytes() == sea.crop(below).tobytes()
    assert facts["strength"] == 0.5 and "Denoising strength: 0.5" in words
    assert facts["image"].startswith("sha256:") and facts["mask_image"] not in (None, facts["image"])


def test_a_picture_of_another_size_than_the_one_it_starts_from_says_so(run: Any, tmp_path: Path) -> None:
    Image.new("RGB", (75, 70), (90, 160, 220)).save(tmp_path / "sea.png")
    result = run("--init-image", "sea.png", *QUICK, "--overwrite")
    assert result.exit_code == 0 and "size: 72x64, of a picture of 75x70\n" in result.stderr, result.stderr
    assert "size:" not in run("--init-image", "output.png", *QUICK).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 0.9])
def test_e9_a_signal_stops_at_the_next_step_and_keeps_finished_pictures(
    tmp_path: Path, number: int, seconds: float
) -> None:
    with start_in(tmp_path, "--num-inference-steps", "12", "--num-images", "900", "--quiet") as started:
        assert started.stdout and started.stdout.readline() == "output.png\n"
        time.sleep(seconds)
        began = time.monotonic()
        started.send_signal(number)
        printed, said = started.communicate(timeout=120)
    assert time.monotonic() - began < 60  # all 900 would take many minutes
    assert started.returncode == 130
    assert "stopping at the next step" in said and "error: the run was stopped" in said and "Traceback" not in said
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == sorted(["output.png", *printed.split()])
    for name in found:
        Image.open(tmp_path / name).load()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent there")
def test_e9_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with start_in(tmp_path, "--quiet", held=True) as started:
        assert started.stderr and started.stderr.readline() == "held\n"
        started.send_signal(signal.SIGINT)
        assert started.stderr.readline() == "\n"
        assert "once more stops at once" in started.stderr.readline()
        assert started.poll() is None
        started.send_signal(signal.SIGINT)
    assert started.returncode == 130
    assert list(tmp_path.iterdir()) == []


HELD = """
import hashlib, sys
from ovenbird.backends.openvino import OpenVINO
def held(*_, **__):
    print("held", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # as a runtime's call: minutes in which Python's handlers wait
OpenVINO.compile = held
"""


def start_in(folder: Path, *words: str, held: bool = False) -> subprocess.Popen[str]:
    code = f"{HELD if held else ''}\nfrom ovenbird.cli import demo; demo()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "--prompt", "a red house", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_several_prompts_are_several_pictures_with_seeds_that_count_on(run: Any, tmp_path: Path) -> None:
    result = run("--prompt", "a boat", "--num-images", "2", "--seed", "7", "--batch-size", "4", *QUICK)
    assert result.exit_code == 0, result.output
    names = ["output.png", "output-1.png", "output-2.png", "output-3.png"]
    assert result.stdout == "".join(f"{name}  seed {seed}\n" for seed, name in enumerate(names, 7))
    words = []
    for name in names:
        with Image.open(tmp_path / name) as image:
            image.load()
            words.append(json.loads(image.text["ovenbird"])["prompt"])  # type: ignore[attr-defined]
    assert words == ["a red house"] * 2 + ["a boat"] * 2


def test_r6_a_prompt_is_never_a_path(run: Any, tmp_path: Path) -> None:
    before = set(tmp_path.parent.iterdir())
    result = CliRunner().invoke(cli.main, ["generate", "--prompt", "../../evil.png; $(touch x) {0} %s", *QUICK])
    assert result.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["output.png"]
    assert set(tmp_path.parent.iterdir()) == before


def test_help_names_every_command_and_flag() -> None:
    overview = CliRunner().invoke(cli.main, ["--help"]).output
    assert "generate" in overview and "export" in overview
    for command in (cli.generate, cli.frames, cli.upscale):
        assert command.name and command.name in overview
        text = CliRunner().invoke(cli.main, [command.name, "--help"]).output
        for parameter in command.params:
            assert parameter.opts[0] in (text if parameter.opts[0].startswith("-") else text.lower())


def test_demo_py_is_the_same_command(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(root / "demo.py"), "--prompt", "a blue boat", "--quiet", *QUICK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "output.png\n"


def test_i12_a_picture_that_is_there_is_no_report(run: Any, tmp_path: Path) -> None:
    (tmp_path / "keep.png").write_text("precious")
    refused = run("--report", "keep.png")
    assert refused.exit_code == 2 and "report: keep.png exists and is no .json" in refused.stderr
    assert (tmp_path / "keep.png").read_text() == "precious"


def test_a_tilde_is_home_behind_an_equals_sign_too(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("--output=~/a.png", "--num-inference-steps", "1", "--quiet").exit_code == 0
    assert (tmp_path / "home" / "a.png").is_file() and not (tmp_path / "~").exists()


def test_i12_a_default_name_that_another_process_takes_costs_no_picture(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Pipeline.stream

    def stream(self: Pipeline, *words: Any, **named: Any) -> Any:
        (tmp_path / "output.png").write_text("another process")
        return genuine(self, *words, **named)

    monkeypatch.setattr(Pipeline, "stream", stream)
    made = run("--num-inference-steps", "1", "--quiet")
    assert made.exit_code == 0 and made.stdout == "output-1.png\n" and (tmp_path / "output-1.png").is_file()
    assert (tmp_path / "output.png").read_text() == "another process"


def test_e12_without_stderr_there_is_a_picture(tmp_path: Path) -> None:
    code = "from ovenbird.cli import main; main()"
    words = ["generate", "--prompt", "a", "--num-inference-steps", "1", "--output", "a.png"]
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, timeout=100, check=False)
    assert done.returncode == 0 and (tmp_path / "a.png").is_file()


def test_e12_a_name_that_stdout_cannot_show_ends_no_run(tmp_path: Path) -> None:
    code = "from ovenbird.cli import main; main()"
    words = ["generate", "--prompt", "a", "--num-inference-steps", "1", "--output", "\u5bb6.png", "--num-images", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.split() == [rb"\u5bb6-0.png", rb"\u5bb6-1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["\u5bb6-0.png", "\u5bb6-1.png"]


def test_debug_stands_before_commands_that_have_it_not() -> None:
    refused = CliRunner().invoke(cli.main, ["info", "--debug"])
    assert refused.exit_code == 2 and "hint: put it before the command: ovenbird --debug info" in refused.stderr
