"""Files of the Hugging Face Hub in a real folder of the cache: named by their commit, every byte checked.

Which files of a repository are wanted is for others to say: ``models`` of the engine, and the converter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ovenbird import cache, transfer
from ovenbird.disk import is_disk_full
from ovenbird.errors import Cancelled, MissingExtraError, ModelError, OvenbirdError, RequestError, ResourceError
from ovenbird.progress import amount, note, stage
from ovenbird.transfer import File

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from requests import Session

REPO_ID = re.compile(r"\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
ENDPOINT = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d+)?(/[^\s@?#]*)?")
LONGEST_REVISION = 255
LARGEST_LISTING = 64 << 20

LOGIN = "set HF_TOKEN, or log in with: hf auth login"
AGAIN = "run the command again: it goes on where it stopped"
REFUSALS: Mapping[str | int, tuple[str, str]] = {
    "GatedRepoError": ("is gated", f"accept its terms at {{page}}, then {LOGIN}"),
    "RepositoryNotFoundError": (
        "does not exist, or is private",
        f"check the name, which is no folder here either; for a private one {LOGIN}",
    ),
    "RevisionNotFoundError": ("has no revision {revision!r}", "its branches and tags are listed at {page}/tree/main"),
    "DisabledRepoError": ("is disabled on the Hub", "see {page}"),
    401: ("is refused: the token is not valid", f"a public model needs none; else renew it: {LOGIN}"),
    403: ("is refused to this token", "accept the terms at {page}, or use a token that may read it"),
}
"""huggingface_hub's name of a refusal, or its status -> what the repository is, and what to do about it."""


@dataclass(frozen=True)
class Download:
    """A complete copy of what is wanted of one commit."""

    folder: Path
    repo: str
    revision: str
    """What was asked for: a branch, a tag or a commit."""
    commit: str

    @property
    def provenance(self) -> dict[str, str]:
        """Where it comes from, and not where it lies."""
        return {"repo": self.repo, "revision": self.revision, "commit": self.commit}


def is_hub_id(text: str) -> bool:
    """Whether ``text`` is the name of a repository, ``owner/name``, by the Hub's own rules."""
    return bool(REPO_ID.fullmatch(text)) and "--" not in text and ".." not in text and not text.endswith(".git")


@dataclass(frozen=True)
class Shelf:
    """Where the commits of one repository lie, and what is known of them without asking."""

    repo: str
    kind: str = ""
    """What is taken of the repository, where that is not all that there is to it."""

    @property
    def home(self) -> Path:
        """With a folder for each commit.  Raises ``ResourceError`` where there is no cache."""
        root = cache.root()
        if root is None:
            raise ResourceError("there is no folder to download to", hint="set OVENBIRD_CACHE to one")
        return root / "hub" / self.name

    @property
    def name(self) -> str:
        """Of the folder."""
        return "--".join([*self.repo.split("/"), *([self.kind] if self.kind else [])])  # no name contains that

    def commit(self, revision: str) -> str | None:
        """Where a revision was when it was last asked for."""
        known = revision.encode() if COMMIT.fullmatch(revision) else cache.read(self.key(_short(revision), "revision"))
        found = known.decode(errors="replace") if known else ""
        return found if COMMIT.fullmatch(found) else None

    def files(self, commit: str, part: str = "") -> list[File] | None:
        """What was complete, of a commit or a part of one; None if it never was."""
        listed = cache.read(self.key(f"{commit}{part and '.'}{part}", "complete"))
        try:
            files = [File(**facts) for facts in json.loads(listed or b"null") or ()]
        except (ValueError, TypeError, RecursionError):  # another version's
            return None
        return files if files and all(map(_is_whole, files)) else None

    def remember(self, revision: str, commit: str, files: Iterable[File], part: str = "") -> None:
        """That these files of a commit are complete, and that the revision is at it."""
        listed = json.dumps([asdict(file) for file in files]).encode()
        cache.write(self.key(f"{commit}{part and '.'}{part}", "complete"), listed)
        cache.write(self.key(_short(revision), "revision"), commit.encode())

    def key(self, name: str, kind: str) -> str:
        """Of a note in the cache."""
        return f"hub/{self.name}/{name}.{kind}"


