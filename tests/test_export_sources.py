"""What people name becomes a diffusers folder; here, what a single file lacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovenbird import transfer
from ovenbird.errors import ModelError, RequestError, ResourceError

pytest.importorskip("huggingface_hub")
pytest.importorskip("torch")

import fake_hub
from fake_hub import FakeHub

from ovenbird_export import original, sources
from ovenbird_export.sources import CLIP, Origin, Wanted, locate

pytestmark = pytest.mark.export

VOCABULARY = {"vocab.json": b"{}", "merges.txt": b"#version: 0.2\n"}


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "BACKOFF_S", 0.0)


@pytest.fixture(autouse=True)
def unpacked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the reader of single files is given; it has its own tests."""
    given: dict[str, Any] = {}

    def unpack(file: Path, target: Path, *, tokenizer: Path, prediction_type: str | None) -> dict[str, str]:
        given.update(file=file, vocabulary={name: (tokenizer / name).read_bytes() for name in VOCABULARY})
        return {"file": file.name}

    monkeypatch.setattr(original, "unpack", unpack)
    return given


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.repo = CLIP
        yield server


def locate_file(tmp_path: Path, tokenizer: str | None = None, *, offline: bool = False) -> Origin:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    return locate(Wanted(str(file), tokenizer=tokenizer, offline=offline), tmp_path)


def test_a_file_gets_the_vocabulary_that_all_have_from_the_hub(
    tmp_path: Path, hub: FakeHub, unpacked: dict[str, Any]
) -> None:
    commit = hub.commit({**VOCABULARY, "pytorch_model.bin": b"x" * 10, "README.md": b"clip"})
    found = locate_file(tmp_path)
    assert unpacked["vocabulary"] == VOCABULARY
    assert found.provenance == {"file": "model.safetensors", "tokenizer": f"{CLIP} {commit}"}
    assert set(hub.names()) == {"metadata", *VOCABULARY}  # and nothing else of it


def test_it_is_downloaded_once(tmp_path: Path, hub: FakeHub) -> None:
    hub.commit(VOCABULARY)
    first = locate_file(tmp_path)
    hub.seen.clear()
    assert locate_file(tmp_path, offline=True) == first
    assert not hub.seen


def test_another_repository_may_have_it_where_diffusers_puts_it(
    tmp_path: Path, hub: FakeHub, unpacked: dict[str, Any]
) -> None:
    hub.repo = "owner/name"
    hub.commit({f"tokenizer/{name}": content for name, content in VOCABULARY.items()})
    locate_file(tmp_path, "owner/name")
    assert unpacked["vocabulary"] == VOCABULARY


def test_a_folder_is_taken_as_it_is(tmp_path: Path, unpacked: dict[str, Any]) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for name, content in VOCABULARY.items():
        (folder / name).write_bytes(content)
    assert locate_file(tmp_path, str(folder)).provenance["tokenizer"] == "clip"
    assert unpacked["vocabulary"] == VOCABULARY


@pytest.mark.parametrize(("offline", "kind"), [(True, RequestError), (False, ResourceError)])
def test_without_a_network_the_hint_says_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, kind: type[Exception]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    with pytest.raises(kind, match=r"^tokenizer: ") as caught:
        locate_file(tmp_path, offline=offline)
    assert "--tokenizer" in str(getattr(caught.value, "hint", ""))


def test_a_repository_without_a_vocabulary_is_refused(tmp_path: Path, hub: FakeHub) -> None:
    hub.commit({"README.md": b"clip"})
    with pytest.raises(ModelError, match=r"has no vocab\.json"):
        locate_file(tmp_path)


def test_the_default_is_the_one_that_the_help_names() -> None:
    from ovenbird_export.cli import export

    (option,) = [p for p in export.params if p.name == "tokenizer"]
    assert sources.CLIP in (getattr(option, "help", "") or "")


def test_a_tokenizer_as_transformers_5_writes_it_will_do(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(original, "unpack", lambda *_, tokenizer, **__: seen.extend(tokenizer.iterdir()) or {})
    hub.commit({"tokenizer/tokenizer.json": b"{}", "model.safetensors": b"weights"})
    locate_file(tmp_path)
    assert [path.name for path in seen] == ["tokenizer.json"]


@pytest.mark.parametrize("place", ["", "fp16"])
def test_what_an_export_wrote_is_no_source(tmp_path: Path, place: str) -> None:
    (tmp_path / "out" / place).mkdir(parents=True)
    (tmp_path / "out" / place / "ovenbird.json").write_text("{}")
    with pytest.raises(RequestError, match="is what an export wrote"):
        locate(Wanted(str(tmp_path / "out")), tmp_path)


def test_a_folder_that_is_no_model_and_somebody_who_is_nobody(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        locate(Wanted(str(tmp_path / "empty")), tmp_path)
    for text in ("~nosuchuser/x", "x" * 300):
        with pytest.raises(RequestError, match="neither a folder"):
            locate(Wanted(text), tmp_path)
