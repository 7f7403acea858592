"""A checkpoint that is a pickle gives its tensors and nothing else; none of this needs torch."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pickle_parts as p
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pace import within

from ovenbird.errors import ModelError
from ovenbird_export import pickled
from ovenbird_export.opcodes import STORAGES
from ovenbird_export.pickled import open_checkpoint
from ovenbird_export.weights import Checkpoint

MKDIR = p.name("posix", "mkdir")
PARTIAL = p.name("functools", "partial")
GETATTR = p.name("builtins", "getattr")
TENSOR = p.name("torch._utils", "_rebuild_tensor_v2")
DOTTED = "os.path.os.mkdir"


def numbers(checkpoint: Checkpoint, name: str) -> tuple[float, ...]:
    found = checkpoint.tensors[name]
    assert (found.dtype, found.shape, found.stride) == ("float32", (2,), (1,))
    return struct.unpack_from("<2f", found.pages, found.start)


def modules() -> set[str]:
    """What is imported, but for encodings: Python imports those when a text needs them."""
    return {name for name in sys.modules if not name.startswith("encodings.")}


def in_bytes(pickle: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(pickle)) + pickle


class Attack(NamedTuple):
    payload: Callable[[bytes], bytes]
    """Opcodes that would make the folder whose name, as an opcode, is given."""
    listed: str
    """The first name that must be listed."""
    bites: bool = True
    """Whether Python's own pickle makes the folder here; the rest needs packages, or other versions."""


def code(canary: bytes) -> bytes:
    """``__import__('os').mkdir('...')`` as a text."""
    return p.text(f"__import__('os').mkdir({canary[5:].decode()!r})")


