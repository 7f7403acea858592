"""A diffusers folder, read with suspicion: known classes and settings only, safetensors only, no code."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ovenbird.bundle import read_json
from ovenbird.errors import ModelError, RequestError
from ovenbird_export.layouts import autoencoder
from ovenbird_export.lora import Lora
from ovenbird_export.pickled import open_file
from ovenbird_export.recipes import CHECKER, RECIPES, TINY, Part, Recipe
from ovenbird_export.weights import read_header

CARD = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
LARGEST_TEXT = 4 << 20
MOST_BLOCKS = 8
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
)
"""Names that a component's weights may have, the first one found wins."""
SHARD_INDEXES = tuple(
    f"{name}.safetensors.index.{end}" for end in ("json", "fp16.json") for name in ("diffusion_pytorch_model", "model")
)
SHARD = re.compile(r"\w+(\.fp16)?-\d{5}-of-\d{5}(\.fp16)?\.safetensors")
NOTES = ("_class_name", "_diffusers_version", "_name_or_path", "_commit_hash")
"""Keys that say where a file came from and set nothing."""


@dataclass(frozen=True)
class Changes:
    """What is exported otherwise than the folder has it.  Changes nothing by itself."""

    vae: Path | None = None
    """Instead of the folder's: another autoencoder's folder, or a file with weights for the settings of the own one."""
    tiny_vae: Path | None = None
    """The folder of an ``AutoencoderTiny`` that decodes beside the full one."""
    loras: tuple[Lora, ...] = ()
    without: tuple[str, ...] = ()
    """Optional components that are not exported."""

    @property
    def places(self) -> dict[str, Path]:
        """Components that come from elsewhere."""
        given = {"vae": self.vae, "tiny_vae": self.tiny_vae}
        return {component: path for component, path in given.items() if path is not None}

    def file(self, component: str) -> Path | None:
        """The file that the component's weights come from, if it is not a folder."""
        place = self.places.get(component)
        return place if place is not None and place.is_file() else None


NONE = Changes()


