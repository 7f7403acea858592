"""Help pages, completion, and what goes to stdout and what to stderr, for every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typed
from click.testing import CliRunner, Result

from ovenbird import progress
from ovenbird.cli import GROUPS, main

SMALL = ["--num-inference-steps", "1"]
QUICK = {
    "generate": ["--prompt", "a red house", *SMALL],
    "frames": ["--prompt", "a red house", "--to-seed", "2", "--frames", "2", *SMALL],
    "upscale": ["given.png", "--scale", "1.5", "--strength", "1", *SMALL],
    "models": [],
    "info": ["nestling"],
    "tune": ["--forget"],
    "bench": ["--pictures", "1", *SMALL],
    "cache": [],
    "verify": ["nestling", "--bytes"],
}
"""A line of each command that is done in a moment."""
WRONG = {
    "generate": ["--prompt", "a", "--height", "500"],
    "frames": ["--prompt", "a", "--fps", "0"],
    "upscale": ["nowhere.png"],
    "models": ["extra"],
    "info": ["nowhere"],
    "tune": ["nowhere"],
    "bench": ["--pictures", "0"],
    "cache": ["extra"],
    "verify": ["nowhere"],
    "export": [],
}


def commands() -> list[str]:
    with main.make_context("ovenbird", ["--debug"]) as ctx:
        return main.list_commands(ctx)


def command_of(name: str) -> click.Command:
    with main.make_context("ovenbird", ["--debug"]) as ctx:
        command = main.get_command(ctx, name)
    assert command is not None
    return command


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="ovenbird")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("given.png")
    return tmp_path


def test_one_page_names_every_command_in_a_group_on_one_line() -> None:
    page = run("--help").stdout
    named = [name for names in GROUPS.values() for name in names]
    assert len(named) == len(set(named))
    for name in commands():
        assert name in named
        (line,) = [line for line in page.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith("."), line
    assert [page.index(f"{heading}:") for heading in GROUPS] == sorted(page.index(f"{heading}:") for heading in GROUPS)


def test_the_examples_of_the_page_are_understood() -> None:
    lines = list(typed.ours("\n".join(line.strip() for line in run("--help").stdout.splitlines())))
    assert len(lines) > 4
    for words in lines:
        typed.understood(words)


@pytest.mark.parametrize("name", commands())
def test_every_command_has_examples_that_are_understood(name: str) -> None:
    page = run(name, "--help").stdout
    examples = page[page.index("Examples:") :]
    lines = [words for words in typed.ours("\n".join(map(str.strip, examples.splitlines()))) if words[0] == name]
    assert lines
    for words in lines:
        typed.understood(words)


@pytest.mark.parametrize("name", ["generate", "frames", "upscale", "bench"])
def test_options_stand_under_headings_and_each_is_shown(name: str) -> None:
    page = run(name, "--help").stdout
    *_, rest = page.partition("Other options:\n")
    assert [line.split()[0] for line in rest.splitlines()] == ["-h,"]
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option):
            assert sum(line.startswith(f"  {parameter.opts[0]}") for line in page.splitlines()) >= 1, parameter.name


@pytest.mark.parametrize(("wrong", "right"), [("genrate", "generate"), ("exprot", "export"), ("model", "models")])
def test_a_mistyped_command_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    result = run(wrong)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == f"error: there is no command {wrong}\nhint: did you mean ovenbird {right}?\n"


def test_a_mistyped_option_is_answered_with_the_nearest() -> None:
    result = run("generate", "--promt", "a house")
    assert result.exit_code == 2 and "--prompt" in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["generate", "--steps", "4"], "--num-inference-steps"),
        (["generate", "--negative", "x"], "--negative-prompt"),
        (["generate", "--ddim_steps", "4"], "--num-inference-steps"),
        (["upscale", "--sampler", "euler"], "--scheduler"),
        (["generate", "--seed", "one"], "error: --seed: 'one' is not a valid integer\nhint: ovenbird generate --help"),
        (["generate", "--prompt"], "error: option '--prompt' requires an argument\nhint: such as: ovenbird generate"),
        (["batch"], "error: missing argument 'JOBS'\nhint: such as: ovenbird batch "),
        (["--prompt", "a house"], "behind a command: ovenbird generate --prompt"),
        (["--debug=x"], "error: option '--debug' does not take a value\nhint: ovenbird --help"),
        (["--n_samples", "2"], "behind a command: ovenbird txt2img --n-samples"),
        (["--promt", "a house"], "error: there is no option --promt\nhint: ovenbird --help"),
        (["help"], "hint: ovenbird --help"),
        (["gen"], "hint: did you mean ovenbird generate?"),
        (["a red fox"], "hint: for a picture of that: ovenbird generate --prompt 'a red fox'"),
        (["generate", "-p", "a house"], "hint: did you mean --prompt?"),
        (["generate", "--from_file", "x"], "hint: it is an option of ovenbird img2img and ovenbird txt2img"),
        (["generate", "--guidance_scale", "x"], "error: --guidance-scale: 'x' is not a valid float"),
        (["batch", "prompts.txt"], "a file with a prompt a line is for: ovenbird txt2img --from-file"),
        (["generate", "--prompt", "a", "--seed", "-1"], "or leave it out for a random one"),
        (["generate", "--prompt", "a", "--variation-seed", "3"], "hint: give --variation-strength, too"),
        (
            ["generate", "--prompt", "a", "--scheduler", "flow_euler"],
            "scheduler: flow_euler is not for this model",
        ),
        (["info", "nowhere.png"], "error: nowhere.png is not a file"),
        (["generate", "a house"], 'hint: such as: ovenbird generate --prompt "'),
        (["generate", "--prompt", "a", "house"], 'hint: such as: ovenbird generate --prompt "'),
        (["frames", "--prompt", "a house"], "add --to-prompt, --to-seed or both"),
    ],
)
def test_what_newcomers_type_is_answered_with_what_they_meant(words: list[str], right: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and result.stdout == "" and right in result.stderr, result.stderr
    assert "error: " in result.stderr and "Usage:" not in result.stderr


def test_options_may_be_spelled_as_in_python() -> None:
    for word in ("--num_inference_steps", "--num-inference-steps"):
        assert "num_inference_steps: 0" in run("generate", "--prompt", "x", word, "0").stderr
    for word in ("--n_samples", "--n-samples"):
        assert "n_samples: 0" in run("txt2img", "--prompt", "x", word, "0").stderr


def test_whoever_reads_no_further_is_no_error() -> None:
    code = "import sys; from ovenbird.cli import main; sys.stdin.readline(); main(['info'])"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""


def test_a_line_that_is_not_understood_can_be_traced() -> None:
    assert "Traceback" in run("generate", "--debug", "--prompt", "x", "--seed", "one").stderr
    assert "Traceback" not in run("generate", "--prompt", "x", "--seed", "one").stderr


def test_help_imports_no_runtime() -> None:
    code = (
        "import sys; from ovenbird.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'openvino', 'onnxruntime', 'torch', 'huggingface_hub', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def complete(*words: str) -> list[str]:
    """What bash is told when Tab is pressed behind these words."""
    environment = {
        "_OVENBIRD_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["ovenbird", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(main, [], prog_name="ovenbird", env=environment)
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line.startswith("plain,")]


def test_bash_completes_commands_options_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model_index.json").write_text("{}")
    assert complete("gen") == ["generate"]
    assert complete("exp") == ["export"]
    assert complete("generate", "--negative-p") == ["--negative-prompt"]
    assert complete("generate", "--preset", "f") == ["fast"]
    assert complete("generate", "--scheduler", "unipc_") == ["unipc_karras", "unipc_exponential", "unipc_beta"]
    assert "dpmpp_2m" in complete("generate", "--scheduler", "''")
    assert complete("generate", "--model", "nes") == ["nestling"]
    assert complete("tune", "models/") == complete("info", "models/") == ["models/mine"]


def test_bash_gets_a_script_of_click() -> None:
    result = CliRunner().invoke(main, [], prog_name="ovenbird", env={"_OVENBIRD_COMPLETE": "bash_source"})
    assert "complete -o nosort -F _ovenbird_completion ovenbird" in result.stdout


@pytest.mark.parametrize("name", QUICK)
def test_quiet_leaves_results_alone_and_nothing_is_coloured(name: str, folder: Path) -> None:
    result = run(name, *QUICK[name], "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.strip()
    assert not {"\x1b", "\r"} & set(result.stdout)


@pytest.mark.parametrize("name", QUICK)
def test_json_stands_alone_on_stdout_and_the_rest_on_stderr(name: str, folder: Path) -> None:
    result = run(name, *QUICK[name], "--json")
    assert result.exit_code == 0, result.output
    drawn = ("generate", "frames", "upscale")
    for text in result.stdout.splitlines() if name in drawn else [result.stdout]:
        assert isinstance(json.loads(text), dict)
    assert bool(result.stderr) == (name in (*drawn, "bench"))
    assert not {"\x1b", "\r"} & set(result.output)  # no bar where there is no terminal, and no colour anywhere


def test_models_says_on_stderr_how_to_get_more() -> None:
    result = run("models")
    assert "nestling" in result.stdout and "ovenbird export" in result.stderr and "export" not in result.stdout


@pytest.mark.parametrize("name", WRONG)
def test_errors_go_to_stderr_and_leave_stdout_empty(name: str, folder: Path) -> None:
    result = run(name, *WRONG[name])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "rror: " in result.stderr and "Traceback" not in result.stderr


def test_json_tells_of_each_picture(folder: Path) -> None:
    words = ["--prompt", "a red house", "--num-images", "2", "--seed", "7", *SMALL]
    first, second = map(json.loads, run("generate", *words, "--json", "--quiet").stdout.splitlines())
    assert first == {"path": "output.png", "seed": 7, "flagged": None, "seconds": first["seconds"]}
    assert (second["path"], second["seed"]) == ("output-1.png", 8)
    assert all((folder / told["path"]).is_file() and 0 < told["seconds"] < 60 for told in (first, second))


def test_quiet_ends_with_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--quiet").stderr == ""
    progress.tell("a word")
    assert capsys.readouterr().err == "a word\n"
