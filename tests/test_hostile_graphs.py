"""Graphs that mean harm (faults.md, M3 to M5) are refused by every runtime, as the engine calls it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pace import within

from ovenbird.backends import BACKENDS, admission, create, wire
from ovenbird.backends.admission import admit
from ovenbird.bundle import _stored_precision
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


def compile_with(runtime: str, folder: Path, key: str | None = None, **allowed: bool) -> Any:
    return create(runtime, **allowed).compile(folder, {"x": (SIZE,)}, precision="f32", cache_key=key)


def change(folder: Path, edit: Callable[[Any], object]) -> None:
    """Another model in the same file."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


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
    "an offset that is no number": (inside("weights"), {"location": "weights", "offset": "0x10"}),
    "an offset of many digits": (inside("weights"), {"location": "weights", "offset": "1" * 5000}),
    "a length that is too short": (inside("weights"), {"location": "weights", "offset": 4, "length": 4}),
    "an unknown key": (inside("weights"), {"location": "weights", "basepath": ".."}),
    "a key of Python's": (inside("weights"), {"location": "weights", "__class__": "x"}),
    "no place": (inside("weights"), {"offset": 0}),
    "the folder itself": (inside("weights"), {"location": "."}),
    "a backslash": (inside("..\\secret"), {"location": "..\\secret"}),
    "a line's end": (inside("weights\n"), {"location": "weights\n"}),
}


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("kind", EXTERNAL)
def test_m3_weights_outside_the_folder_are_not_read(tmp_path: Path, secret: Path, kind: str, runtime: str) -> None:
    prepare, external = EXTERNAL[kind]
    write_graph(tmp_path / "model", **{k: str(v).format(secret=secret) for k, v in external.items()})
    prepare(tmp_path / "model", secret)
    with pytest.raises(ModelError, match=r"model.onnx is refused: weights"):
        compile_with(runtime, tmp_path / "model")


@pytest.mark.parametrize("runtime", BACKENDS)
def test_m3_a_hard_link_is_not_read(tmp_path: Path, secret: Path, runtime: str) -> None:
    """Unless its hash was compared: pip's and uv's own files may be hard links."""
    write_graph(tmp_path / "model", location="weights")
    os.link(secret, tmp_path / "model" / "weights")
    for key, listed in ((None, "model/weights"), ("key", "model/other"), ("key", "other/weights")):
        (tmp_path / "ovenbird.json").write_text(json.dumps({"files": {listed: {}}}))
        with pytest.raises(ModelError, match="'weights', which has 2 names on this disk"):
            compile_with(runtime, tmp_path / "model", key)
    (tmp_path / "ovenbird.json").write_text(json.dumps({"files": {"model/weights": {}}}))
    compile_with(runtime, tmp_path / "model", "key")


def in_a_constant(model: Any, tensor: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def in_a_branch(model: Any, tensor: Any) -> None:
    branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["c"], then_branch=branch, else_branch=branch))


def in_a_function(model: Any, tensor: Any) -> None:
    node = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(onnx.helper.make_function("own", "f", [], ["c"], [node], model.opset_import))


def in_a_sparse_one(model: Any, tensor: Any) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, indices=tensor, dims=[4]))


@pytest.mark.parametrize("place", [in_a_constant, in_a_branch, in_a_function, in_a_sparse_one])
def test_m3_weights_are_looked_for_everywhere(tmp_path: Path, secret: Path, place: Callable[[Any, Any], None]) -> None:
    tensor = onnx.TensorProto(name="t", dims=[4], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    write_graph(tmp_path / "model")
    change(tmp_path / "model", lambda model: place(model, tensor))
    with pytest.raises(ModelError, match=r"weights in '../secret', which is not a name in its own folder"):
        admit(tmp_path / "model" / "model.onnx", "onnxruntime", allow_foreign=True)


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
    with pytest.raises(ModelError, match=r"it has 'evil.example.Evil', which no export") as caught:
        compile_with(runtime, tmp_path / "model")
    assert "--allow-foreign-ir" in str(caught.value.hint)
    with pytest.raises(ModelError, match="tried in a process of its own"):
        compile_with(runtime, tmp_path / "model", allow_foreign=True)


def branching(model: Any) -> None:
    """x + w by way of a branch."""
    helper, proto = onnx.helper, onnx.TensorProto
    result = helper.make_tensor_value_info("y2", proto.FLOAT, [SIZE])
    branch = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y2"])], "branch", [], [result])
    condition = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", proto.BOOL, [], [True]))
    del model.graph.node[:]
    model.graph.node.extend([condition, helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)])


def looping(model: Any) -> None:
    model.graph.node.append(
        onnx.helper.make_node("Loop", ["x", "x"], ["c"], body=onnx.helper.make_graph([], "b", [], []))
    )


