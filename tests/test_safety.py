"""The safety checker: what it is shown, what it says, and what takes a flagged picture's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovenbird import Bundle, ModelError, NumericError
from ovenbird.safety import Checker, Preparation, SafetyChecker, notice

SETTINGS: list[dict[str, Any]] = [
    {},
    {"size": 224, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3},
    {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 36}},
    {"size": {"shortest_edge": 31}, "crop_size": {"height": 64, "width": 45}},
    {"size": {"height": 50, "width": 33}, "resample": 2, "crop_size": 29},
    {"do_resize": False, "crop_size": 61, "do_rescale": False},
    {"do_center_crop": False, "size": 48, "do_normalize": False},
    {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 0.00784313725490196},
]


def photo(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3))
    return Image.fromarray(np.clip(noise * 0.5 + np.linspace(0, 120, width)[None, :, None], 0, 255).astype(np.uint8))


def settings_file(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "feature_extractor" / "preprocessor_config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.filterwarnings("ignore")  # of transformers, which is other people's
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pictures_are_prepared_as_by_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    prepare = Preparation.read(settings_file(tmp_path, settings))
    theirs = transformers.CLIPImageProcessor(**settings)
    for size in ((128, 128), (96, 152), (513, 257), (64, 64), (70, 300)):
        expected = theirs(photo(*size), return_tensors="np").pixel_values
        np.testing.assert_array_equal(prepare(photo(*size)), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": "big"},
        {"size": {"longest_edge": 3}},
        {"resample": 77},
        {"crop_size": {"height": 3}},
        {"image_std": "x"},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        Preparation.read(settings_file(tmp_path, settings))


def test_another_kind_of_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="SiglipImageProcessor is not CLIP's"):
        Preparation.read(settings_file(tmp_path, {"image_processor_type": "SiglipImageProcessor"}))


# A checker that is five lines.


def fake(flagged: bool = True, inputs: tuple[str, ...] = ("clip_input",), **outputs: Any) -> Any:
    def compiled(shape: tuple[int, ...]) -> Checker:
        assert shape == (1, 3, 224, 224)
        found = outputs or {"has_nsfw_concepts": np.array([flagged]), "concept_scores": np.zeros((1, 17))}
        return Checker(lambda _: found, frozenset(inputs))

    return compiled


def bundle(folder: Path, manifest: Any = None) -> Bundle:
    return Bundle(folder, "test", "sd", "fp32", manifest)


def model(folder: Path) -> Path:
    settings_file(folder, {})
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.onnx").touch()
    return folder


def test_a_checker_says_what_its_graph_says(tmp_path: Path) -> None:
    model(tmp_path)
    for flagged in (True, False):
        checker = SafetyChecker(bundle(tmp_path), True, fake(flagged))
        assert checker(photo(64, 64)) is flagged and checker.state == "on"


def test_one_that_is_not_wanted_is_never_compiled(tmp_path: Path) -> None:
    checker = SafetyChecker(bundle(model(tmp_path)), False, lambda _: pytest.fail("compiled"))
    assert checker(photo(64, 64)) is None and checker.state == "off"


def test_a_folder_may_have_none(tmp_path: Path) -> None:
    checker = SafetyChecker(bundle(tmp_path), True, lambda _: pytest.fail("compiled"))
    assert checker(photo(64, 64)) is None and checker.state == "none"


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [("safety_checker/model.onnx", "no graph"), ("feature_extractor/preprocessor_config.json", "prepare")],
)
def test_a_checker_in_another_form_is_not_used_and_that_is_said(tmp_path: Path, lacking: str, reason: str) -> None:
    model(tmp_path)
    (tmp_path / lacking).unlink()
    with pytest.warns(UserWarning, match=f"pictures are not checked: .*{reason}"):
        checker = SafetyChecker(bundle(tmp_path), True, lambda _: pytest.fail("compiled"))
    assert checker(photo(64, 64)) is None and checker.state == "not used"


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (fake(inputs=("clip_input", "images")), "its inputs are clip_input, images"),
        (fake(out_images=np.zeros(1)), "its outputs are out_images"),
    ],
)
def test_a_graph_with_other_ports_is_not_used_and_that_is_said_once(tmp_path: Path, graph: Any, reason: str) -> None:
    checker = SafetyChecker(bundle(model(tmp_path)), True, graph)
    with pytest.warns(UserWarning, match=reason):
        assert checker(photo(64, 64)) is None
    assert checker(photo(64, 64)) is None and checker.state == "not used"


def test_a_graph_that_cannot_be_compiled_is_refused_in_our_own_folders_only(tmp_path: Path) -> None:
    def broken(shape: tuple[int, ...]) -> Checker:
        raise ModelError("model.onnx: OpenVINO cannot use it")

    model(tmp_path)
    with pytest.raises(ModelError, match="cannot use it"):
        SafetyChecker(bundle(tmp_path, {"files": {}}), True, broken)(photo(64, 64))
    checker = SafetyChecker(bundle(tmp_path), True, broken)
    with pytest.warns(UserWarning, match="pictures are not checked: model.onnx: OpenVINO cannot use it"):
        assert checker(photo(64, 64)) is None


def test_n1_scores_that_are_not_finite_pass_nothing(tmp_path: Path) -> None:
    broken = fake(has_nsfw_concepts=np.array([False]), concept_scores=np.full((1, 17), np.nan))
    with pytest.raises(NumericError, match="safety_checker: its scores are not finite"):
        SafetyChecker(bundle(model(tmp_path)), True, broken)(photo(64, 64))


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (1024, 128), (64, 768)])
def test_the_notice_has_words_on_gray_and_they_fit(size: tuple[int, int]) -> None:
    image = notice(size)
    pixels = np.asarray(image)
    assert image.size == size and image.mode == "RGB"
    words = (pixels != 128).any(axis=2)
    assert 0.005 < words.mean() < 0.5
    assert not (words[:, [0, -1]].any() or words[[0, -1]].any())
