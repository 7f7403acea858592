"""Folders travel: ours generate in the other packages, theirs in the engine, and the pictures agree."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optimum")

import export_tiny  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import adapters  # noqa: E402
from benchmarks.adapters import LIBRARIES  # noqa: E402
from ovenbird import Pipeline, Request  # noqa: E402
from ovenbird.backends import BACKENDS  # noqa: E402
from ovenbird_export.export import Wish, export_folder  # noqa: E402
from ovenbird_export.precisions import PRECISIONS  # noqa: E402
from ovenbird_export.sources import Wanted  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]  # other people's warnings

WISH: dict[str, Any] = {"height": 64, "width": 72, "num_inference_steps": 5, "guidance_scale": 5.0}
PROMPT = "a red house"
SEED = 3
MEAN = 2.0
"""The largest mean difference of pixels, of 255."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interop") / "source"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_tiny.write_source(folder)
    return folder


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("interop") / "model"
    return export_folder(Wanted(str(source)), target, Wish(precisions=(PRECISIONS["fp32"],)))[0]


def ours(folder: Path, backend: str, **changes: Any) -> np.ndarray:
    pipeline = Pipeline.open(folder, backend, inference_precision="f32")
    request = Request(**{"prompt": PROMPT, "seed": SEED, **WISH, **changes})
    return np.asarray(pipeline.generate(request).images[0]).astype(int)


def agree(found: Any, expected: np.ndarray) -> None:
    picture = np.asarray(found).astype(int)
    assert picture.shape == expected.shape
    assert expected.std() > 10  # it is a picture, of a kind
    assert np.abs(picture - expected).mean() <= MEAN


def learns_as_ours(folder: Path, exported: Path, *backends: str) -> None:
    """The text encoder of a folder takes a learned word as that of our own folder does."""
    from safetensors.numpy import save_file

    vectors = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    save_file({"<cat>": vectors}, folder / "cat.safetensors")
    wish = Request(prompt="a <cat> in a red house", seed=SEED).settled(64)
    for backend in backends:
        ours, theirs = (
            Pipeline.open(model, backend, inference_precision="f32", embeddings=folder / "cat.safetensors")._condition(
                wish
            )["encoder_hidden_states"]
            for model in (exported, folder)
        )
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def generator() -> Any:
    return torch.Generator("cpu").manual_seed(SEED)


@pytest.mark.parametrize("library", ["ovenbird", "openvino-genai", "optimum-intel", "optimum-onnx"])
def test_all_that_are_compared_draw_one_picture(exported: Path, library: str) -> None:
    pytest.importorskip(LIBRARIES[library].module)
    adapter = LIBRARIES[library].adapter(exported, 64, {})
    steps: list[None] = []
    (found,) = adapter.draw(adapters.Wish(PROMPT, 4, 64, SEED, WISH["guidance_scale"]), lambda: steps.append(None))
    agree(found, ours(exported, "openvino", width=64, num_inference_steps=4))
    assert len(steps) in (4, 5)  # PLMS calls the U-Net once more, which not all count as a step
    assert adapter.ran()["precision"] in ("f32", "bf16")


def test_openvino_genai_generates_from_our_folder(exported: Path) -> None:
    genai = pytest.importorskip("openvino_genai")
    ov = pytest.importorskip("openvino")

    class Noise(genai.Generator):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.generator = generator()

        def next(self) -> float:
            return float(torch.randn(1, generator=self.generator))

        def randn_tensor(self, shape: Any) -> Any:
            return ov.Tensor(torch.randn(list(shape), generator=self.generator).numpy())

    pipeline = genai.Text2ImagePipeline(exported, "CPU", INFERENCE_PRECISION_HINT="f32")
    found = pipeline.generate(PROMPT, generator=Noise(), **WISH).data[0]
    agree(found, ours(exported, "openvino"))


def test_optimum_intel_generates_from_our_folder(exported: Path) -> None:
    intel = pytest.importorskip("optimum.intel")
    pipeline = intel.OVDiffusionPipeline.from_pretrained(exported, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
    agree(pipeline(PROMPT, generator=generator(), **WISH).images[0], ours(exported, "openvino"))


def test_optimum_onnx_generates_from_our_folder(exported: Path) -> None:
    from optimum.onnxruntime import ORTDiffusionPipeline

    pipeline: Any = ORTDiffusionPipeline.from_pretrained(exported)
    agree(pipeline(PROMPT, generator=generator(), **WISH).images[0], ours(exported, "onnxruntime"))


@pytest.fixture
def quiet_intel() -> Iterator[Any]:
    yield pytest.importorskip("optimum.intel")


def test_the_engine_generates_from_a_folder_of_optimum_intel(
    source: Path, exported: Path, quiet_intel: Any, tmp_path: Path
) -> None:
    pipeline = quiet_intel.OVStableDiffusionPipeline.from_pretrained(
        _with_plain_index(source, tmp_path / "source"),
        export=True,
        load_in_8bit=False,
        ov_config={"INFERENCE_PRECISION_HINT": "f32"},
    )
    pipeline.save_pretrained(tmp_path / "model")
    agree(pipeline(PROMPT, generator=generator(), **WISH).images[0], ours(tmp_path / "model", "openvino"))
    learns_as_ours(tmp_path / "model", exported, "openvino")
    # Or its finalizer warns, and fails whichever test the garbage is collected in.
    pipeline.model_save_dir.cleanup()


def test_the_engine_generates_from_a_folder_of_optimum_onnx(source: Path, exported: Path, tmp_path: Path) -> None:
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    plain = _with_plain_index(source, tmp_path / "source")
    main_export(str(plain), tmp_path / "model", task="text-to-image", library_name="diffusers", do_validation=False)
    pipeline: Any = ORTStableDiffusionPipeline.from_pretrained(tmp_path / "model")
    # It traces at even sides, and its graphs fail at 72.
    expected = pipeline(PROMPT, generator=generator(), **{**WISH, "width": 64}).images[0]
    for backend in ("onnxruntime", "openvino"):
        agree(expected, ours(tmp_path / "model", backend, width=64))
    learns_as_ours(tmp_path / "model", exported, *BACKENDS)


def _with_plain_index(source: Path, folder: Path) -> Path:
    # They would load the image encoder that the tiny source only names.
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    index = json.loads((source / "model_index.json").read_text())
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps({**index, "image_encoder": [None, None]}))
    return folder
