"""Synthetic models: the published sizes, moderate values, the same bytes again, folders that others can read."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovenbird.bundle import Bundle
from ovenbird.errors import RequestError
from ovenbird.prompts import plain
from ovenbird.text import PromptTokenizer

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from safetensors import safe_open

from ovenbird_export import synthetic
from ovenbird_export.architectures import ARCHITECTURES, TINY
from ovenbird_export.vocabulary import vocabulary, write_tokenizer

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and diffusers, while they are imported
]

PUBLISHED = {
    ("sd15", "text_encoder"): 123_060_480,
    ("sd15", "unet"): 859_520_964,
    ("sd15", "vae"): 83_653_863,
    ("sd21", "text_encoder"): 340_387_840,
    ("sd21", "unet"): 865_910_724,
    ("sd21", "vae"): 83_653_863,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "vae"): 83_653_863,
    ("sd15-inpaint", "text_encoder"): 123_060_480,
    ("sd15-inpaint", "unet"): 859_535_364,
    ("sd15-inpaint", "vae"): 83_653_863,
    ("lcm", "text_encoder"): 123_060_480,
    ("lcm", "unet"): 859_520_964 + 320 * 256,  # the projection of the guidance
    ("lcm", "vae"): 83_653_863,
}
PROMPTS = (
    "",
    "a photograph of an astronaut riding a horse",
    "Portrait of a beautiful woman with flowers in her hair, oil painting, highly detailed",
    "naïve 🏠 at 4 o'clock!",
)
SMALL_UNET = {"block_out_channels": [32, 64, 64], "cross_attention_dim": 64, "layers_per_block": 1, "sample_size": 16}
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
SMALL_VAE = TINY.components["vae"]


def shrunken(name: str) -> Any:
    """The same pipeline, scheduler, tokenizers and special settings with the sizes of ``tiny``."""
    original = ARCHITECTURES[name]
    changes: dict[str, Any] = {"vae": SMALL_VAE}
    for component, config in original.components.items():
        if component.startswith("text_encoder"):
            changes[component] = {**config, **SMALL_TEXT, "projection_dim": 64, "vocab_size": 2000}
    unet: dict[str, Any] = {**original.components["unet"], **SMALL_UNET}
    if name == "sdxl":
        unet |= {"cross_attention_dim": 128, "transformer_layers_per_block": [1, 1, 2]}
        unet |= {"attention_head_dim": [1, 2, 2], "projection_class_embeddings_input_dim": 6 * 256 + 64}
    else:
        kinds = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
        unet |= {"down_block_types": kinds, "up_block_types": [k.replace("Down", "Up") for k in reversed(kinds)]}
    if name == "sd21":
        unet |= {"attention_head_dim": [1, 2, 2]}
    return replace(original, components=changes | {"unet": unet})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "tiny"
    synthetic.write("tiny", folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(tiny: Path) -> Any:
    return load(tiny)


def load(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbers(name: str, *shape: int) -> np.ndarray[Any, Any]:
    return np.concatenate(list(synthetic.draw(name, shape)))


# What is built


@pytest.mark.parametrize(("name", "component"), PUBLISHED)
def test_every_component_has_the_published_size(name: str, component: str) -> None:
    shapes = synthetic.tensors(name, component)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == PUBLISHED[name, component]


def test_the_table_of_sizes_is_complete() -> None:
    there = {(name, part) for name, model in ARCHITECTURES.items() for part in model.components}
    assert there - set(PUBLISHED) == {("tiny", part) for part in TINY.components}
    assert synthetic.names() == ("sd15", "sd21", "sdxl", "sd15-inpaint", "lcm", "tiny")


def test_an_unknown_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    message = re.escape("synthetic:sd14 is not known; known: synthetic:sd15, synthetic:sd21")
    with pytest.raises(RequestError, match=message):
        synthetic.write("sd14", tmp_path / "out")
    with pytest.raises(RequestError, match=message):
        synthetic.predicted_bytes("sd14")
    assert not (tmp_path / "out").exists()


def test_the_same_name_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    assert synthetic.write("tiny", tmp_path / "again") == {
        "name": "synthetic:tiny",
        "seed": "0",
        "licence": "none needed",
    }
    assert contents(tmp_path / "again") == contents(tiny)


def test_the_prediction_is_enough_and_not_much_too_much(tiny: Path) -> None:
    written = sum(map(len, contents(tiny).values()))
    assert written <= synthetic.predicted_bytes("tiny") <= written + synthetic.SPARE_BYTES


def test_no_two_tensors_are_equal_and_none_is_trivial(tiny: Path) -> None:
    seen: set[bytes] = set()
    for path in tiny.rglob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                assert tensor.dtype == np.float16 and np.isfinite(tensor).all() and tensor.std() > 0, name
                seen.add(tensor.tobytes())
    assert len(seen) == sum(len(synthetic.tensors("tiny", part)) for part in TINY.components)


# The numbers


def test_numbers_are_normal_and_independent() -> None:
    rows, columns = 1024, 256  # more than are drawn at once, and a row never straddles two draws
    assert synthetic.DRAWN_AT_ONCE % columns == 0 and rows * columns > synthetic.DRAWN_AT_ONCE
    matrix = numbers("unet/a.weight", rows, columns).astype(np.float64).reshape(rows, columns) * np.sqrt(columns)
    assert abs(matrix.mean()) < 0.01 and abs(matrix.std() - 1) < 0.01
    assert abs((matrix**4).mean() - 3) < 0.1
    assert 4 < np.abs(matrix).max() < 4.4
    correlations = np.corrcoef(matrix)[np.triu_indices(rows, 1)]
    assert np.abs(correlations).max() < 7 / np.sqrt(columns)  # no row is another one again
    assert np.linalg.svd(matrix, compute_uv=False)[-1] > 0.8 * (np.sqrt(rows) - np.sqrt(columns))  # full rank


def test_a_tensor_depends_on_its_name_alone() -> None:
    count = 2 * synthetic.DRAWN_AT_ONCE + 3
    long, short = numbers("unet/a.bias", count), numbers("unet/a.bias", 5)
    assert long.shape == (count,) and np.array_equal(long[:5], short)
    assert not np.array_equal(short, numbers("vae/a.bias", 5))


def test_numbers_stay_the_same_in_every_version() -> None:
    # sha256 of numbers("unet/conv_in.weight", 320, 4, 3, 3) when this was written
    digest = hashlib.sha256(numbers("unet/conv_in.weight", 320, 4, 3, 3).tobytes()).hexdigest()
    assert digest == "2c6ae799b11ce12d7e24c7fced4a7f5d2063601ca332a2cddc5a93aca624043a"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("unet/time_embedding.linear_1.weight", (1280, 320), (0, 320**-0.5)),
        ("unet/down_blocks.0.resnets.0.conv1.weight", (320, 320, 3, 3), (0, 2880**-0.5)),
        ("unet/down_blocks.0.resnets.0.conv2.weight", (320, 320, 3, 3), (0, 0.5 * 2880**-0.5)),
        ("unet/down_blocks.0.resnets.0.norm1.weight", (320,), (1, 0.1)),
        ("unet/conv_in.bias", (320,), (0, 0.02)),
        ("text_encoder/text_model.embeddings.token_embedding.weight", (49408, 768), (0, 0.02)),
    ],
)
def test_each_kind_of_tensor_has_its_scale(name: str, shape: tuple[int, ...], expected: tuple[float, float]) -> None:
    assert synthetic.distribution(name, shape) == pytest.approx(expected)


def test_writing_holds_no_tensor_in_memory(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from ovenbird_export.synthetic import write_weights\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_weights(Path(sys.argv[1]), 'unet', {'a.weight': (100, 100)})\n"
        "before = peak()\n"
        "write_weights(Path(sys.argv[1]), 'unet', {f'{n}.weight': (5000, 5000) for n in range(6)})\n"
        "print(peak() - before, 'torch' in sys.modules)"
    )
    path = tmp_path / "weights"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 300e6
    grown, heavy = done.stdout.split()
    assert int(grown) < 20_000  # KiB; one tensor is 50 MB
    assert heavy == "False"


# What others make of it


def test_outputs_are_moderate_and_depend_on_every_input(pipeline: Any) -> None:
    ids = [pipeline.tokenizer(p, padding="max_length", return_tensors="pt").input_ids for p in PROMPTS[1:3]]
    draw = torch.Generator().manual_seed(0)
    latents, others = torch.randn(2, 1, 4, 16, 16, generator=draw)
    picture = torch.rand(1, 3, 64, 64, generator=draw) * 2 - 1
    with torch.no_grad():
        text, other_text = (pipeline.text_encoder(i)[0] for i in ids)
        noise = pipeline.unet(latents, 500, text)[0]
        outputs = [text, noise, pipeline.vae.decode(latents)[0], pipeline.vae.encode(picture)[0].parameters]
        changed = [pipeline.unet(*inputs)[0] for inputs in ((others, 500, text), (latents, 20, text))]
        changed.append(pipeline.unet(latents, 500, other_text)[0])
    for output in outputs:
        assert output.isfinite().all() and 0.3 < output.std() < 2 and output.abs().max() < 10
    for output in changed:
        assert (output - noise).std() > 0.02


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_computes_nearly_the_same(tiny: Path, kind: str) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 77, 64, generator=draw)
    half = getattr(torch, kind)
    with torch.no_grad():
        for component, module, run in (
            ("unet", UNet2DConditionModel, lambda m, x: m(x, 500, text.to(x.dtype))[0]),
            ("vae", AutoencoderKL, lambda m, x: m.decode(x)[0]),
        ):
            model: Any = module.from_pretrained(tiny / component)
            exact = run(model, latents)
            rounded = run(model.to(half), latents.to(half)).float()
            assert (rounded - exact).norm() < 0.05 * exact.norm(), component


SPECIAL: dict[str, Callable[[Any], bool]] = {
    "tiny": lambda pipeline: pipeline.vae.decoder.mid_block.attentions[0] is not None,
    "sd21": lambda pipeline: pipeline.scheduler.config.prediction_type == "v_prediction",
    "sdxl": lambda pipeline: (
        (pipeline.tokenizer.pad_token, pipeline.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
        and type(pipeline.text_encoder_2).__name__ == "CLIPTextModelWithProjection"
    ),
    "sd15-inpaint": lambda pipeline: pipeline.unet.conv_in.in_channels == 9,
    "lcm": lambda pipeline: pipeline.unet.time_embedding.cond_proj.in_features == 256,
}


@pytest.mark.parametrize("name", SPECIAL)
def test_diffusers_makes_a_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = TINY if name == "tiny" else shrunken(name)
    monkeypatch.setitem(ARCHITECTURES, f"small-{name}", small)
    synthetic.write(f"small-{name}", tmp_path / name)
    pipeline = load(tmp_path / name)
    assert type(pipeline).__name__ == small.pipeline
    assert type(pipeline.scheduler).__name__ == small.scheduler["_class_name"]
    inputs: dict[str, Any] = {"num_inference_steps": 2, "height": 128, "width": 128, "output_type": "np"}
    if name == "sd15-inpaint":
        inputs |= {"image": torch.zeros(1, 3, 128, 128), "mask_image": torch.ones(1, 1, 128, 128)}
    assert SPECIAL[name](pipeline)
    pictures = pipeline(PROMPTS[1], generator=torch.Generator().manual_seed(0), **inputs).images
    assert pictures.shape == (1, 128, 128, 3)
    assert np.isfinite(pictures).all() and pictures.std() > 0.05


@pytest.mark.slow  # test_export_verify.py exports the same model in every run
def test_it_can_be_exported(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("optimum")
    import onnx

    from ovenbird_export.export import Wish, export_folder
    from ovenbird_export.precisions import PRECISIONS
    from ovenbird_export.sources import Wanted

    [folder] = export_folder(Wanted(str(tiny)), tmp_path / "out", Wish(precisions=(PRECISIONS["fp32"],)))
    Bundle.open(tmp_path / "out").verify(full=True)
    for part in ("text_encoder", "unet"):
        # Nothing was merged or folded away: as many arrays as tensors.
        arrays = {tensor.name for tensor in onnx.load(folder / part / "model.onnx").graph.initializer}
        assert len(arrays) >= len(synthetic.tensors("tiny", part))


# The vocabulary


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "clip"
    write_tokenizer(folder, 49408, "!")
    return folder


@pytest.mark.parametrize("size", [514, 515, 2000, 49408])
def test_a_vocabulary_has_the_form_of_clips(size: int) -> None:
    tokens, merges = vocabulary(size)
    assert len(tokens) == len(set(tokens)) == size
    assert tokens[0] == "!" and tokens[256] == "!</w>"
    assert tokens[512:] == ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    places = {token: place for place, token in enumerate(tokens)}
    for pair in merges:
        assert max(places[part] for part in pair) < places["".join(pair)]


def test_transformers_and_the_engine_read_it_alike(tokenizer: Path) -> None:
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    ours = PromptTokenizer.open(tokenizer)
    assert (ours.start, ours.end, ours.pad, ours.length) == (49406, 49407, 0, 77)
    for kind in (CLIPTokenizer, CLIPTokenizerFast):
        theirs: Any = kind.from_pretrained(tokenizer)
        assert len(theirs) == 49408
        for prompt in PROMPTS:
            ids = theirs(prompt, padding="max_length", max_length=77).input_ids
            assert ids == ours(plain(prompt)).ids[0].tolist()


def test_what_is_spared_for_vocabularies_is_enough(tokenizer: Path) -> None:
    rest = 1_000_000  # headers, configurations
    assert 2 * sum(map(len, contents(tokenizer).values())) + rest < synthetic.SPARE_BYTES


def test_an_ordinary_prompt_has_a_plausible_number_of_tokens(tokenizer: Path) -> None:
    ours = PromptTokenizer.open(tokenizer).tokenizer
    for prompt in PROMPTS[1:3]:
        assert len(prompt.split()) <= len(ours.encode(prompt, add_special_tokens=False).ids) <= 2 * len(prompt.split())


# True size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd15-inpaint", "lcm"])
def test_full_size(name: str, tmp_path: Path) -> None:
    synthetic.write(name, tmp_path / name)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= synthetic.predicted_bytes(name)
    for component in ARCHITECTURES[name].components:
        [path] = (tmp_path / name / component).glob("*.safetensors")
        with safe_open(path, framework="numpy") as file:
            assert list(file.keys()) == sorted(synthetic.tensors(name, component))
