"""``ovenbird verify``: bytes against the manifest, numbers against the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ovenbird.errors import MissingExtraError

pytest.importorskip("torch")
pytest.importorskip("optimum")

import export_tiny

from ovenbird.cli import main
from ovenbird_export import publish, sources, verify
from ovenbird_export.sources import Wanted

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and optimum, while they are imported
]


def ovenbird(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "tiny"
    (folder.parent / "prompts.txt").write_text("a red house\na boat\n")
    options = ("--precision", "fp16,int8", "--calibration", folder.parent / "prompts.txt")
    assert ovenbird("export", "synthetic:tiny", folder, *options).exit_code == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def manifest(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "ovenbird.json").read_text())
    return value


def spoil(path: Path) -> None:
    """The same size, other bytes."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 0x3F for byte in content[middle : middle + 64])
    path.write_bytes(content)


def test_every_variant_is_compared_byte_by_byte(made: Path) -> None:
    result = ovenbird("verify", made, "--bytes")
    assert result.exit_code == 0 and result.stderr == ""
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{made / 'fp16'}: sha256 of ") and second.startswith(f"{made / 'int8'}: sha256 of ")


def test_other_bytes_of_the_same_size_are_found_but_not_by_size(copy: Path) -> None:
    spoil(copy / "fp16" / "unet" / "openvino_model.bin")
    assert ovenbird("verify", copy, "--quick").exit_code == 0
    result = ovenbird("verify", copy, "--bytes")
    assert result.exit_code == 3
    assert f"error: {copy / 'fp16' / 'unet' / 'openvino_model.bin'} is damaged" in result.stderr


def test_a_file_cut_short_is_found_by_its_size(copy: Path) -> None:
    path = copy / "int8" / "unet" / "openvino_model.bin"
    path.write_bytes(path.read_bytes()[:-1])
    result = ovenbird("verify", copy / "int8", "--quick")
    assert result.exit_code == 3 and f"error: {path} has" in result.stderr


def test_a_file_that_nobody_listed_is_told_of(copy: Path) -> None:
    (copy / "fp16" / "unet" / "extra.bin").write_bytes(b"?")
    result = ovenbird("verify", copy / "fp16", "--bytes")
    assert result.exit_code == 0 and "extra.bin is not named by the manifest" in result.stderr


def test_without_a_manifest_there_is_nothing_to_compare_with(copy: Path) -> None:
    (copy / "fp16" / "ovenbird.json").unlink()
    result = ovenbird("verify", copy / "fp16")
    assert result.exit_code == 3 and "has no ovenbird.json" in result.stderr


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_the_export(made: Path, precision: str) -> None:
    result = ovenbird("verify", made / precision, "--json")
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)["folders"]
    assert found["compared"] == "sha256" and found["path"] == str(made / precision)
    assert found["verification"] == manifest(made / precision)["verification"]


def test_weights_that_are_not_the_sources_miss_the_gate(copy: Path) -> None:
    folder = copy / "fp16"
    spoil(folder / "vae_decoder" / "openvino_model.bin")
    facts = {key: value for key, value in manifest(folder).items() if key != "files"}
    (folder / "ovenbird.json").unlink()
    publish.write_manifest(folder, facts)  # whoever changed them has made the manifest agree
    assert ovenbird("verify", folder, "--bytes").exit_code == 0
    result = ovenbird("verify", folder)
    assert result.exit_code == 5
    assert "error: vae_decoder on openvino differs from torch by" in result.stderr


def test_another_source_is_refused(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    export_tiny.write_source(other)
    result = ovenbird("verify", made / "fp16", "--source", other)
    assert result.exit_code == 2
    assert "was made from something else: sha256" in result.stderr and "hint: give the same --source" in result.stderr
    assert "sha256 of" in result.stdout  # the bytes were compared before


def test_other_parts_than_the_folders_are_refused(copy: Path) -> None:
    folder = copy / "fp16"
    facts = manifest(folder)
    facts["verification"]["components"]["safety_checker"] = {}
    publish.write_json(folder / "ovenbird.json", facts)
    result = ovenbird("verify", folder, "--source", "synthetic:tiny")
    assert result.exit_code == 2 and "--no-safety-checker" in result.stderr


@pytest.mark.parametrize("asked", [True, False])
def test_without_torch_numbers_are_left_out_aloud(made: Path, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    def absent() -> dict[str, str]:
        raise MissingExtraError("torch", "export")

    monkeypatch.setattr(verify, "tool_versions", absent)
    result = ovenbird("verify", made / "fp16", *(("--source", "synthetic:tiny") if asked else ()))
    assert "torch is not installed" in result.stderr
    assert result.exit_code == (3 if asked else 0)  # what was asked for must be done


def test_a_folder_is_not_found_again_by_itself(made: Path, copy: Path) -> None:
    facts = manifest(copy / "fp16")
    facts["source"]["name"] = "tiny"
    publish.write_json(copy / "fp16" / "ovenbird.json", facts)
    result = ovenbird("verify", copy / "fp16")
    assert result.exit_code == 0 and "give it as --source" in result.stderr


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"name": "synthetic:tiny", "seed": "0"}, Wanted("synthetic:tiny")),
        (
            {"name": "a/b", "repo": "a/b", "revision": "main", "commit": "0" * 40},
            Wanted("a/b", revision="0" * 40, offline=True),
        ),
        ({"name": "folder"}, None),
        ({}, None),
    ],
)
def test_what_a_manifest_tells_of_its_source(facts: dict[str, str], expected: Wanted | None) -> None:
    assert sources.recorded(facts) == expected


@pytest.mark.parametrize(
    "words",
    [("--lora", "x.safetensors"), ("--source", "synthetic:tiny", "--quick"), ("--source", "synthetic:tiny", "--bytes")],
)
def test_options_without_effect_are_refused(made: Path, words: tuple[str, ...]) -> None:
    result = ovenbird("verify", made / "fp16", *words)
    assert result.exit_code == 2 and "has no effect" in result.stderr
