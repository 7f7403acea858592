"""Every family, tiny: what its folder holds, what its graphs are called with, that other tools make its pictures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovenbird.backends import BACKENDS
from ovenbird.bundle import Bundle
from ovenbird.errors import ModelError, RequestError
from ovenbird_export.lora import Lora
from ovenbird_export.precisions import PRECISIONS
from ovenbird_export.recipes import Shapes
from ovenbird_export.source import Changes, Source
from ovenbird_export.sources import Wanted

pytest.importorskip("torch")
pytest.importorskip("optimum")

import export_tiny
import original_layout

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore"),  # of torch, optimum and diffusers, which are other people's
]

TEXT = (["input_ids"], ["last_hidden_state", "pooler_output"])
SKIPS = [f"clip_skip.{skip}" for skip in (1, 2)]
"""One for each layer but the last; openvino-genai and optimum pass over them."""
HIDDEN = [f"hidden_states.{layer}" for layer in range(3)]
NOISE = ["sample", "timestep", "encoder_hidden_states"]
UNET = (NOISE, ["out_sample"])
DECODER, ENCODER = (["latent_sample"], ["sample"]), (["sample"], ["latent_parameters"])
TINY_ENCODER = (["sample"], ["latent_sample"])
SD = {"text_encoder": (TEXT[0], [*TEXT[1], SKIPS[0]]), "unet": UNET, "vae_decoder": DECODER, "vae_encoder": ENCODER}
SD2 = {**SD, "text_encoder": (TEXT[0], [*TEXT[1], *SKIPS])}
PORTS = {
    "sd20": {**SD2, "vae_encoder": TINY_ENCODER},
    "sd21": SD2,
    "turbo": SD2,
    "sdxl": {
        "text_encoder": (TEXT[0], [*TEXT[1], *HIDDEN]),
        "text_encoder_2": (TEXT[0], ["text_embeds", "last_hidden_state", *HIDDEN]),
        "unet": ([*NOISE, "text_embeds", "time_ids"], ["out_sample"]),
        "vae_decoder": DECODER,
        "vae_encoder": ENCODER,
    },
    "lcm": {**SD, "unet": ([*NOISE, "timestep_cond"], ["out_sample"]), "vae_encoder": TINY_ENCODER},
    "inpaint": {
        **SD,
        "tiny_vae_decoder": DECODER,
        "safety_checker": (["clip_input"], ["has_nsfw_concepts", "concept_scores", "special_scores"]),
    },
}
"""Family -> component -> inputs and outputs as optimum has them; openvino-genai goes by the order of the outputs.

Beside "sd15", which every other test of the export takes, in every precision."""
DRAWN = ("sd20", "sd21", "turbo", "sdxl", "lcm")
"""Those that the engine makes pictures with, from a text alone and with its own sampler."""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny source by name, written when it is first asked for."""
    root = tmp_path_factory.mktemp("sources")

    def source(name: str) -> Path:
        if not (root / name).exists():
            export_tiny.write_source(root / name, name)
        return root / name

    return source


@pytest.fixture(scope="session")
def merged(sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Changes]:
    """What an export is made with: a LoRA and an autoencoder's folder for one, an autoencoder's file for another."""
    root = tmp_path_factory.mktemp("merged")

    def changes(name: str) -> Changes:
        if name == "sd20":
            return Changes(vae=sources("lcm") / "vae", loras=(write_lora(root / "style.safetensors", scale=0.25),))
        if name == "turbo":
            weights = {key: tensor * 1.25 for key, tensor in state(Source.open(sources(name)), "vae").items()}
            return Changes(vae=save(original_layout.vae(weights, levels=2), root / "vae.ckpt"))
        return Changes()

    return changes


