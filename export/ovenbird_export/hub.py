"""A model of the Hugging Face Hub in a real folder of the cache: named by its commit, every byte checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ovenbird import cache
from ovenbird.bundle import read_json
from ovenbird.errors import Cancelled, ModelError, OvenbirdError, RequestError, ResourceError
from ovenbird_export import transfer
from ovenbird_export.progress import amount, note, stage
from ovenbird_export.publish import is_disk_full
from ovenbird_export.source import CARD, LARGEST_TEXT, PICKLES, WEIGHTS, Source
from ovenbird_export.transfer import File

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from requests import Session

REPO_ID = re.compile(r"\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
ENDPOINT = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d+)?(/[^\s@?#]*)?")
LONGEST_REVISION = 255
LARGEST_LISTING = 64 << 20

INDEX = "model_index.json"
WEIGHTED = ("text_encoder", "text_encoder_2", "unet", "vae", "tiny_vae", "safety_checker")
TOKENIZERS = ("tokenizer", "tokenizer_2")
VOCABULARY = ("vocab.json", "merges.txt")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "scheduler": ("scheduler_config.json",),
    **dict.fromkeys(TOKENIZERS, VOCABULARY),
    "feature_extractor": ("preprocessor_config.json",),
    **dict.fromkeys(WEIGHTED, ("config.json",)),
}
OPTIONAL = dict.fromkeys(TOKENIZERS, ("tokenizer_config.json", "special_tokens_map.json"))
"""Component -> its files beside the weights.  No other name is ever asked for, whatever a repository lists."""

LOGIN = "set HF_TOKEN, or log in with: hf auth login"
AGAIN = "run the command again: it goes on where it stopped"
REFUSALS: Mapping[str | int, tuple[str, str]] = {
    "GatedRepoError": ("is gated", f"accept its terms at {{page}}, then {LOGIN}"),
    "RepositoryNotFoundError": ("does not exist, or is private", f"check the name; for a private one {LOGIN}"),
    "RevisionNotFoundError": ("has no revision {revision!r}", "its branches and tags are listed at {page}/tree/main"),
    "DisabledRepoError": ("is disabled on the Hub", "see {page}"),
    401: ("is refused: the token is not valid", f"a public model needs none; else renew it: {LOGIN}"),
    403: ("is refused to this token", "accept the terms at {page}, or use a token that may read it"),
}
"""huggingface_hub's name of a refusal, or its status -> what the repository is, and what to do about it."""


@dataclass(frozen=True)
class Download:
    """A complete copy of what one commit has of a diffusers folder."""

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


def download(repo: str, *, revision: str | None = None, offline: bool = False) -> Download:
    """Bring what the export needs of ``repo`` into the cache, or find it there; ``revision`` is ``main`` unless given.

    The revision is resolved to a commit once, and everything is asked for by that.  ``offline``, or HF_HUB_OFFLINE,
    takes the commit that the revision was at when it was last downloaded.  Every file is hashed each time.

    Raises ``RequestError`` for what does not exist or is not allowed, ``ModelError`` when the repository is of a kind
    that cannot be exported or other bytes arrive than it lists, ``ResourceError`` when network or disk cannot do it,
    and ``Cancelled`` for Ctrl-C.  What has arrived stays, and the next call goes on from there.
    """
    return _download(repo, revision, _home(repo), offline, Repository.fill)


def download_tokenizer(repo: str, *, revision: str | None = None, offline: bool = False) -> tuple[Path, Download]:
    """The folder with CLIP's vocabulary in ``repo``, and nothing else of it; otherwise as ``download``."""
    found = _download(repo, revision, _home(f"{repo}/tokenizer"), offline, Repository.fill_tokenizer)
    return next(found.folder.rglob(VOCABULARY[0])).parent, found


def _download(repo: str, revision: str | None, home: Path, offline: bool, fill: Fill) -> Download:
    if not is_hub_id(repo):
        raise RequestError(f"{repo!r} is not a repository of the Hub", hint="give OWNER/NAME")
    revision = _checked_revision("main" if revision is None else revision)
    endpoint = _endpoint()
    with _translated(f"{endpoint}/{repo}", repo, revision, home):
        if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            return _stored(repo, revision, home)
        with transfer.open_session() as session:
            return Repository(endpoint, repo, session).download(revision, home, fill)


