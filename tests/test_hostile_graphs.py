"""Graphs that mean harm (faults.md, M3 to M5) are refused by every runtime, as the engine calls it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovenbird.backends import BACKENDS, create
from ovenbird.errors import ModelError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = 4096
SECRET = np.arange(SIZE, dtype=np.float32)


def write_graph(folder: Path, op: str = "Add", domain: str = "", **external: object) -> None:
    """x + w, with w in another file if ``external`` says where."""
    helper, proto = onnx.helper, onnx.TensorProto
    tensor = onnx.numpy_helper.from_array(SECRET, "w")
    if external:
        tensor.ClearField("raw_data")
        tensor.data_location = proto.EXTERNAL
        for key, value in external.items():
            tensor.external_data.add(key=key, value=str(value))
    ports = [helper.make_tensor_value_info(name, proto.FLOAT, [SIZE]) for name in ("x", "y")]
    node = helper.make_node(op, ["x", "w"], ["y"], domain=domain)
    graph = helper.make_graph([node], "hostile", ports[:1], ports[1:], [tensor])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )


def compile_with(runtime: str, folder: Path) -> Any:
    return create(runtime).compile(folder, {"x": (SIZE,)}, precision="f32", cache_key=None)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET.tobytes())
    return path


def inside(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, secret: (folder / name).write_bytes(secret.read_bytes()) and None


def linked(folder: Path, secret: Path) -> None:
    (folder / "weights").symlink_to(secret)


def linked_folder(folder: Path, secret: Path) -> None:
    (folder / "sub").symlink_to(secret.parent, target_is_directory=True)


EXTERNAL: dict[str, tuple[Callable[[Path, Path], None], dict[str, object]]] = {
    "..": (lambda folder, secret: None, {"location": "../secret"}),
    "nested ..": (lambda folder, secret: (folder / "a").mkdir(), {"location": "a/../../secret"}),
    "absolute": (lambda folder, secret: None, {"location": "{secret}"}),
    "a link": (linked, {"location": "weights"}),
    "a linked folder": (linked_folder, {"location": "sub/secret"}),
    "absent": (lambda folder, secret: None, {"location": "weights"}),
    "a huge length": (inside("weights"), {"location": "weights", "length": 1 << 60}),
    "an offset past the end": (inside("weights"), {"location": "weights", "offset": 4 * SIZE + 1}),
    "a negative offset": (inside("weights"), {"location": "weights", "offset": -4096}),
}


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("kind", EXTERNAL)
def test_m3_weights_outside_the_folder_are_not_read(tmp_path: Path, secret: Path, kind: str, runtime: str) -> None:
    prepare, external = EXTERNAL[kind]
    write_graph(tmp_path / "model", **{k: str(v).format(secret=secret) for k, v in external.items()})
    prepare(tmp_path / "model", secret)
    with pytest.raises(ModelError, match="model"):
        compile_with(runtime, tmp_path / "model")


@pytest.mark.xfail(strict=True, reason="both runtimes follow it; and pip's and uv's own files may be hard links")
@pytest.mark.parametrize("runtime", BACKENDS)
def test_m3_a_hard_link_is_not_read(tmp_path: Path, secret: Path, runtime: str) -> None:
    write_graph(tmp_path / "model", location="weights")
    os.link(secret, tmp_path / "model" / "weights")
    with pytest.raises(ModelError):
        compile_with(runtime, tmp_path / "model")


@pytest.mark.parametrize("runtime", BACKENDS)
def test_m3_weights_inside_the_folder_are_read(tmp_path: Path, secret: Path, runtime: str) -> None:
    write_graph(tmp_path / "model", location="weights", offset=0, length=4 * SIZE)
    inside("weights")(tmp_path / "model", secret)
    if runtime == "onnxruntime":
        found = compile_with(runtime, tmp_path / "model")({"x": SECRET})["y"]
        np.testing.assert_array_equal(found, 2 * SECRET)


@pytest.mark.parametrize("runtime", BACKENDS)
def test_m4_an_operator_of_nobodys_is_refused(tmp_path: Path, runtime: str) -> None:
    write_graph(tmp_path / "model", "Evil", "evil.example")
    with pytest.raises(ModelError, match="model"):
        compile_with(runtime, tmp_path / "model")


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    write_graph(tmp_path / "model")
    model = openvino.convert_model(tmp_path / "model" / "model.onnx")
    openvino.save_model(model, tmp_path / "model" / "openvino_model.xml", compress_to_fp16=False)
    return tmp_path / "model"


IR = {
    "weights past the end": (f'size="{4 * SIZE}"', 'size="1099511627776"'),
    "weights that begin past the end": ('offset="0"', 'offset="1099511627776"'),
    "sides of 10^12": (f'shape="{SIZE}"', 'shape="1000000000000"'),
    "an unknown layer": ('type="Add"', 'type="Evil"'),
    "an unknown opset": ('version="opset1"', 'version="evil"'),
    "no XML": ("<?xml", "<?"),
    "cut off": ("</net>", ""),
}


@pytest.mark.parametrize("kind", IR)
def test_m5_an_ir_that_is_not_as_it_says_is_refused(ir: Path, kind: str) -> None:
    path = ir / "openvino_model.xml"
    before, after = IR[kind]
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ModelError, match="openvino_model"):
        compile_with("openvino", ir)


def test_m5_entities_are_not_read(ir: Path, secret: Path) -> None:
    """Neither a file that one names nor a bomb of them: the graph is refused, or is what it was."""
    path = ir / "openvino_model.xml"
    bomb = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    head = f'<!DOCTYPE net [<!ENTITY a0 "ha">{bomb}<!ENTITY s SYSTEM "file://{secret}">]>'
    path.write_text(path.read_text().replace("<net ", f'{head}<net evil="&a9;&s;" ', 1))
    with contextlib.suppress(ModelError):
        found = compile_with("openvino", ir)({"x": SECRET})
        np.testing.assert_array_equal(found["y"], 2 * SECRET)