@dataclass(frozen=True)
class Repository:
    """One repository at one endpoint."""

    endpoint: str
    name: str
    session: Session

    def resolve(self, revision: str) -> tuple[str, dict[str, File]]:
        """The commit that the revision is at now, and what it lists: name -> file, which ``pick`` checks."""
        # HfApi.model_info asks the same, but gives up at the first 503, follows a redirect to http, and fails on
        # fields that we do not need.
        with stage(f"{self.name}: asking {urlsplit(self.endpoint).netloc} for {revision}"):
            url = f"{self.endpoint}/api/models/{self.name}/revision/{quote(revision, safe='')}?blobs=true"
            body = transfer.read(self.session, url, LARGEST_LISTING)
        try:
            facts = json.loads(body)
            commit, files = str(facts["sha"]), [_listed(entry) for entry in facts["siblings"]]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(f"{self.endpoint} does not answer as the Hub does", hint=transfer.BETWEEN) from error
        if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
            raise ModelError(f"{self.endpoint} says that {self.name} {revision} is commit {commit[:64]!r}")
        note(f"{self.name} {revision} is commit {commit}")
        return commit, {file.name: file for file in files}

    def bring(self, files: Iterable[File], folder: Path, commit: str) -> None:
        """Put each file in its place, by the commit and by no other name."""
        from huggingface_hub import hf_hub_url

        for file in files:
            with stage(f"{file.name} ({amount(file.size)})") as advance:
                url = hf_hub_url(self.name, file.name, revision=commit, endpoint=self.endpoint)
                transfer.bring(self.session, url, file, folder, advance)


Fill = Callable[[Repository, Path, str, Mapping[str, File]], list[File]]
"""(repository, folder, commit, what it lists): completes the folder; the files that are needed."""


def download(shelf: Shelf, fill: Fill, *, revision: str | None = None, offline: bool = False) -> Download:
    """Bring what ``fill`` wants of a repository into the cache, or find it there.

    The revision, ``main`` unless given, is resolved to a commit once, and everything is asked for by that.
    ``offline``, or HF_HUB_OFFLINE, takes the commit that the revision was at when it was last downloaded.  Every file
    is hashed each time.

    Raises ``RequestError`` for what does not exist or is not allowed, ``ModelError`` when the repository is not of the
    wanted kind or other bytes arrive than it lists, ``ResourceError`` when network or disk cannot do it, ``Cancelled``
    for Ctrl-C, and ``MissingExtraError``.  What has arrived stays, and the next call goes on from there.
    """
    if not is_hub_id(shelf.repo):
        raise RequestError(f"{shelf.repo!r} is not a repository of the Hub", hint="give OWNER/NAME")
    revision = checked_revision(revision)
    if is_offline(offline):
        return _stored(shelf, revision)
    with opened(shelf, revision) as repository:
        commit, listing = repository.resolve(revision)
        with alone(shelf, commit) as folder:
            shelf.remember(revision, commit, fill(repository, folder, commit, listing))
        return Download(folder, shelf.repo, revision, commit)


@contextmanager
def opened(shelf: Shelf, revision: str) -> Iterator[Repository]:
    """The repository of a shelf, where HF_ENDPOINT says; what goes wrong inside is said in our words."""
    endpoint = _endpoint()
    try:
        import huggingface_hub.errors  # noqa: F401
        import requests  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), "hub") from error
    with _translated(f"{endpoint}/{shelf.repo}", shelf.repo, revision, shelf.home), transfer.open_session() as session:
        yield Repository(endpoint, shelf.repo, session)


