"""A source folder is refused for what it says, before anything large is read; none of this needs torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import export_tiny
import pytest

from ovenbird.errors import ModelError, RequestError
from ovenbird_export.recipes import RECIPES, Probe, Shapes
from ovenbird_export.source import Changes, Source


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
def test_m6_an_index_that_names_anything_unknown_is_refused(
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
def test_m6_settings_that_are_not_this_family_are_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    export_tiny.write_index(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        Source.open(tmp_path).settings("unet", ["sample_size", "class_embed_type"])


SDXL: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline",
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}
CHECKER: dict[str, Any] = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
}
SD_PARTS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


@pytest.mark.parametrize(
    ("changes", "family", "parts"),
    [
        ({}, "sd", SD_PARTS),
        ({"_class_name": "LatentConsistencyModelPipeline"}, "sd", SD_PARTS),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "sd", SD_PARTS),
        (SDXL, "sdxl", ["text_encoder", "text_encoder_2", *SD_PARTS[1:]]),
        (SDXL | {"_class_name": "StableDiffusionXLInpaintPipeline"}, "sdxl", None),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "sd", SD_PARTS),
        ({"tiny_vae": ["diffusers", "AutoencoderTiny"]}, "sd", [*SD_PARTS, "tiny_vae_decoder"]),
        (CHECKER, "sd", [*SD_PARTS, "safety_checker"]),
    ],
)
def test_a_family_is_what_its_index_says(
    tmp_path: Path, changes: dict[str, object], family: str, parts: list[str] | None
) -> None:
    export_tiny.write_index(tmp_path, **changes)
    source = Source.open(tmp_path)
    assert source.recipe.family == family
    assert parts is None or [part.name for part in source.parts] == parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder_2": SDXL["text_encoder_2"]}, "'text_encoder_2' is not known"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "names no text_encoder_2"),
        (SDXL | {"text_encoder": [None, None]}, "text_encoder may not be a None"),
        (SDXL | {"add_watermarker": "yes"}, "add_watermarker is 'yes'"),
        (SDXL | {"requires_aesthetics_score": False}, "'requires_aesthetics_score' is not known"),
        (
            SDXL | {"_class_name": "StableDiffusionXLInpaintPipeline", "requires_aesthetics_score": True},
            "requires_aesthetics_score is True",
        ),
        ({"tiny_vae": ["diffusers", "AutoencoderKL"]}, "tiny_vae may not be a diffusers.AutoencoderKL"),
        ({"safety_checker": CHECKER["safety_checker"]}, "a safety_checker but no feature_extractor"),
        ({"_class_name": "StableDiffusion3Pipeline"}, "cannot be exported"),
    ],
)
def test_what_is_no_family_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    export_tiny.write_index(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        Source.open(tmp_path)


def test_the_safety_checker_may_be_left_out(tmp_path: Path) -> None:
    export_tiny.write_index(tmp_path, **CHECKER, requires_safety_checker=True)
    whole, without = Source.open(tmp_path), Source.open(tmp_path, Changes(without=("safety_checker",)))
    assert whole.left_out == () and without.left_out == ("safety_checker", "feature_extractor")
    assert [part.name for part in without.parts] == SD_PARTS
    assert whole.index()["requires_safety_checker"] and not without.index()["requires_safety_checker"]
    # optimum-intel would look for torch's weights of a checker that is named.
    assert whole.index()["safety_checker"] == without.index()["safety_checker"] == [None, None]
    assert whole.index()["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    assert without.index()["feature_extractor"] == [None, None]


@pytest.mark.parametrize(
    ("pipeline", "config", "good"),
    [
        ("StableDiffusionPipeline", {"in_channels": 4}, True),
        ("StableDiffusionPipeline", {"in_channels": 9}, False),
        ("StableDiffusionInpaintPipeline", {"in_channels": 9}, True),
        ("StableDiffusionInpaintPipeline", {"in_channels": 8}, False),
        ("StableDiffusionPipeline", {"time_cond_proj_dim": 256}, True),
        ("StableDiffusionPipeline", {"addition_embed_type": "text_time"}, False),
        ("StableDiffusionXLPipeline", {"addition_embed_type": "text_time"}, True),
        ("StableDiffusionXLPipeline", {}, False),
    ],
)
def test_the_unet_must_be_one_that_the_pipeline_can_call(
    tmp_path: Path, pipeline: str, config: dict[str, object], good: bool
) -> None:
    export_tiny.write_index(tmp_path, **{**(SDXL if "XL" in pipeline else {}), "_class_name": pipeline})
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    source = Source.open(tmp_path)
    if good:
        assert source.settings("unet", config) == config
    else:
        with pytest.raises(ModelError, match="in a StableDiffusion"):
            source.settings("unet", config)


@pytest.mark.parametrize("name", ["../w-00001-of-00002.safetensors", "w.safetensors", "w-1-of-2.safetensors", "x.bin"])
def test_m7_shards_lie_beside_their_index(tmp_path: Path, name: str) -> None:
    export_tiny.write_index(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / name).touch()
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for content in ({"weight_map": {"a": name}}, {"weight_map": {}}, {"weight_map": [name]}):
        index.write_text(json.dumps(content))
        with pytest.raises(ModelError, match="names"):
            Source.open(tmp_path).weights("unet")


@pytest.mark.parametrize(
    ("batch", "height", "width", "message"),
    [
        (0, None, None, "batch: 0 is not in 1"),
        (None, 65, None, "height: 65 is not a multiple of 8"),
        (None, None, 56, "width: 56"),
        (None, None, 1 << 20, "width: 1048576"),
    ],
)
def test_shapes_that_no_model_has_are_bad_requests(
    batch: int | None, height: int | None, width: int | None, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Shapes(batch, height, width)


def test_what_is_fixed_is_what_a_part_is_tried_with() -> None:
    probe = Probe(seed=1, batch=2, height=16, width=11, tokens=40, timestep=1.0)
    assert Shapes().fit(probe, rows=2, factor=8, tokens=77) == probe and Shapes().axes == ()
    fitted = Shapes(3, 64, None).fit(probe, rows=2, factor=8, tokens=77)
    assert (fitted.batch, fitted.height, fitted.width, fitted.tokens) == (6, 8, 11, 77)
    assert Shapes(3, 64, None).axes == ("batch", "sequence", "height")
    with pytest.raises(RequestError, match="72 is not a multiple of 16"):
        Shapes(width=72).fit(probe, rows=1, factor=16, tokens=77)


def test_every_part_comes_from_a_component_of_its_recipe() -> None:
    for recipe in RECIPES.values():
        known = {**recipe.classes, **recipe.optional}
        for part in recipe.parts:
            assert any(name.endswith(f".{part.kind}") for name in known.get(part.origin, (f".{part.kind}",)))
        assert set(recipe.tokenizers) == {key for key in recipe.classes if key.startswith("tokenizer")}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "weights.pt"])
def test_m1_a_pickle_is_never_considered(tmp_path: Path, name: str) -> None:
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


def test_a_tokenizer_as_transformers_5_writes_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from ovenbird_export import tokenizer

    export_tiny.write_tokenizer(tmp_path / "old")
    before = tokenizer.write_tokenizer(tmp_path / "old", tmp_path / "first", 10_000)
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(tmp_path / "first" / "tokenizer.json", new)
    settings = json.loads((tmp_path / "old" / "tokenizer_config.json").read_text())
    more = {"backend": "tokenizers", "is_local": True, "local_files_only": False}
    (new / "tokenizer_config.json").write_text(json.dumps(settings | more))
    after = tokenizer.write_tokenizer(new, tmp_path / "second", 10_000)
    for text in ("", "a red house", "A  Red\tHOUSE, with 2 cats!"):
        assert before(text).input_ids == after(text).input_ids
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "first" / name).read_text() == (tmp_path / "second" / name).read_text()