@pytest.fixture(scope="session")
def exported(
    sources: Callable[[str], Path], merged: Callable[[str], Changes], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Its export in half precision, made when it is first asked for."""
    from ovenbird_export.export import Wish, export_folder

    root = tmp_path_factory.mktemp("exported")

    def made(name: str) -> Path:
        if not (root / name).exists():
            wish = Wish(precisions=(PRECISIONS["fp16"],), changes=merged(name))
            export_folder(Wanted(str(sources(name))), root / name, wish)
        return root / name / "fp16"

    return made


@pytest.mark.parametrize("family", PORTS)
def test_every_component_passed_its_gate_on_both_runtimes(exported: Callable[[str], Path], family: str) -> None:
    bundle = Bundle.open(exported(family))
    bundle.verify(full=True)
    assert bundle.family == ("sdxl" if family == "sdxl" else "sd") and bundle.manifest
    figures = bundle.manifest["verification"]["components"]
    assert set(figures) == set(PORTS[family])
    for component, by_runtime in figures.items():
        assert set(by_runtime) == set(BACKENDS)
        for figure in by_runtime.values():
            assert 0 < figure["max_abs"] <= 3e-4, component
            exact = figure["unrounded"]["relative"]
            # The autoencoders' tensors are too small to be halved.
            assert exact < 1e-5 if "vae" in component else 1e-5 < exact < 1e-2


@pytest.mark.parametrize("family", PORTS)
def test_the_engine_draws_with_what_it_has_a_sampler_for(exported: Callable[[str], Path], family: str) -> None:
    pictures = json.loads((exported(family) / "ovenbird.json").read_text())["verification"]["pictures"]
    assert (pictures is not None) == (family in DRAWN)
    for runtime in BACKENDS if pictures else ():
        assert pictures[runtime]["psnr_db"] >= 35 and pictures[runtime]["ssim"] > 0.9


def test_what_is_merged_is_in_the_graphs(exported: Callable[[str], Path], sources: Callable[[str], Path]) -> None:
    """Not by the code that merges: diffusers' own modules, and weights changed by hand."""
    import torch

    from ovenbird_export.proof import run

    torchs: Any = diffusers_module()
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    text = np.random.default_rng(1).standard_normal((1, 7, 32), np.float32)
    unet = torchs.UNet2DConditionModel.from_pretrained(sources("sd20") / "unet")
    unet.conv_in.weight.data += LORA_SUM * 0.25
    expected = unet(torch.from_numpy(noise), 7.0, torch.from_numpy(text)).sample
    tiny = torchs.AutoencoderTiny.from_pretrained(sources("lcm") / "vae").decode(torch.from_numpy(noise)).sample
    vae = torchs.AutoencoderKL.from_pretrained(sources("turbo") / "vae")
    for parameter in vae.parameters():
        parameter.data *= 1.25
    inputs: dict[str, np.ndarray] = {"sample": noise, "timestep": np.array(7.0), "encoder_hidden_states": text}
    cases = [
        ("sd20", "unet", inputs, "out_sample", expected),
        ("sd20", "vae_decoder", {"latent_sample": noise}, "sample", tiny),
        ("turbo", "vae_decoder", {"latent_sample": noise}, "sample", vae.decode(torch.from_numpy(noise)).sample),
    ]
    for family, component, given, output, value in cases:
        for runtime in BACKENDS:
            found = run(exported(family) / component, runtime, [given])[0][output]
            np.testing.assert_allclose(found, value.detach().numpy(), atol=5e-3)
    facts = [json.loads((exported(family) / "ovenbird.json").read_text())["source"] for family in ("sd20", "turbo")]
    assert facts[0]["vae"] == "vae" and facts[1]["vae"] == "vae.ckpt"
    assert [(row["name"], row["scale"]) for row in facts[0]["loras"]] == [("style.safetensors", 0.25)]


@pytest.mark.parametrize("family", PORTS)
def test_ports_have_optimums_names_in_optimums_order(exported: Callable[[str], Path], family: str) -> None:
    import onnx
    import openvino as ov

    for component, (inputs, outputs) in PORTS[family].items():
        folder = exported(family) / component
        graph = onnx.load(folder / "model.onnx").graph
        assert ([port.name for port in graph.input], [port.name for port in graph.output]) == (inputs, outputs)
        model = ov.Core().read_model(folder / "openvino_model.xml")
        assert [port.any_name for port in model.inputs] == inputs
        assert [port.any_name for port in model.outputs] == outputs


def test_what_sdxl_needs_beside_its_graphs_is_there(exported: Callable[[str], Path]) -> None:
    from tokenizers import Tokenizer

    folder = exported("sdxl")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True and index["add_watermarker"] is None
    assert "requires_safety_checker" not in index and "safety_checker" not in index
    pads = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
    for name, pad in pads.items():
        assert json.loads((folder / name / "tokenizer_config.json").read_text())["pad_token"] == pad
        assert Tokenizer.from_file(str(folder / name / "tokenizer.json")).encode("a house").ids
    for name in ("text_encoder", "text_encoder_2"):
        assert json.loads((folder / name / "config.json").read_text())["output_hidden_states"] is True


@pytest.mark.parametrize("package", ["optimum.onnxruntime:ORTDiffusionPipeline", "optimum.intel:OVDiffusionPipeline"])
@pytest.mark.parametrize("family", ["sdxl", "lcm", "inpaint"])
def test_optimum_makes_the_picture_that_diffusers_makes(
    exported: Callable[[str], Path], sources: Callable[[str], Path], family: str, package: str
) -> None:
    import torch
    from PIL import Image

    module, _, kind = package.partition(":")
    theirs: Any = getattr(pytest.importorskip(module), kind)
    options = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}} if kind.startswith("OV") else {}
    wish: dict[str, Any] = {"height": 64, "width": 72, "num_inference_steps": 2, "guidance_scale": 3.0}
    if family == "inpaint":
        noise = np.random.default_rng(0).integers(0, 255, (64, 72, 3), np.uint8)
        wish |= {"image": Image.fromarray(noise), "mask_image": Image.fromarray((noise[..., 0] > 127) * np.uint8(255))}
    without = {"safety_checker": None} if family == "inpaint" else {}
    torchs: Any = diffusers_module().DiffusionPipeline
    pictures = []
    for pipeline in (
        torchs.from_pretrained(sources(family), **without),
        theirs.from_pretrained(exported(family), **options),
    ):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator("cpu").manual_seed(0)
        pictures.append(pipeline("a red house", generator=generator, output_type="np", **wish).images[0])
    assert pictures[0].shape == (64, 72, 3) and pictures[0].std() > 0.01
    assert np.abs(pictures[0] - pictures[1]).max() < 2 / 255