def scanning(model: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Scan", ["x"], ["c"], body=onnx.helper.make_graph([], "b", [], [])))


def with_functions(model: Any) -> None:
    """One that calls itself."""
    node = onnx.helper.make_node("f", ["c"], ["c"], domain="own")
    model.functions.append(onnx.helper.make_function("own", "f", ["c"], ["c"], [node], model.opset_import))


def with_a_context(model: Any) -> None:
    """What ONNX Runtime would take for a compiled model in another file."""
    model.graph.node.append(onnx.helper.make_node("EPContext", [], ["c"], domain="com.microsoft"))


FOREIGN = {branching: "'If'", looping: "'Loop'", scanning: "'Scan'", with_functions: "functions of its own",
           with_a_context: "com.microsoft.EPContext"}  # fmt: skip


@pytest.mark.parametrize("edit", FOREIGN)
def test_m4_what_no_export_has_is_refused(tmp_path: Path, edit: Callable[[Any], None]) -> None:
    write_graph(tmp_path / "model")
    change(tmp_path / "model", edit)
    with pytest.raises(ModelError, match=f"{FOREIGN[edit]}.* which no export of Stable Diffusion has"):
        admit(tmp_path / "model" / "model.onnx", "onnxruntime")


def test_m4_what_is_allowed_is_tried_elsewhere_and_then_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph(tmp_path / "model")
    change(tmp_path / "model", branching)
    found = compile_with("onnxruntime", tmp_path / "model", allow_foreign=True)({"x": SECRET})["y"]
    np.testing.assert_array_equal(found, 2 * SECRET)
    monkeypatch.setattr(admission, "TRIAL_SECONDS", 0.01)
    with pytest.raises(ModelError, match=r"onnxruntime did not read it in 0\.01 s"):
        compile_with("onnxruntime", tmp_path / "model", allow_foreign=True)


def nested(model: Any, depth: int = 12) -> None:
    graph = onnx.helper.make_graph([], "innermost", [], [])
    for _ in range(depth):
        graph = onnx.helper.make_graph([onnx.helper.make_node("If", ["x"], ["c"], then_branch=graph)], "g", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["c"], then_branch=graph))


def vast(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20, 1 << 20]


def larger_than_its_bytes(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 20]


def backwards(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [-1]


def crowded(model: Any) -> None:
    model.graph.node.extend(model.graph.node[:1] * 1001)


def trained(model: Any) -> None:
    model.training_info.add()


HARMFUL = {nested: "more than 8 deep", vast: "a tensor of more than", larger_than_its_bytes: "1048576 numbers in",
           backwards: "a tensor of more than", crowded: "more than 1000 nodes", trained: "how to train it"}  # fmt: skip


@pytest.mark.parametrize("edit", HARMFUL)
def test_m4_what_could_do_harm_is_refused_whatever_is_allowed(
    tmp_path: Path, edit: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MOST_NODES", 1000)
    write_graph(tmp_path / "model")
    change(tmp_path / "model", edit)
    with pytest.raises(ModelError, match=HARMFUL[edit]):
        admit(tmp_path / "model" / "model.onnx", "onnxruntime", allow_foreign=True)


def test_m4_damage_anywhere_is_a_model_error_or_none(tmp_path: Path, nestling: Path) -> None:
    content = (nestling / "fp16" / "vae_encoder" / "model.onnx").read_bytes()[:20_000]
    path, chance = tmp_path / "model.onnx", np.random.default_rng(7)
    for length in range(0, len(content), 997):
        damaged = bytearray(content[:length])
        for place in chance.integers(0, max(length, 1), 5) if length else ():
            damaged[place] = chance.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="is refused"):
            admit(path, "onnxruntime")


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
    "a document type": ("<net ", "<!DOCTYPE net><net "),
    "a path": ('auto_broadcast="numpy"', 'auto_broadcast="numpy" weights="../secret"'),
    "weights elsewhere": ("<rt_info>", '<rt_info><__weights_path value="secret"/>'),
    "more in a constant than its bytes": (f'shape="{SIZE}" offset', f'shape="{SIZE + 1}" offset'),
    "sides without an end": (f'shape="{SIZE}"', f'shape="{"2," * 999}2"'),
    "a branch": ('type="Add"', 'type="If"'),
    "a loop": ('type="Add"', 'type="TensorIterator"'),
    "a library's own layer": ('version="opset1"', 'version="extension"'),
    "layers in layers": ("<layers>", '<layers><layer type="Add" version="opset1"><body><layer/></body></layer>'),
}


@pytest.mark.parametrize("kind", IR)
def test_m5_an_ir_that_is_not_as_it_says_is_refused(ir: Path, kind: str) -> None:
    path = ir / "openvino_model.xml"
    before, after = IR[kind]
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ModelError, match=r"openvino_model.xml is refused"):
        compile_with("openvino", ir)


def test_m5_entities_are_not_read(ir: Path, secret: Path) -> None:
    """Neither a file that one names nor a bomb of them."""
    path = ir / "openvino_model.xml"
    bomb = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    head = f'<!DOCTYPE net [<!ENTITY a0 "ha">{bomb}<!ENTITY s SYSTEM "file://{secret}">]>'
    path.write_text(path.read_text().replace("<net ", f'{head}<net evil="&a9;&s;" ', 1))
    with pytest.raises(ModelError, match="declares a type of document"):
        compile_with("openvino", ir, allow_foreign=True)


def test_m5_a_crowd_of_layers_is_refused(ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovenbird.backends.ir.MOST_LAYERS", 3)
    with pytest.raises(ModelError, match="more than 3 layers"):
        compile_with("openvino", ir)
    monkeypatch.setattr("ovenbird.backends.ir.LARGEST_IR", 1 << 10)
    with pytest.raises(ModelError, match="is larger than"):
        compile_with("openvino", ir)


def test_m5_what_is_allowed_is_tried_elsewhere_first(ir: Path) -> None:
    path = ir / "openvino_model.xml"
    path.write_text(path.read_text().replace('type="Add"', 'type="Atan2"'))
    with pytest.raises(ModelError, match=r"it has 'opset1.Atan2'"):
        compile_with("openvino", ir)
    with pytest.raises(ModelError, match=r"openvino cannot read it, tried in a process of its own: .*Atan2"):
        compile_with("openvino", ir, allow_foreign=True)


def test_m5_a_graph_without_an_end_does_not_stall_its_precision(tmp_path: Path) -> None:
    """What reads an IR's types must not look for the end of each constant up to the end of the file."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "openvino_model.xml").write_bytes(b'<data element_type="f16" ' * 40_000)
    with within(1):
        assert _stored_precision(tmp_path) == "unknown"
