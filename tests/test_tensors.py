"""Small safetensors files: numbers come out as they went in, and whatever is not right is refused."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovenbird.errors import ModelError
from ovenbird.tensors import parse

PATH = Path("words.safetensors")


def file_of(header: bytes, data: bytes = bytes(4)) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype: str = "F32", shape: Any = (1,), start: Any = 0, end: Any = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def header_of(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_numbers_come_out_as_they_went_in(dtype: str) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    given = {"b": np.arange(6).reshape(2, 3).astype(dtype), "a": np.array(1.5, dtype), "none": np.zeros((0, 3), dtype)}
    found = parse(PATH, safetensors.save(given, {"note": "x"}))
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == np.float32 and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    found = parse(PATH, file_of(header_of(x=entry("BF16", (2,), 0, 4)), bytes.fromhex("c03f 00c0")))
    assert found["x"].tolist() == [1.5, -2.0]


ONE = json.dumps(entry()).encode()
BROKEN = {
    "nothing": b"",
    "no length": b"1234567",
    "a long header": struct.pack("<Q", 1 << 62) + b"{}",
    "a name twice": file_of(b'{"x":' + ONE + b',"\\u0078":' + ONE + b"}"),
    "a note twice": file_of(b'{"__metadata__":{"a":"b","a":"c"},"x":' + ONE + b"}"),
    "past the end": file_of(header_of(x=entry(shape=(2,), end=8))),
    "trailing bytes": file_of(header_of(x=entry()), bytes(5)),
    "a gap": file_of(header_of(x=entry(start=1, end=5)), bytes(5)),
    "an overlap": file_of(header_of(x=entry(), y=entry())),
    "backwards": file_of(header_of(x=entry(shape=(0,), start=0, end=-4)), b""),
    "another size": file_of(header_of(x=entry(shape=(2,)))),
    "a size that overflows": file_of(header_of(x=entry(shape=(1 << 40, 1 << 40)))),
    "a negative size": file_of(header_of(x=entry(shape=(-1, -1)))),
    "many axes": file_of(header_of(x=entry(shape=(1,) * 9))),
    "a fraction": file_of(header_of(x=entry(shape=(1.0,)))),
    "offsets of another kind": file_of(header_of(x=entry(start="0", end="4"))),
    "three offsets": file_of(header_of(x={**entry(), "data_offsets": [0, 4, 4]})),
    "whole numbers": file_of(header_of(x=entry("I32"))),
    "a type nobody has": file_of(header_of(x={**entry(), "dtype": []})),
    "no type": file_of(header_of(x={"shape": [1], "data_offsets": [0, 4]})),
    "no facts": file_of(header_of(x=1)),
    "deep": file_of(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a list": file_of(b"[1]"),
    "a text": file_of(b'"x"'),
    "no JSON": file_of(b"{"),
    "no text": file_of(b'{"\xff":1}'),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_m2_a_file_that_is_not_right_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"words\.safetensors is not a safetensors file") as caught:
        parse(PATH, BROKEN[kind])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_m1_a_pickle_is_known_by_its_content(protocol: int) -> None:
    with pytest.raises(ModelError, match="is a pickle") as caught:
        parse(PATH, pickle.dumps({"x": 1}, protocol))
    assert caught.value.hint


def test_m1_a_file_of_torch_is_a_pickle(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for new in (True, False):
        torch.save({"x": torch.zeros(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(ModelError, match="is a pickle"):
            parse(PATH, (tmp_path / "x.pt").read_bytes())


def test_m1_a_header_whose_length_begins_like_a_pickle_is_none() -> None:
    header = header_of(x=entry(), __metadata__={"name": ""}).decode()
    header = header.replace('"name": ""', f'"name": "{"x" * (0x80 - len(header))}"')
    content = file_of(header.encode())
    assert content.startswith(b"\x80") and list(parse(PATH, content)) == ["x"]
