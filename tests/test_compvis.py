"""``ovenbird txt2img`` and ``img2img``: what CompVis' scripts are called with, and the folder that they fill."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from pace import within
from PIL import Image
from test_recall import INFOTEXT, web_ui
from typed import ours

from ovenbird import NumericError, cli
from ovenbird import pipeline as pipelines
from ovenbird.commands import checkpoint
from ovenbird.commands.samples import Failures, Folder, grid, prompts

QUICK = ["--ddim_steps", "2", "--n_samples", "2", "--n_iter", "1", "--quiet"]
Typed = Callable[..., Result]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def type_it(*words: str) -> Result:
        found = CliRunner().invoke(cli.main, words)
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return found

    return type_it


def told(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        image.load()
        found: dict[str, Any] = json.loads(image.text["ovenbird"])  # type: ignore[attr-defined]
    return found


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Drawn:
    """What would be drawn; every picture is gray."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wishes: list[Any] = []
        self.options: dict[str, Any] = {}
        genuine = pipelines.Pipeline.open

        def opened(*given: Any, **options: Any) -> Any:
            self.options = {"model": given[0], **options}
            return genuine(*given, **options)

        def stream(pipeline: Any, wishes: Sequence[Any], **_: Any) -> Any:
            singles = [single for wish in wishes for single in wish.singles()]
            self.wishes += singles
            for number, single in enumerate(singles):
                if "impossible" in single.prompt:
                    raise NumericError("unet: the latents are not finite")
                yield pipelines.Picture(number, single, Image.new("RGB", (single.width, single.height)))

        monkeypatch.setattr(pipelines.Pipeline, "open", opened)
        monkeypatch.setattr(pipelines.Pipeline, "stream", stream)

    @property
    def seeds(self) -> list[int]:
        return [wish.seed for wish in self.wishes]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


# Names, defaults, folders

