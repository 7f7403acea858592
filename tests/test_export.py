"""The export as a whole, on a tiny model: what it writes, what it proves, what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ovenbird.backends import BACKENDS, Shapes, create
from ovenbird.bundle import Bundle
from ovenbird.errors import ModelError, NumericError, RequestError

pytest.importorskip("torch")
pytest.importorskip("optimum")

import export_tiny

from ovenbird_export.cli import export
from ovenbird_export.export import Wish, export_folder
from ovenbird_export.precisions import PRECISIONS, is_halved
from ovenbird_export.sources import Wanted

FP16 = Wish(precisions=(PRECISIONS["fp16"],))

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and optimum, while they are imported
]

PARTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
PORTS = {
    "text_encoder": ({"input_ids"}, {"last_hidden_state", "pooler_output", "clip_skip.1"}),
    "unet": ({"sample", "timestep", "encoder_hidden_states"}, {"out_sample"}),
    "vae_decoder": ({"latent_sample"}, {"sample"}),
    "vae_encoder": ({"sample"}, {"latent_parameters"}),
}
SIZES: dict[str, Shapes] = {
    "text_encoder": {"input_ids": (1, 77)},
    "unet": {"sample": (3, 4, 5, 7), "timestep": (), "encoder_hidden_states": (3, 154, 32)},
    "vae_decoder": {"latent_sample": (1, 4, 3, 5)},
    "vae_encoder": {"sample": (1, 3, 24, 40)},
}
FILES = {
    "README.md",
    "model_index.json",
    "ovenbird.json",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}.json" for name in ("vocab", "tokenizer", "tokenizer_config", "special_tokens_map")),
    "tokenizer/merges.txt",
    *(f"tokenizer/openvino_tokenizer.{suffix}" for suffix in ("xml", "bin")),
    *(f"{part}/{name}" for part in PARTS for name in ("config.json", "model.onnx")),
    *(f"{part}/openvino_model.{suffix}" for part in PARTS for suffix in ("xml", "bin")),
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_tiny.write_source(folder)
    return folder


@pytest.fixture(scope="session")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    result = CliRunner().invoke(
        export, [str(source), str(folder), "--precision", ",".join(PRECISIONS)], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "unet: exporting to ONNX ... " in result.stderr
    assert "note: image_encoder is left out" in result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(" (")[0] for line in lines] == [str(folder / name) for name in PRECISIONS]
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def manifest(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "ovenbird.json").read_text())
    return value


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_layout_is_the_shared_one(exported: Path, precision: str) -> None:
    assert names(exported / precision) == FILES
    assert {path.name for path in exported.iterdir()} == set(PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engine_opens_it_and_finds_every_byte_right(exported: Path, precision: str) -> None:
    bundle = Bundle.open(exported, precision)
    bundle.verify(full=True)
    assert (bundle.name, bundle.family, bundle.precision) == ("tiny", "sd", precision)
    assert bundle.vae_scale_factor == 8


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_manifest_lists_every_other_file(exported: Path, precision: str) -> None:
    folder = exported / precision
    files = manifest(folder)["files"]
    assert set(files) == FILES - {"ovenbird.json"}
    for name, facts in files.items():
        content = (folder / name).read_bytes()
        assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_manifest_says_where_it_comes_from(exported: Path, source: Path) -> None:
    facts = manifest(exported / "fp16")
    weights = ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]
    lines = [
        f"{hashlib.sha256((source / f'{n}.safetensors').read_bytes()).hexdigest()}  {n}.safetensors\n" for n in weights
    ]
    assert facts["source"] == {
        "name": "tiny",
        "class": "StableDiffusionPipeline",
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "licence": "apache-2.0",
    }
    assert {"ovenbird", "torch", "optimum-onnx", "openvino", "onnxruntime"} <= set(facts["tools"])


def test_nothing_tells_where_the_source_lay(exported: Path, source: Path) -> None:
    for path in exported.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert str(source.parent) not in text and "/somewhere/else" not in text, path


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_gate_is_met_and_recorded(exported: Path, precision: str) -> None:
    verification = manifest(exported / precision)["verification"]
    assert set(verification["components"]) == set(PARTS)
    for part, figures in verification["components"].items():
        assert set(figures) == set(BACKENDS)
        for figure in figures.values():
            if part in PRECISIONS[precision].quantised:
                assert 1e-4 < figure["relative"] <= figure["gate"]["relative"]
                continue
            assert 0 < figure["max_abs"] <= figure["gate"]["max_abs"] == (3e-4 if part.startswith("vae") else 1e-4)
            assert figure["relative"] < 1e-5
            assert figure["unrounded"]["relative"] < (1e-5 if precision == "fp32" else 5e-2)
            if part == "unet" and precision != "fp32":
                assert figure["unrounded"]["relative"] > 1e-5  # something was rounded


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pictures_are_compared_from_end_to_end(exported: Path, precision: str) -> None:
    pictures = manifest(exported / precision)["verification"]["pictures"]
    gate = pictures.pop("gate_db")
    assert set(pictures) == set(BACKENDS)
    for figure in pictures.values():
        assert figure["psnr_db"] >= gate == PRECISIONS[precision].psnr_db
        assert 0 <= figure["latents_relative"] < 1 and 0 < figure["ssim"] <= 1


def test_eight_bits_are_a_quarter_and_both_runtimes_hold_them(exported: Path) -> None:
    import onnx
    import openvino as ov

    for precision in ("int8", "int8-weights"):
        folder = exported / precision / "unet"
        exact = (exported / "fp32" / "unet" / "openvino_model.bin").stat().st_size
        assert (folder / "openvino_model.bin").stat().st_size < 0.45 * exact
        graph = onnx.load(folder / "model.onnx").graph
        ours = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
        constants = [
            op
            for op in ov.Core().read_model(folder / "openvino_model.xml").get_ops()
            if op.get_type_name() == "Constant"
            and op.get_element_type() == ov.Type.i8
            and len(op.get_output_shape(0)) > 1
        ]
        assert len(ours) == len(constants) > 10


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("part", PARTS)
def test_ports_have_the_names_that_optimum_gives(exported: Path, part: str, runtime: str) -> None:
    sizes = SIZES[part]
    model = create(runtime).compile(exported / "fp16" / part, sizes, precision="f32", cache_key=None)
    outputs = model({name: np.ones(shape) for name, shape in sizes.items()})
    assert (set(model.inputs), set(outputs)) == PORTS[part]
    if part == "unet":
        assert outputs["out_sample"].shape == (3, 4, 5, 7)
    if part == "vae_encoder":
        assert outputs["latent_parameters"].shape == (1, 8, 3, 5)


def test_half_is_half_as_large_and_both_runtimes_hold_the_same_weights(exported: Path) -> None:
    import onnx
    import openvino as ov

    for file in ("model.onnx", "openvino_model.bin"):
        sizes = [(exported / precision / "unet" / file).stat().st_size for precision in ("fp16", "fp32")]
        assert sizes[0] < 0.65 * sizes[1]
    graph = onnx.load(exported / "fp16" / "unet" / "model.onnx").graph
    ours = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    constants = [
        op
        for op in ov.Core().read_model(exported / "fp16" / "unet" / "openvino_model.xml").get_ops()
        if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.f16
    ]
    assert len(ours) == len(constants) > 10


def test_weights_that_overflow_half_are_kept() -> None:
    large = np.full(5000, 1e-3, np.float32)
    assert is_halved(large)
    assert not is_halved(large[:4095])
    for bad in (7e4, np.inf, np.nan):
        large[7] = bad
        assert not is_halved(large)


def test_the_tokenizer_gives_the_ids_of_transformers(exported: Path, source: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

    slow: Any = CLIPTokenizer
    ours = Tokenizer.from_file(str(exported / "fp16" / "tokenizer" / "tokenizer.json"))
    theirs = slow(str(source / "tokenizer" / "vocab.json"), str(source / "tokenizer" / "merges.txt"))
    for text in ("", "a red house", "A  Red\tHOUSE, with 2 cats!", "naïve 🏠"):
        assert ours.encode(text).ids == theirs(text).input_ids


def test_the_same_source_gives_the_same_bytes(exported: Path, source: Path, tmp_path: Path) -> None:
    export_folder(Wanted(str(source)), tmp_path, FP16)
    for name in names(exported / "fp16"):
        assert (tmp_path / "fp16" / name).read_bytes() == (exported / "fp16" / name).read_bytes(), name


def test_large_weights_lie_beside_the_graph(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovenbird_export import graphs

    monkeypatch.setattr(graphs, "INLINE_BYTES", 0)
    import onnx

    base = exported / "fp32" / "vae_decoder"
    model = onnx.load(base / "model.onnx", load_external_data=False)
    graphs.write_onnx(model, base, PRECISIONS["fp16"], tmp_path)
    assert (tmp_path / "model.onnx_data").stat().st_size > (tmp_path / "model.onnx").stat().st_size
    assert (tmp_path / "model.onnx_data").stat().st_mode == (tmp_path / "model.onnx").stat().st_mode
    inputs = {"latent_sample": np.ones((1, 4, 2, 2), np.float32)}
    graphs.write_ir(PRECISIONS["fp16"], tmp_path)
    for runtime in BACKENDS:
        outputs = [
            create(runtime).compile(folder, {"latent_sample": (1, 4, 2, 2)}, precision="f32", cache_key=None)(inputs)
            for folder in (tmp_path, exported / "fp16" / "vae_decoder")
        ]
        np.testing.assert_array_equal(outputs[0]["sample"], outputs[1]["sample"])


def refused(source: Path, folder: Path, message: str, kind: type[Exception] = ModelError) -> None:
    with pytest.raises(kind, match=message):
        export_folder(Wanted(str(source)), folder, FP16)
    assert not folder.exists()


@pytest.mark.parametrize("runtime", BACKENDS)
def test_a_missed_gate_publishes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    from ovenbird_export import proof

    def broken(folder: Path, name: str, calls: Any) -> Any:
        extra = (name == runtime) * np.float32(2e-4)
        return [{key: value + extra for key, value in outputs.items()} for outputs in real(folder, name, calls)]

    real = proof.run
    monkeypatch.setattr(proof, "run", broken)
    refused(
        source,
        tmp_path / "out",
        f"text_encoder on {runtime} differs from torch by 0.0002.*gate is 0.0001",
        NumericError,
    )


def test_a_weight_that_is_lost_on_the_way_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx import numpy_helper

    from ovenbird_export import graphs

    def write(graph: Any, base: Path, precision: Any, folder: Path) -> None:
        real(graph, base, precision, folder)
        model = onnx.load(folder / "model.onnx")
        tensor = next(t for t in model.graph.initializer if t.name.endswith("position_embedding.weight"))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))
        onnx.save(model, folder / "model.onnx")

    real = graphs.write_onnx
    monkeypatch.setattr(graphs, "write_onnx", write)
    refused(source, tmp_path / "out", "text_encoder on .* differs", NumericError)


def test_numbers_that_are_not_numbers_miss_the_gate() -> None:
    from ovenbird_export.proof import difference

    good = {"y": np.ones(3)}
    for bad in (np.nan, np.inf):
        assert not difference([{"y": np.array([1, bad, 1])}, good], [good, good]).max_abs <= 1
    assert difference([{}], [good]).max_abs == difference([{"y": np.ones(4)}], [good]).max_abs == np.inf


def as_pickle(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def as_disguised_pickle(folder: Path) -> None:
    import torch

    torch.save({"weight": torch.ones(3)}, folder / "unet" / "diffusion_pytorch_model.safetensors")


def with_fewer_weights(folder: Path) -> None:
    import safetensors.torch

    path = folder / "text_encoder" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights["text_model.final_layer_norm.bias"]
    safetensors.torch.save_file(weights, path)


def with_settings(component: str, **settings: object) -> Callable[[Path], None]:
    return lambda folder: change(folder / component / "config.json", **settings)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (as_pickle, "diffusion_pytorch_model.bin is a pickle"),
        (as_disguised_pickle, "is not a safetensors file"),
        (with_fewer_weights, "does not fit its config.json"),
        (with_settings("text_encoder", auto_map={"AutoModel": "evil.Model"}), "'auto_map' is not known"),
        (with_settings("text_encoder", _attn_implementation="hub/kernel"), "'_attn_implementation' is not known"),
        (with_settings("text_encoder", hidden_size=48), "does not fit its config.json"),
        (with_settings("text_encoder", hidden_act="evil"), "no CLIPTextModel has these settings"),
        (lambda folder: change(folder / "tokenizer" / "tokenizer_config.json", auto_map={}), "'auto_map' is not known"),
        (lambda folder: change(folder / "tokenizer" / "vocab.json", more=522), "token 522 has no row"),
    ],
)
def test_m6_a_source_that_cannot_be_trusted_is_refused(
    copy: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copy)
    refused(copy, tmp_path / "out", message)


def test_old_names_of_weights_are_understood(copy: Path) -> None:
    import safetensors.torch
    import torch

    from ovenbird_export.modules import read_module
    from ovenbird_export.source import Source

    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        weights = {
            key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): value for key, value in weights.items()
        }
    assert any("proj_attn" in key for key in weights)
    before = read_module(Source.open(copy), "vae").state_dict()
    safetensors.torch.save_file(weights, path)
    after = read_module(Source.open(copy), "vae").state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_bad_precision_or_source_stops_at_once(tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        return CliRunner().invoke(export, words)

    assert isinstance(run("nowhere", str(tmp_path), "--precision", "fp8").exception, RequestError)
    result = run(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    assert isinstance(result.exception, RequestError) and "is neither a folder, nor a file" in str(result.exception)


def test_the_command_is_light_to_import() -> None:
    code = "import sys, ovenbird_export.cli; print({'torch', 'onnx', 'transformers', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
