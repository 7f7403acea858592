"""One file in the original layout becomes the folder that it was made from, or is refused by what it is."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from ovenbird.errors import ModelError, RequestError

pytest.importorskip("torch")
pytest.importorskip("optimum")

import export_tiny
import original_layout
import pickle_parts
import safetensors.torch
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch and its friends, while they are imported
    from ovenbird_export import layouts
    from ovenbird_export.components import components
    from ovenbird_export.original import unpack
    from ovenbird_export.source import Source

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

# Untyped packages: their classes are called through Any.
diffusers, transformers = (cast(Any, import_module(name)) for name in ("diffusers", "transformers"))
Tensors = dict[str, torch.Tensor]
FAMILIES = {family.name: family for family in layouts.FAMILIES}


class Sizes(NamedTuple):
    """What tells a real model from a tiny one."""

    channels: tuple[int, ...]
    attends: tuple[bool, ...]
    depths: int | tuple[int, ...]
    blocks: int
    vae: tuple[int, ...]
    vae_blocks: int
    vocabulary: int
    texts: tuple[tuple[int, int, int], ...]
    """Hidden size, intermediate size and layers of each text encoder."""
    times: int = 0
    inputs: int = 4


TINY = {
    "SD 1.x": Sizes((32, 64), (True, False), 1, 2, (32, 64), 2, 522, ((64, 128, 2),)),
    "SD 2.x": Sizes((64, 128), (True, False), 1, 1, (32, 64), 1, 522, ((64, 128, 23),)),
    "SDXL": Sizes((64, 128), (False, True), (1, 2), 2, (32, 32, 64), 1, 522, ((64, 96, 2), (128, 96, 3)), 8),
}
REAL = {
    "SD 1.x": Sizes(
        (320, 640, 1280, 1280), (True, True, True, False), 1, 2, (128, 256, 512, 512), 2, 49408, ((768, 3072, 12),)
    ),
    "SD 2.x": Sizes(
        (320, 640, 1280, 1280), (True, True, True, False), 1, 2, (128, 256, 512, 512), 2, 49408, ((1024, 4096, 23),)
    ),
    "SDXL": Sizes(
        (320, 640, 1280),
        (False, True, True),
        (1, 2, 10),
        2,
        (128, 256, 512, 512),
        2,
        49408,
        ((768, 3072, 12), (1280, 5120, 32)),
        256,
    ),
}


def build(family: str, sizes: Sizes) -> dict[str, Any]:
    """The modules of a family, from what is written in the configurations that were published with it."""
    old = family == "SD 1.x"
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in sizes.attends]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(sizes.attends)]
    more = {}
    if family == "SDXL":
        width = sizes.texts[1][0] + 6 * sizes.times
        more = {"addition_embed_type": "text_time", "addition_time_embed_dim": sizes.times}
        more |= {"projection_class_embeddings_input_dim": width}
    modules = {}
    for name, (hidden, intermediate, layers) in zip(("text_encoder", "text_encoder_2"), sizes.texts, strict=False):
        kind = "CLIPTextModel" if name == "text_encoder" else "CLIPTextModelWithProjection"
        modules[name] = getattr(transformers, kind)(
            transformers.CLIPTextConfig(
                vocab_size=sizes.vocabulary,
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=hidden // 64,
                projection_dim=hidden,
                hidden_act="quick_gelu"
                if hidden == 768 or old or (name, family) == ("text_encoder", "SDXL")
                else "gelu",
                bos_token_id=sizes.vocabulary - 2,
                eos_token_id=sizes.vocabulary - 1,
            )
        )
    modules["unet"] = diffusers.UNet2DConditionModel(
        in_channels=sizes.inputs,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.blocks,
        down_block_types=down,
        up_block_types=up,
        transformer_layers_per_block=sizes.depths,
        cross_attention_dim=sum(hidden for hidden, _, _ in sizes.texts),
        attention_head_dim=8 if old else [number // 64 for number in sizes.channels],
        use_linear_projection=not old,
        **more,
    )
    modules["vae"] = diffusers.AutoencoderKL(
        block_out_channels=sizes.vae,
        layers_per_block=sizes.vae_blocks,
        down_block_types=["DownEncoderBlock2D"] * len(sizes.vae),
        up_block_types=["UpDecoderBlock2D"] * len(sizes.vae),
        scaling_factor=0.13025 if family == "SDXL" else 0.18215,
    )
    return {name: module.eval() for name, module in modules.items()}


class Tiny(NamedTuple):
    modules: dict[str, Any]
    tensors: Tensors
    tokenizer: Path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "tokenizer"
    assert export_tiny.write_tokenizer(folder) == 522
    return folder


@pytest.fixture(scope="module")
def tiny(tokenizer: Path) -> dict[str, Tiny]:
    made = {}
    for family, sizes in TINY.items():
        torch.manual_seed(0)
        modules = build(family, sizes)
        made[family] = Tiny(modules, original_layout.checkpoint(family, modules), tokenizer)
    return made


def save(tensors: Tensors, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, path, dict(metadata or {}))
    else:
        torch.save({"state_dict": tensors, "global_step": 470000}, path)
    return path


def load(folder: Path) -> Tensors:
    (path,) = folder.glob("*.safetensors")
    loaded: Tensors = safetensors.torch.load_file(path)
    return loaded


def predicted(family: str) -> str | None:
    return "v_prediction" if family == "SD 2.x" else None


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("family", TINY)
def test_every_weight_comes_back(tiny: dict[str, Tiny], tmp_path: Path, family: str, suffix: str) -> None:
    model = tiny[family]
    file = save(model.tensors, tmp_path / f"model{suffix}")
    facts = unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type=predicted(family))
    for name, module in model.modules.items():
        expected, found = module.state_dict(), load(tmp_path / "out" / name)
        assert set(found) == set(expected), name
        for key, tensor in found.items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[key]), (name, key)
    assert facts["file_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert facts["layout"] == family
    assert facts["format"] == ("safetensors" if suffix == ".safetensors" else "torch zip")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_keep_their_precision(tiny: dict[str, Tiny], tmp_path: Path, dtype: str) -> None:
    model, kind = tiny["SD 1.x"], getattr(torch, dtype)
    half = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in model.tensors.items()}
    unpack(save(half, tmp_path / "model.ckpt"), tmp_path / "out", tokenizer=model.tokenizer, prediction_type=None)
    for name, module in model.modules.items():
        for key, tensor in load(tmp_path / "out" / name).items():
            assert tensor.dtype == kind and torch.equal(tensor, module.state_dict()[key].to(kind))


def pictures(modules: dict[str, Any], folder: Path) -> Any:
    """What diffusers makes of the folder, with other modules in it if they are given."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **modules)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    side = 8 * pipeline.vae_scale_factor
    return pipeline(
        "a red house", negative_prompt="cat", num_inference_steps=2, height=side, width=side, generator=generator,
        output_type="np",
    ).images  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of diffusers, about everything
