"""A source folder is refused for what it says, before anything large is read; none of this needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import export_tiny
import pytest

from ovenbird.errors import ModelError, RequestError
from ovenbird_export.source import Source


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "'FluxPipeline' cannot be exported"),
        ({"_class_name": ["my_pipeline", "Evil"]}, "cannot be exported"),
        ({"unet": ["my_module", "UNet2DConditionModel"]}, "unet may not be a my_module.UNet2DConditionModel"),
        ({"unet": ["diffusers", "FluxTransformer2DModel"]}, "unet may not be"),
        ({"unet": ["diffusers"]}, "not a library and a class"),
        ({"unet": [None, None]}, "unet may not be a None"),
        ({"unet": "diffusers.UNet2DConditionModel"}, "names no unet"),
        ({"scheduler": ["diffusers", "EvilScheduler"]}, "scheduler may not be"),
        ({"safety_checker": ["evil", "Checker"]}, "safety_checker may not be"),
        ({"adapter": ["evil", "Adapter"]}, "'adapter' is not known"),
        ({"custom_pipeline": "evil/pipeline"}, "'custom_pipeline' is not known"),
        ({"auto_map": {}}, "'auto_map' is not known"),
    ],
)
def test_an_index_that_names_anything_unknown_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    export_tiny.write_index(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        Source.open(tmp_path)


def test_a_good_index_is_read(tmp_path: Path) -> None:
    export_tiny.write_index(tmp_path, image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    source = Source.open(tmp_path)
    assert source.classes["unet"] == ("diffusers", "UNet2DConditionModel")
    assert source.left_out == ("image_encoder",)
    assert source.origins == ("text_encoder", "unet", "vae")


def test_no_folder_is_a_bad_request_and_no_index_a_bad_model(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a folder"):
        Source.open(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="cannot be read"):
        Source.open(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "is for a FluxTransformer2DModel"),
        ({"sample_size": 8, "quantization_config": {}}, "'quantization_config' is not known"),
        ({"sample_size": 8, "class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ],
)
def test_settings_that_are_not_this_family_are_refused(tmp_path: Path, config: dict[str, object], message: str) -> None:
    export_tiny.write_index(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        Source.open(tmp_path).settings("unet", ["sample_size", "class_embed_type"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "weights.pt"])
def test_a_pickle_is_never_considered(tmp_path: Path, name: str) -> None:
    export_tiny.write_index(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ModelError, match=f"{name} is a pickle") as caught:
        Source.open(tmp_path).weights("unet")
    assert caught.value.hint is not None and "safe_serialization" in caught.value.hint


def test_absent_weights_are_missed(tmp_path: Path) -> None:
    export_tiny.write_index(tmp_path)
    with pytest.raises(ModelError, match="holds no weights"):
        Source.open(tmp_path).weights("unet")


def test_a_scheduler_must_be_the_one_in_the_index(tmp_path: Path) -> None:
    export_tiny.write_index(tmp_path)
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "steps_offset": 1}))
    assert Source.open(tmp_path).scheduler() == {"_class_name": "PNDMScheduler", "steps_offset": 1}
    for bad in ({"_class_name": "DDIMScheduler"}, {"beta": {"__import__": "os"}}, {"a b": 1}):
        path.write_text(json.dumps(bad))
        with pytest.raises(ModelError):
            Source.open(tmp_path).scheduler()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (export_tiny.CARD, "apache-2.0"),
        ("---\nlicense: 'mit' \n---\n", "mit"),
        ("---\nlicense_name: x\n---\nlicense: gpl\n", None),
        ("# no front matter\nlicense: gpl\n", None),
        (None, None),
    ],
)
def test_the_licence_is_what_the_card_says(tmp_path: Path, card: str | None, licence: str | None) -> None:
    export_tiny.write_index(tmp_path)
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert Source.open(tmp_path).licence() == licence