ATTACKS = {
    "reduce": Attack(lambda c: p.call(MKDIR, c), "posix.mkdir"),
    "shell": Attack(lambda c: p.call(p.name("posix", "system"), p.text(f"mkdir {c[5:].decode()}")), "posix.system"),
    "eval": Attack(lambda c: p.call(p.name("builtins", "eval"), code(c)), "builtins.eval"),
    "exec": Attack(lambda c: p.call(p.name("builtins", "exec"), code(c)), "builtins.exec"),
    "Python 2": Attack(lambda c: p.call(p.name("__builtin__", "eval"), code(c)), "__builtin__.eval"),
    "instance": Attack(lambda c: b"(" + c + b"iposix\nmkdir\n", "posix.mkdir"),
    "object": Attack(lambda c: b"(" + MKDIR + c + b"o", "posix.mkdir"),
    "new": Attack(lambda c: PARTIAL + p.tuple_of(MKDIR, c) + b"\x81)R", "functools.partial"),
    "new with keywords": Attack(
        lambda c: PARTIAL + p.tuple_of(MKDIR) + p.entries({"path": c}) + b"\x92)R", "functools.partial"
    ),
    "state": Attack(
        lambda c: p.call(PARTIAL, PARTIAL) + p.tuple_of(MKDIR, p.tuple_of(c), b"}", b"N") + b"b)R", "functools.partial"
    ),
    "state of a known class": Attack(
        lambda c: p.name("collections", "OrderedDict") + b")R" + p.entries({"__class__": p.call(MKDIR, c)}) + b"b",
        "posix.mkdir",
    ),
    "items": Attack(lambda c: p.call(PARTIAL, MKDIR) + b"(" + p.call(MKDIR, c) + b"e", "functools.partial"),
    "key": Attack(lambda c: b"}" + p.call(MKDIR, c) + b"Ns", "posix.mkdir"),
    "set": Attack(lambda c: b"\x8f(" + p.call(MKDIR, c) + b"\x90", "posix.mkdir"),
    "memo": Attack(lambda c: MKDIR + b"q\x070h\x07" + p.tuple_of(c) + b"R", "posix.mkdir"),
    "getattr": Attack(
        lambda c: p.call(p.call(GETATTR, p.call(p.name("builtins", "__import__"), p.text("os")), p.text("mkdir")), c),
        "builtins.getattr",
    ),
    "protocol 4": Attack(lambda c: b"\x80\x04" + p.stack_name("posix", "mkdir") + c + b"\x85R", "posix.mkdir"),
    "protocol 5": Attack(lambda c: b"\x80\x05" + p.stack_name("os", "path.os.mkdir") + c + b"\x85R", DOTTED),
    "pickle in a pickle": Attack(
        lambda c: p.call(p.name("pickle", "loads"), in_bytes(p.call(MKDIR, c) + b".")), "pickle.loads"
    ),
    "import": Attack(lambda c: p.name("canary_module", "anything"), "canary_module.anything"),
    "import by a call": Attack(
        lambda c: p.call(p.name("importlib", "import_module"), p.text("canary_module")), "importlib.import_module"
    ),
    "import by a script": Attack(
        lambda c: p.call(p.name("runpy", "run_module"), p.text("canary_module")), "runpy.run_module"
    ),
    "torch.storage": Attack(
        lambda c: p.call(p.name("torch.storage", "_load_from_bytes"), in_bytes(p.call(MKDIR, c) + b".")),
        "torch.storage._load_from_bytes",
        bites=False,
    ),
    "torch.load": Attack(lambda c: p.call(p.name("torch", "load"), c), "torch.load", bites=False),
    "torch's tools": Attack(
        lambda c: p.call(p.name("torch.utils.collect_env", "run"), c), "torch.utils.collect_env.run", bites=False
    ),
    "numpy's tools": Attack(
        lambda c: p.call(p.name("numpy.testing._private.utils", "runstring"), code(c), b"}"),
        "numpy.testing._private.utils.runstring",
        bites=False,
    ),
    "wide letters": Attack(
        lambda c: b"\x80\x04" + p.call(p.stack_name("\uff50osix", "mkdir"), c), r"\uff50osix.mkdir", bites=False
    ),
    "an invisible letter": Attack(
        lambda c: b"\x80\x04" + p.call(p.stack_name("torch._utils\u200b", "_rebuild_tensor_v2"), c),
        r"torch._utils\u200b._rebuild_tensor_v2",
        bites=False,
    ),
    "a space": Attack(lambda c: b"ctorch._utils _rebuild_tensor_v2\n\n)R", "torch._utils._rebuild_tensor_v2.", False),
    "a known name's attribute": Attack(
        lambda c: b"\x80\x04" + p.stack_name("collections", "OrderedDict.__reduce__") + b")R",
        "collections.OrderedDict.__reduce__",
        bites=False,
    ),
    "another way to a tensor": Attack(
        lambda c: p.call(p.name("torch._utils", "_rebuild_tensor_v3"), p.storage("0", 2)),
        "torch._utils._rebuild_tensor_v3",
        bites=False,
    ),
    "a module with its source": Attack(
        lambda c: p.tuple_of(p.text("module"), p.name("net", "Net"), p.text("net.py"), p.text("class Net: ...")) + b"Q",
        "net.Net",
        bites=False,
    ),
    "a storage of another kind": Attack(
        lambda c: p.tensor(p.storage("1", 2, "BoolStorage")), "torch.BoolStorage", bites=False
    ),
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that every attack wants to make; so does importing ``canary_module``."""
    path = tmp_path / "canary"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "canary_module.py").write_text(f"import os\nos.mkdir({str(path)!r})\nanything = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "canary_module", raising=False)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("kind", ATTACKS)
def test_m1_an_attack_is_inert_and_the_tensor_beside_it_loads(
    canary: Path, tmp_path: Path, kind: str, form: str
) -> None:
    content = p.program({"attack": ATTACKS[kind].payload(p.text(str(canary))), "good": p.GOOD})
    path = tmp_path / "model.safetensors"
    if form == "zip":
        p.write_zip(path, content)
    else:
        path.write_bytes(p.legacy(content))
    before = modules()
    checkpoint = open_checkpoint(path)
    assert modules() == before
    assert not canary.exists()
    assert checkpoint.format == f"torch {form}"
    assert set(checkpoint.tensors) == {"good"} and numbers(checkpoint, "good") == (1.5, -2.0)
    assert checkpoint.ignored[0] == ATTACKS[kind].listed


@pytest.mark.parametrize("kind", [kind for kind, attack in ATTACKS.items() if attack.bites])
def test_m1_the_attacks_are_real(canary: Path, kind: str) -> None:
    with contextlib.suppress(Exception):
        pickle.loads(b"\x80\x02" + ATTACKS[kind].payload(p.text(str(canary))) + b".")
    assert canary.is_dir()


def storage_of(count: int) -> bytes:
    return p.storage("0", count)


WIDE = p.storage("0", 2)
PROGRAMS = {
    "an extension": (b"\x82\x01", "the opcode EXT1"),
    "an id in letters": (b"P0\n", "the opcode PERSID"),
    "a buffer": (b"\x97", "the opcode NEXT_BUFFER"),
    "an unknown opcode": (b"\xff", "unknown"),
    "an id that is no tuple": (b"NQ", "persistent id is not torch's"),
    "an id of something else": (p.tuple_of(p.text("file"), b"N", p.text("0"), b"N", b"N") + b"Q", "not a storage's"),
    "a view of a storage": (p.tensor(p.storage("0", 2, more=p.tuple_of(p.text("1"), p.number(0)))), "not a storage's"),
    "a tensor of nothing": (p.call(TENSOR), "missing 6"),
    "a tensor of a list": (p.tensor(b"]"), "not made of a storage"),
    "a negated tensor": (p.tensor(WIDE, more=p.entries({"neg": b"\x88"})), "negated"),
    "10^18 elements": (p.tensor(storage_of(10**18), (10**18,)), "not a natural number"),
    "more elements than bytes": (p.tensor(storage_of(3), (3,)), "has 8 bytes, not 12"),
    "fewer elements than bytes": (p.tensor(storage_of(1), (1,)), "has 8 bytes, not 4"),
    "one storage, two sizes": (p.tuple_of(WIDE, storage_of(1)), "two sizes"),
    "one storage, two types": (p.tuple_of(WIDE, p.storage("0", 2, "HalfStorage")), "two sizes"),
    "a negative size": (p.tensor(WIDE, (-2,)), "not a natural number"),
    "a negative stride": (p.tensor(WIDE, (2,), (-1,), 1), "not a natural number"),
    "a negative offset": (p.tensor(WIDE, offset=-1), "not a natural number"),
    "an offset past the end": (p.tensor(WIDE, offset=1), "does not lie in its storage"),
    "a stride past the end": (p.tensor(WIDE, (2,), (2,)), "does not lie in its storage"),
    "a shape past the end": (p.tensor(WIDE, (3,)), "does not lie in its storage"),
    "much from little": (p.tensor(WIDE, (1 << 40, 1 << 40), (0, 0)), "does not lie in its storage"),
    "a size that is true": (p.call(TENSOR, WIDE, b"\x88", b")", b")", b"N", b"N"), "natural"),
    "a size that is 2.0": (p.call(TENSOR, WIDE, b"G" + bytes(8), b")", b")", b"N", b"N"), "natural"),
    "nine dimensions": (p.tensor(WIDE, (1,) * 9, (1,) * 9), "9 dimensions"),
    "more sizes than strides": (p.tensor(WIDE, (1, 1), (1,)), "more sizes than strides"),
    "an absent storage": (p.tensor(p.storage("../0", 2)), "data/../0"),
    "a dictionary from a call": (p.call(p.name("collections", "OrderedDict"), b"]"), "takes 0 positional"),
    "arguments that are no tuple": (p.name("collections", "OrderedDict") + b"]R", "not a tuple"),
    "a name that is a number": (b"K\x01K\x02\x93", "not a short text"),
    "a name outside ASCII": (p.name("\uff50osix", "mkdir"), "can't decode"),
    "an empty stack": (b"0000000", "pop from empty list"),
    "nothing in the memo": (b"h\x63", "99"),
    "a key without a value": (b"}(Nu", "no value"),
    "entries in a number": (b"K\x01" + p.text("a") + b"Ns", "not a dictionary"),
    "items in a number": (b"K\x01Na", "not a list"),
    "a number of 5000 digits": (b"I" + b"9" * 5000 + b"\n", "5000"),
    "2^62 bytes": (b"\x96" + struct.pack("<Q", 1 << 62), "expected 4611686018427387904 bytes"),
    "1001 names": (b"".join(p.name("m", f"n{i}") + b"0" for i in range(1001)) + b"N", "more than 1000"),
    "a dictionary in itself": (b"0}q\x00" + p.text("state_dict") + b"h\x00s.", "lie in each other"),
    "a list": (b"0](" + p.GOOD + b"e.", "holds no tensors with names"),
    "a name of two lines": (b"0" + p.entries({"a\nb": p.GOOD}) + b".", r"'a\\nb' is not the name of a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROGRAMS)
def test_m1_a_program_that_torch_does_not_write_is_refused(tmp_path: Path, kind: str) -> None:
    payload, message = PROGRAMS[kind]
    with pytest.raises(ModelError, match=message) as caught:
        open_checkpoint(p.write_zip(tmp_path / "a.ckpt", b"\x80\x02}" + p.text("x") + payload + b"s."))
    assert len(str(caught.value)) < 500


BOMBS = {
    "a key of 2^100 leaves": b"})" + b"2\x86" * 100 + b"Ns",
    "a set of 2^100 leaves": b"\x8f()" + b"2\x86" * 100 + b"\x90",
    "a memo of 2^32 places": b"Nr\xff\xff\xff\xff",
    "two long equal keys": b"}"
    + p.text("k" * 500_000) + b"q\x000" + p.text("k" * 500_000) + b"q\x010" + b"h\x00Nsh\x01Ns" * 20_000,
    "a long name a hundred thousand times": p.text("n" * 200) + b"q\x000" + b"h\x00h\x00\x930" * 100_000 + b"N",
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_m1_a_few_bytes_do_not_last_for_years(tmp_path: Path, kind: str) -> None:
    path = p.write_zip(tmp_path / "a.ckpt", p.program({"bomb": BOMBS[kind], "good": p.GOOD}))
    with within(5):
        assert numbers(open_checkpoint(path), "good") == (1.5, -2.0)


def packed(path: Path) -> None:
    files = {"archive/data.pkl": p.program({"good": p.GOOD}), "archive/data/0": bytes(5_000_000)}
    p.write_archive(path, files, zipfile.ZIP_DEFLATED)


def marked(place: int, value: int) -> Callable[[Path], None]:
    """One byte of the first file's entry in the directory is another."""

    def write(path: Path) -> None:
        p.write_zip(path, p.program({"good": p.GOOD}))
        content = bytearray(path.read_bytes())
        content[content.index(b"PK\x01\x02") + place] = value
        path.write_bytes(content)

    return write


def overlapping(path: Path) -> None:
    """The second file of the directory begins where the first does."""
    p.write_zip(path, p.program({"good": p.GOOD}))
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    content[second + 42 : second + 46] = bytes(4)
    path.write_bytes(content)


def with_a_huge_directory(path: Path) -> None:
    p.write_archive(path, {f"archive/{'x' * 2000}{number}": b"" for number in range(2500)})


def with_names(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        p.write_archive(path, dict.fromkeys(names, b"."))

    return write


def with_twice_the_same(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("archive/data.pkl", p.program({"good": p.GOOD}))


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def zip_with(**more: bytes) -> Callable[[Path], object]:
    return lambda path: p.write_zip(path, p.program({"good": p.GOOD}), **more)


SAFETENSORS = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (holding(b""), "is empty"),
    "plain text": (holding(b"These are the weights."), "it begins with b'These ar'"),
    "a page": (holding(b"<!DOCTYPE html><html>404</html>"), "it begins with"),
    "a bare pickle": (holding(b"\x80\x04" + p.entries({"good": b"N"}) + b"."), "it begins with"),
    "renamed safetensors": (holding(struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + bytes(4)), "it begins with"),
    "a tar": (holding(b"storages" + bytes(1016)), "it begins with"),
    "four letters": (holding(b"PK\x03\x04"), "not a zip file"),
    "packed, a bomb": (packed, "packed or encrypted"),
    "packed, to the same size": (marked(10, zipfile.ZIP_DEFLATED), "packed or encrypted"),
    "encrypted": (marked(8, 1), "packed or encrypted"),
    "from the future": (marked(6, 99), "zip file version 9.9"),
    "overlapping": (overlapping, "over each other"),
    "a huge directory": (with_a_huge_directory, "directory is too large"),
    "one name twice": (with_twice_the_same, "it has a file 'archive/data.pkl'"),
    "a name that climbs": (with_names("archive/data.pkl", "archive/../../x"), "it has a file 'archive/../../x'"),
    "a folder that climbs": (with_names("../data.pkl"), "it has a file '../data.pkl'"),
    "an absolute name": (with_names("/archive/data.pkl"), "it has a file '/archive/data.pkl'"),
    "a name of Windows": (with_names("archive/data.pkl", "archive/..\\x"), "it has a file"),
    "two folders": (with_names("archive/data.pkl", "other/data/0"), "it has a file 'other/data/0'"),
    "no pickle": (with_names("archive/data/0"), "data.pkl"),
    "a program of torch": (zip_with(**{"constants.pkl": b"."}), "TorchScript"),
    "big-endian": (zip_with(byteorder=b"big"), "big-endian"),
    "a huge pickle": (zip_with(**{"data.pkl": bytes(pickled.LARGEST_PICKLE + 1)}), "its pickle has 4194305 bytes"),
    "an old one without its end": (holding(p.legacy(p.program({"good": p.GOOD}))[:-1]), "cut off"),
    "an old one with other sizes": (holding(p.legacy(p.program({"good": p.GOOD}), size=2)), "cut off"),
    "an old one without the storage": (holding(p.legacy(p.program({"good": p.GOOD}), {})), "'0'"),
    "an old one with a strange key": (
        holding(p.LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + b"}" + p.text("little_endian") + b"\x88s." + b"N." + b"](Ne."),
        "not a text",
    ),
    "an old one, big-endian": (
        holding(p.LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + b"}" + p.text("little_endian") + b"\x89s." + b"N." + b"]."),
        "big-endian",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_m1_a_file_that_torch_does_not_write_is_refused(tmp_path: Path, kind: str) -> None:
    write, message = FILES[kind]
    write(tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match=message.replace("\\", "\\\\")):
        open_checkpoint(tmp_path / "model.ckpt")


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.ckpt", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            open_checkpoint(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_m1_a_file_that_is_cut_is_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model.ckpt"
    content = p.program({"good": p.GOOD, "text": p.text("x" * 500)})
    whole = p.write_zip(path, content).read_bytes() if form == "zip" else p.legacy(content)
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(ModelError):
            open_checkpoint(path)


def test_m1_a_checkpoint_of_lightning_gives_its_state(tmp_path: Path) -> None:
    checkpointer = p.name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    scalar = p.call(
        p.name("numpy.core.multiarray", "scalar"),
        p.call(p.name("numpy", "dtype"), p.text("f8"), b"\x89", b"\x88") + p.tuple_of(b"K\x03", p.text("<")) + b"b",
        p.call(p.name("_codecs", "encode"), p.text("\x00\x01"), p.text("latin1")),
    )
    ordered = p.name("collections", "OrderedDict") + b")R"
    parameter = p.call(p.name("torch._utils", "_rebuild_parameter"), p.GOOD, b"\x89", ordered)
    state = ordered + b"(" + p.text("model.w") + p.GOOD + p.text("model.p") + parameter + b"u"
    state += p.entries({"_metadata": ordered}) + b"b"
    content = p.program(
        {
            "epoch": b"K\x05",
            "pytorch-lightning_version": p.text("1.4.2"),
            "callbacks": b"}" + checkpointer + p.entries({"best_model_score": scalar}) + b"s",
            "optimizer_states": b"](" + p.entries({"state": b"}K\x00" + p.entries({"exp_avg": p.GOOD}) + b"s"}) + b"e",
            "state_dict": state,
            "hyper_parameters": p.name("pytorch_lightning.utilities.parsing", "AttributeDict") + b")\x81}b",
        }
    )
    checkpoint = open_checkpoint(p.write_zip(tmp_path / "v1.ckpt", content))
    assert set(checkpoint.tensors) == {"model.w", "model.p"}
    assert numbers(checkpoint, "model.p") == (1.5, -2.0)
    assert checkpoint.ignored == (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    )


SIZES = dict(STORAGES.values())


def opens_or_refuses(path: Path) -> None:
    """Anything but a ``ModelError`` fails, and so does a tensor that is not inside the file."""
    before = modules()
    with contextlib.suppress(ModelError):
        for found in open_checkpoint(path).tensors.values():
            last = sum((n - 1) * step for n, step in zip(found.shape, found.stride, strict=True))
            end = found.start + (last + 1) * SIZES[found.dtype]
            assert found.start >= 0 and (0 in found.shape or end <= len(found.pages))
    assert modules() == before


REAL = p.program({"state_dict": p.entries({"a": p.GOOD, "b": p.tensor(p.storage("1", 3), (2, 1), (2, 1))})})
STORED = {"0": p.NUMBERS, "1": bytes(12)}
WORDS = [
    *(bytes([byte]) for byte in range(256)),
    *(p.GOOD, p.tensor(WIDE, (1,), offset=1), WIDE, MKDIR, PARTIAL, TENSOR, p.name("collections", "OrderedDict")),
    *(p.name("torch._utils", "_rebuild_parameter"), p.name("torch", "HalfStorage"), p.text("state_dict")),
    *(p.text("x"), p.number(1 << 50)),
    *(b"(", b"}", b"]", b")", b"t", b"R", b"b", b"u", b"s", b"\x81", b"Q", b"q\x01", b"h\x01", b"2", b"0", b"."),
]
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(words=st.lists(st.sampled_from(WORDS), max_size=40))
def test_m1_any_program_opens_or_is_refused(tmp_path: Path, words: list[bytes]) -> None:
    opens_or_refuses(p.write_zip(tmp_path / "a.ckpt", b"}" + p.text("x") + b"".join(words) + b"s.", STORED))


@FUZZ
@given(data=st.data(), form=st.sampled_from(["zip", "pickle", "legacy"]))
def test_m1_any_damage_opens_or_is_refused(tmp_path: Path, data: st.DataObject, form: str) -> None:
    path = tmp_path / "a.ckpt"
    whole = {
        "zip": lambda: p.write_zip(path, REAL, STORED).read_bytes(),
        "pickle": lambda: REAL,
        "legacy": lambda: p.legacy(REAL, STORED),
    }[form]()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))
    if form == "pickle":
        p.write_zip(path, bytes(content[:cut]), STORED)
    else:
        path.write_bytes(content[:cut])
    opens_or_refuses(path)


def test_the_undamaged_ones_open(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for content in (p.write_zip(path, REAL, STORED).read_bytes(), p.legacy(REAL, STORED)):
        path.write_bytes(content)
        assert set(open_checkpoint(path).tensors) == {"a", "b"}
