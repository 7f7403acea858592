"""Folders as other tools write them, made from nestling by what is known to differ, draw nestling's pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovenbird import Bundle, ModelError, Pipeline, Request, RequestError
from ovenbird.backends import create

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WISH: dict[str, Any] = {
    "prompt": "a small blue boat",
    "seed": 4,
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "scheduler": "ddim",
}


@pytest.fixture
def theirs(nestling: Path, tmp_path: Path) -> Path:
    """A folder without a manifest."""
    shutil.copytree(nestling / "fp16", tmp_path / "theirs", ignore=shutil.ignore_patterns("ovenbird.json"))
    return tmp_path / "theirs"


@pytest.fixture(scope="module")
def expected(nestling: Path) -> dict[str, Any]:
    """The picture of each runtime, in float32."""
    return {backend: draw(nestling / "fp16", backend) for backend in ("openvino", "onnxruntime")}


def draw(folder: Path, backend: str = "openvino", **changes: Any) -> Any:
    pipeline = Pipeline.open(folder, backend, inference_precision="f32")
    return np.asarray(pipeline.generate(Request(**WISH | changes)).images[0]).astype(int)


def edit(path: Path, **changes: object) -> None:
    """Other values in a JSON file; None takes a key out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


NAMES = {
    "OVStableDiffusionPipeline": "sd",
    "ORTStableDiffusionPipeline": "sd",
    "OnnxStableDiffusionPipeline": "sd",
    "OVStableDiffusionImg2ImgPipeline": "sd",
    "OVLatentConsistencyModelPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",
    "OVStableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_their_pipelines(theirs: Path, name: str) -> None:
    edit(theirs / "model_index.json", _class_name=name)
    assert Bundle.open(theirs).family == NAMES[name]


@pytest.mark.parametrize(
    "name", ["OVOVStableDiffusionPipeline", "OVFluxPipeline", "OV", "", "StableDiffusion3Pipeline"]
)
def test_m6_other_pipelines_are_refused(theirs: Path, name: str) -> None:
    edit(theirs / "model_index.json", _class_name=name)
    with pytest.raises(ModelError, match="is not supported"):
        Bundle.open(theirs)


def test_sdxls_refiner_is_refused(theirs: Path) -> None:
    edit(theirs / "model_index.json", _class_name="OVStableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=True)
    with pytest.raises(ModelError, match="SDXL's refiner is not supported"):
        Bundle.open(theirs)


def test_what_the_weights_are_stored_as_is_read_off_the_graph(theirs: Path) -> None:
    assert Bundle.open(theirs).precision == Bundle.open(theirs, "fp16").precision == "fp16"
    with pytest.raises(RequestError, match="theirs is fp16, not int8"):
        Bundle.open(theirs, "int8")
    path = theirs / "unet" / "openvino_model.xml"
    text = path.read_text()
    path.write_text(text.replace('element_type="f16"', 'element_type="i8"'))
    assert Bundle.open(theirs).precision == "int8-weights"
    path.write_text(path.read_text().replace('type="Add"', 'type="FakeQuantize"'))
    assert Bundle.open(theirs).precision == "int8"
    path.write_text(text.replace('element_type="f16"', 'element_type="f32"'))
    assert Bundle.open(theirs).precision == "fp32"
    path.unlink()
    assert Bundle.open(theirs, "fp16").precision == "unknown"
    assert create("openvino").best_precision("unknown") == "f32"


def retype(folder: Path, component: str, port: str, kind: str) -> None:
    """Another type of an input of an IR."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    path = folder / component / "openvino_model.xml"
    model = ov.Core().read_model(path)
    steps = PrePostProcessor(model)
    steps.input(port).tensor().set_element_type(getattr(ov.Type, kind))
    ov.save_model(steps.build(), path.with_stem("new"), compress_to_fp16=False)
    for end in (".xml", ".bin"):
        path.with_stem("new").with_suffix(end).replace(path.with_suffix(end))


def reshape(folder: Path, component: str, port: str, shape: list[int]) -> None:
    """Another rank of an input of an IR."""
    import openvino as ov

    path = folder / component / "openvino_model.xml"
    model = ov.Core().read_model(path)
    model.reshape({port: ov.PartialShape(shape)})
    ov.save_model(model, path.with_stem("new"), compress_to_fp16=False)
    for end in (".xml", ".bin"):
        path.with_stem("new").with_suffix(end).replace(path.with_suffix(end))


def of_optimum_cli(folder: Path) -> None:
    """2.x: a plain index, whole timesteps as a vector of any length; torch's safety checker, and no encoder."""
    reshape(folder, "unet", "timestep", [-1])
    retype(folder, "unet", "timestep", "i64")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"")
    shutil.rmtree(folder / "vae_encoder")


def of_early_optimum_intel(folder: Path) -> None:
    """1.9: its own class, ids of 32 bits, one whole timestep, few settings."""
    edit(folder / "model_index.json", _class_name="OVStableDiffusionPipeline", vae_decoder=["optimum", "OVModelVae"])
    edit(folder / "unet" / "config.json", time_cond_proj_dim=None, _name_or_path="/somewhere", in_channels=None)
    edit(folder / "vae_decoder" / "config.json", latent_channels=None, shift_factor=None, block_out_channels=None)
    retype(folder, "text_encoder", "input_ids", "i32")
    reshape(folder, "unet", "timestep", [1])
    (folder / "openvino_config.json").write_text('{"dtype": "fp16"}')


@pytest.mark.filterwarnings("ignore:safety_checker")  # it says that pictures are not checked
@pytest.mark.parametrize("shape", [of_optimum_cli, of_early_optimum_intel])
def test_their_ir_draws_the_same(theirs: Path, shape: Callable[[Path], None], expected: dict[str, Any]) -> None:
    shape(theirs)
    found = draw(theirs)
    assert np.abs(found - expected["openvino"]).max() <= 1


def test_early_folders_without_settings_are_taken_for_sd_1(theirs: Path) -> None:
    for path in theirs.glob("*/config.json"):
        path.unlink()
    with pytest.warns(UserWarning, match=r"lacks a config\.json; what it would say .* 1\.5") as caught:
        assert Bundle.open(theirs).default_size == 512
        assert draw(theirs).shape == (64, 64, 3)
    assert len(caught) == 1
    edit(theirs / "model_index.json", _class_name="OVStableDiffusionXLPipeline")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        _ = Bundle.open(theirs).default_size


def test_sides_of_a_model_may_be_two_numbers(theirs: Path) -> None:
    edit(theirs / "unet" / "config.json", sample_size=[8, 16])
    assert Bundle.open(theirs).default_size == 128


def cast_ports(path: Path, kinds: dict[str, int]) -> None:
    """Other types of the inputs and outputs of an ONNX graph."""
    model = onnx.load(path)
    graph, nodes = model.graph, []
    for port in graph.input:
        if port.name in kinds:
            nodes.append(
                onnx.helper.make_node("Cast", [port.name], [f"{port.name}.own"], to=port.type.tensor_type.elem_type)
            )
            for node in graph.node:
                node.input[:] = [f"{name}.own" if name == port.name else name for name in node.input]
            port.type.tensor_type.elem_type = kinds[port.name]
    for port in graph.output:
        if port.name in kinds:
            for node in graph.node:
                node.output[:] = [f"{name}.own" if name == port.name else name for name in node.output]
                node.input[:] = [f"{name}.own" if name == port.name else name for name in node.input]
            graph.node.append(onnx.helper.make_node("Cast", [f"{port.name}.own"], [port.name], to=kinds[port.name]))
            port.type.tensor_type.elem_type = kinds[port.name]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    onnx.save(model, path)


def of_olive(folder: Path) -> None:
    """Graphs in halves, their inputs and outputs too; ids of 32 bits, whole timesteps; no IR; diffusers' old class."""
    half, proto = onnx.TensorProto.FLOAT16, onnx.TensorProto
    edit(folder / "model_index.json", _class_name="OnnxStableDiffusionPipeline", unet=["diffusers", "OnnxRuntimeModel"])
    cast_ports(folder / "text_encoder" / "model.onnx", {"input_ids": proto.INT32, "last_hidden_state": half})
    ports = dict.fromkeys(("sample", "encoder_hidden_states", "out_sample"), half)
    cast_ports(folder / "unet" / "model.onnx", {**ports, "timestep": proto.INT64})
    cast_ports(folder / "vae_decoder" / "model.onnx", dict.fromkeys(("latent_sample", "sample"), half))
    for path in folder.glob("*/openvino_model.*"):
        path.unlink()


def test_their_onnx_draws_nearly_the_same(theirs: Path, expected: dict[str, Any]) -> None:
    of_olive(theirs)
    for backend, picture in expected.items():
        assert np.abs(draw(theirs, backend) - picture).mean() <= 2


def test_a_timestep_between_two_is_not_rounded(theirs: Path) -> None:
    of_olive(theirs)
    draw(theirs, "openvino", scheduler="euler_karras", num_inference_steps=3)  # whose graph is made to take fractions
    with pytest.raises(ModelError, match=r"takes whole numbers where this sampler has \d+\.\d") as caught:
        draw(theirs, "onnxruntime", scheduler="euler_karras", num_inference_steps=3)
    assert "another sampler" in str(caught.value.hint)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_graph_that_takes_other_inputs_is_refused(theirs: Path, backend: str) -> None:
    edit(theirs / "unet" / "config.json", time_cond_proj_dim=32)
    with pytest.raises(ModelError, match=r"takes sample, timestep, encoder_hidden_states, and .* has .*timestep_cond"):
        draw(theirs, backend)
