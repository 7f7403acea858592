"""A diffusers model of the Hugging Face Hub: which of its files the export wants, and no others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ovenbird import hub
from ovenbird.bundle import read_json
from ovenbird.errors import ModelError
from ovenbird.hub import Download, Repository, Shelf
from ovenbird.models import INDEX, TOKENIZERS, vocabulary_names
from ovenbird.transfer import File
from ovenbird_export.source import CARD, LARGEST_TEXT, PICKLES, WEIGHTS, Source

WEIGHTED = ("text_encoder", "text_encoder_2", "unet", "vae", "tiny_vae", "safety_checker")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "scheduler": ("scheduler_config.json",),
    "feature_extractor": ("preprocessor_config.json",),
    **dict.fromkeys(WEIGHTED, ("config.json",)),
}
OPTIONAL = dict.fromkeys(TOKENIZERS, ("tokenizer_config.json", "special_tokens_map.json"))
"""Component -> its files beside the weights.  No other name is ever asked for, whatever a repository lists."""


def download(repo: str, *, revision: str | None = None, offline: bool = False) -> Download:
    """Bring what the export needs of ``repo`` into the cache, or find it there, as ``ovenbird.hub.download`` does."""
    return hub.download(Shelf(repo), fill, revision=revision, offline=offline)


def fill(repository: Repository, folder: Path, commit: str, listing: Mapping[str, File]) -> list[File]:
    """Complete ``folder``: what is small first, so that what cannot be exported is refused before gigabytes."""
    index = _text(listing, INDEX)
    repository.bring([index], folder, commit)
    named = [key for key, value in read_json(folder / INDEX).items() if isinstance(value, list) and any(value)]
    texts = [_text(listing, name) for name in _text_names(named, listing)]
    repository.bring(texts, folder, commit)
    left_out = Source.open(folder).left_out
    weighted = [name for name in named if name in WEIGHTED and name not in left_out]
    weights = [hub.pick(listing, _weights_name(listing, name)) for name in weighted]
    hub.require_space(folder, weights)
    repository.bring(weights, folder, commit)
    return [index, *texts, *weights]


def _text(listing: Mapping[str, File], name: str) -> File:
    return hub.pick(listing, name, LARGEST_TEXT)


def _text_names(named: Iterable[str], listing: Collection[str]) -> list[str]:
    names = [name for name in CARD if name in listing]
    for component in named:
        needed = vocabulary_names(listing, component) if component in TOKENIZERS else NEEDED.get(component, ())
        names += [f"{component}/{name}" for name in needed]
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