def test_the_image_processor_goes_with_the_checker(exported: Callable[[str], Path]) -> None:
    folder = exported("inpaint")
    settings = json.loads((folder / "feature_extractor" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": 32} and settings["crop_size"] == {"height": 32, "width": 32}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is True
    assert index["tiny_vae"] == ["diffusers", "AutoencoderTiny"]


@pytest.fixture
def job(sources: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """A job of one precision for single components, which is never published."""
    from ovenbird_export.job import Job

    variants = {name: tmp_path / name for name in PRECISIONS}
    return lambda name, **options: Job(
        Source.open(sources(name)), (PRECISIONS["fp16"],), variants, tmp_path / "scratch", **options
    )


def test_the_safety_checker_decides_as_torchs_own(
    job: Callable[..., Any], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    import safetensors.torch
    import torch

    from ovenbird_export.convert import convert
    from ovenbird_export.modules import adapt, read_module
    from ovenbird_export.proof import run

    source = Source.open(Path(shutil.copytree(sources("inpaint"), tmp_path / "copy")))
    part = next(part for part in source.parts if part.name == "safety_checker")
    pictures = np.random.default_rng(3).standard_normal((60, 3, 32, 32), np.float32)
    # One concept of each kind lies in the middle of what these pictures have, so that about half of them are flagged,
    # and some only because the special one makes it stricter.
    module: Any = read_module(source, "safety_checker")
    scores = [module.special_care_embeds_weights, module.concept_embeds_weights]
    adapt(module, part)
    for weights, name in zip(scores, ("special_scores", "concept_scores"), strict=True):
        middle = (module(torch.from_numpy(pictures))[name][:, 0] + weights[0]).median()
        weights.data = torch.tensor([float(middle) + 0.004, *(9.0 for _ in weights[1:])])
    safetensors.torch.save_file(module.state_dict(), source.weights("safety_checker")[0])
    own: Any = read_module(source, "safety_checker")
    _, expected = own(torch.from_numpy(pictures), np.ones((60, 8, 8, 3)))
    own.special_care_embeds_weights.data[0] = 9
    _, laxer = own(torch.from_numpy(pictures), np.ones((60, 8, 8, 3)))
    assert 0 < sum(laxer) < sum(expected) < 60
    exact = replace(job("inpaint"), source=source, precisions=(PRECISIONS["fp32"],))
    convert(exact, part)
    for runtime in BACKENDS:
        folder = exact.variants["fp32"] / "safety_checker"
        found = run(folder, runtime, [{"clip_input": pictures}])[0]
        assert found["has_nsfw_concepts"].tolist() == expected


@pytest.mark.parametrize(
    ("family", "component", "fixed"),
    [
        ("sdxl", "text_encoder_2", {"input_ids": (1, 77), "text_embeds": (1, 16), "hidden_states.1": (1, 77, 32)}),
        ("sd15", "unet", {"sample": (2, 4, 8, 9), "encoder_hidden_states": (2, 77, 32), "out_sample": (2, 4, 8, 9)}),
        ("lcm", "unet", {"sample": (1, 4, 8, 9), "timestep_cond": (1, 16), "out_sample": (1, 4, 8, 9)}),
        ("lcm", "vae_decoder", {"latent_sample": (1, 4, 8, 9), "sample": (1, 3, 64, 72)}),
        ("lcm", "vae_encoder", {"sample": (1, 3, 64, 72), "latent_sample": (1, 4, 8, 9)}),
    ],
)
def test_shapes_are_fixed_in_both_graphs(
    job: Callable[..., Any], family: str, component: str, fixed: dict[str, tuple[int, ...]]
) -> None:
    found = shapes_of(job(family, shapes=Shapes(batch=1, height=64, width=72)), component)
    for shapes in found:
        assert all(isinstance(size, int) for shape in shapes.values() for size in shape), shapes
        assert {name: shapes[name] for name in fixed} == fixed


def test_what_is_not_fixed_stays_free(job: Callable[..., Any]) -> None:
    wide = job("lcm", shapes=Shapes(width=72))
    for shapes in shapes_of(wide, "vae_decoder"):
        assert shapes == {"latent_sample": (None, 4, None, 9), "sample": (None, 3, None, 72)}
    for shapes in shapes_of(wide, "text_encoder"):
        assert shapes["input_ids"] == (None, None) and shapes["last_hidden_state"] == (None, None, 32)


def shapes_of(job: Any, component: str) -> list[dict[str, tuple[int | None, ...]]]:
    """Of every input and output that is not a lone number, of the ONNX graph and of the IR."""
    import onnx
    import openvino as ov

    from ovenbird_export.convert import convert

    convert(job, next(part for part in job.source.parts if part.name == component))
    folder = job.variants["fp16"] / component
    graph = onnx.load(folder / "model.onnx").graph
    ours = {
        port.name: tuple(axis.dim_value or None for axis in port.type.tensor_type.shape.dim)
        for port in [*graph.input, *graph.output]
    }
    model = ov.Core().read_model(folder / "openvino_model.xml")
    theirs = {
        port.any_name: tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
        for port in [*model.inputs, *model.outputs]
    }
    return [{name: shape for name, shape in found.items() if name != "timestep"} for found in (ours, theirs)]


def state(source: Source, component: str) -> dict[str, Any]:
    from ovenbird_export.modules import read_module

    return dict(read_module(source, component).state_dict())


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return set(found) == set(expected) and all(bool((found[name] == expected[name]).all()) for name in found)


def test_an_autoencoder_may_come_from_elsewhere(sources: Callable[[str], Path], tmp_path: Path) -> None:
    sd, xl = Source.open(sources("sd15")), Source.open(sources("sdxl"))
    given = Changes(vae=sources("sdxl") / "vae", tiny_vae=sources("lcm") / "vae")
    changed = Source.open(sources("sd15"), given)
    assert [part.name for part in changed.parts if part not in sd.parts] == ["tiny_vae_decoder"]
    assert same(state(changed, "vae"), state(xl, "vae")) and not same(state(changed, "vae"), state(sd, "vae"))
    assert changed.merged() == {"vae": "vae", "tiny_vae": "vae"} and changed.digest() != sd.digest()
    tiny = Source.open(sources("sd15"), Changes(vae=sources("lcm") / "vae"))
    assert tiny.classes["vae"] == ("diffusers", "AutoencoderTiny")
    assert [part.onnx_config for part in tiny.parts if part.origin == "vae"] == ["TinyDecoder", "TinyEncoder"]
    for place in (tmp_path / "nowhere", sources("sdxl") / "unet"):
        with pytest.raises((RequestError, ModelError), match=r"is not a folder|vae may not be a"):
            Source.open(sources("sd15"), Changes(vae=place))
    with pytest.raises(RequestError, match="is not a folder"):
        Source.open(sources("sd15"), Changes(tiny_vae=sources("lcm") / "vae" / "config.json"))


PREFIX = "first_stage_model."


def around(weights: dict[str, Any], kind: str) -> dict[str, Any]:
    """A file with the autoencoder that ``weights`` are, as people share them."""
    import torch

    old = original_layout.vae(weights, levels=4)
    return {
        "diffusers": weights,
        "alone": old,
        "training": old | {"loss.discriminator.main.0.weight": torch.zeros(3), "model_ema.decay": torch.zeros(())},
        "model": {f"{PREFIX}{name}": tensor for name, tensor in old.items()}
        | {"model.diffusion_model.out.2.bias": torch.zeros(4), "cond_stage_model.logit_scale": torch.zeros(())},
    }[kind]


def save(weights: dict[str, Any], path: Path) -> Path:
    import safetensors.torch
    import torch

    if path.suffix == ".ckpt":
        torch.save({"state_dict": weights}, path)
    else:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", ["diffusers", "alone", "training", "model"])
def test_an_autoencoder_may_come_from_any_file_that_holds_one(
    sources: Callable[[str], Path], tmp_path: Path, kind: str, suffix: str
) -> None:
    expected = state(Source.open(sources("sdxl")), "vae")
    changes = Changes(vae=save(around(expected, kind), tmp_path / f"vae{suffix}"))
    source = Source.open(sources("sd15"), changes)
    assert same(state(source, "vae"), expected)
    assert source.weight_count("vae") == sum(tensor.numel() for tensor in expected.values())
    assert source.merged() == {"vae": f"vae{suffix}"} and source.digest() != Source.open(sources("sd15")).digest()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"decoder.extra": 7}, "7 numbers of its vae have no place"),
        ({"lora_unet_mid_block.lora_up.weight": 1}, "looks like a LoRA"),
        ({"control_model.input_hint_block.0.bias": 1}, "looks like a ControlNet"),
        ({"decoder.conv_in.bias": 7}, "does not fit its config.json"),
    ],
)
def test_a_file_with_another_autoencoder_or_none_is_refused(
    sources: Callable[[str], Path], tmp_path: Path, extra: dict[str, int], message: str
) -> None:
    import torch

    weights = around(state(Source.open(sources("sdxl")), "vae"), "alone")
    file = save(weights | {name: torch.ones(size) for name, size in extra.items()}, tmp_path / "vae.ckpt")
    with pytest.raises(ModelError, match=message) as caught:
        state(Source.open(sources("sd15"), Changes(vae=file)), "vae")
    assert str(file) in str(caught.value)


