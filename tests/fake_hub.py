"""A small Hugging Face Hub on this machine: a server for metadata and git's files, another for large ones, and faults.

It speaks the real protocol, to which ``test_export_hub`` holds it with huggingface_hub's own client.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SIGNATURE = "signature-of-the-url"

Fault = Callable[["Handler", bytes], None]
"""Answers one request in its own way; it is given what the right answer would hold."""


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    server: str
    path: str
    headers: Mapping[str, str]

    @property
    def name(self) -> str:
        """The file, or ``metadata``."""
        return "metadata" if self.path.startswith("/api/") else self.path.split("/", 5)[-1]


@dataclass
class FakeHub:
    """One repository, with commits, branches, and what was asked of them."""

    repo: str = "owner/name"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    faults: dict[str, list[Fault | None]] = field(default_factory=dict)
    """File, or ``metadata`` -> what happens to the next requests for it; None is nothing."""
    endpoint: str = ""
    cdn: str = ""
    stopping: threading.Event = field(default_factory=threading.Event)

    def commit(self, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Add a commit and move a revision to it."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.revisions[revision] = commit
        return commit

    def names(self, server: str = "hub") -> list[str]:
        """What was asked for, in order."""
        return [seen.name for seen in self.seen if seen.server == server]

    def ranges(self, name: str) -> list[str | None]:
        """The range that each request for a file asked for."""
        return [seen.headers.get("range") for seen in self.seen if seen.name == name and seen.server == "hub"]

    def listing(self, commit: str, hashes: bool) -> dict[str, Any]:
        """The answer to a request for metadata."""
        files = [_listed(name, content, hashes) for name, content in self.commits[commit].items()]
        return {"id": self.repo, "modelId": self.repo, "sha": commit, "private": False, "tags": [], "siblings": files}


class Handler(BaseHTTPRequestHandler):
    """Both servers: ``server.role`` says which."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        seen = Seen(self.server.role, self.path, {key.lower(): value for key, value in self.headers.items()})
        hub.seen.append(seen)
        url = urlsplit(self.path)
        if self.server.role == "cdn":
            self.content(url.path.split("/", 5)[-1], hub.commits[url.path.split("/")[4]], {})
        elif url.path.startswith(f"/api/models/{hub.repo}/revision/"):
            self.metadata(unquote(url.path.rsplit("/", 1)[1]), parse_qs(url.query))
        elif url.path.startswith(f"/{hub.repo}/resolve/"):
            self.resolve(*url.path.removeprefix(f"/{hub.repo}/resolve/").split("/", 1))
        else:
            self.refuse(404, "RepoNotFound")

    def metadata(self, revision: str, query: Mapping[str, list[str]]) -> None:
        hub = self.server.hub
        commit = hub.revisions.get(revision, revision)
        if commit not in hub.commits:
            return self.refuse(404, "RevisionNotFound")
        hashes = query.get("blobs", [""])[0].lower() == "true"
        body = json.dumps(hub.listing(commit, hashes)).encode()
        if not self.faulty("metadata", body):
            self.answer(body, {"Content-Type": "application/json; charset=utf-8"})

    def resolve(self, revision: str, name: str) -> None:
        hub = self.server.hub
        commit, name = hub.revisions.get(unquote(revision), revision), unquote(name)
        if name not in hub.commits.get(commit, {}):
            return self.refuse(404, "EntryNotFound")
        content = hub.commits[commit][name]
        if not is_large(name):
            return self.content(name, hub.commits[commit], {"X-Repo-Commit": commit, "ETag": f'"{blob_id(content)}"'})
        self.redirect(
            f"{hub.cdn}/{hub.repo}/blob/{commit}/{name}?{SIGNATURE}",
            {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            },
        )

    def content(self, name: str, files: Mapping[str, bytes], headers: Mapping[str, str]) -> None:
        if self.command == "HEAD" or not self.faulty(name, files[name]):
            self.answer(files[name], headers)

    def faulty(self, name: str, body: bytes) -> bool:
        faults = self.server.hub.faults.get(name)
        fault = faults.pop(0) if faults else None
        if fault is not None:
            fault(self, body)
        return fault is not None

    def answer(self, body: bytes, headers: Mapping[str, str], *, ranges: bool = True) -> None:
        """All of ``body``, or the part that was asked for."""
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
        if start >= len(body) > 0:
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self.reply(206 if start else 200, body[start:], {**headers, **span})

    def reply(self, status: int, body: bytes, headers: Mapping[str, str], *, sent: int | None = None) -> None:
        """A whole answer, of which only the first ``sent`` bytes may follow."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])

    def redirect(self, target: str, headers: Mapping[str, str]) -> None:
        self.reply(302, b"", {"Location": target, **headers})

    def refuse(self, status: int, code: str | None = None) -> None:
        self.reply(status, b'{"error":"no"}', {"X-Error-Code": code} if code else {})

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """One of the two, with what its handler needs."""

    daemon_threads = True

    def __init__(self, role: str, hub: FakeHub, certificate: Path | None = None) -> None:
        self.role, self.hub = role, hub
        super().__init__(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what many tests are about."""