@pytest.mark.parametrize("family", TINY)
def test_diffusers_makes_the_same_picture_of_it(tiny: dict[str, Tiny], tmp_path: Path, family: str) -> None:
    model = tiny[family]
    file = save(model.tensors, tmp_path / "model.safetensors")
    unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type=predicted(family))
    found, expected = pictures({}, tmp_path / "out"), pictures(model.modules, tmp_path / "out")
    assert found.std() > 0 and (found == expected).all()


def settings(folder: Path, *parts: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.joinpath(*parts).read_text(encoding="utf-8"))
    return found


def test_the_export_reads_it(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    from ovenbird_export.modules import read_module
    from ovenbird_export.tokenizer import write_tokenizer

    model = tiny["SD 1.x"]
    file = save(model.tensors, tmp_path / "model.safetensors")
    unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type=None)
    source = Source.open(tmp_path / "out")
    assert source.scheduler()["_class_name"] == "PNDMScheduler" and source.left_out == ()
    write_tokenizer(source.folder / "tokenizer", tmp_path / "tokenizer", source.vocabulary("text_encoder"))
    ids = torch.tensor([[520, 5, 6, 521, 521]])
    inputs = {"text_encoder": (ids,), "unet": (torch.randn(1, 4, 8, 8), 7, torch.randn(1, 5, 64))}
    for name in ("text_encoder", "unet"):
        found, expected = read_module(source, name)(*inputs[name])[0], model.modules[name](*inputs[name])[0]
        assert torch.equal(found, expected)
    picture = torch.randn(1, 3, 16, 16)
    assert torch.equal(read_module(source, "vae")(picture).sample, model.modules["vae"](picture).sample)