LORA_SUM = 2.0
"""What ``write_lora`` adds to each weight of the U-Net's first convolution, at the scale 1."""


def write_lora(path: Path, scale: float) -> Lora:
    from safetensors.numpy import save_file

    shapes = {"down": (2, 4, 3, 3), "up": (32, 2, 1, 1)}
    factors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file({f"lora_unet_conv_in.lora_{name}.weight": factor for name, factor in factors.items()}, path)
    return Lora(path, scale)


def test_a_lora_reaches_the_components_that_it_is_for(sources: Callable[[str], Path], tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "x.safetensors", 0.25)
    plain, merged = Source.open(sources("sd15")), Source.open(sources("sd15"), Changes(loras=(lora,)))
    assert same(state(merged, "text_encoder"), state(plain, "text_encoder"))
    before, after = state(plain, "unet"), state(merged, "unet")
    np.testing.assert_allclose(after["conv_in.weight"], before["conv_in.weight"] + 0.25 * LORA_SUM, atol=1e-6)
    assert [row["scale"] for row in merged.merged()["loras"]] == [0.25]
    assert plain.merged() == {}
    with pytest.raises(ModelError, match="changes a unet, which the source does not have"):
        lora.check(["vae"])


def diffusers_module() -> Any:
    import diffusers

    return diffusers


