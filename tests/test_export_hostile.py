"""Sources that mean harm (faults.md, M1 to M9), as the export as a whole meets them.

Each reader has its own tests beside these: checkpoints and safetensors in test_export_pickled and test_export_weights,
names and settings in test_export_source, the Hub in test_export_hub.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ovenbird.errors import ModelError
from ovenbird_export.lora import Lora
from ovenbird_export.precisions import PRECISIONS
from ovenbird_export.source import Changes, Source

torch = pytest.importorskip("torch")
pytest.importorskip("optimum")

import export_tiny  # noqa: E402
import pickle_parts  # noqa: E402
import safetensors.torch  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]  # other people's warnings

NAN, INF = float("nan"), float("inf")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "source"
    export_tiny.write_source(folder, "inpaint")
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def read_all(folder: Path, target: Path) -> None:
    """Everything that an export does with a source; what follows looks at graphs of its own."""
    from ovenbird_export import export, modules, publish
    from ovenbird_export.job import Job

    found = Source.open(folder)
    with publish.workspace(target, ["fp16"], force=False) as space:
        job = Job(found, (PRECISIONS["fp16"],), {"fp16": space.variant("fp16")}, space.scratch)
        export.predicted_bytes(job)
        export.write_rest(job, space.variant("fp16"))
        found.digest()
        for origin in found.origins:
            modules.read_module(found, origin)


class Watch:
    """What the interpreter opens, imports and runs; a hook cannot be taken away again, so there is one for all."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] | None = None
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is not None and event in ("open", "import", "exec", "os.listdir", "subprocess.Popen"):
            what = arguments[0].co_filename if event == "exec" else arguments[0]
            self.seen.append((event, os.fsdecode(what) if isinstance(what, str | bytes | Path) else ""))


@pytest.fixture(scope="module")
def hook() -> Watch:
    return Watch()


@pytest.fixture
def watch(hook: Watch) -> Iterator[list[tuple[str, str]]]:
    hook.seen = seen = []
    yield seen
    hook.seen = None


GRAPHS = {
    "unet/model.onnx": b"\x08\x08location\x00../../../../etc/passwd",
    "unet/model.onnx_data": b"weights",
    "unet/openvino_model.xml": b'<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]><net name="&a;"/>',
    "unet/openvino_model.bin": b"weights",
}
CODE = dict.fromkeys(("pipeline.py", "unet/modeling.py", "torch.py", "unet/unet.py"), b"raise SystemExit('run')\n")
PICKLES = {
    name: pickle_parts.call(pickle_parts.name("os", "abort")) + b"."
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "vae/x.pt", "x.ckpt")
}


def test_m1_m3_m4_m5_m6_what_a_source_holds_besides_is_never_opened(
    copy: Path, tmp_path: Path, watch: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither graphs, so that nothing in them can do harm, nor code, nor pickles where there are weights."""
    extra = GRAPHS | CODE | PICKLES | {"tokenizer/tokenizer.json": b'{"pre_tokenizer": {"Regex": "(a+)+$"}}'}
    for name, content in extra.items():
        (copy / name).write_bytes(content)
    monkeypatch.chdir(copy)
    watch.clear()
    read_all(copy, tmp_path / "out")
    opened = {Path(name) for _, name in watch if name and Path(name).is_relative_to(copy)}
    assert {path.relative_to(copy).as_posix() for path in opened} & set(extra) == set()
    assert {copy / "model_index.json", copy / "unet" / "config.json"} <= opened
    assert not [name for event, name in watch if event in ("exec", "subprocess.Popen") and name.startswith(str(copy))]
    assert not {name for event, name in watch if event == "import"} & {"pipeline", "modeling", "unet"}


FILES = (
    "model_index.json",
    *(f"{part}/config.json" for part in ("text_encoder", "unet", "vae", "tiny_vae", "safety_checker")),
    "tokenizer/tokenizer_config.json",
    "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
)
NAMING_CODE: tuple[dict[str, object], ...] = (
    {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "owner/name--evil.Config"}},
    {"custom_pipeline": {"x": "owner/name"}},
    {"_attn_implementation_internal": {"": "owner/kernel"}},  # which a scheduler loses, as every "_" there
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("settings", NAMING_CODE)
def test_m6_settings_that_name_code_are_refused_wherever_they_stand(
    copy: Path, tmp_path: Path, file: str, settings: dict[str, object]
) -> None:
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    if path.name == "scheduler_config.json" and next(iter(settings)).startswith("_"):
        assert not set(settings) & set(Source.open(copy).scheduler())
        return
    with pytest.raises(ModelError, match=rf"{path.name}.*'?{next(iter(settings))}'? is not"):
        read_all(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_m6_settings_inside_settings_are_looked_at(copy: Path, tmp_path: Path) -> None:
    path = copy / "safety_checker" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "vision_config": {**config["vision_config"], **NAMING_CODE[0]}}))
    with pytest.raises(ModelError, match="'auto_map' is not known"):
        read_all(copy, tmp_path / "out")


def set_one(path: Path, value: float, dtype: Any) -> str:
    """One number of the file is another; the name of its tensor."""
    weights = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load_file(path).items()}
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[-1] = value
    safetensors.torch.save_file(weights, path)
    return name


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(NAN, "float32"), (INF, "float32"), (-INF, "float16"), (NAN, "bfloat16"), (1e300, "float64")],
)
def test_m9_weights_that_are_not_finite_are_refused_by_name(
    copy: Path, tmp_path: Path, value: float, dtype: str
) -> None:
    name = set_one(copy / UNET, value, getattr(torch, dtype))
    with pytest.raises(ModelError, match="holds numbers that are not finite") as caught:
        read_all(copy, tmp_path / "out")
    assert str(copy / UNET) in str(caught.value) and name in str(caught.value)


def test_m9_large_numbers_are_numbers(copy: Path, tmp_path: Path) -> None:
    set_one(copy / UNET, 3e38, torch.float32)
    read_all(copy, tmp_path / "out")


def twice(path: Path) -> None:
    """The file's first tensor comes again; safetensors' own reader takes the last."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    text = json.dumps({first: header[first]})[:-1].encode() + b"," + json.dumps(header)[1:].encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def as_pickle(path: Path) -> None:
    torch.save({"x": torch.ones(3)}, path)


@pytest.mark.parametrize(("spoil", "message"), [(twice, "comes twice"), (as_pickle, "is not a safetensors file")])
@pytest.mark.parametrize("place", ["folder", "lora"])
def test_m2_files_are_what_their_names_say_wherever_they_come_from(
    copy: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str, place: str
) -> None:
    lora = tmp_path / "lora.safetensors"
    factors = {"down": torch.ones(2, 9, 3, 3), "up": torch.ones(32, 2, 1, 1)}
    safetensors.torch.save_file({f"lora_unet_conv_in.lora_{k}.weight": value for k, value in factors.items()}, lora)
    Source.open(copy, Changes(loras=(Lora(lora),)))
    spoil(copy / UNET if place == "folder" else lora)
    with pytest.raises(ModelError, match=message):
        Source.open(copy, Changes(loras=(Lora(lora),) if place == "lora" else ())).weight_count("unet")


@pytest.mark.parametrize("name", ["../unet", "unet/../unet", "/unet", "UNET", "unet\\", "con"])
def test_m7_components_have_no_other_names(copy: Path, tmp_path: Path, name: str) -> None:
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {name: ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(ModelError, match="is not known"):
        read_all(copy, tmp_path / "out")
