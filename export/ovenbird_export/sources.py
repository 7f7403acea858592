"""SOURCE: what people name, and the diffusers folder that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovenbird.bundle import MANIFEST, PRECISIONS
from ovenbird.disk import expanded, is_file, is_folder
from ovenbird.errors import ModelError, RequestError, ResourceError
from ovenbird.hub import is_hub_id
from ovenbird.models import INDEX, MODERN, VOCABULARY, download_tokenizer, hub_name
from ovenbird.progress import stage
from ovenbird_export.publish import require_space

SYNTHETIC = "synthetic:"
CLIP = "openai/clip-vit-large-patch14"
"""On the Hub: the vocabulary that all text encoders of Stable Diffusion have, which single files lack."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for, and what goes with it for some kinds of source."""

    text: str
    revision: str | None = None
    offline: bool = False
    tokenizer: str | None = None
    prediction_type: str | None = None

    def refuse(self, kind: str, *options: str) -> None:
        """Raise ``RequestError`` for the first of ``options`` that is set, for it would have no effect."""
        for option in options:
            if getattr(self, option):
                name = "--" + option.replace("_", "-")
                raise RequestError(f"{name} has no effect on {kind}", hint=f"leave out {name}")


@dataclass(frozen=True)
class Origin:
    """A diffusers folder, and where it comes from, for the manifest."""

    folder: Path
    name: str
    provenance: Mapping[str, str]


def recorded(facts: Mapping[str, Any]) -> Wanted | None:
    """What to ask for to have the source again that a manifest tells of; None where it does not say enough.

    A model of the Hub is taken from what was downloaded before.
    """
    if "commit" in facts:
        return Wanted(str(facts.get("repo")), revision=str(facts["commit"]), offline=True)
    name = str(facts.get("name"))
    return Wanted(name) if name.startswith(SYNTHETIC) else None


def locate(wanted: Wanted, scratch: Path) -> Origin:
    """The folder of a source: itself, downloaded, or made in ``scratch``, which exists.

    What lies on the disk goes before what may lie on the Hub.  Raises ``RequestError`` for what is none of them, and
    whatever reading it raises.
    """
    if wanted.text.startswith(SYNTHETIC):
        return _synthetic(wanted, scratch)
    path = expanded(wanted.text)
    if is_folder(path):
        wanted.refuse("a folder", "revision", "tokenizer", "prediction_type")
        _refuse_exported(path)
        return Origin(path, path.resolve().name, {})
    if is_file(path):
        return _file(wanted, path, scratch)
    return _hub(wanted)


def _refuse_exported(folder: Path) -> None:
    if any((place / MANIFEST).is_file() for place in (folder, *(folder / name for name in PRECISIONS))):
        raise RequestError(
            f"source: {folder} is what an export wrote", hint="give what it was made from, for any other variant, too"
        )
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} has no {INDEX}", hint="give a folder that diffusers saved, or one file")


def _synthetic(wanted: Wanted, scratch: Path) -> Origin:
    from ovenbird_export import synthetic

    wanted.refuse("a synthetic model", "revision", "tokenizer", "prediction_type")
    name = wanted.text.removeprefix(SYNTHETIC)
    with stage("diffusers: loading"):  # it is asked how many weights there are
        needed = synthetic.predicted_bytes(name)
    require_space(scratch, needed)
    return Origin(scratch, f"synthetic-{name}", synthetic.write(name, scratch))


def _file(wanted: Wanted, path: Path, scratch: Path) -> Origin:
    wanted.refuse("a file", "revision")
    require_space(scratch, path.stat().st_size)
    tokenizer, told = _tokenizer(wanted.tokenizer or CLIP, wanted.offline)
    with stage("diffusers: loading"):
        from ovenbird_export import original
    with stage(f"{path.name}: taking it apart", scratch):
        found = original.unpack(path, scratch, tokenizer=tokenizer, prediction_type=wanted.prediction_type)
    return Origin(scratch, path.stem, {**found, "tokenizer": told})


def _tokenizer(named: str, offline: bool) -> tuple[Path, str]:
    """Where a single file's tokenizer lies, downloaded if it must be, and what to tell of it."""
    path = expanded(named)
    repository = hub_name(named)
    if repository is None:
        return path, path.resolve().name
    try:
        found = download_tokenizer(*repository, offline=offline)
    except (RequestError, ResourceError) as error:
        raise type(error)(
            f"tokenizer: {error}", hint="give a folder with vocab.json and merges.txt of CLIP as --tokenizer"
        ) from error
    places = (file.parent for name in (VOCABULARY[0], MODERN) for file in found.folder.rglob(name))
    return min(places, key=lambda place: (len(place.parts), place)), f"{found.repo} {found.commit}"


def _hub(wanted: Wanted) -> Origin:
    from ovenbird_export import hub

    if not is_hub_id(wanted.text):
        raise RequestError(
            f"source: {wanted.text} is neither a folder, nor a file, nor OWNER/NAME on the Hub",
            hint=f"for random weights: {SYNTHETIC}tiny",
        )
    wanted.refuse("a model of the Hub", "tokenizer", "prediction_type")
    found = hub.download(wanted.text, revision=wanted.revision, offline=wanted.offline)
    return Origin(found.folder, wanted.text.rpartition("/")[2], found.provenance)