def test_weights_in_shards_are_whole(sources: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sources("sd15"), tmp_path / "copy"))
    unet = diffusers_module().UNet2DConditionModel.from_pretrained(folder / "unet")
    whole = Source.open(folder).weight_count("unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="200KB")
    source = Source.open(folder)
    assert len(source.weights("unet")) > 2 and source.weight_count("unet") == whole
    assert same(state(source, "unet"), dict(unet.state_dict()))
    source.weights("unet")[0].unlink()
    with pytest.raises(ModelError, match="not a shard beside it"):
        source.weights("unet")


LARGE = """
import resource, sys
from pathlib import Path
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from ovenbird_export import graphs
from ovenbird_export.precisions import PRECISIONS
folder, count, side = Path(sys.argv[1]), 32, 1024
for name in ("fp16", "fp32"):
    (folder / name).mkdir()
weight = np.random.default_rng(0).standard_normal((side, side), np.float32)
tensors, nodes = [], []
for n in range(count):
    (folder / f"w{n}").write_bytes((weight + np.float32(n / count)).tobytes())
    tensor = TensorProto(name=f"w{n}", data_type=TensorProto.FLOAT, dims=[side, side])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=f"w{n}")
    tensors.append(tensor)
    nodes.append(helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"]))
port = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", side])
graph = helper.make_graph(nodes, "large", [port("x0")], [port(f"x{count}")], tensors)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
graphs.INLINE_BYTES = 1 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for precision in ("fp16", "fp32"):
    graphs.write_onnx(onnx.ModelProto.FromString(model), folder, PRECISIONS[precision], folder / precision)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
for precision in ("fp16", "fp32"):
    path = folder / precision / "model.onnx"
    stored = onnx.load(path).graph.initializer[-1]
    assert np.abs(numpy_helper.to_array(stored) - weight - 31 / 32).max() < 2e-3
    offsets = [int(entry.value) for tensor in onnx.load(path, load_external_data=False).graph.initializer
               for entry in tensor.external_data if entry.key == "offset"]
    assert len(offsets) == count and not any(offset % 4096 for offset in offsets)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_large_weights_are_never_all_in_memory(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        done = subprocess.run([sys.executable, "-c", LARGE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60_000, "KiB; the weights are 131,072"
