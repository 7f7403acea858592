from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ovenbird import Cancelled, cli, pipeline

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
    (["--output", "nowhere/a.png"], "output", "mkdir -p nowhere"),
    (["--output", "a.jpg"], "output", "a.png"),
    (["--report", "nowhere/a.json"], "report", "mkdir -p nowhere"),
    (["--prompt", "\ud800"], "prompt", ""),
    (["--init-image", "nowhere.png"], "init-image: nowhere.png is not a file", ""),
    (["--strength", "0.5"], "strength", "give an image"),
    (["--vae-tile", "100"], "vae_tile: 100", "use 96 or 104"),
    (["--preview-every", "0"], "preview_every: 0", ""),
]


@pytest.mark.parametrize(("words", "message", "hint"), BAD)
def test_bad_values_stop_before_any_model_is_read(
    run: Any, words: list[str], message: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline.Pipeline, "open", lambda *_, **__: pytest.fail("a model was opened"))
    seconds = []
    for _ in range(3):  # the best of three, for other work of the machine slows this down, too
        began = time.process_time()
        result = run(*words)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.1
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
        printed, said = started.communicate(timeout=60)
    assert time.monotonic() - began < 10  # much of it is the end of the interpreter on a busy machine
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
