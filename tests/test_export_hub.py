"""The download from the Hub: real sockets, real clients, and a server that does what servers should not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import export_tiny
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovenbird.errors import Cancelled, ModelError, OvenbirdError, RequestError, ResourceError

pytest.importorskip("huggingface_hub")

import fake_hub
from fake_hub import FakeHub, Fault

from ovenbird import hub as hub_module
from ovenbird import transfer
from ovenbird.hub import Download, is_hub_id
from ovenbird.models import TOKENIZERS, VOCABULARY
from ovenbird_export.hub import NEEDED, OPTIONAL, download

pytestmark = pytest.mark.export

REPO = "owner/name"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXTS = {
    "model_index.json",
    "README.md",
    "LICENSE",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "special_tokens_map.json")),
    *(f"{part}/config.json" for part in ("text_encoder", "unet", "vae")),
}
WEIGHTS = {"text_encoder/model.safetensors", UNET, "vae/diffusion_pytorch_model.safetensors"}
UNWANTED = {
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "safety_checker/config.json",  # the index does not name it
    "safety_checker/model.safetensors",
    "vae_1_0/config.json",
    "v1-5-pruned.ckpt",
    "pipeline.py",
    "unet/modeling.py",
    ".gitattributes",
    "tokenizer/tokenizer.json",
}


def repository(tmp_path: Path, **index: object) -> dict[str, bytes]:
    """A small repository with everything that one may hold; the weights are noise, which nothing here reads."""
    export_tiny.write_index(tmp_path / "index", **index)
    draw = random.Random(0).randbytes
    files = {name: f"{name} of the model".encode() for name in TEXTS | UNWANTED}
    files |= {name: draw(200_000 + 1000 * size) for size, name in enumerate(sorted(WEIGHTS))}
    return files | {"model_index.json": (tmp_path / "index" / "model_index.json").read_bytes()}


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache, login, mirror or proxy of the user's; and nobody waits."""
    from huggingface_hub import constants

    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(transfer, "BACKOFF_S", 0.0)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return repository(tmp_path)


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The server, with one commit; afterwards, whatever happened, the token was shown to the hub alone."""
    with fake_hub.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint + "/")
        server.commit(files)
        yield server
        assert not [seen for seen in server.seen if seen.server == "cdn" and "authorization" in seen.headers]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def assert_complete(found: Download, files: dict[str, bytes]) -> None:
    assert names(found.folder) == TEXTS | WEIGHTS
    for path in found.folder.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.read_bytes() == files[path.relative_to(found.folder).as_posix()]


def refused(kind: type[OvenbirdError], message: str, **options: object) -> OvenbirdError:
    """The error of a download; neither it nor what caused it shows the token or a signed address to the user."""
    with pytest.raises(kind, match=message) as caught:
        download(REPO, **options)  # type: ignore[arg-type]
    shown = f"{caught.value} {caught.value.hint}"
    assert TOKEN not in shown and fake_hub.SIGNATURE not in shown
    return caught.value


@pytest.mark.parametrize("text", ["a/b", "CompVis/stable-diffusion-v1-4", "a_b/c.d", "0/1", "a/" + "b" * 96])
def test_names_of_repositories(text: str) -> None:
    assert is_hub_id(text)


NO_NAMES = "|a|a/|/b|a/b/c|./a|../a|a/..|a--b/c|a/b.git|-a/b|a b/c|a\\b|a/b\n|a/b\0|ä/b|synthetic:tiny"


@pytest.mark.parametrize("text", [*NO_NAMES.split("|"), "a/" + "b" * 97])
def test_what_is_no_name_of_a_repository(text: str) -> None:
    assert not is_hub_id(text)
    with pytest.raises(RequestError, match="is not a repository"):
        download(text)


@settings(deadline=None)  # the first import takes its time
@given(st.text("aZ0_-./", max_size=12))
def test_the_rules_are_those_of_huggingface_hub(text: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
        valid = "/" in text
    except HFValidationError:
        valid = False
    assert is_hub_id(text) == valid


def test_the_fake_is_one_that_huggingface_hub_knows(hub: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    info = api.model_info(REPO, revision="main", files_metadata=True)
    assert info.sha == hub.revisions["main"] and info.siblings is not None
    assert {file.rfilename: file.size for file in info.siblings} == {name: len(files[name]) for name in files}
    for name in ("README.md", UNET):
        path = hf_hub_download(
            REPO, name, local_dir=tmp_path / "local", cache_dir=tmp_path / "hf", endpoint=hub.endpoint, token=TOKEN
        )
        assert Path(path).read_bytes() == files[name]


def test_what_the_export_needs_arrives_and_nothing_else(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.revisions["main"]
    found = download(REPO)
    assert found.folder == tmp_path / "cache" / "hub" / "owner--name" / commit
    assert found.provenance == {"repo": REPO, "revision": "main", "commit": commit}
    assert_complete(found, files)
    assert sorted(hub.names()) == sorted(["metadata", *TEXTS, *WEIGHTS])
    assert hub.names()[:2] == ["metadata", "model_index.json"] and set(hub.names()[-3:]) == WEIGHTS
    assert all(f"/resolve/{commit}/" in seen.path for seen in hub.seen[1:] if seen.server == "hub")
    assert {seen.headers["authorization"] for seen in hub.seen if seen.server == "hub"} == {f"Bearer {TOKEN}"}
    assert {seen.headers["user-agent"].split("/")[0] for seen in hub.seen} == {"ovenbird"}
    assert {seen.headers["accept-encoding"] for seen in hub.seen} == {"identity"}
    lines = capsys.readouterr().err
    assert f"note: owner/name main is commit {commit}\n" in lines
    assert f"{UNET} (0.2 MB) ... " in lines and TOKEN not in lines
    assert len(lines.splitlines()) == 2 + len(TEXTS | WEIGHTS)


def test_the_second_time_one_request_is_made_and_offline_none(hub: FakeHub, files: dict[str, bytes]) -> None:
    first = download(REPO)
    hub.seen.clear()
    assert download(REPO) == first
    assert hub.names() == ["metadata"]
    hub.seen.clear()
    assert download(REPO, offline=True) == first
    assert hub.seen == []
    assert_complete(first, files)


@pytest.mark.parametrize("switch", ["1", "true", "ON"])
def test_the_usual_variable_means_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", switch)
    error = refused(RequestError, "never downloaded completely")
    assert error.hint is not None and "without --offline" in error.hint
    assert hub.seen == []


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", "a b", "ü"])
def test_revisions_of_every_kind(hub: FakeHub, files: dict[str, bytes], revision: str) -> None:
    commit = hub.commit(files | {"README.md": revision.encode()}, revision)
    found = download(REPO, revision=revision)
    assert (found.revision, found.commit) == (revision, commit)
    assert download(REPO, revision=revision, offline=True) == found
    assert download(REPO, revision=commit, offline=True).folder == found.folder
    assert (found.folder / "README.md").read_text() == revision
    refused(RequestError, "never downloaded", offline=True)  # main was not


@pytest.mark.parametrize("revision", ["", "a\nb", "x" * 256])
def test_what_is_no_revision_is_not_asked_for(hub: FakeHub, revision: str) -> None:
    refused(RequestError, "is not a branch, a tag or a commit", revision=revision)
    assert hub.seen == []


def test_m8_a_branch_that_moves_meanwhile_changes_nothing(hub: FakeHub, files: dict[str, bytes]) -> None:
    newer = {name: content[::-1] for name, content in files.items()} | {"model_index.json": files["model_index.json"]}
    before = hub.revisions["main"]
    hub.faults["model_index.json"] = [fake_hub.then(lambda: hub.commit(newer))]
    found = download(REPO)
    assert found.commit == before != hub.revisions["main"]
    assert_complete(found, files)
    assert download(REPO, offline=True) == found
    again = download(REPO)
    assert again.commit == hub.revisions["main"]
    assert_complete(again, newer)
    assert_complete(found, files)
    assert download(REPO, offline=True) == again


@pytest.mark.parametrize("answer", [{"sha": "../../evil"}, {"sha": None}, {"sha": "A" * 40}])
def test_m8_a_commit_is_a_commit(hub: FakeHub, tmp_path: Path, answer: dict[str, object]) -> None:
    hub.faults["metadata"] = [lambda handler, body: handler.answer(json.dumps(json.loads(body) | answer).encode(), {})]
    refused(ModelError, "says that owner/name main is commit")
    assert names(tmp_path / "cache") == set()


def test_m8_a_commit_that_was_asked_for_is_not_another(hub: FakeHub) -> None:
    hub.revisions["a" * 40] = hub.revisions["main"]
    refused(ModelError, "is commit", revision="a" * 40)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>", b'{"sha": "x", "siblings": [1]}', b"[" * 100_000])
def test_an_answer_that_is_not_the_hubs_is_refused(hub: FakeHub, body: bytes) -> None:
    hub.faults["metadata"] = [lambda handler, _: handler.answer(body, {})]
    refused(ModelError, "does not answer as the Hub does")


@pytest.mark.parametrize("fault", [fake_hub.cut(70_000), fake_hub.stall(70_000)])
def test_m9_a_connection_that_breaks_is_resumed(
    hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_S", 1.0)
    hub.faults[UNET] = [fault, fake_hub.cut(30_000)]
    assert_complete(download(REPO), files)
    assert hub.ranges(UNET) == [None, "bytes=70000-", "bytes=100000-"]


def test_one_that_always_breaks_is_given_up_and_gone_on_with_later(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults[UNET] = [fake_hub.cut(1000)] * 5
    error = refused(ResourceError, "the connection failed: .*IncompleteRead")
    assert error.hint is not None and "goes on" in error.hint
    refused(RequestError, "never downloaded completely", offline=True)
    hub.seen.clear()
    assert_complete(download(REPO), files)
    assert hub.ranges(UNET) == ["bytes=5000-"]
    assert set(hub.names()) == {"metadata", UNET, "vae/diffusion_pytorch_model.safetensors"}


def test_progress_earns_more_attempts(hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PROGRESS_BYTES", 10_000)
    hub.faults[UNET] = [fake_hub.cut(10_000)] * 15
    assert_complete(download(REPO), files)


def test_m9_a_drip_is_given_up(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WINDOW_S", 0.1)
    monkeypatch.setattr(transfer, "RETRIES", 1)
    hub.faults[UNET] = [fake_hub.drip] * 9
    started = time.monotonic()
    refused(ResourceError, r"only \d+ bytes came in 0.1 s")
    assert time.monotonic() - started < 30  # the whole would take an hour


def test_a_server_that_knows_no_ranges_starts_again(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.faults[UNET] = [fake_hub.cut(70_000), fake_hub.whole]
    assert_complete(download(REPO), files)
    assert hub.ranges(UNET) == [None, "bytes=70000-"]


@pytest.mark.parametrize("name", [UNET, "unet/config.json", "model_index.json"])
@pytest.mark.parametrize("fault", [fake_hub.wrong, fake_hub.endless])
def test_m9_other_bytes_are_tried_once_more(hub: FakeHub, files: dict[str, bytes], name: str, fault: Fault) -> None:
    hub.faults[name] = [fault]
    assert_complete(download(REPO), files)


@pytest.mark.parametrize("name", [UNET, "unet/config.json", "model_index.json"])
@pytest.mark.parametrize("fault", [fake_hub.wrong, fake_hub.endless])
def test_m9_other_bytes_never_take_the_files_place(hub: FakeHub, tmp_path: Path, name: str, fault: Fault) -> None:
    hub.faults[name] = [fault] * 2
    refused(ModelError, f"{name} arrived twice with other bytes")
    assert not [path for path in names(tmp_path / "cache") if name in path]
    refused(RequestError, "never downloaded completely", offline=True)


def test_a_part_that_was_spoiled_on_the_disk_is_replaced(hub: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.faults[UNET] = [fake_hub.cut(70_000), fake_hub.status(403)]
    refused(RequestError, "is refused")
    part = next(tmp_path.rglob("*.part"))
    part.write_bytes(b"x" * part.stat().st_size)
    assert_complete(download(REPO), files)


def test_m9_a_page_instead_of_the_file_is_noticed_and_what_was_there_is_kept(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults[UNET] = [fake_hub.cut(70_000), *[fake_hub.html] * 5]
    error = refused(ModelError, f"{UNET} has 201000 bytes; .* offers 43 of text/html, status 200")
    assert error.hint is not None and "login page" in error.hint
    assert next(tmp_path.rglob("*.part")).stat().st_size == 70_000
    hub.faults[UNET] = [fake_hub.html]
    assert_complete(download(REPO), files)


def test_m9_a_file_that_is_shorter_than_listed_is_noticed(hub: FakeHub) -> None:
    hub.faults[UNET] = [fake_hub.cut(70_000)] + [lambda handler, body: handler.answer(body[:10], {})] * 5
    refused(ModelError, r"offers bytes \*/10 of no type, status 416")


@pytest.mark.parametrize(
    ("name", "fault", "kind", "message", "hint"),
    [
        ("metadata", fake_hub.status(401, "RepoNotFound"), RequestError, "does not exist, or is private", "HF_TOKEN"),
        ("metadata", fake_hub.status(404, "RepoNotFound"), RequestError, "does not exist, or is private", "HF_TOKEN"),
        (
            "metadata",
            fake_hub.status(404, "RevisionNotFound"),
            RequestError,
            "has no revision 'main'",
            "/owner/name/tree",
        ),
        ("metadata", fake_hub.status(401), RequestError, "the token is not valid", "a public model needs none"),
        (UNET, fake_hub.status(401, "GatedRepo"), RequestError, "is gated", "accept its terms at http://127"),
        (UNET, fake_hub.status(403, "GatedRepo"), RequestError, "is gated", "hf auth login"),
        (UNET, fake_hub.status(403), RequestError, "is refused to this token", "accept the terms"),
        (UNET, fake_hub.status(404, "EntryNotFound"), ResourceError, "status 404", "again"),
        (UNET, fake_hub.status(503), ResourceError, "status 503", "again"),
        (UNET, fake_hub.status(429), ResourceError, "status 429", "again"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: FakeHub, name: str, fault: Fault, kind: type[OvenbirdError], message: str, hint: str
) -> None:
    hub.faults[name] = [fault] * 10
    error = refused(kind, message)
    assert error.hint is not None and hint in error.hint


def test_a_busy_server_is_asked_again(hub: FakeHub, files: dict[str, bytes]) -> None:
    busy: list[Fault | None] = [fake_hub.status(503), fake_hub.status(429), fake_hub.status(502)]
    hub.faults |= {name: busy.copy() for name in ("metadata", "unet/config.json", UNET)}
    assert_complete(download(REPO), files)


def test_a_repository_that_does_not_exist(hub: FakeHub) -> None:
    with pytest.raises(RequestError, match="somebody/else does not exist"):
        download("somebody/else")


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        refused(ResourceError, "the connection failed: .*refused")


@pytest.mark.parametrize(
    "endpoint", ["huggingface.co", "ftp://example.org", "https://", f"https://me:{TOKEN}@example.org", "https://["]
)
def test_an_endpoint_is_a_server(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    refused(RequestError, "HF_ENDPOINT: .* is no server's address")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path) + ".crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.mark.parametrize("name", ["text_encoder/model.safetensors", "model_index.json", "metadata"])
def test_m9_who_began_with_https_is_not_led_away_from_it(
    certificate: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{certificate}.crt")
    with fake_hub.serve(certificate) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        commit = server.commit(files)
        if not fake_hub.is_large(name):  # those are elsewhere, at an address with http
            server.faults[name] = [fake_hub.redirect(f"{server.cdn}/{REPO}/blob/{commit}/README.md")]
        refused(ResourceError, "redirects away from https, to 127.0.0.1")
        assert server.names("cdn") == [] and server.names().count(name) == 1
        assert server.endpoint.startswith("https:") and "metadata" in server.names()


def test_m9_a_server_that_cannot_prove_who_it_is(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub.serve(certificate) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        refused(ResourceError, "CERTIFICATE_VERIFY_FAILED")
        assert server.seen == []


def test_a_renamed_repository_is_followed_with_the_token(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.faults["metadata"] = [fake_hub.redirect(f"/api/models/{REPO}/revision/main?blobs=true")]
    assert_complete(download(REPO), files)
    assert [seen.headers.get("authorization") for seen in hub.seen[:2]] == [f"Bearer {TOKEN}"] * 2


def test_a_netrc_neither_replaces_the_token_nor_goes_elsewhere(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login anonymous password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert_complete(download(REPO), files)
    assert {seen.headers.get("authorization") for seen in hub.seen if seen.server == "hub"} == {f"Bearer {TOKEN}"}
    assert {seen.headers.get("authorization") for seen in hub.seen if seen.server == "cdn"} == {None}


@pytest.mark.parametrize("place", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "login", None])
def test_the_token_comes_from_the_usual_places(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if place == "login":
        (tmp_path / "token").write_text(TOKEN)
    elif place:
        monkeypatch.setenv(place, TOKEN)
    download(REPO)
    assert hub.seen[0].headers.get("authorization") == (f"Bearer {TOKEN}" if place else None)


@pytest.mark.parametrize("token", [TOKEN + "\N{HORIZONTAL ELLIPSIS}", TOKEN + "\t1"])
def test_a_token_that_cannot_be_one_is_not_sent(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    refused(RequestError, "has characters that no token has")
    assert hub.seen == []


def test_the_disk_is_asked_before_the_weights_are(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=600_000))
    error = refused(ResourceError, "has 0.0 GB free; the download needs 0.0 GB")
    assert error.hint is not None and "OVENBIRD_CACHE" in error.hint
    assert set(hub.names()) == {"metadata", *TEXTS}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=603_000))
    download(REPO)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    download(REPO)  # all is there


@pytest.mark.skipif(os.name == "nt", reason="has no such limit")
def test_a_disk_that_fills_up_is_said_and_gone_on_with(hub: FakeHub, files: dict[str, bytes]) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        refused(ResourceError, "the disk of .* is full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_complete(download(REPO), files)
    assert hub.ranges("text_encoder/model.safetensors") == [None, "bytes=150000-"]


def test_a_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "file"))
    refused(ResourceError, "Not a directory")


@pytest.mark.skipif(os.name == "nt", reason="signals are not sent there")
@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_stops_at_once_and_keeps_what_came(hub: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    def interrupt(handler: fake_hub.Handler, body: bytes) -> None:
        fake_hub.cut(70_000)(handler, body)
        while arrived(tmp_path) < 70_000:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        hub.stopping.wait(20)

    hub.faults[UNET] = [interrupt]
    error = refused(Cancelled, "was stopped")
    assert error.hint is not None and "goes on" in error.hint
    assert_complete(download(REPO), files)
    assert hub.ranges(UNET) == [None, "bytes=70000-"]


def arrived(folder: Path) -> int:
    """How much there is of what is not complete."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors.part"))