def test_what_the_shapes_do_not_say_comes_from_the_family(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    for family, model in tiny.items():
        target = tmp_path / family
        file = save(model.tensors, tmp_path / "model.safetensors")
        unpack(file, target, tokenizer=model.tokenizer, prediction_type=predicted(family))
        assert settings(target, "text_encoder", "config.json")["hidden_act"] == (
            "gelu" if family == "SD 2.x" else "quick_gelu"
        )
        assert settings(target, "vae", "config.json")["scaling_factor"] == (0.13025 if family == "SDXL" else 0.18215)
    sd1, sd2, xl = (tmp_path / family for family in ("SD 1.x", "SD 2.x", "SDXL"))
    assert settings(sd1, "unet", "config.json")["attention_head_dim"] == 8
    assert settings(sd2, "unet", "config.json")["attention_head_dim"] == [1, 2]
    assert [settings(at, "unet", "config.json")["sample_size"] for at in (sd1, sd2, xl)] == [64, 96, 128]
    assert settings(sd1, "tokenizer", "tokenizer_config.json")["pad_token"] == "<|endoftext|>"
    assert settings(sd2, "tokenizer", "tokenizer_config.json")["pad_token"] == "!"
    assert settings(xl, "tokenizer", "tokenizer_config.json")["pad_token"] == "<|endoftext|>"
    assert settings(xl, "tokenizer_2", "tokenizer_config.json")["pad_token"] == "!"
    assert settings(xl, "text_encoder_2", "config.json")["hidden_act"] == "gelu"
    assert settings(sd2, "text_encoder", "config.json")["eos_token_id"] == 521


def masked(tensors: Tensors) -> Tensors:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    conv = tensors[name]
    return {**tensors, name: torch.cat([conv, conv, conv[:, :1]], dim=1)}


@pytest.mark.parametrize("family", TINY)
def test_nine_channels_make_it_inpainting(tiny: dict[str, Tiny], tmp_path: Path, family: str) -> None:
    file = save(masked(tiny[family].tensors), tmp_path / "model.safetensors")
    unpack(file, tmp_path / "out", tokenizer=tiny[family].tokenizer, prediction_type=None)
    assert settings(tmp_path / "out", "model_index.json")["_class_name"].endswith("InpaintPipeline")
    assert settings(tmp_path / "out", "scheduler", "scheduler_config.json")["prediction_type"] == "epsilon"
    assert settings(tmp_path / "out", "unet", "config.json")["in_channels"] == 9


UNUSED = {
    "averaged weights (EMA)": {"model_ema.diffusion_modelinput_blocks00weight": (4,), "model_ema.decay": ()},
    "noise schedule": {
        **dict.fromkeys(("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "logvar"), (9,)),
        **dict.fromkeys(("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "posterior_variance"), (9,)),
        **dict.fromkeys(("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1"), (9,)),
        **dict.fromkeys(("posterior_mean_coef2", "posterior_log_variance_clipped", "denoiser.sigmas"), (9,)),
    },
    "contrastive training": {"cond_stage_model.logit_scale": (), "cond_stage_model.text_projection": (64, 64)},
    "training of the VAE": {"first_stage_model.loss.logvar": ()},
}


def test_what_no_picture_depends_on_is_left_out_and_counted(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    model = tiny["SD 1.x"]
    more = {name: torch.zeros(shape) for names in UNUSED.values() for name, shape in names.items()}
    file = save(model.tensors | more, tmp_path / "model.ckpt")
    facts = unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type=None)
    counts = {label: len(names) for label, names in UNUSED.items()} | {"position ids": 1}
    assert set(facts["unused"].split(", ")) == {f"{label} ({count})" for label, count in counts.items()}
    assert set(load(tmp_path / "out" / "vae")) == set(model.modules["vae"].state_dict())


def test_old_names_of_the_text_encoder_are_understood(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    model = tiny["SD 1.x"]
    old = {name.replace(".transformer.text_model.", ".transformer."): t for name, t in model.tensors.items()}
    unpack(save(old, tmp_path / "a.ckpt"), tmp_path / "out", tokenizer=model.tokenizer, prediction_type=None)
    assert set(load(tmp_path / "out" / "text_encoder")) == set(model.modules["text_encoder"].state_dict())


def test_weights_that_share_memory_or_have_gaps_come_back(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    model = tiny["SD 1.x"]
    one, two = (f"model.diffusion_model.input_blocks.1.0.in_layers.{name}.weight" for name in (0, 2))
    norm = model.tensors[one]
    spaced = torch.stack([model.tensors[two]] * 2, dim=-1)[..., 0]
    other = one.replace("input_blocks.1", "input_blocks.2")
    assert not spaced.is_contiguous() and model.tensors[other].shape == norm.shape
    file = tmp_path / "model.ckpt"
    torch.save({**model.tensors, one: norm, other: norm, two: spaced}, file)
    unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type=None)
    found = load(tmp_path / "out" / "unet")
    assert torch.equal(found["down_blocks.0.resnets.0.norm1.weight"], norm)
    assert torch.equal(found["down_blocks.0.resnets.1.norm1.weight"], norm)
    assert torch.equal(found["down_blocks.0.resnets.0.conv1.weight"], spaced)


def only_unet(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}


def without(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def adding(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


def replacing(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


INPUT = "model.diffusion_model.input_blocks.0.0.weight"
LAYER = "cond_stage_model.transformer.text_model.encoder.layers.1."
SPOILED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "SD 3": (lambda _: {"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)}, "looks like Stable Diffusion 3"),
    "Flux": (lambda _: {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(1)}, "looks like Flux"),
    "LoRA": (lambda _: {"lora_unet_mid_block.lora_up.weight": torch.zeros(1)}, "a LoRA; give it with --lora"),
    "LoRA of peft": (lambda _: {"unet.x.to_q.lora_A.weight": torch.zeros(1)}, "looks like a LoRA"),
    "ControlNet": (adding("control_model.time_embed.0.weight", 1), "looks like a ControlNet"),
    "refiner": (lambda _: {"conditioner.embedders.0.model.ln_final.bias": torch.zeros(1)}, "the refiner of SDXL"),
    "depth": (adding("depth_model.model.x", 1), "the depth model of SD 2"),
    "unCLIP": (adding("embedder.model.ln_final.weight", 1), "the unCLIP model"),
    "EDM": (adding("edm_mean", 1), "noise levels of its own"),
    "AltDiffusion": (adding("cond_stage_model.roberta.x", 1), "another text encoder"),
    "video": (adding("model.diffusion_model.input_blocks.1.0.time_stack.x", 1), "a video model"),
    "embedding": (lambda _: {"emb_params": torch.zeros(1, 64)}, "a textual inversion"),
    "diffusers": (lambda _: {"down_blocks.0.resnets.0.norm1.bias": torch.zeros(1)}, "layout; give the whole"),
    "VAE": (lambda _: {"encoder.conv_in.weight": torch.zeros(1)}, "a VAE alone; give it with --vae"),
    "else": (lambda _: {"layers.0.weight": torch.zeros(1)}, "no known text encoder; its first tensor is 'layers.0"),
    "U-Net alone": (only_unet, "holds no known text encoder"),
    "no VAE": (without("first_stage_model."), "but no VAE"),
    "no U-Net": (without("model.diffusion_model."), "but no U-Net"),
    "more": (adding("embedding_manager.x", 1), "'embedding_manager.x' is not known in SD 1.x"),
    "more in the U-Net": (adding("model.diffusion_model.adapter.x", 7), "7 numbers of its unet have no place"),
    "more in the text": (adding(f"{LAYER}extra.weight", 7), "text_encoder does not fit together"),
    "more in the VAE": (adding("first_stage_model.extra.weight", 7), "7 numbers of its vae have no place"),
    "less in the U-Net": (without("model.diffusion_model.out.0.bias"), "conv_norm_out.bias has the shape None"),
    "less in the text": (without(f"{LAYER}self_attn.q_proj.bias"), "q_proj.bias has the shape None"),
    "another shape": (replacing(f"{LAYER}layer_norm1.bias", lambda t: t[:-1]), r"shape \(63,\), not \(64,\)"),
    "no middle": (without("model.diffusion_model.middle_block."), "its unet is not built as any that is known"),
    "uneven levels": (without("model.diffusion_model.input_blocks.2."), "its unet"),
    "whole numbers": (replacing(f"{LAYER}layer_norm1.bias", lambda t: t.to(torch.int8)), "is int8; weights may be"),
    "pix2pix": (replacing(INPUT, lambda t: torch.cat([t, t], 1)), "looks like InstructPix2Pix: 8 channels"),
    "no input": (without(INPUT), "looks like nothing known: 0 channels"),
    "flat input": (replacing(INPUT, lambda t: t.flatten()), "looks like nothing known: 0 channels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_other_files_are_refused_by_what_they_are(tiny: dict[str, Tiny], tmp_path: Path, kind: str) -> None:
    spoil, message = SPOILED[kind]
    file = save(spoil(tiny["SD 1.x"].tensors), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        unpack(file, tmp_path / "out", tokenizer=tiny["SD 1.x"].tokenizer, prediction_type=None)
    assert str(file) in str(caught.value)


def test_a_distilled_model_is_refused(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    block = "model.diffusion_model.input_blocks.5.1.transformer_blocks.1."
    file = save(without(block)(tiny["SDXL"].tensors), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="blocks of one level differ"):
        unpack(file, tmp_path / "out", tokenizer=tiny["SDXL"].tokenizer, prediction_type=None)


def test_files_that_are_no_weights_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    file = tmp_path / "model.safetensors"
    for content in (b"", b"PK\x03\x04", b"GIF89a" + bytes(20), bytes(8) + b"{}", b"\x02" + bytes(7) + b"{}"):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            unpack(file, tmp_path / "out", tokenizer=tokenizer, prediction_type=None)
    with pytest.raises(ModelError, match="cannot be read"):
        unpack(tmp_path / "nowhere.ckpt", tmp_path / "out", tokenizer=tokenizer, prediction_type=None)
    assert not (tmp_path / "out").exists()


LDM = "model:\n  params:\n{}    first_stage_config: {{}}\n"


@pytest.mark.parametrize(
    ("tensors", "metadata", "beside", "asked", "expected"),
    [
        ({}, {}, None, "epsilon", "epsilon: asked for"),
        ({}, {"modelspec.prediction_type": "v"}, None, None, "v_prediction: said in its metadata"),
        ({}, {"modelspec.prediction_type": "v"}, None, "epsilon", "epsilon: asked for"),
        ({}, {}, LDM.format('    parameterization: "v"\n'), None, "v_prediction: said in model.yaml"),
        ({}, {}, LDM.format(""), None, "epsilon: said in model.yaml"),
        ({"v_pred": torch.zeros(0)}, {}, None, None, "v_prediction: marked by a tensor v_pred"),
        ({}, {"modelspec.prediction_type": "?"}, "other: settings\n", None, None),
        ({}, {}, None, None, None),
    ],
)
def test_sd2_must_say_what_it_predicts(
    tiny: dict[str, Tiny],
    tmp_path: Path,
    tensors: Tensors,
    metadata: dict[str, str],
    beside: str | None,
    asked: str | None,
    expected: str | None,
) -> None:
    model = tiny["SD 2.x"]
    file = save(model.tensors | tensors, tmp_path / "model.safetensors", metadata)
    if beside is not None:
        file.with_suffix(".yaml").write_text(beside)
    if expected is None:
        with pytest.raises(RequestError, match="does not say what its U-Net predicts") as caught:
            unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type=asked)
        assert caught.value.hint is not None and "--prediction-type" in caught.value.hint
        return
    facts = unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type=asked)
    assert facts["prediction_type"] == expected
    found = settings(tmp_path / "out", "scheduler", "scheduler_config.json")
    assert found["prediction_type"] == expected.split(":")[0]


def test_the_others_predict_noise_unless_they_say_otherwise(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    model = tiny["SDXL"]
    file = save(model.tensors, tmp_path / "model.safetensors")
    facts = unpack(file, tmp_path / "a", tokenizer=model.tokenizer, prediction_type=None)
    assert facts["prediction_type"] == "epsilon: usual in SDXL"
    save(model.tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    unpack(file, tmp_path / "b", tokenizer=model.tokenizer, prediction_type=None)
    found = settings(tmp_path / "b", "scheduler", "scheduler_config.json")
    assert found["prediction_type"] == "v_prediction" and found["rescale_betas_zero_snr"] is True
    assert found["timestep_spacing"] == "trailing"


def test_bad_requests_are_told(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    model = tiny["SD 1.x"]
    file = save(model.tensors, tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match="neither epsilon nor v_prediction"):
        unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type="x0")
    with pytest.raises(RequestError, match=r"holds neither vocab\.json nor tokenizer\.json"):
        unpack(file, tmp_path / "out", tokenizer=tmp_path, prediction_type=None)
    file.with_suffix(".yaml").write_text("parameterization: x0")
    with pytest.raises(ModelError, match="parameterization is 'x0'"):
        unpack(file, tmp_path / "out", tokenizer=model.tokenizer, prediction_type=None)
    (tmp_path / "vocab.json").write_text('{"<|startoftext|>": 0}')
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ModelError, match=r"no number for '<\|endoftext\|>'"):
        unpack(file, tmp_path / "out", tokenizer=tmp_path, prediction_type="epsilon")


def test_what_a_pickle_names_is_recorded(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    content = b"\x80\x02}(" + pickle_parts.text("x") + pickle_parts.name("evil", "name") + b"u."
    file = tmp_path / "vae.pt"
    torch.save({"state_dict": tiny["SD 1.x"].tensors}, file)
    assert "ignored" not in unpack(file, tmp_path / "a", tokenizer=tiny["SD 1.x"].tokenizer, prediction_type=None)
    pickle_parts.write_zip(file, content)
    with pytest.raises(ModelError, match=r"holds no tensors with names; it names evil\.name"):
        unpack(file, tmp_path / "b", tokenizer=tiny["SD 1.x"].tokenizer, prediction_type=None)


class Empty(NamedTuple):
    """A tensor of the file, without numbers."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def read(self) -> Any:
        return torch.empty(self.shape, device="meta")


# sha256 of the sorted lines "name [sizes]" of each part in the files that were published, names without the prefix.
VAE = "240432d78215782456548801f5ad9d65371e87418c0228981c16434327af7890"
CLIP = "9108aaedac707a081ee413323093355cb8dfac175a6057ecb4adcd570711ddac"
PUBLISHED = {
    "SD 1.x": {
        "model.diffusion_model.": "0a32647aed4bb212446e9e375fac2dd5772d5be1c772a0b06f58610a786aea6c",
        "first_stage_model.": VAE,
        "cond_stage_model.transformer.text_model.": CLIP,
    },
    "SD 2.x": {
        "model.diffusion_model.": "ddc5d94a25ab77b273c0f210b0417838ffbc0c7ab648e9dfce75cd056d7839ba",
        "first_stage_model.": VAE,
        "cond_stage_model.model.": "905cc8eaf7c1815eacd452cfdda8d8520727ca85b039723da7b19ff8614e5662",
    },
    "SDXL": {
        "model.diffusion_model.": "8d7b1da7059706a0781c9b3d6cfce4da6e64ef9e735e053604b9c7a6f600eabe",
        "first_stage_model.": VAE,
        "conditioner.embedders.0.transformer.text_model.": CLIP,
        "conditioner.embedders.1.model.": "f7bfae12682190284b53fe5cd5f4ae5cc0f202c3b9c683798e09214627c55d44",
    },
}
MASKED = {
    "SD 1.x": "f32853fdaf221a0ff5a8c36b41c178af70b52fdd68ca0a5cc700fb23a08d9a23",
    "SD 2.x": "8f1ca420f4f8951debe83516ef4178cb34260d5fa910d13643604b2248b63cfb",
}


def digest(tensors: Tensors, prefix: str) -> str:
    part = {name.removeprefix(prefix): list(t.shape) for name, t in tensors.items() if name.startswith(prefix)}
    lines = sorted(f"{name} {str(shape).replace(' ', '')}" for name, shape in part.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("family", REAL)
def test_the_published_files_fit_in_full_size(family: str) -> None:
    with torch.device("meta"):
        modules = build(family, REAL[family])
        tensors = original_layout.checkpoint(family, modules)
    for prefix, expected in PUBLISHED[family].items():
        assert digest(tensors, prefix) == expected, prefix
    file, empties = Path("model.ckpt"), {name: Empty(tuple(t.shape)) for name, t in tensors.items()}
    found = layouts.detect(file, empties)
    assert found.name == family and layouts.unused(file, found, empties)
    made = {c.name: c for c in components(file, cast(Any, empties), found, 64, {"bos_token_id": 1, "eos_token_id": 2})}
    assert set(made) == set(modules)
    for name, module in modules.items():
        shapes = {key: tuple(t.shape) for key, t in module.state_dict().items()}
        assert {key: tuple(t.shape) for key, t in made[name].weights.items()} == shapes
        config = made[name].config
        for key in set(config) - {"_class_name", "architectures", "bos_token_id", "eos_token_id", "sample_size"}:
            expected = getattr(module.config, key)
            same = [expected] * len(REAL[family].channels) if key == "transformer_layers_per_block" else None
            assert listed(config[key]) in (listed(expected), same), (name, key)


@pytest.mark.parametrize("family", MASKED)
def test_the_published_inpainting_files_fit_in_full_size(family: str) -> None:
    with torch.device("meta"):
        unet = build(family, REAL[family]._replace(inputs=9))["unet"]
        tensors = original_layout.prefixed("", original_layout.unet(unet.state_dict(), 2))
    assert digest(tensors, "") == MASKED[family]