@contextmanager
def alone(shelf: Shelf, commit: str) -> Iterator[Path]:
    """The folder of a commit, once no other process works on it."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder, path = shelf.home / commit, shelf.home / f"{commit}.lock"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=1))
        except TimeoutError:
            with stage(f"waiting until another process leaves {path}"):
                stack.enter_context(WeakFileLock(path))
        yield folder


def is_offline(asked: bool) -> bool:
    """Whether nobody may be asked, as in HF_HUB_OFFLINE."""
    return asked or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def checked_revision(revision: str | None) -> str:
    """``main`` for None.  Raises ``RequestError``."""
    if revision is None:
        return "main"
    if not revision or len(revision) > LONGEST_REVISION or not revision.isprintable():
        raise RequestError(
            f"revision: {revision[:64]!r} is not a branch, a tag or a commit", hint="leave it out for main"
        )
    return revision


def never_downloaded(shelf: Shelf, what: str) -> RequestError:
    """What to say when there is no network and nothing on the disk."""
    return RequestError(
        f"{what} was never downloaded completely to {shelf.home}",
        hint="run once without --offline and HF_HUB_OFFLINE, or set OVENBIRD_CACHE to where it was downloaded",
    )


def pick(listing: Mapping[str, File], name: str, largest: int | None = None) -> File:
    """A file that is listed with size and hash, and not larger than this.  Raises ``ModelError``."""
    file = listing.get(name)
    if file is None:
        raise ModelError(f"the repository has no {name}", hint="whoever made it may have left it out")
    if not _is_whole(file):
        raise ModelError(f"no size and hash are listed for {name}", hint="the mirror in HF_ENDPOINT may not know them")
    if largest is not None and file.size > largest:
        raise ModelError(f"{name} is larger than {largest >> 20} MiB")
    return file


def require_space(folder: Path, files: Iterable[File]) -> None:
    """Raises ``ResourceError`` when there is no room for what is not there yet."""
    needed, free = 0, shutil.disk_usage(folder).free
    for file in files:
        there = (folder / file.name, folder / f"{file.name}.part")
        needed += file.size - sum(path.stat().st_size for path in there if path.is_file())
    if free < needed:
        raise ResourceError(
            f"{folder} has {free / 1e9:.1f} GB free; the download needs {needed / 1e9:.1f} GB",
            hint="make room, or set OVENBIRD_CACHE to a larger disk",
        )


def check_files(folder: Path, files: Iterable[File]) -> None:
    """Hash every file.  Raises ``ModelError`` for the first that is not what was downloaded."""
    for file in files:
        path = transfer.place(folder, file.name)
        if not file.is_at(path):
            raise ModelError(f"{path} is missing or damaged", hint="run once without --offline")


def _stored(shelf: Shelf, revision: str) -> Download:
    """What lies there complete, without a network."""
    commit = shelf.commit(revision)
    files = shelf.files(commit) if commit else None
    if commit is None or files is None:
        raise never_downloaded(shelf, f"{shelf.repo} {revision}")
    note(f"{shelf.repo} {revision} was commit {commit} when it was downloaded")
    folder = shelf.home / commit
    with stage(f"{shelf.repo}: checking {len(files)} files"):
        check_files(folder, files)
    return Download(folder, shelf.repo, revision, commit)


def _endpoint() -> str:
    # huggingface_hub reads it when it is imported, which may be before it is set.
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not ENDPOINT.fullmatch(endpoint):
        shown = endpoint.rpartition("@")[2]  # without a password
        raise RequestError(f"HF_ENDPOINT: {shown!r} is no server's address", hint="unset it, for the Hub itself")
    return endpoint


def _is_whole(file: File) -> bool:
    """Whether size and hash are listed; either may be missing, or anything else."""
    return (
        type(file.name) is str
        and type(file.size) is int
        and file.size >= 0
        and bool(DIGEST.fullmatch(str(file.digest)))
    )


def _short(revision: str) -> str:
    return hashlib.sha256(revision.encode()).hexdigest()[:16]


def _listed(entry: Mapping[str, Any]) -> File:
    lfs = entry.get("lfs")
    size, digest = (lfs["size"], lfs["sha256"]) if lfs else (entry.get("size"), entry.get("blobId"))
    return File(str(entry["rfilename"]), size, digest)  # type: ignore[arg-type]


@contextmanager
def _translated(page: str, repo: str, revision: str, home: Path) -> Iterator[None]:
    """Errors of huggingface_hub, requests and the disk in our words; urls may carry a signature, so none is quoted."""
    from huggingface_hub.errors import HfHubHTTPError
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except OvenbirdError:
        raise
    except KeyboardInterrupt as interrupt:
        raise Cancelled("the download was stopped", hint=AGAIN) from interrupt
    except HfHubHTTPError as error:
        raise _refusal(error, page, repo, revision) from error
    except (RequestException, HTTPError) as error:
        raise ResourceError(f"{repo}: the connection failed: {_root(error)}", hint=AGAIN) from error
    except OSError as error:
        if is_disk_full(error, home):
            raise ResourceError(f"the disk of {home} is full", hint=f"make room, then {AGAIN}") from error
        raise ResourceError(f"{error.filename or home}: {error.strerror or error}") from error


def _refusal(error: HfHubHTTPError, page: str, repo: str, revision: str) -> OvenbirdError:
    status = error.response.status_code if error.response is not None else 0
    known = REFUSALS.get(type(error).__name__) or REFUSALS.get(status)
    if known is None:
        return ResourceError(f"{repo}: the answer is an error, status {status}", hint=f"wait, then {AGAIN}")
    message, hint = (text.format(page=page, revision=revision) for text in known)
    return RequestError(f"{repo} {message}", hint=hint)


def _root(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error) or type(error).__name__
