"""A model by its name, its folder, or its name on the Hugging Face Hub: found, downloaded if it must be, and opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ovenbird import cache, hub
from ovenbird.bundle import (
    COMPONENTS,
    FORMATS,
    IR,
    LARGEST_JSON,
    MANIFEST,
    ONNX,
    PRECISIONS,
    Bundle,
    find,
    model_roots,
    variants,
)
from ovenbird.choice import DEFAULT_BACKEND, Choice, Leeway
from ovenbird.disk import is_folder
from ovenbird.errors import MissingExtraError, ModelError, RequestError, ResourceError
from ovenbird.hub import COMMIT, Download, Repository, Shelf
from ovenbird.progress import note
from ovenbird.text import checked_tokenizer
from ovenbird.transfer import File

INDEX = "model_index.json"
TOKENIZERS = ("tokenizer", "tokenizer_2")
VOCABULARY, MODERN = ("vocab.json", "merges.txt"), "tokenizer.json"
"""Of a tokenizer: what it needs, and what transformers 5 writes instead."""
TOKENIZER = (*VOCABULARY, MODERN, "tokenizer_config.json", "special_tokens_map.json")
TEXTS: Mapping[str, tuple[str, ...]] = {
    "": (INDEX, MANIFEST, "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"),
    "scheduler": ("scheduler_config.json",),
    "feature_extractor": ("preprocessor_config.json",),
    **dict.fromkeys(TOKENIZERS, TOKENIZER),
    **dict.fromkeys(COMPONENTS, ("config.json",)),
}
"""Folder -> what the engine reads there beside graphs."""
LISTED = {
    **dict.fromkeys(COMPONENTS, (*IR, *ONNX)),
    **dict.fromkeys(
        TOKENIZERS,
        tuple(f"openvino_{kind}.{end}" for kind in ("tokenizer", "detokenizer") for end in ("xml", "bin")),
    ),
}
"""What else a manifest may list.  No other name is ever asked for, whatever a repository has."""


@dataclass(frozen=True)
class Wish:
    """An exported model of the Hub."""

    repo: str
    revision: str
    precision: str | None
    runtime: str
    leeway: Leeway | None = None
    """What chooses a precision, if something does."""

    @property
    def shelf(self) -> Shelf:
        """Where it lies, apart from what the converter has of the same repository."""
        return Shelf(self.repo, "exported")

    def variant(self, there: Collection[str], folder: Path) -> Choice:
        """One of these in ``folder``, of which ``""`` is the repository itself.  Raises ``RequestError``."""
        if "" in there:
            return Choice("")
        known = [name for name in PRECISIONS if name in there]
        if self.leeway and known:
            return self.leeway.among({name: folder / name for name in known})
        if self.precision is not None and self.precision not in known:
            raise RequestError(f"precision: {self.repo} has no {self.precision}", hint=f"it has: {', '.join(known)}")
        return Choice(self.precision or known[0])

    def part(self, variant: str) -> str:
        """The name of what is taken of a commit."""
        return f"{variant or 'flat'}.{self.runtime}"


def open_model(
    model: str | Path, precision: str | None = None, runtime: str = "openvino", *, offline: bool = False
) -> Bundle:
    """A model by name, by path, or by ``OWNER/NAME[@REVISION]`` on the Hub.

    What lies here under that name goes first.  A branch is asked for each time, a commit that is complete is not;
    ``offline`` asks for nothing.  Raises what ``Bundle.open`` raises, and what ``ovenbird.hub.download`` does.
    """
    wish = _wish(model, precision, runtime)
    return _brought(wish, offline=offline)[0] if wish else Bundle.open(model, precision)


def choose_model(model: str | Path, leeway: Leeway, *, offline: bool = False) -> tuple[Bundle, Choice]:
    """The same, but the variant is chosen, and a runtime and a number of threads with it.

    Of a model of the Hub the runtime is not chosen, for it decides what is downloaded.
    """
    wish = _wish(model, None, leeway.backend or DEFAULT_BACKEND)
    if wish is None:
        there = variants(find(model))
        choice = leeway.among(there)
        folder, named = there[choice.precision], choice.precision if choice.precision in PRECISIONS else None
        return Bundle.open(folder, named), choice
    leeway = replace(leeway, backend=wish.runtime)
    bundle, choice = _brought(replace(wish, leeway=leeway), offline=offline)
    return bundle, choice if choice.precision else leeway.among({bundle.precision: bundle.path})


def open_variants(model: str | Path) -> list[Bundle]:
    """All the variants of a model: of one of the Hub those that were downloaded.

    Raises ``RequestError`` and ``ModelError``.
    """
    wish = _wish(model, None, DEFAULT_BACKEND)
    if wish is None:
        return [Bundle.open(folder) for folder in variants(find(model)).values()]
    commit = wish.shelf.commit(wish.revision)
    names = _known(wish, commit) if commit else []
    complete = [name for name in names if commit and wish.shelf.files(commit, wish.part(name))]
    if not complete:
        raise hub.never_downloaded(wish.shelf, f"{wish.repo} {wish.revision}")
    return [_brought(replace(wish, precision=name or None), offline=True)[0] for name in complete]


def tokenizer_folder(name: str | Path, *, offline: bool = False) -> Path:
    """Of a tokenizer: a folder, or ``OWNER/NAME[@REVISION]`` of one, or of a model with one, on the Hub.

    Raises ``RequestError`` for a folder without one, and what ``ovenbird.hub.download`` raises.
    """
    named = hub_name(name)
    if not named:
        return checked_tokenizer(Path(name))
    try:
        return download_tokenizer(*named, offline=offline).folder
    except (RequestError, ResourceError) as error:
        hint = f"a model has its own tokenizer: leave it out; else {error.hint or hub.AGAIN}"
        raise type(error)(f"tokenizer: {error}", hint=hint) from error


def download_tokenizer(repo: str, revision: str | None = None, *, offline: bool = False) -> Download:
    """The vocabularies of a repository, which lie at its top or where diffusers has them, and nothing else of it.

    Raises what ``ovenbird.hub.download`` does.
    """
    return hub.download(Shelf(repo, "tokenizer"), _fill_tokenizer, revision=revision, offline=offline)


def _fill_tokenizer(repository: Repository, folder: Path, commit: str, listing: Mapping[str, File]) -> list[File]:
    places = [place for place in ("", *TOKENIZERS) if _path(place, VOCABULARY[0]) in listing]
    places = places or [place for place in ("", *TOKENIZERS) if _path(place, MODERN) in listing] or [""]
    needed = [_path(place, name) for place in places for name in vocabulary_names(listing, place)]
    paths = [_path(place, name) for place in places for name in TOKENIZER]
    files = [hub.pick(listing, path, LARGEST_JSON) for path in paths if path in listing or path in needed]
    repository.bring(files, folder, commit)
    return files


def vocabulary_names(listing: Collection[str], place: str) -> tuple[str, ...]:
    """Of the files of a tokenizer those that it needs, in a repository that may have them in another form."""
    older = all(_path(place, name) not in listing for name in VOCABULARY)
    return (MODERN,) if older and _path(place, MODERN) in listing else VOCABULARY


def hub_name(name: str | Path) -> tuple[str, str] | None:
    """Repository and revision; None for what is no ``OWNER/NAME[@REVISION]``, or is a folder.

    Raises ``RequestError`` for what cannot be a revision.
    """
    repo, at, revision = str(name).partition("@")
    if isinstance(name, Path) or not hub.is_hub_id(repo) or is_folder(Path(name)):
        return None
    return repo, hub.checked_revision(revision if at else None)


def names() -> list[str]:
    """All that ``open_variants`` opens here without asking anybody: names, folders in ``models/``, downloads."""
    roots = [root for root in model_roots() if root.is_dir()]
    named = {path.name for root in roots for path in root.iterdir() if _is_model(path)}
    mine = Path("models")
    there = mine.is_dir() and mine.resolve() not in roots
    below = [path.as_posix() for path in sorted(mine.iterdir()) if _is_model(path)] if there else []
    return [*sorted(named), *below, *sorted(_downloads())]


def _is_model(folder: Path) -> bool:
    return any((folder / name / INDEX).is_file() for name in ("", *PRECISIONS))


def _downloads() -> Iterator[str]:
    """``OWNER/NAME`` of what ``main`` was when it was last asked for, ``OWNER/NAME@COMMIT`` of other commits."""
    root = cache.root()
    for home in sorted((root / "hub").glob("*--*--exported")) if root else ():
        shelf = Shelf(home.name.removesuffix("--exported").replace("--", "/"), "exported")
        for commit in sorted(path.name for path in home.iterdir() if COMMIT.fullmatch(path.name)):
            parts = home.glob(f"{commit}.*.complete")
            if any(True for _ in parts):
                yield shelf.repo if shelf.commit("main") == commit else f"{shelf.repo}@{commit}"


def _wish(model: str | Path, precision: str | None, runtime: str) -> Wish | None:
    """None for a folder.  Raises ``RequestError`` for what cannot be a revision."""
    named = hub_name(model)
    return Wish(*named, precision, runtime) if named else None


def _brought(wish: Wish, *, offline: bool) -> tuple[Bundle, Choice]:
    return _stored(wish, offline=hub.is_offline(offline)) or _downloaded(wish)


def _stored(wish: Wish, *, offline: bool) -> tuple[Bundle, Choice] | None:
    """What lies there complete, if it need not be asked for.  Raises ``RequestError`` if it may not."""
    if not offline and not COMMIT.fullmatch(wish.revision):
        return None
    commit = wish.shelf.commit(wish.revision)
    choice = _choice(wish, commit, offline=offline) if commit else Choice("")
    variant = choice.precision
    files = wish.shelf.files(commit, wish.part(variant)) if commit else None
    if commit is None or files is None:
        if offline:
            what = " ".join(filter(None, (wish.repo, wish.revision, variant, "for", wish.runtime)))
            raise hub.never_downloaded(wish.shelf, what)
        return None
    folder = wish.shelf.home / commit
    if offline:
        note(f"{wish.repo} {wish.revision} was commit {commit} when it was downloaded")
    try:
        _check_once(folder, files)
    except ModelError:
        if offline:
            raise
        return None
    return _opened(wish, folder / variant, files), choice


def _choice(wish: Wish, commit: str, *, offline: bool) -> Choice:
    """Of the variants that a commit was found to have; where nobody may ask, of those that are complete, if any is."""
    there = _known(wish, commit)
    if offline and wish.leeway:
        there = [name for name in there if wish.shelf.files(commit, wish.part(name))] or there
    return wish.variant(there, wish.shelf.home / commit)


def _known(wish: Wish, commit: str) -> list[str]:
    """The variants of a commit, of which ``""`` is the repository itself."""
    try:
        listed = json.loads(cache.read(_variants(wish, commit)) or b"[]")
        known = [name for name in listed if name in ("", *PRECISIONS)]
    except (ValueError, TypeError, RecursionError):  # another version's
        known = []
    return known or [""]


def _downloaded(wish: Wish) -> tuple[Bundle, Choice]:
    shelf = wish.shelf
    try:
        with hub.opened(shelf, wish.revision) as repository:
            commit, listing = repository.resolve(wish.revision)
            there = [name for name in ("", *PRECISIONS) if _path(name, INDEX) in listing]
            if not there:
                raise _not_exported(wish, f"no {INDEX}")
            choice = wish.variant(there, shelf.home / commit)
            variant = choice.precision
            with hub.alone(shelf, commit) as folder:
                files = shelf.files(commit, wish.part(variant))
                if files is None or not _is_untouched(folder, files):
                    files = _fill(wish, repository, folder, commit, listing, variant)
                    cache.write(_seen(folder, files), b"")
                cache.write(_variants(wish, commit), json.dumps(there).encode())
                shelf.remember(wish.revision, commit, files, wish.part(variant))
    except ResourceError as error:
        error.hint = f"there is no folder {wish.repo} here; for the Hub: {error.hint or hub.AGAIN}"
        raise
    except MissingExtraError as error:
        why = f"there is no folder {wish.repo}, and to ask the Hub for it "
        raise MissingExtraError(str(error.name), "hub", why) from error
    return _opened(wish, folder / variant, files), choice


def _opened(wish: Wish, folder: Path, files: Iterable[File]) -> Bundle:
    bundle = Bundle.open(folder, wish.precision)
    return bundle if bundle.manifest else replace(bundle, name=wish.repo, listing=_digest(files))


def _fill(
    wish: Wish, repository: Repository, folder: Path, commit: str, listing: Mapping[str, File], variant: str
) -> list[File]:
    """Complete a variant: what is small first, so that what cannot be opened is refused before gigabytes."""
    place = _path(variant, "")
    inside = {name.removeprefix(place): file for name, file in listing.items() if name.startswith(place)}
    first = [hub.pick(inside, name, LARGEST_JSON) for name in (INDEX, MANIFEST) if name in inside]
    repository.bring(first, folder, commit)
    bundle = Bundle.open(folder / variant, wish.precision)
    names = [name for name in _listed(bundle) if name != INDEX] if bundle.manifest else [*_chosen(wish, inside)]
    texts = [hub.pick(inside, name, LARGEST_JSON) for name in names if not _is_graph(name)]
    graphs = [hub.pick(inside, name) for name in names if _is_graph(name)]
    repository.bring([*texts, *(file for file in graphs if file.name.endswith(".xml"))], folder, commit)
    Bundle.open(folder / variant, wish.precision)  # an IR tells its precision
    hub.require_space(folder, graphs)
    repository.bring(graphs, folder, commit)
    return [*first, *texts, *graphs]


def _listed(bundle: Bundle) -> Iterator[str]:
    """What a manifest lists.  Raises ``ModelError`` for a name that no export gives."""
    assert bundle.manifest is not None
    known = {_path(place, name) for table in (TEXTS, LISTED) for place in table for name in table[place]}
    for name in bundle.manifest["files"]:
        if name not in known:
            raise ModelError(f"{MANIFEST} lists {name[:64]!r}, which is no file of an exported model")
        yield name


def _chosen(wish: Wish, listing: Mapping[str, File]) -> Iterator[str]:
    """What the runtime needs of a repository that another tool wrote."""
    for place, names in TEXTS.items():
        graph = _graph(wish, place, listing) if place in COMPONENTS else ()
        yield from (path for name in (*names, *graph) if (path := _path(place, name)) in listing and path != INDEX)


def _graph(wish: Wish, component: str, listing: Collection[str]) -> tuple[str, ...]:
    """The names of a component's graph; none for one that can be missed, such as a checker that only torch can run."""
    kinds = FORMATS[wish.runtime]
    graph = next((kind for kind in kinds if _path(component, kind[0]) in listing), ())
    if not graph and component in ("text_encoder", "unet", "vae_decoder"):
        raise _not_exported(wish, "no " + " or ".join(_path(component, kind[0]) for kind in kinds))
    if graph == IR and _path(component, IR[1]) not in listing:
        raise ModelError(f"{wish.repo} has no {_path(component, IR[1])}")
    return graph


def _path(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _not_exported(wish: Wish, lacks: str) -> ModelError:
    return ModelError(
        f"{wish.repo} has {lacks}: it is not an exported model, or not for {wish.runtime}",
        hint=f"export it: ovenbird export {wish.repo} FOLDER",
    )


def _is_graph(name: str) -> bool:
    return name.rpartition("/")[2] in (*IR, *ONNX)


def _check_once(folder: Path, files: list[File]) -> None:
    """Hash every file, unless that was done and nothing has touched them.  Raises ``ModelError``."""
    if not _is_untouched(folder, files):
        hub.check_files(folder, files)
        cache.write(_seen(folder, files), b"")


def _is_untouched(folder: Path, files: Iterable[File]) -> bool:
    try:
        return cache.read(_seen(folder, files)) is not None
    except OSError:
        return False


def _seen(folder: Path, files: Iterable[File]) -> str:
    return f"{_digest(files)}.{cache.stamp(folder / file.name for file in files)}.verified"


def _digest(files: Iterable[File]) -> str:
    return hashlib.sha256(json.dumps([asdict(file) for file in files]).encode()).hexdigest()


def _variants(wish: Wish, commit: str) -> str:
    return wish.shelf.key(commit, "variants")
