"""The attribute score: what is counted, what a reader's folder must hold, and the gate of an export."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner

from ovenbird import Bundle, ModelError, NumericError, Pipeline, Request, RequestError
from ovenbird.backends import BACKENDS, create
from ovenbird.commands.options import DEFAULT_STEPS
from ovenbird_export import attributes
from ovenbird_export.attributes import Caption, Exam, Reader

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("optimum")

import export_tiny  # noqa: E402

from ovenbird_export import proof  # noqa: E402
from ovenbird_export.cli import export  # noqa: E402
from ovenbird_export.export import Wish, export_folder  # noqa: E402
from ovenbird_export.job import Job  # noqa: E402
from ovenbird_export.precisions import PRECISIONS  # noqa: E402
from ovenbird_export.recipes import Shapes  # noqa: E402
from ovenbird_export.sources import Wanted  # noqa: E402

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and optimum, while they are imported
]

SIDE, STEPS = 64, 2
TINTS = {"tint": ["red", "blue"], "light": ["dark", "bright"]}
CAPTIONS = (
    ("a red house", {"tint": "red"}),
    ("a blue house by day", {"tint": "blue", "light": "bright"}),
    ("a cat in the dark", {"light": "dark"}),
)


def write_reader(
    folder: Path, side: int | str = SIDE, port: str = "picture", outputs: int = 4, scale: float = 1.0
) -> Path:
    """It reads which of red and blue is more, and whether the mean is above the middle."""
    from onnx import TensorProto, helper, numpy_helper

    # Rows: red, green, blue; columns: red, blue, dark, bright.
    matrix = np.array([[1, 0, -1, 1], [0, 0, -1, 1], [0, 1, -1, 1]], np.float32)[:, :outputs] * np.float32(scale)
    nodes = [
        helper.make_node("GlobalAveragePool", [port], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    ports = [
        helper.make_tensor_value_info(port, TensorProto.FLOAT, ["n", 3, side, side]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", outputs]),
    ]
    graph = helper.make_graph(nodes, "reader", ports[:1], ports[1:], [numpy_helper.from_array(matrix, "matrix")])
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx"
    )
    return folder


def write_exam(folder: Path, **changes: object) -> Path:
    captions = [{"text": text, "shows": shows} for text, shows in CAPTIONS]
    content = {"attributes": TINTS, "num_inference_steps": STEPS, "captions": captions, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Exam:
    return Exam.open(write_exam(write_reader(tmp_path_factory.mktemp("reader"))))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_tiny.write_source(folder)
    return folder


def picture(*colour: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def test_every_mention_counts_once() -> None:
    captions = [Caption("", shows) for _, shows in CAPTIONS]
    right = [{"tint": "red", "light": "dark"}, {"tint": "blue", "light": "bright"}, {"tint": "red", "light": "dark"}]
    assert attributes.score(right, captions) == {"all": 1.0, "tint": 1.0, "light": 1.0}
    wrong = [right[0], {"tint": "red", "light": "bright"}, {**right[2], "tint": "blue"}]  # the last is not asked for
    assert attributes.score(wrong, captions) == {"all": 0.75, "tint": 0.5, "light": 1.0}
    assert attributes.score(right[:1], captions[:1]) == {"all": 1.0, "tint": 1.0}
    with pytest.raises(ValueError, match="zip"):
        attributes.score(right, captions[:2])


@pytest.mark.parametrize("runtime", BACKENDS)
def test_the_reader_is_given_minus_one_to_one(exam: Exam, runtime: str) -> None:
    reader = Reader(exam, create(runtime))
    assert (reader.height, reader.width) == (SIDE, SIDE)
    assert reader.read(picture(255, 0, 0)) == {"tint": "red", "light": "dark"}
    assert reader.read(picture(0, 130, 255)) == {"tint": "blue", "light": "bright"}
    assert [reader.read(picture(k, k, k))["light"] for k in (127, 128)] == ["dark", "bright"]


def test_each_caption_has_its_own_seed(exam: Exam) -> None:
    assert [(wish.prompt, wish.seed, wish.num_inference_steps) for wish in exam.requests()] == [
        (text, seed, STEPS) for seed, (text, _) in enumerate(CAPTIONS)
    ]


def caption(text: object = "a house", **shows: object) -> dict[str, object]:
    return {"text": text, "shows": shows}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": 1}, "it has .*more, not attributes, num_inference_steps, captions"),
        ({"attributes": []}, "attributes is no table"),
        ({"attributes": {}}, "attributes is no table"),
        ({"attributes": {**TINTS, "all": ["a", "b"]}}, "has 'all'"),
        ({"attributes": {"tint": "red"}}, "'tint' is not a list"),
        ({"attributes": {"tint": []}}, "'tint' is not a list"),
        ({"attributes": {"tint": ["red", 1]}}, "'tint' is not a list"),
        ({"attributes": {"tint": ["red", "red"]}}, "'tint' is not a list of different values"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 is not in 1 .. 1000"),
        ({"num_inference_steps": "2"}, "num_inference_steps: '2' is not a whole number"),
        ({"captions": []}, "captions is not a list"),
        ({"captions": {"text": "a"}}, "captions is not a list"),
        ({"captions": ["a house"]}, "caption 0 is not text and shows"),
        ({"captions": [{**caption(tint="red"), "seed": 1}]}, "caption 0 is not text and shows"),
        ({"captions": [caption()]}, "caption 0 shows nothing"),
        ({"captions": [caption(tint="red"), caption(tint="green")]}, "caption 1 shows 'tint' 'green'"),
        ({"captions": [caption(shade="red")]}, "caption 0 shows 'shade' 'red'"),
        ({"captions": [caption(tint=["red"])]}, "caption 0 shows 'tint'"),
        ({"captions": [caption(7, tint="red")]}, "prompt: 7 is not a string"),
        ({"captions": [caption("\ud800", tint="red")]}, "half a character"),
    ],
)
def test_captions_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Exam.open(write_exam(write_reader(tmp_path), **changes))


@pytest.mark.parametrize("name", ["model.onnx", "captions.json"])
def test_a_folder_that_lacks_something_is_refused(tmp_path: Path, name: str) -> None:
    (write_exam(write_reader(tmp_path)) / name).unlink()
    with pytest.raises(RequestError, match=f"attributes: .* holds no {name}") as caught:
        Exam.open(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: write_reader(folder, port="image"), "takes .*image"),
        (lambda folder: write_reader(folder, side="side"), "takes .*fixed size"),
        (lambda folder: write_reader(folder, outputs=3), r"gives no logits \(1, 4\)"),
        (lambda folder: write_reader(folder, scale=np.nan), "gives no logits"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no graph"), "is refused: it is not a graph of ONNX"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], message: str, runtime: str
) -> None:
    exam = Exam.open(write_exam(write_reader(tmp_path)))
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message):
        Reader(exam, create(runtime))


def test_an_export_tells_how_many_captions_its_pictures_show(source: Path, exam: Exam, tmp_path: Path) -> None:
    words = ["--precision", "fp32,fp16", "--format", "ir", "--attributes", str(exam.folder), "--json"]
    result = CliRunner().invoke(export, [str(source), str(tmp_path / "out"), *words], catch_exceptions=False)
    assert result.exit_code == 0
    for name in ("reference", "fp32", "fp16"):
        assert f"{name}: drawing 3 captions on openvino, and reading off what they show ... " in result.stderr
    for made in json.loads(result.stdout)["folders"]:
        record = made["verification"]["attributes"]
        assert record.pop("sha256") == {
            name: hashlib.sha256((exam.folder / name).read_bytes()).hexdigest()
            for name in ("model.onnx", "captions.json")
        }
        assert (record["captions"], record["runtime"]) == (3, "openvino")
        assert record["gate"] == {"points_under_fp32": 1.0}
        assert record["scores"] == counted(Path(made["path"]))
        assert record["reference"] == counted(tmp_path / "out" / "fp32")


def counted(folder: Path) -> dict[str, float]:
    """The scores from the pixels themselves, without the reader."""
    pipeline = Pipeline(Bundle.open(folder), create("openvino"), inference_precision="f32")
    answers: dict[str, list[bool]] = {"tint": [], "light": []}
    for seed, (text, shows) in enumerate(CAPTIONS):
        image = pipeline.generate(Request(prompt=text, seed=seed, num_inference_steps=STEPS)).images[0]
        red, green, blue = np.asarray(image, np.float64).mean((0, 1))
        found = {"tint": "red" if red >= blue else "blue", "light": "bright" if red + green + blue > 382.5 else "dark"}
        for name, value in shows.items():
            answers[name].append(found[name] == value)
    shares = {name: sum(some) / len(some) for name, some in answers.items()}
    return {"all": sum(map(sum, answers.values())) / 4, **shares}


def test_a_variant_that_shows_less_is_not_published(
    source: Path, exam: Exam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(folder: Path, *others: Any) -> Any:
        with monkeypatch.context() as patch:
            if folder.name == "fp16":
                patch.setattr(Reader, "read", lambda *_: {"tint": "none", "light": "none"})
            return real(folder, *others)

    real = attributes.measure
    monkeypatch.setattr(attributes, "measure", blind)
    wish = Wish((PRECISIONS["fp16"],), runtimes=("onnxruntime",), attributes=exam.folder)
    with pytest.raises(NumericError, match=r"(?m)fp16 on onnxruntime: .*show 0.0% of .* under float32; .* is 1$"):
        export_folder(Wanted(str(source)), tmp_path / "out", wish)
    assert not (tmp_path / "out").exists()


def prove(monkeypatch: pytest.MonkeyPatch, exam: Exam | None, **scores: float) -> dict[str, dict[str, object]]:
    """With the scores of the reference and of each variant as if they had been measured."""
    precisions = tuple(PRECISIONS[name] for name in scores if name != "reference")
    variants = {precision.name: Path(precision.name) for precision in precisions}
    monkeypatch.setattr(attributes, "measure", lambda folder, runtime, _: {"all": scores[folder.name]})
    return proof.prove_attributes(Job(cast(Any, None), precisions, variants, Path("scratch"), exam=exam))


def test_a_point_may_be_lost_and_no_more(exam: Exam, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prove(monkeypatch, exam, reference=0.58, fp32=0.58, fp16=0.57, int8=0.99)
    assert 100 * (0.58 - 0.57) > 1  # what floats make of one point
    assert {name: record["scores"] for name, record in found.items()} == {
        "fp32": {"all": 0.58},
        "fp16": {"all": 0.57},
        "int8": {"all": 0.99},
    }
    for scores in ({"int8": 0.5799 - 0.01}, {"fp16": np.nan}, {"fp32": 0.5}):
        with pytest.raises(NumericError, match=f"(?m)^{next(iter(scores))} on openvino: .* the gate is 1$"):
            prove(monkeypatch, exam, reference=0.58, **scores)


def test_nothing_is_scored_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prove(monkeypatch, None, reference=1.0, fp32=0.0) == {}


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("sd15", {"height": 72}, "the model draws 64x72 pixels, the reader reads 64x64"),
        ("sd15", {"width": 128}, "the model draws 128x64 pixels, the reader reads 64x64"),
        ("sd15", {"batch": 2}, "attributes: they are read off pictures, which the engine cannot draw"),
        ("inpaint", {}, "attributes: they are read off pictures, which the engine cannot draw"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_made(
    tmp_path: Path, exam: Exam, monkeypatch: pytest.MonkeyPatch, name: str, shapes: dict[str, int], message: str
) -> None:
    folder = tmp_path / "source"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_tiny.write_source(folder, name)
    wish = Wish((PRECISIONS["fp16"],), shapes=Shapes(**shapes), attributes=exam.folder)
    with pytest.raises(RequestError, match=message):
        export_folder(Wanted(str(folder)), tmp_path / "out", wish)
    assert not (tmp_path / "out").exists()


def test_nestlings_exam_is_what_its_recipe_writes(nestling: Path, tmp_path: Path) -> None:
    code = "import sys, pathlib, exam; exam.write(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, str(tmp_path / "captions.json")]
    subprocess.run(command, cwd=nestling / "recipe", check=True)
    path = nestling / "reader" / "captions.json"
    assert path.read_bytes() == (tmp_path / "captions.json").read_bytes()
    ours = Exam.open(path.parent)
    assert (len(ours.captions), len(ours.attributes), ours.steps) == (300, 8, DEFAULT_STEPS)
    reader = Reader(ours, create("openvino"))
    assert (reader.height, reader.width) == (128, 128)
