"""LoRA: every way to write a layer's name, every key used or the file refused, and the sum that it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ovenbird.errors import ModelError, RequestError
from ovenbird_export.lora import ENDINGS, MOST_KEYS, PREFIXES, Lora, _blocks, _original, merge_lora, spellings

pytest.importorskip("safetensors")

Tensors = Mapping[str, NDArray[Any]]
ONE = np.ones((2, 2), np.float32)
PAIR = {"unet.conv_in.lora_A.weight": ONE, "unet.conv_in.lora_B.weight": ONE}


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Lora:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata)
    return Lora(path)


@pytest.mark.parametrize(
    ("text", "name", "scale"),
    [("a.safetensors", "a", 1.0), ("a.safetensors:0.5", "a", 0.5), ("b:2.safetensors", "b:2", 1)],
)
def test_a_file_may_have_a_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, scale: float
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.safetensors").touch()
    assert Lora.parse(text) == Lora(Path(f"{name}.safetensors"), scale)


@pytest.mark.parametrize("text", ["nowhere", "nowhere:0.5", "here:much", "here:nan", "here:"])
def test_no_file_and_no_number_are_bad_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    with pytest.raises(RequestError, match="lora"):
        Lora.parse(text)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_and_ending_is_understood(tmp_path: Path, prefix: str, ending: str) -> None:
    key, others = f"{prefix}layer_1.{ending}", {f"{prefix}layer_1.lora_down.weight", f"{prefix}layer_1.lora_up.weight"}
    names = {key, *(name for name in others if ENDINGS[name[len(prefix) + 8 :]] != ENDINGS[ending])}
    lora = write(tmp_path / "x", dict.fromkeys(names, ONE))
    assert lora.layers[PREFIXES[prefix], "layer_1"][ENDINGS[ending]] == key


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({**PAIR, "unet.conv_in.lora_magnitude_vector": ONE}, "'unet.conv_in.lora_magnitude_vector' is not a LoRA's"),
        ({**PAIR, "lora_unet_x.hada_w1_a": ONE}, "'lora_unet_x.hada_w1_a' is not a LoRA's"),
        ({**PAIR, "lora_unet_x.dora_scale": ONE}, "dora_scale"),
        ({**PAIR, "lora_transformer_x.lora_up.weight": ONE}, "lora_transformer_x"),
        ({**PAIR, "unet.conv_in.lora_B.bias": ONE}, "lora_B.bias"),
        ({"unet.conv_in.lora_A.weight": ONE}, "'unet.conv_in.lora_A.weight' lacks its other half"),
        ({**PAIR, "lora_unet_conv_in.lora_up.weight": ONE}, "says what .* said before"),
        ({}, "holds 0 tensors"),
        ({f"unet.l{n}.alpha": np.zeros(0) for n in range(MOST_KEYS + 1)}, f"holds {MOST_KEYS + 1} tensors"),
    ],
)
def test_m11_a_key_that_would_be_lost_refuses_the_file(tmp_path: Path, tensors: Tensors, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        write(tmp_path / "x", tensors).check(["unet"])


def test_a_file_for_another_family_is_refused(tmp_path: Path) -> None:
    lora = write(tmp_path / "x", {f"lora_te2_x.lora_{name}.weight": ONE for name in ("up", "down")})
    lora.check(["unet", "text_encoder_2"])
    with pytest.raises(ModelError, match="changes a text_encoder_2, which the source does not have"):
        lora.check(["unet", "text_encoder"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unet.use_dora": True}, "trained with use_dora"),
        ({"unet.alpha_pattern": {"conv_in": 4}}, "trained with alpha_pattern"),
        ({"unet.lora_alpha": "many"}, "lora_alpha is 'many', not a number"),
        ([], "not a JSON object"),
        ({"text_encoder.lora_alpha": 4}, "changes a text_encoder"),
    ],
)
def test_settings_of_peft_that_change_the_sum_are_refused(tmp_path: Path, settings: object, message: str) -> None:
    lora = write(tmp_path / "x", PAIR, {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(ModelError, match=message):
        lora.check(["unet"])


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        Lora(tmp_path / "x").check(["unet"])


class Modules:
    """What merging needs of torch, and the two components it is tried on."""

    def __init__(self) -> None:
        import diffusers
        import torch
        import transformers

        self.torch, self.diffusers, self.transformers = torch, diffusers, transformers

    def unet(self, **settings: Any) -> Any:
        blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
        blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
        sizes = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "cross_attention_dim": 12}
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
        added |= {"projection_class_embeddings_input_dim": 30, "use_linear_projection": True}
        make: Any = self.diffusers.UNet2DConditionModel
        return make(**{**blocks, **sizes, **added, "attention_head_dim": 4, **settings})

    def text_encoder(self) -> Any:
        make: Any = self.transformers.CLIPTextModelWithProjection
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        config: Any = self.transformers.CLIPTextConfig
        return make(config(**sizes, vocab_size=30, projection_dim=12, eos_token_id=29))


@pytest.fixture(scope="module")
def modules() -> Modules:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    return Modules()


def factors(shape: tuple[int, ...], rank: int, seed: int, where: str = "down") -> dict[str, NDArray[np.float32]]:
    """down, up and, for a kernel in the middle, mid, of a layer whose weight has this shape."""
    draw = np.random.default_rng(seed).standard_normal
    kernel, ones = shape[2:], (1,) * len(shape[2:])
    found = {"up": draw((shape[0], rank, *ones), np.float32)}
    found["down"] = draw((rank, shape[1], *(kernel if where == "down" else ones)), np.float32)
    return found | ({"mid": draw((rank, rank, *kernel), np.float32)} if where == "mid" else {})


LAYERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0",
    "mid_block.resnets.1.conv2",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.1.upsamplers.0.conv",
    "up_blocks.2.resnets.0.conv_shortcut",
    "time_embedding.linear_1",
    "conv_in",
)


def plain(layer: str, factor: str) -> str:
    return f"unet.{layer}.{'lora_A' if factor == 'down' else 'lora_B'}.weight"


def kohya(layer: str, factor: str) -> str:
    return f"lora_unet_{layer.replace('.', '_')}.lora_{factor}.weight"


def processor(layer: str, factor: str) -> str:
    head, _, name = layer.removesuffix(".0").rpartition(".")
    if name.startswith("to_"):
        return f"unet.{head}.processor.{name}_lora.{factor}.weight"
    return f"unet.{layer}.lora.{factor}.weight"


@pytest.mark.export
@pytest.mark.parametrize("spell", [plain, kohya, processor])
def test_the_merged_layer_gives_what_the_two_together_give(
    modules: Modules, tmp_path: Path, spell: Callable[[str, str], str]
) -> None:
    torch, unet = modules.torch, modules.unet()
    tensors, expected = {}, {}
    for seed, name in enumerate(LAYERS):
        layer = unet.get_submodule(name)
        made = factors(tuple(layer.weight.shape), 3, seed)
        tensors |= {spell(name, factor): array for factor, array in made.items()}
        expected[name] = beside(modules, layer, made)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    merge_lora(unet, "unet", Lora(write(tmp_path / "x", tensors).path, 0.5))
    for name, (given, plus) in expected.items():
        layer, old = unet.get_submodule(name), before[f"{name}.weight"]
        found = layer(given)
        layer.weight.data = old
        torch.testing.assert_close(found, layer(given) + 0.5 * plus, atol=2e-4, rtol=1e-4)
    changed = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set()  # every layer was put back: nothing else was touched


def beside(modules: Modules, layer: Any, made: Mapping[str, NDArray[np.float32]]) -> tuple[Any, Any]:
    """An input, and what the factors give for it when they run beside the layer, as they do in training."""
    torch, shape = modules.torch, tuple(layer.weight.shape)
    weights = {name: torch.from_numpy(array) for name, array in made.items()}
    if len(shape) == 2:
        given = torch.randn(2, shape[1])
        return given, given @ weights["down"].T @ weights["up"].T
    given, conv = torch.randn(2, shape[1], 6, 6), torch.nn.functional.conv2d
    if "mid" in weights:
        inner = conv(conv(given, weights["down"]), weights["mid"], stride=layer.stride, padding=layer.padding)
    else:
        inner = conv(given, weights["down"], stride=layer.stride, padding=layer.padding)
    return given, conv(inner, weights["up"])


@pytest.mark.export
def test_a_kernel_in_the_middle_and_alpha_are_part_of_the_sum(modules: Modules, tmp_path: Path) -> None:
    unet = modules.unet()
    layer = unet.mid_block.resnets[0].conv1
    made = factors(tuple(layer.weight.shape), 4, 0, "mid")
    given, plus = beside(modules, layer, made)
    name = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {f"{name}.lora_{factor}.weight": array for factor, array in made.items()}
    without = layer(given)
    merge_lora(unet, "unet", write(tmp_path / "x", {**tensors, f"{name}.alpha": np.array(2.0, np.float32)}))
    modules.torch.testing.assert_close(layer(given), without + 2 / 4 * plus, atol=2e-4, rtol=1e-4)


@pytest.mark.export
def test_alpha_may_stand_in_the_header(modules: Modules, tmp_path: Path) -> None:
    encoder = modules.text_encoder()
    layer = encoder.text_model.encoder.layers[0].self_attn.q_proj
    made = factors(tuple(layer.weight.shape), 2, 0)
    name, header = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj", {"text_encoder_2.lora_alpha": 6}
    tensors = {f"{name}.lora_A.weight": made["down"], f"{name}.lora_B.weight": made["up"]}
    lora = write(tmp_path / "x", tensors, {"lora_adapter_metadata": json.dumps(header)})
    before = layer.weight.clone()
    merge_lora(encoder, "text_encoder_2", lora)
    np.testing.assert_allclose((layer.weight - before).detach(), 3 * made["up"] @ made["down"], atol=1e-5)
    merge_lora(modules.unet(), "unet", lora)  # nothing for it: nothing happens


@pytest.mark.export
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down": np.ones((3, 5), np.float32)}, "does not fit a weight of"),
        ({"up": np.ones((5, 3), np.float32)}, "does not fit a weight of"),
        ({"up": np.ones((16, 2), np.float32)}, "does not fit a weight of"),
        ({"down": np.ones((3, 16, 1, 2), np.float32)}, "does not fit a weight of"),
        ({"down": np.ones((0, 16), np.float32), "up": np.ones((16, 0), np.float32)}, "does not fit a weight of"),
        ({"down": np.full((3, 16), np.nan, np.float32)}, "not finite"),
        ({"up": np.full((16, 3), np.inf, np.float32)}, "not finite"),
    ],
)
def test_m11_factors_that_do_not_fit_are_refused(
    modules: Modules, tmp_path: Path, changes: dict[str, NDArray[np.float32]], message: str
) -> None:
    encoder = modules.text_encoder()
    made = {"down": np.ones((3, 16), np.float32), "up": np.ones((16, 3), np.float32), **changes}
    name = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    lora = write(tmp_path / "x", {f"{name}.lora_{factor}.weight": array for factor, array in made.items()})
    with pytest.raises(ModelError, match=f"{name}.*{message}"):
        merge_lora(encoder, "text_encoder", lora)


@pytest.mark.export
def test_a_layer_that_the_model_lacks_is_refused(modules: Modules, tmp_path: Path) -> None:
    lora = write(tmp_path / "x", {f"lora_unet_down_blocks_7.lora_{name}.weight": ONE for name in ("up", "down")})
    with pytest.raises(ModelError, match=r"'lora_unet_down_blocks_7.lora_down.weight' is for a layer that this unet"):
        merge_lora(modules.unet(), "unet", lora)


@pytest.mark.export
def test_a_layer_under_two_names_is_refused(modules: Modules, tmp_path: Path) -> None:
    made = factors((8, 4, 3, 3), 2, 0)
    tensors = {
        f"lora_unet_{name}.lora_{f}.weight": a for name in ("conv_in", "input_blocks_0_0") for f, a in made.items()
    }
    with pytest.raises(ModelError, match="is for conv_in, which the file has under another name too"):
        merge_lora(modules.unet(), "unet", write(tmp_path / "x", tensors))


@pytest.mark.export
def test_a_matrix_and_a_convolution_of_one_pixel_are_the_same(modules: Modules, tmp_path: Path) -> None:
    unet = modules.unet(use_linear_projection=False)
    layer = unet.mid_block.attentions[0].proj_in
    made = factors(tuple(layer.weight.shape[:2]), 2, 0)
    before = layer.weight.clone()
    merge_lora(
        unet, "unet", write(tmp_path / "x", {kohya("mid_block.attentions.0.proj_in", f): a for f, a in made.items()})
    )
    np.testing.assert_allclose((layer.weight - before).detach()[..., 0, 0], made["up"] @ made["down"], atol=1e-5)


@pytest.mark.export
@pytest.mark.parametrize("layers", [1, 2])
def test_the_original_names_are_those_that_diffusers_converts_from(modules: Modules, layers: int) -> None:
    from diffusers.loaders import single_file_utils

    unet = modules.unet(layers_per_block=layers)
    blocks = dict(_blocks(unet.config))
    names = [name.removesuffix(".weight") for name, tensor in unet.state_dict().items() if tensor.ndim in (2, 4)]
    numbers = {name: modules.torch.tensor(float(number)) for number, name in enumerate(names)}
    given = {
        f"model.diffusion_model.{_original(name, blocks)}.{kind}": tensor
        for name, tensor in numbers.items()
        for kind in ("weight", "bias")
    }
    assert len(given) == 2 * len(numbers)
    convert: Any = single_file_utils.convert_ldm_unet_checkpoint
    converted = {name: float(tensor) for name, tensor in convert(given, unet.config).items()}
    assert converted == {
        f"{name}.{kind}": float(tensor) for name, tensor in numbers.items() for kind in ("weight", "bias")
    }
    spelled = spellings(unet)
    for name in names:
        assert spelled[_original(name, blocks).replace(".", "_")] == spelled[name.replace(".", "_")] == name