@dataclass(frozen=True)
class Source:
    """A diffusers folder whose ``model_index.json`` names nothing unknown."""

    folder: Path
    recipe: Recipe
    classes: Mapping[str, tuple[str, str]]
    """Component -> library and class."""
    left_out: tuple[str, ...]
    """What the folder names and the export leaves out."""
    flags: Mapping[str, bool | None] = field(default_factory=dict)
    """The keys of ``model_index.json`` that are no components, and are kept."""
    changes: Changes = NONE

    @classmethod
    def open(cls, folder: Path, changes: Changes = NONE) -> Source:
        """Raises ``RequestError`` when there is no such folder, ``ModelError`` when it holds anything unknown."""
        if not folder.is_dir():
            raise RequestError(f"source: {folder} is not a folder", hint="give a folder that diffusers saved")
        path = folder / "model_index.json"
        index = read_json(path)
        recipe = _recipe(path, index)
        entries, flags = _entries(path, recipe, index, changes), _flags(path, recipe, index)
        taken = [*recipe.classes, *_optional(path, recipe, entries, changes)]
        classes = {key: _split(entries[key]) for key in taken}
        left_out = tuple(key for key, name in entries.items() if name and key not in taken)
        source = cls(folder, recipe, classes, left_out, flags, changes)
        for lora in changes.loras:
            lora.check(source.origins)
        return source

    @property
    def name(self) -> str:
        """The folder's own name, without where it lies."""
        return self.folder.resolve().name

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What is exported."""
        return tuple(part for part in self.recipe.parts if self.classes.get(part.origin, ("", ""))[1] == part.kind)

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """The components that have weights."""
        return tuple(dict.fromkeys(part.origin for part in self.parts))

    @property
    def latents_alone(self) -> bool:
        """Whether the U-Net sees latents and nothing of a picture beside them."""
        return bool(read_json(self.home("unet") / "config.json").get("in_channels", 4) == 4)

    def home(self, component: str) -> Path:
        """The folder with the component's settings."""
        place = self.changes.places.get(component)
        return place if place is not None and place.is_dir() else self.folder / component

    def settings(self, component: str, known: Iterable[str], ignored: Iterable[str] = ()) -> dict[str, Any]:
        """The component's ``config.json`` with only ``known`` keys in it.  Raises ``ModelError`` for any other key."""
        path = self.home(component) / "config.json"
        config = read_json(path)
        known = set(known)
        self._agree(path, component, _named_class(config))
        _refuse_unknown(path, config, [*NOTES, *known, *ignored])
        for key, allowed in self.recipe.fixed.get(component, {}).items():
            value = config.get(key)
            if value not in allowed:
                raise ModelError(f"{path}: {key} is {value!r}; in a {self.recipe.pipeline} it is one of {allowed}")
        return {key: value for key, value in config.items() if key in known}

    def refuse_unknown(self, component: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
        """Raise ``ModelError`` when settings inside the component's settings are not all ``known``."""
        _refuse_unknown(self.home(component) / "config.json", found, [*NOTES, *known])

    def weights(self, component: str) -> tuple[Path, ...]:
        """The component's files, one unless it is sharded.  Raises ``ModelError``; considers no pickle in a folder."""
        file = self.changes.file(component)
        if file is not None:
            return (file,)
        folder = self.home(component)
        for name in WEIGHTS:
            if (folder / name).is_file():
                return (folder / name,)
        for name in SHARD_INDEXES:
            if (folder / name).is_file():
                return _shards(folder / name)
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES) if folder.is_dir() else []
        if pickles:
            raise ModelError(
                f"{folder / pickles[0]} is a pickle, which can run any code when it is read",
                hint="save the model again with pipeline.save_pretrained(folder, safe_serialization=True)",
            )
        raise ModelError(f"{folder} holds no weights", hint=f"it needs one of: {', '.join(WEIGHTS[:2])}")

    def weight_count(self, component: str) -> int:
        """How many numbers the component has, from the header of its file alone.  Raises ``ModelError``."""
        file = self.changes.file(component)
        if file is not None:
            return sum(math.prod(tensor.shape) for tensor in autoencoder(file, open_file(file).tensors).values())
        headers = [read_header(path) for path in self.weights(component)]
        return sum(math.prod(entry.shape) for header in headers for entry in header.tensors.values())

    def digest(self) -> str:
        """What ``sha256sum`` gives for its own list of the weight files, in the order of their names."""
        files = {f"{origin}/{path.name}": path for origin in self.origins for path in self.weights(origin)}
        lines = [f"{_sha256(path)}  {name}\n" for name, path in sorted(files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def merged(self) -> dict[str, Any]:
        """What came from elsewhere, for the manifest; empty without changes."""
        places = {component: place.resolve().name for component, place in self.changes.places.items()}
        loras = [
            {"name": lora.path.name, "scale": lora.scale, "sha256": _sha256(lora.path)} for lora in self.changes.loras
        ]
        return places | ({"loras": loras} if loras else {})

    def index(self) -> dict[str, Any]:
        """The entries of the export's own ``model_index.json``.

        The safety checker is not named there: optimum-intel would look for torch's weights where its graphs lie.
        """
        absent = {key: [None, None] for key in (*self.recipe.optional, *self.recipe.left_out) if key not in TINY}
        flags = dict(self.flags)
        if "requires_safety_checker" in self.recipe.flags:
            flags["requires_safety_checker"] = "safety_checker" in self.classes
        named = {key: list(words) for key, words in self.classes.items() if key != "safety_checker"}
        if "feature_extractor" in named:
            named["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        return {"_class_name": self.recipe.pipeline, **absent, **flags, **named}

    def scheduler(self) -> dict[str, Any]:
        """``scheduler_config.json`` with the class that ``model_index.json`` names.  Raises ``ModelError``."""
        path = self.folder / "scheduler" / "scheduler_config.json"
        config = read_json(path)
        self._agree(path, "scheduler", config.get("_class_name"))
        # diffusers writes its default lambda_min_clipped as -Infinity, which is no JSON: openvino-genai stops there.
        settings = {key: value for key, value in config.items() if not key.startswith("_") and value != -math.inf}
        for key, value in settings.items():
            if isinstance(value, dict) or not key.isidentifier():
                raise ModelError(f"{path}: {key!r} is not a scheduler's setting")
        return settings | {"_class_name": self.classes["scheduler"][1]}

    def vocabulary(self, text_encoder: str) -> int:
        """How many tokens a text encoder knows.  Raises ``ModelError``."""
        return self._number(text_encoder, "vocab_size")

    @cached_property
    def text_length(self) -> int:
        """How many tokens the text encoder reads at most.  Raises ``ModelError``."""
        return self._number("text_encoder", "max_position_embeddings", 77)

    @property
    def clip_skip(self) -> int:
        """How many last layers of its text encoders can be left out at most: all but one.  Raises ``ModelError``."""
        encoders = self.recipe.tokenizers.values()
        return min(self._number(encoder, "num_hidden_layers", 12) for encoder in encoders) - 1

    @cached_property
    def default_size(self) -> int:
        """The side in pixels that the U-Net was trained for.  Raises ``ModelError``."""
        return self._number("unet", "sample_size", 64) * self.pixels_per_cell

    @cached_property
    def pixels_per_cell(self) -> int:
        """The side in pixels of one cell of the latents.  Raises ``ModelError``."""
        path = self.home("vae") / "config.json"
        config = read_json(path)
        blocks = config.get("block_out_channels", config.get("decoder_block_out_channels"))
        if not isinstance(blocks, list) or not 1 <= len(blocks) <= MOST_BLOCKS:
            raise ModelError(f"{path}: its blocks are {blocks!r}, not a list of channels")
        return int(2 ** (len(blocks) - 1))

    def _number(self, component: str, key: str, default: int | None = None) -> int:
        path = self.home(component) / "config.json"
        number = read_json(path).get(key, default)
        if not isinstance(number, int):
            raise ModelError(f"{path}: {key} is {number!r}, not a number")
        return number

    def _agree(self, path: Path, component: str, named: str | None) -> None:
        if named not in (None, self.classes[component][1]):
            raise ModelError(f"{path} is for a {named}, but model_index.json says {self.classes[component][1]}")

    def card(self) -> dict[str, bytes]:
        """The model card and the licence, if they are there: file name -> content."""
        found = [self.folder / name for name in CARD if (self.folder / name).is_file()]
        return {path.name: read_text(path).encode() for path in found}

    def licence(self) -> str | None:
        """``license`` in the front matter of the model card."""
        card = self.card().get("README.md", b"").decode()
        front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
        line = re.search(r"^license:[ \t]*(\S.*?)[ \t]*$", front[1], re.MULTILINE) if front else None
        return line[1].strip("'\"") if line else None


def read_text(path: Path) -> str:
    """A UTF-8 file that is not too large.  Raises ``ModelError``."""
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise ModelError(f"{path} is larger than {LARGEST_TEXT >> 20} MiB")
        return path.read_bytes().decode()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recipe(path: Path, index: Mapping[str, Any]) -> Recipe:
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in RECIPES:
        raise ModelError(f"{path}: a {name!r} cannot be exported", hint=f"known pipelines: {', '.join(RECIPES)}")
    return RECIPES[name]


def _entries(path: Path, recipe: Recipe, index: Mapping[str, Any], changes: Changes) -> dict[str, str | None]:
    known = {**recipe.classes, **recipe.optional, **recipe.left_out}
    _refuse_unknown(path, index, [*NOTES, *known, *recipe.flags])
    named = {key: _class_of(path, key, value) for key, value in index.items() if isinstance(value, list)}
    named |= {key: _given_class(place, named.get(key)) for key, place in changes.places.items()}
    for key, name in named.items():
        allowed = known.get(key, ())
        if name not in allowed and (name is not None or key in recipe.classes):
            raise ModelError(f"{path}: {key} may not be a {name}; known: {', '.join(allowed) or 'none'}")
    for key in recipe.classes:
        if key not in named:
            raise ModelError(f"{path} names no {key}")
    return {key: named[key] for key in known if key in named}


def _flags(path: Path, recipe: Recipe, index: Mapping[str, Any]) -> dict[str, bool | None]:
    flags = {key: index[key] for key in recipe.flags if key in index}
    for key, value in flags.items():
        if value not in recipe.flags[key]:
            raise ModelError(f"{path}: {key} is {value!r}; in a {recipe.pipeline} it is one of {recipe.flags[key]}")
    return flags


def _class_of(path: Path, key: str, value: list[Any]) -> str | None:
    if value == [None, None]:
        return None
    if len(value) != 2 or not all(isinstance(word, str) for word in value):
        raise ModelError(f"{path}: {key} is {value!r}, not a library and a class")
    return ".".join(value)


def _split(name: str | None) -> tuple[str, str]:
    library, _, kind = str(name).rpartition(".")
    return library, kind


def _named_class(config: Mapping[str, Any]) -> Any:
    built_as = config.get("architectures")
    return config.get("_class_name", built_as[0] if isinstance(built_as, list) and built_as else None)


def _given_class(place: Path, own: str | None) -> str | None:
    # A file brings weights for the class that the folder names; a folder says itself what it holds.
    if place.is_file() and own is not None:
        return own
    if not place.is_dir():
        raise RequestError(f"{place} is not a folder with a config.json and weights")
    return f"diffusers.{_named_class(read_json(place / 'config.json'))}"


def _optional(path: Path, recipe: Recipe, entries: Mapping[str, str | None], changes: Changes) -> list[str]:
    taken = [key for key in recipe.optional if entries.get(key) and key not in changes.without]
    if "safety_checker" not in taken:
        return [key for key in taken if key not in CHECKER]
    if "feature_extractor" not in taken:
        raise ModelError(
            f"{path} names a safety_checker but no feature_extractor, which prepares its pictures",
            hint="leave the checker out with --no-safety-checker",
        )
    return taken


def _shards(index: Path) -> tuple[Path, ...]:
    names = read_json(index).get("weight_map")
    found = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    for name in found:
        if not SHARD.fullmatch(name) or not (index.parent / name).is_file():
            raise ModelError(f"{index} names {name!r}, which is not a shard beside it")
    if not found:
        raise ModelError(f"{index} names no shards")
    return tuple(index.parent / name for name in found)


def _refuse_unknown(path: Path, found: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ModelError(f"{path}: {unknown[0]!r} is not known, so its effect would be lost")
