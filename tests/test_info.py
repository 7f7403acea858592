"""``ovenbird info``, ``models`` and ``bench``: what they say is so."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ovenbird import MissingExtraError, Pipeline, Request, backends, machine
from ovenbird.cli import main
from ovenbird.commands import bench, info
from ovenbird.commands.about import proofs


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="ovenbird")


def told(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def model(tmp_path: Path, nestling: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of nestling, as models/mine/fp16 of the folder where we are."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(nestling / "fp16", tmp_path / "models" / "mine" / "fp16"))


def test_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "hub").mkdir(parents=True)
    (tmp_path / "cache" / "hub" / "file").write_bytes(b"x" * 1000)
    monkeypatch.setattr(machine, "instruction_sets", lambda: ["avx512_vnni", "avx2"])
    monkeypatch.setattr(machine, "usable_cores", lambda: 6)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")
    found = told("info")
    assert (found["threads"], found["instruction_sets"]) == (6, ["avx512_vnni", "avx2"])
    assert found["runtimes"]["openvino"]["devices"][0].startswith("cpu")
    assert found["cache"]["folder"] == str(tmp_path / "cache")
    assert (found["cache"]["bytes"], found["cache"]["downloads_bytes"], found["cache"]["compiled_bytes"]) == (
        1000,
    ) * 2 + (0,)
    assert found["recommended"] == {"precision": "int8", "why": "the processor has avx512_vnni"}
    monkeypatch.setattr(machine, "instruction_sets", lambda: ["avx2"])
    assert told("info")["recommended"]["precision"] == "fp16"


def test_of_a_machine_without_a_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str) -> Any:
        raise MissingExtraError(name, "onnx")

    monkeypatch.setattr(backends, "create", create)
    assert 'onnxruntime is not installed; pip install "ovenbird[onnx]"' in run("info").stdout


def test_extras_are_there_when_all_that_they_need_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "find_spec", lambda name: None if name == "requests" else object())
    assert told("info")["extras"] == {"export": True, "hub": False}
    assert 'pip install "ovenbird[hub]"' in run("info").stdout


def test_of_nestling() -> None:
    found = told("info", "nestling")
    assert (found["name"], found["family"], found["default_size"]) == ("nestling", "sd", 128)
    assert found["licence"] == "Apache-2.0"
    (variant,) = found["variants"]
    assert variant["precision"] == "fp16" and variant["runtimes"] == ["openvino", "onnxruntime"]
    text = run("info", "nestling").stdout
    assert "DPM++ 2M Karras" in text and "v-prediction" in text
    assert "unet: largest difference from torch 8.5e-06, 1e-04 allowed (onnxruntime, openvino)" in text
    assert "pictures on onnxruntime: 84 dB, SSIM 1.000 against float32, 35 dB asked for" in text
    assert "safety_checker: pictures are not checked" in text


def test_of_a_folder_that_lacks_something(model: Path) -> None:
    whole = told("info", "models/mine")["variants"][0]
    assert whole["state"].endswith("ovenbird verify compares every byte")
    shutil.rmtree(model / "vae_encoder")
    (model / "unet" / "model.onnx").unlink()
    found = told("info", "models/mine")["variants"][0]
    assert found["state"].startswith("damaged: ") and "is missing" in found["state"]
    assert "vae_encoder" not in found["components"] and found["runtimes"] == ["openvino"]
    assert {text.partition(":")[0] for text in found["lacks"]} >= {"vae_encoder", "ONNX"}
    (model / "ovenbird.json").unlink()
    found = told("info", str(model))
    assert found["variants"][0]["state"] == "unverified: it has no ovenbird.json"
    assert found["licence"] is None
    assert "nothing is known" in run("info", str(model)).stdout


def test_what_a_manifest_says_cannot_steer_the_terminal(model: Path) -> None:
    manifest = json.loads((model / "ovenbird.json").read_text())
    manifest["source"]["licence"] = "\x1b]0;mine\x07 free"
    manifest["verification"] = {"components": "all good"}
    (model / "ovenbird.json").write_text(json.dumps(manifest))
    result = run("info", "models/mine")
    assert result.exit_code == 0 and "\x1b" not in result.output and "?]0;mine? free" in result.stdout


@pytest.mark.parametrize("nonsense", [None, [], {"components": []}, {"pictures": {"gate_db": "x"}}, {"attributes": 1}])
def test_figures_that_are_not_understood_are_not_told(nonsense: Any) -> None:
    assert proofs(nonsense) == []


def test_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--num-inference-steps", "1", "--seed", "7", "--quiet"]
    assert run("generate", "--prompt", "a red \x1b[1m house", *words).exit_code == 0
    found = told("info", "output.png")
    assert (found["seed"], found["num_inference_steps"], found["model"]) == (7, 1, "nestling")
    text = run("info", "output.png").stdout
    assert "a red ?[1m house" in text.splitlines()[0] and "\x1b" not in text
    assert "mask image" not in text  # there was none


@pytest.mark.parametrize(
    ("chunk", "why"),
    [
        (None, "does not say how it was made"),
        ("[1]", "list, not an object"),
        ("{", "not JSON"),
        ("[" * 200_000, "not JSON"),
        (json.dumps({"prompt": "x" * (2 << 20)}), "characters, more than"),
    ],
)
def test_of_a_picture_that_says_nothing(chunk: str | None, why: str, tmp_path: Path) -> None:
    text = PngInfo()
    if chunk is not None:
        text.add_itxt("ovenbird", chunk)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    result = run("info", str(tmp_path / "a.png"))
    assert result.exit_code == 2 and why in result.stderr, result.output


@pytest.mark.parametrize("name", ["nowhere.png", "nowhere"])
def test_of_nothing(name: str) -> None:
    result = run("info", name)
    assert result.exit_code == 2 and "nowhere" in result.stderr and "hint: " in result.stderr


def test_models_are_listed_as_they_can_be_named(model: Path) -> None:
    (model.parents[1] / "empty").mkdir()
    (model.parents[1] / "broken").mkdir()
    (model.parents[1] / "broken" / "model_index.json").write_text("{}")
    found = {each["name"]: each for each in told("models")["models"]}
    assert list(found) == ["nestling", "models/broken", "models/mine"]
    assert found["models/mine"]["variants"][0]["bytes"] == found["nestling"]["variants"][0]["bytes"] > 30_000_000
    assert "not supported" in found["models/broken"]["error"]
    result = run("models")
    assert "models/mine" in result.stdout and "ovenbird export" in result.stderr


def test_bench_times_every_picture_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, whole = [], Pipeline.generate

    def generate(self: Pipeline, request: Any) -> Any:
        drawn.append((request.seed, request.num_images_per_prompt))
        return whole(self, request)

    monkeypatch.setattr(Pipeline, "generate", generate)
    found = told("bench", "--pictures", "3", "--num-inference-steps", "2", "--batch-size", "2", "--quiet")
    assert drawn == [(0, 2)] * 4
    assert len(found["seconds"]) == 3
    assert found["min_s"] <= found["median_s"] <= found["max_s"] < found["first_picture_s"] * 20
    assert found["pictures_an_hour"] == pytest.approx(3600 / found["median_s"])
    assert found["pictures_an_hour_a_thread"] == pytest.approx(found["pictures_an_hour"] / found["threads"])
    assert 0 < found["step_s"] < 2 * found["max_s"]
    assert 0 < found["reached"]["unet"]["share"] < 1.5
    assert (found["width"], found["num_inference_steps"], found["batch_size"]) == (128, 2, 2)


def test_bench_says_what_was_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    calm = {"median_s": 1.0, "min_s": 0.98, "max_s": 1.02, "load_average": {"before": 0.5, "after": 4.0}}
    assert list(bench._notes(calm)) == []
    noisy, busy = bench._notes({**calm, "max_s": 1.5, "load_average": {"before": 2.0, "after": 4.0}})
    assert "52%" in noisy and "2.0" in busy


def test_bench_refuses_before_any_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("a model was opened"))
    for words, message in ((["--pictures", "0"], "pictures: 0"), (["--height", "500"], "height: 500")):
        result = run("bench", *words)
        assert result.exit_code == 2 and result.stderr.startswith(f"error: {message}")


def test_a_notebook_shows_pictures_and_results() -> None:
    result = Pipeline.open("nestling").generate(Request(prompt='a <b> "house"', seed=7, num_inference_steps=1))
    (picture,) = result.pictures
    with Image.open(io.BytesIO(picture._repr_png_())) as shown:
        assert shown.tobytes() == picture.image.tobytes()
    page = result._repr_html_()
    source = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(each) for each in source] == [picture._repr_png_()]
    assert "seed 7" in page and "&lt;b&gt; &quot;house&quot;" in page and "<b>" not in page
