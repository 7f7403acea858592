from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ovenbird import Bundle, ModelError, RequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A variant with two files and a true manifest, made without the export."""
    model = tmp_path / "toy" / "fp16"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (model / "unet" / "weights.bin").write_bytes(bytes(range(256)) * 10)
    files = {
        str(path.relative_to(model).as_posix()): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in model.rglob("*")
        if path.is_file()
    }
    write_manifest(model, format=1, name="toy", family="sd", precision="fp16", files=files)
    return model


def write_manifest(folder: Path, **content: Any) -> None:
    (folder / "ovenbird.json").write_text(json.dumps(content))


def change_manifest(folder: Path, **changes: Any) -> None:
    write_manifest(folder, **(json.loads((folder / "ovenbird.json").read_text()) | changes))


def test_a_variant_is_found_below_its_model(folder: Path) -> None:
    for path, precision in ((folder, None), (folder.parent, None), (folder.parent, "fp16")):
        bundle = Bundle.open(path, precision)
        assert (bundle.path, bundle.name, bundle.family, bundle.precision) == (folder, "toy", "sd", "fp16")
        bundle.verify()


def test_a_variant_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="fp32") as caught:
        Bundle.open(folder.parent, "fp32")
    assert caught.value.hint == "it has: fp16"
    with pytest.raises(RequestError, match="fp32"):
        Bundle.open(folder, "fp32")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RequestError) as caught:
        Bundle.open("sd16")
    assert "nestling" in str(caught.value.hint)


def test_a_folder_without_manifest_opens_unverified(folder: Path) -> None:
    (folder / "ovenbird.json").unlink()
    bundle = Bundle.open(folder)
    assert bundle.manifest is None and bundle.key is None
    bundle.verify_once()


def test_e3_one_flipped_bit_is_found(folder: Path) -> None:
    path = folder / "unet" / "weights.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    bundle = Bundle.open(folder)
    bundle.verify(full=False)
    with pytest.raises(ModelError, match=r"weights\.bin is damaged"):
        bundle.verify()


def test_e3_swapped_files_are_found_after_a_good_run(folder: Path) -> None:
    Bundle.open(folder).verify_once()
    path = folder / "unet" / "weights.bin"
    stat = path.stat()
    twin = path.with_suffix(".new")
    twin.write_bytes(bytes(2560))
    os.utime(twin, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(twin, path)
    with pytest.raises(ModelError, match="damaged"):
        Bundle.open(folder).verify_once()


def test_an_untouched_folder_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bundle.open(folder).verify_once()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    Bundle.open(folder).verify_once()


@pytest.mark.parametrize(("damage", "message"), [("truncate", "2560"), ("unlink", "missing")])
def test_e4_a_short_or_missing_file_is_named(folder: Path, damage: str, message: str) -> None:
    path = folder / "unet" / "weights.bin"
    if damage == "truncate":
        os.truncate(path, 5)
    else:
        path.unlink()
    with pytest.raises(ModelError, match=message):
        Bundle.open(folder).verify(full=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a":' * 100_000, "\xff"])
def test_e4_broken_json_is_a_model_error(folder: Path, text: str) -> None:
    for name in ("model_index.json", "ovenbird.json"):
        copy = folder.parent / "copy"
        shutil.copytree(folder, copy)
        (copy / name).write_text(text, encoding="latin-1")
        with pytest.raises(ModelError):
            Bundle.open(copy)
        shutil.rmtree(copy)


def test_e13_a_newer_format_is_refused(folder: Path) -> None:
    change_manifest(folder, format=2)
    with pytest.raises(ModelError, match="format 2"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "unet/../../outside"])
def test_m7_a_manifest_that_points_outside_is_refused(folder: Path, name: str) -> None:
    change_manifest(folder, files={name: {"size": 0, "sha256": ""}})
    with pytest.raises(ModelError, match="outside"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["EvilPipeline", "", "StableDiffusion3Pipeline"])
def test_m6_an_unknown_pipeline_class_is_refused(folder: Path, name: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    (folder / "ovenbird.json").unlink()
    with pytest.raises(ModelError, match="not supported"):
        Bundle.open(folder)


def test_other_exporters_class_names_are_known(folder: Path) -> None:
    (folder / "ovenbird.json").unlink()
    for prefix in ("OV", "ORT"):
        (folder / "model_index.json").write_text(json.dumps({"_class_name": f"{prefix}StableDiffusionPipeline"}))
        assert Bundle.open(folder).family == "sd"
