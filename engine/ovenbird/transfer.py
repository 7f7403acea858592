"""Bytes over a network that may stall, stop or lie: resumed, and believed when size and hash are the listed ones.

huggingface_hub's own download stands in the way: it compares sizes and no hashes, gives up at a cut connection and
loses what it held in memory, waits for ever for a slow drip, follows a redirect from https to http, and takes a file
from another cache or over another protocol as it likes.  So requests, which it brings along, does the fetching.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ovenbird.errors import ModelError, RequestError, ResourceError

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

TIMEOUT_S = 30.0
"""For a connection, and for any sign of life after it."""
WINDOW_S, SLOWEST_BYTES = 60.0, 64 << 10
"""A connection that brings less than this in a window has stalled."""
RETRIES, BACKOFF_S, PROGRESS_BYTES = 4, 1.0, 1 << 20
"""Retries are counted anew after one that brought so much."""
BUSY = (408, 429, 500, 502, 503, 504)
CHUNK_BYTES = 64 << 10
BETWEEN = "a proxy or a login page may stand between; try another network"


@dataclass(frozen=True)
class File:
    """A file as a repository lists it."""

    name: str
    size: int
    digest: str
    """Its sha256 or, of a small file that git itself keeps, the sha1 of the git blob."""

    def is_at(self, path: Path) -> bool:
        """Whether exactly its bytes lie there."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        blob = partial(hashlib.sha1, f"blob {self.size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            return (
                self.digest == hashlib.file_digest(file, hashlib.sha256 if len(self.digest) == 64 else blob).hexdigest()
            )


def place(folder: Path, name: str) -> Path:
    """Where a file belongs in ``folder``.  Raises ``ModelError`` when that leads out of it, as through a link."""
    path = folder / name
    if path.resolve() != folder.resolve() / name:
        raise ModelError(f"{path} leads out of its folder", hint=f"remove {folder}")
    return path


def open_session() -> Session:
    """Connections that carry the user's token, try again when a server is busy, and never leave https once in it.

    Raises ``RequestError`` for a token that cannot be one.
    """
    import requests
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    from ovenbird import __version__

    # The user agent lists no packages, and nothing is compressed, so that bytes can be counted.
    headers = build_hf_headers(headers={"user-agent": f"ovenbird/{__version__}", "accept-encoding": "identity"})
    token = headers.get("authorization", "")
    if not token.isascii() or not token.isprintable():
        raise RequestError(
            "the token in HF_TOKEN, or of the login, has characters that no token has", hint="copy it again"
        )
    session = requests.Session()
    session.rebuild_auth = partial(_keep_to_host, session)  # type: ignore[method-assign]
    session.auth = lambda request: request  # else .netrc goes before the token
    retry = Retry(
        RETRIES,
        backoff_factor=BACKOFF_S,
        status_forcelist=BUSY,
        raise_on_status=False,
        respect_retry_after_header=False,  # it may ask for hours
    )
    for prefix in ("https://", "http://"):
        session.mount(prefix, HTTPAdapter(max_retries=retry))
    session.headers.update(headers)
    session.hooks["response"].append(_refuse_downgrade)
    return session


def _keep_to_host(session: Session, request: PreparedRequest, response: Response) -> None:
    """For a redirect, without a look into .netrc, whose password would go to other hosts in place of the token."""
    if session.should_strip_auth(str(response.request.url), str(request.url)):
        request.headers.pop("Authorization", None)


def read(session: Session, url: str, most: int) -> bytes:
    """A small answer, cut off after ``most`` bytes."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    with session.get(url, stream=True, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        return b"".join(_chunks(response, most))


def bring(session: Session, url: str, file: File, folder: Path, advance: Callable[[float], None]) -> None:
    """Put one file in its place, which it takes only when its bytes are the listed ones; nothing, if they are there.

    ``advance`` is told which share of it has arrived.

    Raises ``ModelError`` when other bytes arrive, and what huggingface_hub, requests, urllib3 and the disk raise.
    """
    path, part = place(folder, file.name), place(folder, f"{file.name}.part")
    if file.is_at(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        _complete(session, url, file, part, advance)
        if file.is_at(part):
            os.replace(part, path)
            return
        part.unlink()
    raise ModelError(f"{file.name} arrived twice with other bytes than its repository lists", hint=BETWEEN)


def _complete(session: Session, url: str, file: File, part: Path, advance: Callable[[float], None]) -> None:
    """Go on with ``part`` until it has the file's size, over as many connections as that takes."""
    from huggingface_hub.errors import HfHubHTTPError
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    part.touch()
    idle = 0
    while (have := part.stat().st_size) < file.size:
        try:
            _append(session, url, file, part, advance)
        except HfHubHTTPError:  # a RequestException, but final
            raise
        except (ModelError, RequestException, HTTPError):
            idle = 0 if part.stat().st_size - have >= PROGRESS_BYTES else idle + 1
            if idle > RETRIES:
                raise
            time.sleep(BACKOFF_S * 2**idle)


def _append(session: Session, url: str, file: File, part: Path, advance: Callable[[float], None]) -> None:
    """Ask once for what is missing."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]
    from requests import ConnectionError

    have = part.stat().st_size
    headers = {"range": f"bytes={have}-"} if have else {}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code != 416:
            hf_raise_for_status(response)
        _require_offer(response, file, have)
        with part.open("ab" if response.status_code == 206 else "wb") as target:
            # One byte more than there should be is enough to see that it is another file.
            for chunk in _chunks(response, file.size - target.tell() + 1):
                target.write(chunk)
                target.flush()  # what has arrived survives a kill
                advance(target.tell() / file.size)
    if part.stat().st_size < file.size:
        raise ConnectionError("the connection was closed too early")


def _require_offer(response: Response, file: File, have: int) -> None:
    """Raise ``ModelError`` unless the answer is the file, or the rest of it after ``have`` bytes."""
    status, headers = response.status_code, response.headers
    span, length = headers.get("content-range", ""), headers.get("content-length", str(file.size))
    if status == 206 and span.startswith(f"bytes {have}-") and span.endswith(f"/{file.size}"):
        return
    if status == 200 and length == str(file.size):
        return
    found = f"{span or length} of {headers.get('content-type', 'no type')}, status {status}"
    raise ModelError(f"{file.name} has {file.size} bytes; {urlsplit(response.url).netloc} offers {found}", hint=BETWEEN)


def _chunks(response: Response, most: int) -> Iterator[bytes]:
    """The body as it arrives, up to ``most`` bytes.  Raises ``requests.Timeout`` when it only drips."""
    from requests import Timeout

    started, got = time.monotonic(), 0
    # iter_content would wait until a chunk is full, and lose it when that never happens.
    while most > 0 and (chunk := response.raw.read1(min(most, CHUNK_BYTES), decode_content=False)):
        yield chunk
        most -= len(chunk)
        got += len(chunk)
        if time.monotonic() - started > WINDOW_S:
            if got < SLOWEST_BYTES:
                raise Timeout(f"only {got} bytes came in {WINDOW_S:g} s")
            started, got = time.monotonic(), 0


def _refuse_downgrade(response: Response, **_: Any) -> None:
    # requests itself drops the token when a redirect leaves the host.
    target = urljoin(response.url, response.headers.get("location", ""))
    if response.is_redirect and urlsplit(response.url).scheme == "https" and urlsplit(target).scheme != "https":
        response.close()  # nobody else has it yet
        raise ResourceError(f"{urlsplit(response.url).netloc} redirects away from https, to {urlsplit(target).netloc}")