DEFAULTS = {
    "txt2img": {
        "--outdir": Path("outputs/txt2img-samples"),
        "--ddim_steps": 50,
        "--ddim_eta": 0.0,
        "--n_samples": 3,
        "--n_iter": 2,
        "--n_rows": 0,
        "--scale": 7.5,
        "--seed": 42,
        "--C": 4,
        "--f": 8,
        "--precision": "autocast",
        "--prompt": "a painting of a virus monster playing guitar",
        **dict.fromkeys(("--skip_grid", "--skip_save", "--plms", "--dpm_solver", "--fixed_code", "--laion400m"), False),
        **dict.fromkeys(("--from-file", "--ckpt", "--config", "--H", "--W"), None),
    },
    "img2img": {
        "--outdir": Path("outputs/img2img-samples"),
        "--init-img": None,
        "--strength": 0.75,
        "--scale": 5.0,
        "--n_iter": 1,
        "--n_samples": 2,
        "--ddim_steps": 50,
        "--seed": 42,
    },
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_names_and_defaults_are_those_of_the_scripts(name: str) -> None:
    command = cli.main.commands[name]  # type: ignore[attr-defined]
    parent = click.Context(cli.main)
    parent.params["debug"] = False
    defaults = command.make_context(name, [], parent=parent).params
    there = {option: defaults[parameter.name] for parameter in command.params for option in parameter.opts
             if parameter.expose_value}  # fmt: skip
    assert {option: there.get(option, "missing") for option in DEFAULTS[name]} == DEFAULTS[name]


def test_a_run_fills_the_folder_and_the_next_goes_on_behind_it(typed: Typed, tmp_path: Path) -> None:
    first = typed("txt2img", "--prompt", "a red house", *QUICK)
    assert first.exit_code == 0, first.output
    out = tmp_path / "outputs" / "txt2img-samples"
    names = ["grid-0000.png", "samples/00000.png", "samples/00001.png"]
    assert files(tmp_path) == [f"outputs/txt2img-samples/{name}" for name in names]
    assert first.stdout.split() == [f"outputs/txt2img-samples/{name}" for name in (*names[1:], names[0])]
    facts = told(out / "samples" / "00001.png")
    assert (facts["sampler"], facts["seed"], facts["guidance_scale"], facts["width"]) == ("DDIM", 43, 7.5, 128)
    with Image.open(out / "grid-0000.png") as whole, Image.open(out / "samples" / "00001.png") as second:
        assert whole.size == (262, 132) and whole.crop((132, 2, 260, 130)).tobytes() == second.tobytes()
        assert whole.crop((0, 0, 262, 2)).getextrema() == ((0, 0),) * 3

    (out / "samples" / "00041.png").write_text("somebody's")
    (out / "samples" / "note.txt").write_text("somebody's")
    (out / "grid-0007.png").write_text("somebody's")
    typed("txt2img", "--prompt", "a red house", "--plms", *QUICK)
    assert {"grid-0008.png", "samples/00042.png", "samples/00043.png"} <= set(files(out))
    assert told(out / "samples" / "00042.png")["sampler"] == "PLMS"
    assert (out / "samples" / "00041.png").read_text() == "somebody's"


def test_img2img_starts_from_a_picture(typed: Typed, tmp_path: Path) -> None:
    Image.new("RGB", (130, 128), (90, 160, 220)).save(tmp_path / "sea.jpg")
    done = typed("img2img", "--prompt", "a boat", "--init-img", "sea.jpg", "--outdir", "deep/er", *QUICK)
    assert done.exit_code == 0, done.output
    assert files(tmp_path / "deep") == ["er/grid-0000.png", "er/samples/00000.png", "er/samples/00001.png"]
    facts = told(tmp_path / "deep" / "er" / "samples" / "00000.png")
    assert (facts["strength"], facts["guidance_scale"], facts["width"], facts["seed"]) == (0.75, 5.0, 128, 42)
    assert facts["image"].startswith("sha256:")


def test_seeds_count_on_over_iterations_and_prompts(typed: Typed, drawn: Drawn, tmp_path: Path) -> None:
    assert typed("txt2img", "--prompt", "a", "--quiet").exit_code == 0
    assert drawn.seeds == [42, 43, 44, 45, 46, 47]
    assert {(wish.num_inference_steps, wish.scheduler, wish.eta) for wish in drawn.wishes} == {(50, "ddim", 0.0)}
    drawn.wishes.clear()
    (tmp_path / "prompts.txt").write_text("a\n\n  \nb\n")
    words = ["--from-file", "prompts.txt", "--n_samples", "2", "--n_iter", "2", "--seed", "0", "--quiet"]
    assert typed("txt2img", *words).exit_code == 0
    assert drawn.seeds == list(range(8)) and [wish.prompt for wish in drawn.wishes] == ["a"] * 4 + ["b"] * 4
    drawn.wishes.clear()
    assert typed("txt2img", "--fixed_code", *words).exit_code == 0
    assert drawn.seeds == [0, 1] * 4
    out = files(tmp_path / "outputs" / "txt2img-samples")
    assert [name for name in out if "grid" in name] == [f"grid-{k:04}.png" for k in range(5)]


def test_a_grid_has_n_rows_columns(typed: Typed, drawn: Drawn, tmp_path: Path) -> None:
    sizes = {"--n_rows=1": (68, 266), "--n_rows=0": (134, 134), "--n_rows=9": (266, 68)}
    for k, (words, expected) in enumerate(sizes.items()):
        size = ["--H", "64", "--W", "64", "--n_samples", "2", "--n_iter", "2", "--quiet"]
        assert typed("txt2img", "--outdir", str(k), "--skip_save", words, *size).exit_code == 0
        assert files(tmp_path / str(k)) == ["grid-0000.png"]
        with Image.open(tmp_path / str(k) / "grid-0000.png") as image:
            assert image.size == expected
    assert typed("txt2img", "--outdir", "no", "--skip_grid", *QUICK).exit_code == 0
    assert files(tmp_path / "no") == ["samples/00000.png", "samples/00001.png"]


def test_a_grid_that_is_not_full_ends_in_black() -> None:
    white = Image.new("RGB", (4, 4), "white")
    found = np.asarray(grid([white] * 3, 2)).any(axis=2)
    assert found.shape == (14, 14) and found.sum() == 3 * 16
    assert found[2:6, 2:6].all() and found[2:6, 8:12].all() and found[8:12, 2:6].all()


def test_options_mean_what_they_say(typed: Typed, drawn: Drawn) -> None:
    quick = ("--skip_grid", "--quiet", "--n_samples", "1", "--n_iter", "1")
    words = ("--dpm_solver", "--scale", "3", "--H", "64", "--W", "72", "--precision", "full")
    assert typed("txt2img", *words, *quick).exit_code == 0
    [wish] = drawn.wishes
    assert (wish.scheduler, wish.guidance_scale, wish.height, wish.width) == ("dpmpp_2m", 3.0, 64, 72)
    assert wish.prompt == "a painting of a virus monster playing guitar"
    assert drawn.options["inference_precision"] == "f32" and drawn.options["precision"] is None
    assert drawn.options["model"] == "nestling"
    typed("txt2img", "--precision", "fp16", "--ddim_eta", "0.5", *quick)
    assert drawn.options["precision"] == "fp16" and drawn.options["inference_precision"] is None
    assert drawn.wishes[-1].eta == 0.5


def test_json_lines_are_json(typed: Typed, drawn: Drawn) -> None:
    told = [json.loads(line) for line in typed("txt2img", "--json", *QUICK).stdout.splitlines()]
    assert [each.get("seed") for each in told] == [42, 43, None]
    assert told[2] == {"grid": "outputs/txt2img-samples/grid-0000.png"}


def test_the_models_own_size_is_taken_and_said(typed: Typed, drawn: Drawn) -> None:
    words = ("txt2img", "--skip_grid", "--n_samples", "1", "--n_iter", "1")
    assert "size: 128x128, after the model's own; --H and --W say otherwise" in typed(*words).stderr
    assert "size:" not in typed(*words, "--H", "64", "--W", "64").stderr


REFUSED = [
    (["--C", "3"], "C: 3 is not 4", "leave it out"),
    (["--f", "16"], "f: 16 is not 8", "leave it out"),
    (["--laion400m"], "laion400m: ", "--ckpt"),
    (["--config", "v1.yaml"], "config: ", ".yaml"),
    (["--plms", "--dpm_solver"], "plms: ", "leave one out"),
    (["--ckpt", "a.ckpt", "--model", "nestling"], "ckpt: ", "leave one out"),
    (["--skip_save", "--skip_grid"], "skip_save: ", "leave one out"),
    (["--n_samples", "0"], "n_samples: 0 ", ""),
    (["--n_iter", "-1"], "n_iter: -1 ", ""),
    (["--n_samples", "900", "--n_iter", "2"], "num_images_per_prompt: 1800", "1000"),
    (["--H", "500"], "height: 500", "496"),
    (["--ddim_steps", "0"], "num_inference_steps: 0", "the nearest is 1"),
    (["--outdir", "taken"], "outdir: taken is not a folder", "choose another"),
    (["--outdir", "taken/deeper"], "outdir: taken is not a folder", "choose another"),
    (["--ckpt", "nowhere.ckpt"], "ckpt: nowhere.ckpt is not a file", ""),
    (["--ckpt", "."], "ckpt: . is a folder", "--model ."),
    (["--ckpt", "taken"], "ckpt: taken does not end in .ckpt or .safetensors", ""),
]


@pytest.mark.parametrize(("words", "message", "hint"), REFUSED)
def test_what_cannot_be_honoured_is_refused_before_any_model_is_read(
    typed: Typed, words: list[str], message: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipelines.Pipeline, "open", lambda *_, **__: pytest.fail("a model was opened"))
    (tmp_path / "taken").write_text("precious")
    with within(0.1):
        result = typed("txt2img", *words)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {message}"), result.output
    assert hint in result.stderr and "Traceback" not in result.output
    assert files(tmp_path) == ["taken"]


def test_img2img_needs_a_picture_and_huge_grids_are_refused(typed: Typed, drawn: Drawn, tmp_path: Path) -> None:
    refused = typed("img2img")
    assert refused.exit_code == 2 and "init-img: there is no picture" in refused.stderr
    refused = typed("txt2img", "--n_samples", "100", "--n_iter", "10", "--H", "512", "--W", "512")
    assert refused.exit_code == 2 and "--skip_grid" in refused.stderr and not drawn.wishes and files(tmp_path) == []


# Prompts from a file


def test_b1_a_bad_line_is_named_at_the_end_and_the_others_have_their_pictures(
    typed: Typed, drawn: Drawn, tmp_path: Path
) -> None:
    lines = [b"\xef\xbb\xbffirst", b"", b"\xff\xfe", b"x" * 70_000, b"impossible", b"windows\r", b"last \xc3\xa9"]
    (tmp_path / "prompts.txt").write_bytes(b"\n".join(lines))
    done = typed("txt2img", "--from-file", "prompts.txt", "--skip_grid", *QUICK)
    assert done.exit_code == 2
    assert [wish.prompt for wish in drawn.wishes if "impossible" not in wish.prompt][::2] == [
        "first",
        "windows",
        "last é",
    ]
    assert done.stderr.splitlines() == [
        "error: from-file: 3 of 6 prompts in prompts.txt failed",
        "  line 3: prompt: byte 1 is not UTF-8",
        "  line 4: prompt: more than 65536 bytes",
        "  line 5: unet: the latents are not finite",
        "hint: the others have their pictures",
    ]
    # A line that failed has the seeds and the numbers that it would have had.
    assert [wish.seed for wish in drawn.wishes if "impossible" not in wish.prompt] == [42, 43, 50, 51, 52, 53]
    assert len(done.stdout.splitlines()) == 6


def test_b1_files_without_prompts_and_files_that_are_none(typed: Typed, drawn: Drawn, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    for name, message in (("empty.txt", "holds no prompt"), ("nowhere.txt", "cannot be read"), (".", "cannot be read")):
        refused = typed("txt2img", "--from-file", name, *QUICK)
        assert refused.exit_code == 2 and message in refused.stderr, refused.output


def test_b1_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with path.open("wb") as file:
        file.write(b"a\n")
        file.seek(1 << 33, 1)  # eight gigabytes that are not there, without an end of line
    assert next(prompts(path)) == (1, "a")


def test_b1_of_many_failures_the_first_are_told() -> None:
    failures = Failures()
    for number in range(1000):
        failures.add(number, ValueError("bad"))
    with pytest.raises(ValueError, match="1000 of 2000 prompts in x failed") as raised:
        failures.check(Path("x"), 2000)
    assert len(str(raised.value).splitlines()) == 22 and "and 980 more" in str(raised.value)


HOSTILE = [
    "../../evil",
    "/etc/passwd",
    "a\0b",
    "$(touch x)",
    "`id`",
    "{0} %s %n",
    "samples/../../x",
    "C:\\x",
    "~/x",
    "a" * 300,
]


def test_r6_500_hostile_prompts_make_no_file_outside_the_folder(
    typed: Typed, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    rng = random.Random(6)
    lines = ["".join(rng.choices(HOSTILE, k=rng.randint(1, 3))) + rng.choice("/.\\\0;") for _ in range(500)]
    (inside / "prompts.txt").write_text("\n".join(lines))
    done = typed("txt2img", "--from-file", "prompts.txt", "--H", "64", "--W", "64", "--n_samples", "1", "--n_iter", "1",
                 "--skip_grid", "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.output
    samples = [f"a/b/outputs/txt2img-samples/samples/{k:05}.png" for k in range(500)]
    assert files(tmp_path) == sorted([*samples, "a/b/prompts.txt"])
    assert told(tmp_path / samples[7])["prompt"] == lines[7]


def test_i12_a_name_that_is_taken_meanwhile_is_not_replaced(typed: Typed, drawn: Drawn, tmp_path: Path) -> None:
    genuine, out = Folder.samples, tmp_path / "outputs" / "txt2img-samples" / "samples"

    def samples(folder: Folder, count: int) -> list[Path]:
        found = genuine(folder, count)
        (out / "00000.png").write_text("another process")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "samples", samples)
        refused = typed("txt2img", *QUICK)
    assert refused.exit_code == 0 and (out / "00000.png").read_text() == "another process"
    assert told(out / "00000-1.png")["seed"] == 42


# A checkpoint


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, nestling: Path) -> list[list[str]]:
    """What ``ovenbird export`` was called with; it copies nestling."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> tuple[int, bytes]:
        _, file, folder, *words = command[command.index("export") :]
        calls.append(words)
        target = Path(folder) / words[words.index("--precision") + 1]
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(nestling / "fp16", target)
        manifest = json.loads((target / "ovenbird.json").read_text())
        digest = checkpoint._sha256(Path(file))
        manifest |= {"name": Path(file).stem, "precision": target.name}
        manifest["source"] |= {"file": Path(file).name, "file_sha256": digest}
        (target / "ovenbird.json").write_text(json.dumps(manifest))
        return 0, b""

    monkeypatch.setattr(checkpoint, "_run", run)
    monkeypatch.setattr(checkpoint, "find_spec", lambda _: True)
    monkeypatch.setattr(checkpoint, "entry_points", lambda **_: ["export"])
    return calls


ONE = ["--skip_grid", "--n_samples", "1", "--n_iter", "1", "--ddim_steps", "2"]


def test_a_checkpoint_is_exported_once_and_again_when_it_changes(
    typed: Typed, drawn: Drawn, exports: list[list[str]], tmp_path: Path
) -> None:
    file = tmp_path / "sd-v1-4.ckpt"
    file.write_bytes(b"weights")
    first = typed("txt2img", "--ckpt", "sd-v1-4.ckpt", *ONE)
    assert first.exit_code == 0, first.output
    assert "sd-v1-4.ckpt: it is exported once, to sd-v1-4; a model of full size" in first.stderr
    assert re.search(r"ckpt: exported in \d+ s; from now on sd-v1-4 is opened", first.stderr)
    assert "model: sd-v1-4 (fp16)" in first.stderr and drawn.options["model"] == Path("sd-v1-4")
    assert exports == [["--precision", "fp16"]]
    second = typed("img2img", "--init-img", "outputs/txt2img-samples/samples/00000.png", "--ckpt", "sd-v1-4.ckpt", *ONE)
    assert second.exit_code == 0 and "exported" not in second.stderr and len(exports) == 1
    file.write_bytes(b"other weights")
    third = typed("txt2img", "--ckpt", "sd-v1-4.ckpt", "--offline", *ONE)
    assert "it has changed and is exported again" in third.stderr, third.output
    assert exports[1:] == [["--precision", "fp16", "--offline", "--force"]]
    assert typed("txt2img", "--ckpt", "sd-v1-4.ckpt", "--precision", "int8", *ONE).exit_code == 0
    assert exports[2:] == [["--precision", "int8"]]


def test_a_folder_of_another_model_is_left_alone(
    typed: Typed, exports: list[list[str]], tmp_path: Path, nestling: Path
) -> None:
    (tmp_path / "sd.safetensors").write_bytes(b"weights")
    shutil.copytree(nestling / "fp16", tmp_path / "sd" / "fp16")
    refused = typed("txt2img", "--ckpt", "sd.safetensors", *ONE)
    assert refused.exit_code == 2 and "holds another model" in refused.stderr and "--model sd takes" in refused.stderr
    assert exports == []


def test_without_torch_the_extra_is_named(typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sd.ckpt").write_bytes(b"weights")
    monkeypatch.setattr(checkpoint, "find_spec", lambda _: None)
    refused = typed("txt2img", "--ckpt", "sd.ckpt", *ONE)
    assert refused.exit_code == 3 and "sd.ckpt must be exported first, and torch is not installed" in refused.stderr
    assert 'pip install "ovenbird[export]"' in refused.stderr and files(tmp_path) == ["sd.ckpt"]


def test_what_the_export_ends_with_is_what_the_command_ends_with(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sd.ckpt").write_bytes(b"weights")
    monkeypatch.setattr(checkpoint, "find_spec", lambda _: True)
    monkeypatch.setattr(checkpoint, "entry_points", lambda **_: ["export"])
    script = "import sys; print('why', file=sys.stderr); sys.exit(4)"
    genuine = checkpoint.started
    monkeypatch.setattr(checkpoint, "started", lambda _, **others: genuine([sys.executable, "-c", script], **others))
    refused = typed("txt2img", "--ckpt", "sd.ckpt", "--quiet", *ONE)
    assert refused.exit_code == 4
    assert refused.stderr == "why\nerror: ckpt: sd.ckpt could not be exported\nhint: the lines above say why\n"
    assert files(tmp_path) == ["sd.ckpt"]


@pytest.mark.slow
@pytest.mark.export
def test_a_tiny_checkpoint_becomes_pictures(typed: Typed, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("optimum")
    import export_tiny
    import original_layout
    from test_export_original import TINY, build, save

    save(original_layout.checkpoint("SD 1.x", build("SD 1.x", TINY["SD 1.x"])), tmp_path / "tiny.ckpt")
    export_tiny.write_tokenizer(tmp_path / "words")
    words = ["txt2img", "--ckpt", "tiny.ckpt", "--tokenizer", "words", "--H", "64", "--W", "64", *QUICK]
    first = typed(*words)
    assert first.exit_code == 0, first.output
    manifest = tmp_path / "tiny" / "fp16" / "ovenbird.json"
    exported = manifest.stat().st_mtime_ns
    assert typed(*words).exit_code == 0 and manifest.stat().st_mtime_ns == exported
    out = files(tmp_path / "outputs" / "txt2img-samples")
    assert out == ["grid-0000.png", "grid-0001.png", *(f"samples/0000{k}.png" for k in range(4))]


# The page


@pytest.mark.filterwarnings("ignore:picture-of-the-web-ui.png was made by")
def test_every_command_of_the_page_makes_pictures(root: Path, typed: Typed, drawn: Drawn, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), (90, 160, 220)).save(tmp_path / "photo.jpg")
    Image.new("L", (128, 128), 255).save(tmp_path / "mask.png")
    (tmp_path / "prompts.txt").write_text("a tent\n")
    web_ui(tmp_path / "picture-of-the-web-ui.png", INFOTEXT.replace("96", "64"))
    found = list(ours((root / "docs" / "from-other-programs.md").read_text(encoding="utf-8")))
    assert len(found) >= 10
    for words in found:
        done = typed(*(word for word in words if word not in ("--ckpt", "sd-v1-4.ckpt")))
        assert done.exit_code == 0, (words, done.output)


HEEDS = """
import pathlib, signal, sys, time
def clean(*_):
    time.sleep(1)  # longer than subprocess.run would wait
    pathlib.Path("cleaned").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, clean)
signal.signal(signal.SIGINT, clean)
pathlib.Path("began").touch()
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_e9_an_export_behind_a_checkpoint_may_clean_up(tmp_path: Path, number: int) -> None:
    code = (
        "import sys; from ovenbird.commands import checkpoint; sys.exit(checkpoint._run(sys.argv[1:], quiet=False)[0])"
    )
    command = [sys.executable, "-c", code, sys.executable, "-c", HEEDS]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        while not (tmp_path / "began").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=60) == 130
    assert (tmp_path / "cleaned").exists()
