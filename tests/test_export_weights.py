"""Weights come out of a file as they went in, whoever wrote it; a header that is not right is refused."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovenbird.errors import ModelError

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import safetensors.torch
import torch

from ovenbird_export import weights
from ovenbird_export.pickled import open_file
from ovenbird_export.weights import open_safetensors, read_header

pytestmark = pytest.mark.export

DTYPES = tuple(weights.DTYPES.values())
Tensors = dict[str, torch.Tensor]


def save_zip(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path)


def save_nested(tensors: Tensors, path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {"state_dict": tensors}}, path)


def save_legacy(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def save_parameters(tensors: Tensors, path: Path) -> None:
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    state: Any = module.state_dict(keep_vars=True)
    torch.save(state, path)


def save_safetensors(tensors: Tensors, path: Path) -> None:
    safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


WRITERS: dict[str, Callable[[Tensors, Path], None]] = {
    "torch zip": save_zip,
    "torch zip, nested": save_nested,
    "torch zip, parameters": save_parameters,
    "torch legacy": save_legacy,
    "safetensors": save_safetensors,
}


def tensor_of(dtype: str) -> torch.Tensor:
    return (torch.arange(24).reshape(2, 3, 4) - 7).to(getattr(torch, dtype))


BASE = torch.arange(60, dtype=torch.float32)
TENSORS: dict[str, Tensors] = {
    **{dtype: {"x": tensor_of(dtype)} for dtype in DTYPES},
    "a number": {"x": torch.tensor(1.5)},
    "nothing": {"x": torch.zeros(0, 768), "y": torch.zeros(3)},
    "transposed": {"x": tensor_of("float32").transpose(0, 2)},
    "every second": {"x": BASE[1::2], "y": BASE[5:50:3].reshape(3, 5)},
    "shared": {"x": BASE, "y": BASE[10:20], "z": BASE.reshape(6, 10)[2:4, 3:5], "tied": BASE},
    "channels last": {"x": torch.arange(48.0).reshape(2, 3, 2, 4).contiguous(memory_format=torch.channels_last)},
    "one on top": {"x": torch.arange(77).expand(1, -1)},
    "odd sizes": {f"x{size}": torch.arange(size, dtype=torch.uint8) for size in (1, 2, 3, 5)} | {"y": BASE},
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", TENSORS)
def test_weights_are_those_that_were_saved(tmp_path: Path, writer: str, kind: str) -> None:
    path = tmp_path / "weights"
    WRITERS[writer](TENSORS[kind], path)
    checkpoint = open_file(path)
    assert checkpoint.format == writer.split(",", maxsplit=1)[0] and checkpoint.ignored == ()
    assert set(checkpoint.tensors) == set(TENSORS[kind])
    for name, expected in TENSORS[kind].items():
        found = checkpoint.tensors[name]
        assert (found.dtype, found.shape) == (str(expected.dtype).removeprefix("torch."), tuple(expected.shape))
        assert found.read().dtype == expected.dtype and torch.equal(found.read(), expected)


def test_a_file_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * ((8 - len(header)) % 4 + 1)
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.5, -2.0))
    found = open_safetensors(path).tensors["x"]
    assert found.start % 4 and found.read().data_ptr() % 4 == 0
    assert found.read().tolist() == [1.5, -2.0]


def test_opening_reads_nothing(tmp_path: Path) -> None:
    """A file of 64 GB that has holes: whoever reads it all would notice."""
    path = tmp_path / "weights.safetensors"
    count = 1 << 34
    header = json.dumps({"x": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * count)
    assert open_safetensors(path).tensors["x"].shape == (count,)


def header_of(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


def entry(dtype: str = "F32", shape: Any = (1,), start: int = 0, end: int = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


ONE = json.dumps(entry()).encode()
HEADERS: dict[str, tuple[bytes, str]] = {
    "a name twice": (b'{"x":' + ONE + b',"x":' + ONE + b"}", "'x' comes twice"),
    "a name twice, spelled otherwise": (b'{"x":' + ONE + b',"\\u0078":' + ONE + b"}", "'x' comes twice"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{"a":"b"},"x":' + ONE + b"}", "is not a safetensors file"),
    "a note twice": (b'{"__metadata__":{"a":"b","a":"c"},"x":' + ONE + b"}", "'a' comes twice"),
    "no name": (header_of(**{"": entry()}), "is not the name of a tensor"),
    "a line in a name": (header_of(**{"a\nb": entry()}), r"'a\\nb' is not the name"),
    "another alphabet": (header_of(**{"\u0430": entry()}), r"'\\u0430' is not the name"),
    "a long name": (header_of(**{"x" * 257: entry()}), "is not the name of a tensor"),
    "past the end": (header_of(x=entry(shape=(2,), end=8)), "is not a safetensors file"),
    "a gap": (header_of(x=entry(start=1, end=5)), "is not a safetensors file"),
    "an overlap": (header_of(x=entry(), y=entry()), "is not a safetensors file"),
    "another size": (header_of(x=entry(shape=(2,))), "is not a safetensors file"),
    "a size that overflows": (header_of(x=entry(shape=(1 << 40, 1 << 40))), "is not a safetensors file"),
    "a negative size": (header_of(x=entry(shape=(-1,))), "is not a safetensors file"),
    "a type nobody has": (header_of(x=entry("F128")), "is not a safetensors file"),
    "deep": (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not a safetensors file"),
    "no object": (b"[1]", "is not a safetensors file"),
    "no JSON": (b"{", "is not a safetensors file"),
    "no text": (b'{"\xff":1}', "is not a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_m2_a_header_that_is_not_right_is_refused(tmp_path: Path, kind: str) -> None:
    header, message = HEADERS[kind]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ModelError, match=message):
        read_header(path)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", struct.pack("<Q", 1 << 62), struct.pack("<Q", weights.LARGEST_HEADER + 1), bytes(8)]
)
def test_m2_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_header(path)


def test_a_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2, 3), "y": torch.zeros(1)}, path, {"modelspec.title": "t"})
    header = read_header(path)
    assert {name: (found.dtype, found.shape) for name, found in header.tensors.items()} == {
        "x": ("F32", (2, 3)),
        "y": ("F32", (1,)),
    }
    assert header.metadata == {"modelspec.title": "t"}


def resident() -> int:
    """Bytes of files that are in this process's memory."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    return int(line.split()[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_memory_is_given_back_and_filled_again(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.full((1 << 23,), 2.0)}, tmp_path / "x.safetensors")
    checkpoint = open_safetensors(tmp_path / "x.safetensors")
    tensor = checkpoint.tensors["x"].read()
    assert tensor.sum() == 1 << 24
    full = resident()
    checkpoint.release()
    assert full - resident() > 30_000_000
    assert tensor.sum() == 1 << 24


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(ModelError, match="x is F8_E4M3; known: F64"):
        open_safetensors(path)