@dataclass(frozen=True)
class Repository:
    """One repository at one endpoint."""

    endpoint: str
    name: str
    session: Session

    def download(self, revision: str, home: Path, fill: Fill) -> Download:
        """Resolve ``revision``, and complete ``home/<commit>`` with what ``fill`` takes."""
        with stage(f"{self.name}: asking {urlsplit(self.endpoint).netloc} for {revision}"):
            commit, listing = self.resolve(revision)
        note(f"{self.name} {revision} is commit {commit}")
        folder = home / commit
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(home / f"{commit}.lock"):
            files = fill(self, folder, commit, listing)
            cache.write(_complete_key(home, commit), json.dumps([asdict(file) for file in files]).encode())
            cache.write(_revision_key(home, revision), commit.encode())
        return Download(folder, self.name, revision, commit)

    def resolve(self, revision: str) -> tuple[str, dict[str, File]]:
        """The commit that the revision is at now, and what it lists: name -> file, which ``_pick`` checks."""
        # HfApi.model_info asks the same, but gives up at the first 503, follows a redirect to http, and fails on
        # fields that we do not need.
        url = f"{self.endpoint}/api/models/{self.name}/revision/{quote(revision, safe='')}?blobs=true"
        body = transfer.read(self.session, url, LARGEST_LISTING)
        try:
            facts = json.loads(body)
            commit, files = str(facts["sha"]), [_listed(entry) for entry in facts["siblings"]]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(f"{self.endpoint} does not answer as the Hub does", hint=transfer.BETWEEN) from error
        if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
            raise ModelError(f"{self.endpoint} says that {self.name} {revision} is commit {commit[:64]!r}")
        return commit, {file.name: file for file in files}

    def fill(self, folder: Path, commit: str, listing: Mapping[str, File]) -> list[File]:
        """Complete ``folder``: what is small first, so that what cannot be exported is refused before gigabytes."""
        index = _pick(listing, INDEX)
        self.bring([index], folder, commit)
        named = [key for key, value in read_json(folder / INDEX).items() if isinstance(value, list) and any(value)]
        texts = [_pick(listing, name) for name in _text_names(named, listing)]
        self.bring(texts, folder, commit)
        left_out = Source.open(folder).left_out
        weighted = [name for name in named if name in WEIGHTED and name not in left_out]
        weights = [_pick(listing, _weights_name(listing, name)) for name in weighted]
        _require_space(folder, weights)
        self.bring(weights, folder, commit)
        return [index, *texts, *weights]

    def fill_tokenizer(self, folder: Path, commit: str, listing: Mapping[str, File]) -> list[File]:
        """Complete ``folder`` with a vocabulary, which lies at the top or where diffusers has it."""
        place = "" if VOCABULARY[0] in listing else "tokenizer/"
        files = [_pick(listing, place + name) for name in VOCABULARY]
        self.bring(files, folder, commit)
        return files

    def bring(self, files: Iterable[File], folder: Path, commit: str) -> None:
        """Put each file in its place, by the commit and by no other name."""
        from huggingface_hub import hf_hub_url

        for file in files:
            with stage(f"{file.name} ({amount(file.size)})"):
                url = hf_hub_url(self.name, file.name, revision=commit, endpoint=self.endpoint)
                transfer.bring(self.session, url, file, folder)


Fill = Callable[[Repository, Path, str, Mapping[str, File]], list[File]]
"""Completes the folder of a commit from what it lists; the files that are needed."""


def _endpoint() -> str:
    # huggingface_hub reads it when it is imported, which may be before it is set.
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not ENDPOINT.fullmatch(endpoint):
        shown = endpoint.rpartition("@")[2]  # without a password
        raise RequestError(f"HF_ENDPOINT: {shown!r} is no server's address", hint="unset it, for the Hub itself")
    return endpoint


def _home(repo: str) -> Path:
    root = cache.root()
    if root is None:
        raise ResourceError("there is no folder to download to", hint="set OVENBIRD_CACHE to one")
    return root / "hub" / repo.replace("/", "--")  # which no name contains


def _complete_key(home: Path, commit: str) -> str:
    return f"hub/{home.name}/{commit}.complete"