RUN = f"from ovenbird_export.hub import download; print(download({REPO!r}).folder)"


def test_a_killed_process_is_gone_on_with_by_the_next_ones(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults[UNET] = [fake_hub.stall(1_000)]
    killed = subprocess.Popen([sys.executable, "-c", RUN], stderr=subprocess.PIPE)
    while not hub.ranges(UNET) or arrived(tmp_path) < 1000:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    _, shown = killed.communicate()
    assert TOKEN.encode() not in shown and UNET.encode() in shown
    found: list[Download] = []
    both = [threading.Thread(target=lambda: found.append(download(REPO))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found[0] == found[1]
    assert_complete(found[0], files)
    assert hub.ranges(UNET) == [None, "bytes=1000-"]


def test_two_at_once_wait_for_each_other(
    hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(text: str) -> AbstractContextManager[None]:
        if text.startswith("waiting until another process leaves"):
            waits.set()
        return stage(text)

    def begin_another() -> None:
        other.start()
        waits.wait(20)

    waits, stage = threading.Event(), hub_module.stage
    monkeypatch.setattr(hub_module, "stage", watched)
    second: list[Download] = []
    other = threading.Thread(target=lambda: second.append(download(REPO)))
    hub.faults["model_index.json"] = [fake_hub.then(begin_another)]
    first = download(REPO)
    other.join()
    assert second == [first]
    assert waits.is_set()
    assert_complete(first, files)
    assert hub.names().count(UNET) == 1


def test_m7_a_repository_of_hostile_names_gives_only_the_known_ones(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    evil = ["../evil.json", "/etc/evil", "unet/../../evil", "unet\\..\\evil", "unet/config.json\0", "C:evil", "con"]
    evil += ["UNET/config.json", "unet/Config.json", "unet//config.json", "unet/./config.json", "unet/config.json/x"]
    hub.commit(files | dict.fromkeys([*evil, *(f"unet/{n}.safetensors" for n in range(100_000))], b"evil"))
    found = download(REPO)
    assert_complete(found, files)
    assert sorted(hub.names()) == sorted(["metadata", *TEXTS, *WEIGHTS])
    assert {path.split("/")[0] for path in names(tmp_path)} <= {"index", "cache"}


@pytest.mark.parametrize("link", ["unet", UNET, f"{UNET}.part"])
def test_m7_a_link_in_the_cache_is_not_followed(hub: FakeHub, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    path = tmp_path / "cache" / "hub" / "owner--name" / hub.revisions["main"] / link
    path.parent.mkdir(parents=True)
    path.symlink_to(outside if link == "unet" else outside / "file")
    refused(ModelError, "leads out of its folder")
    assert (outside / "file").read_text() == "mine" and len(list(outside.iterdir())) == 1


@pytest.mark.parametrize("name", [UNET, "tokenizer/vocab.json"])
def test_m9_a_damaged_file_is_found_each_time(hub: FakeHub, files: dict[str, bytes], name: str) -> None:
    found = download(REPO)
    path = found.folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    error = refused(ModelError, f"{name} is missing or damaged", offline=True)
    assert error.hint == "run once without --offline"
    hub.seen.clear()
    assert_complete(download(REPO), files)
    assert hub.names() == ["metadata", name]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "'FluxPipeline' cannot be exported"),
        ({"unet": ["my_module", "Evil"]}, "unet may not be a my_module.Evil"),
        ({"../evil": ["diffusers", "Evil"]}, "'../evil' is not known"),
    ],
)
def test_m6_what_cannot_be_exported_is_refused_before_its_weights_travel(
    hub: FakeHub, tmp_path: Path, index: dict[str, object], message: str
) -> None:
    hub.commit(repository(tmp_path, **index))
    refused(ModelError, message)
    assert not hub.names("cdn")


def test_only_components_that_the_index_names_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit(repository(tmp_path, safety_checker=[None, None]))
    assert not (download(REPO).folder / "safety_checker").exists()


WITHOUT = sorted(TEXTS - {"README.md", "LICENSE", "tokenizer/special_tokens_map.json"})


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_missing_is_named(hub: FakeHub, files: dict[str, bytes], name: str) -> None:
    del files[name]
    hub.commit(files)
    refused(ModelError, f"the repository has no {name}")
    assert not hub.names("cdn")


def test_weights_in_half_precision_are_taken_when_there_are_no_others(hub: FakeHub, files: dict[str, bytes]) -> None:
    del files[UNET]
    hub.commit(files)
    assert names(download(REPO).folder / "unet") == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}


@pytest.mark.parametrize(
    ("instead", "message", "hint"),
    [
        (
            "diffusion_pytorch_model.bin",
            r"unet has only pickled weights \(unet/diffusion_pytorch_model.bin\)",
            "refs/pr/N",
        ),
        ("diffusion_pytorch_model.safetensors.index.json", "the weights of unet are spread", "max_shard_size"),
        ("README.md", "unet has no weights", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_weights_that_cannot_be_used_are_said(
    hub: FakeHub, files: dict[str, bytes], instead: str, message: str, hint: str
) -> None:
    there = {name: content for name, content in files.items() if not name.startswith("unet/diffusion")}
    hub.commit(there | {f"unet/{instead}": b"x"})
    error = refused(ModelError, message)
    assert error.hint is not None and hint in error.hint
    assert not hub.names("cdn")


def test_a_text_that_is_too_large_is_not_fetched(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.commit(files | {"README.md": b"x" * (5 << 20)})
    refused(ModelError, "README.md is larger than 4 MiB")
    assert "README.md" not in hub.names()


@pytest.mark.parametrize("spoil", [{"size": None}, {"size": -1}, {"blobId": None}, {"blobId": "x"}])
def test_m9_a_listing_without_hashes_is_refused(hub: FakeHub, spoil: dict[str, object]) -> None:
    def fault(handler: fake_hub.Handler, body: bytes) -> None:
        listing = json.loads(body)
        listing["siblings"] = [entry | spoil for entry in listing["siblings"]]
        handler.answer(json.dumps(listing).encode(), {})

    hub.faults["metadata"] = [fault]
    refused(ModelError, "no size and hash are listed for model_index.json")


def test_an_empty_file_is_a_file(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.commit(files := files | {"LICENSE": b""})
    assert_complete(download(REPO), files)


def test_the_list_of_wanted_names_has_no_clashes() -> None:
    wanted = [f"{part}/{name}" for part, found in NEEDED.items() for name in found]
    wanted += [f"{part}/{name}" for part in TOKENIZERS for name in VOCABULARY]
    wanted += [f"{part}/{name}" for part, found in OPTIONAL.items() for name in found]
    assert len({name.lower() for name in wanted}) == len(wanted)
    assert not [name for name in wanted if name.endswith((".py", ".bin", ".ckpt"))]


def test_the_module_is_light_to_import() -> None:
    code = "import sys, ovenbird_export.hub; print({'torch', 'requests', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