@contextmanager
def serve(certificate: Path | None = None) -> Iterator[FakeHub]:
    """A hub and its CDN, the former with TLS if there is a certificate, until the end of the block."""
    hub = FakeHub()
    servers = Server("hub", hub, certificate), Server("cdn", hub)
    hub.endpoint, hub.cdn = (server.url for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.stopping.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def is_large(name: str) -> bool:
    """Whether a file lies in LFS, outside git."""
    return name.endswith((".safetensors", ".bin"))


def blob_id(content: bytes) -> str:
    """What git calls these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _listed(name: str, content: bytes, hashes: bool) -> dict[str, Any]:
    if not hashes:
        return {"rfilename": name}
    if not is_large(name):
        return {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    lfs = {"sha256": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {"rfilename": name, "size": len(content), "blobId": blob_id(pointer), "lfs": lfs}


def cut(after: int) -> Fault:
    """The connection breaks after so many bytes of the answer."""

    def fault(handler: Handler, body: bytes) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        handler.reply(206 if start else 200, body[start:], span, sent=after)
        handler.close_connection = True

    return fault


def stall(after: int) -> Fault:
    """Nothing comes after so many bytes, but the connection stays."""

    def fault(handler: Handler, body: bytes) -> None:
        cut(after)(handler, body)
        handler.server.hub.stopping.wait(20)

    return fault


def drip(handler: Handler, body: bytes) -> None:
    """A byte now and then."""
    handler.reply(200, body, {}, sent=0)
    for byte in body:
        if handler.server.hub.stopping.wait(0.02):
            break
        handler.wfile.write(bytes([byte]))


def html(handler: Handler, body: bytes) -> None:
    """A login page, with a smile."""
    handler.reply(200, b"<!doctype html><title>Please log in</title>", {"Content-Type": "text/html"})


def wrong(handler: Handler, body: bytes) -> None:
    """As many bytes, but others."""
    handler.answer(bytes(255 - byte for byte in body), {})


def whole(handler: Handler, body: bytes) -> None:
    """Everything, whatever part was asked for."""
    handler.answer(body, {}, ranges=False)


def endless(handler: Handler, body: bytes) -> None:
    """More than there should be, with no length announced."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(body + body)
    handler.close_connection = True


def status(code: int, reason: str | None = None) -> Fault:
    """A refusal, with the Hub's own word for it."""
    return lambda handler, body: handler.refuse(code, reason)


def redirect(target: str) -> Fault:
    """Somewhere else."""
    return lambda handler, body: handler.redirect(target, {})


def then(do: Callable[[], object]) -> Fault:
    """Something happens, and the answer is right."""

    def fault(handler: Handler, body: bytes) -> None:
        do()
        handler.answer(body, {})

    return fault