def _revision_key(home: Path, revision: str) -> str:
    return f"hub/{home.name}/{hashlib.sha256(revision.encode()).hexdigest()[:16]}.revision"


def _checked_revision(revision: str) -> str:
    if not revision or len(revision) > LONGEST_REVISION or not revision.isprintable():
        raise RequestError(
            f"revision: {revision[:64]!r} is not a branch, a tag or a commit", hint="leave it out for main"
        )
    return revision


def _stored(repo: str, revision: str, home: Path) -> Download:
    """What lies there complete, without a network."""
    known = revision.encode() if COMMIT.fullmatch(revision) else cache.read(_revision_key(home, revision))
    commit = (known or b"").decode()
    listed = cache.read(_complete_key(home, commit)) if commit else None
    if listed is None:
        raise RequestError(
            f"{repo} {revision} was never downloaded completely to {home}",
            hint="run once without --offline and HF_HUB_OFFLINE, or set OVENBIRD_CACHE to where it was downloaded",
        )
    note(f"{repo} {revision} was commit {commit} when it was downloaded")
    files = [File(**facts) for facts in json.loads(listed)]
    with stage(f"{repo}: checking {len(files)} files"):
        for file in files:
            path = transfer.place(home / commit, file.name)
            if not file.is_at(path):
                raise ModelError(f"{path} is missing or damaged", hint="run once without --offline")
    return Download(home / commit, repo, revision, commit)


def _listed(entry: Mapping[str, Any]) -> File:
    lfs = entry.get("lfs")
    size, digest = (lfs["size"], lfs["sha256"]) if lfs else (entry.get("size"), entry.get("blobId"))
    return File(str(entry["rfilename"]), size, digest)  # type: ignore[arg-type]


def _text_names(named: Iterable[str], listing: Collection[str]) -> list[str]:
    names = [name for name in CARD if name in listing]
    for component in named:
        names += [f"{component}/{name}" for name in NEEDED.get(component, ())]
        optional = [f"{component}/{name}" for name in OPTIONAL.get(component, ())]
        names += [name for name in optional if name in listing]
    return names


def _weights_name(listing: Collection[str], component: str) -> str:
    for name in WEIGHTS:
        if f"{component}/{name}" in listing:
            return f"{component}/{name}"
    there = sorted(name for name in listing if name.startswith(f"{component}/"))
    if any(name.endswith(".safetensors.index.json") for name in there):
        raise ModelError(
            f"the weights of {component} are spread over several files, which cannot be read",
            hint="load the model with diffusers and save it with save_pretrained(folder, max_shard_size='100GB')",
        )
    for name in there:
        if name.endswith(PICKLES):
            raise ModelError(
                f"{component} has only pickled weights ({name}), which can run any code when they are read",
                hint="safetensors may wait in a branch or a pull request: see there, and give --revision refs/pr/N",
            )
    raise ModelError(f"{component} has no weights", hint=f"it needs one of: {', '.join(WEIGHTS[:2])}")


def _pick(listing: Mapping[str, File], name: str) -> File:
    file = listing.get(name)
    if file is None:
        raise ModelError(f"the repository has no {name}", hint="it needs to be one that diffusers saved")
    if not isinstance(file.size, int) or file.size < 0 or not DIGEST.fullmatch(str(file.digest)):
        raise ModelError(f"no size and hash are listed for {name}", hint="the mirror in HF_ENDPOINT may not know them")
    if file.size > LARGEST_TEXT and not name.endswith(WEIGHTS):
        raise ModelError(f"{name} is larger than {LARGEST_TEXT >> 20} MiB")
    return file


def _require_space(folder: Path, files: Iterable[File]) -> None:
    needed, free = 0, shutil.disk_usage(folder).free
    for file in files:
        there = (folder / file.name, folder / f"{file.name}.part")
        needed += file.size - sum(path.stat().st_size for path in there if path.is_file())
    if free < needed:
        raise ResourceError(
            f"{folder} has {free / 1e9:.1f} GB free; the download needs {needed / 1e9:.1f} GB",
            hint="make room, or set OVENBIRD_CACHE to a larger disk",
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process works on the same commit."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=1))
        except TimeoutError:
            with stage(f"waiting until another process leaves {path}"):
                stack.enter_context(WeakFileLock(path))
        yield


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
