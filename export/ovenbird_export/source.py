"""A diffusers folder, read with suspicion: known classes and settings only, safetensors only, no code."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ovenbird.bundle import read_json
from ovenbird.errors import ModelError, RequestError
from ovenbird_export.recipes import RECIPES, Recipe
from ovenbird_export.weights import read_header

CARD = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
LARGEST_TEXT = 4 << 20
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
)
"""Names that a component's weights may have, the first one found wins."""
NOTES = ("_class_name", "_diffusers_version", "_name_or_path")
"""Keys that say where a file came from and set nothing."""


@dataclass(frozen=True)
class Source:
    """A diffusers folder whose ``model_index.json`` names nothing unknown."""

    folder: Path
    recipe: Recipe
    classes: Mapping[str, tuple[str, str]]
    """Component -> library and class."""
    left_out: tuple[str, ...]
    """What the folder names and the export leaves out."""

    @classmethod
    def open(cls, folder: Path) -> Source:
        """Raises ``RequestError`` when there is no such folder, ``ModelError`` when it holds anything unknown."""
        if not folder.is_dir():
            raise RequestError(f"source: {folder} is not a folder", hint="give a folder that diffusers saved")
        path = folder / "model_index.json"
        index = read_json(path)
        recipe = _recipe(path, index)
        entries = {key: _class_of(path, key, value) for key, value in index.items() if isinstance(value, list)}
        _refuse_unknown(path, index, [*NOTES, *recipe.classes, *recipe.left_out, "requires_safety_checker"])
        for key, name in entries.items():
            allowed = {**recipe.classes, **recipe.left_out}.get(key, ())
            if name not in allowed and (name is not None or key in recipe.classes):
                raise ModelError(f"{path}: {key} may not be a {name}; known: {', '.join(allowed) or 'none'}")
        for key in recipe.classes:
            if key not in entries:
                raise ModelError(f"{path} names no {key}")
        classes = {key: (index[key][0], index[key][1]) for key in recipe.classes}
        return cls(folder, recipe, classes, tuple(key for key in recipe.left_out if entries.get(key)))

    @property
    def name(self) -> str:
        """The folder's own name, without where it lies."""
        return self.folder.resolve().name

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """The components that have weights."""
        return tuple(dict.fromkeys(part.origin for part in self.recipe.parts))

    def settings(self, component: str, known: Iterable[str], ignored: Iterable[str] = ()) -> dict[str, Any]:
        """The component's ``config.json`` with only ``known`` keys in it.  Raises ``ModelError`` for any other key."""
        path = self.folder / component / "config.json"
        config = read_json(path)
        known = set(known)
        named = config.get("_class_name", (config.get("architectures") or [None])[0])
        self._agree(path, component, named)
        _refuse_unknown(path, config, [*NOTES, *known, *ignored])
        for key in self.recipe.unset.get(component, ()):
            if config.get(key) is not None:
                raise ModelError(f"{path}: {key} is {config[key]!r}; a {self.recipe.pipeline} has no input for it")
        return {key: value for key, value in config.items() if key in known}

    def weights(self, component: str) -> Path:
        """The component's safetensors file.  Raises ``ModelError``; never considers a pickle."""
        folder = self.folder / component
        for name in WEIGHTS:
            if (folder / name).is_file():
                return folder / name
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES) if folder.is_dir() else []
        if pickles:
            raise ModelError(
                f"{folder / pickles[0]} is a pickle, which can run any code when it is read",
                hint="save the model again with pipeline.save_pretrained(folder, safe_serialization=True)",
            )
        raise ModelError(f"{folder} holds no weights", hint=f"it needs one of: {', '.join(WEIGHTS[:2])}")

    def weight_count(self, component: str) -> int:
        """How many numbers the component has, from the header of its file alone."""
        return sum(math.prod(entry.shape) for entry in read_header(self.weights(component)).tensors.values())

    def digest(self) -> str:
        """What ``sha256sum`` gives for its own list of the weight files, in the order of their names."""
        lines = []
        for path in sorted(self.weights(component) for component in self.origins):
            with path.open("rb") as file:
                name = path.relative_to(self.folder).as_posix()
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def scheduler(self) -> dict[str, Any]:
        """``scheduler_config.json`` with the class that ``model_index.json`` names.  Raises ``ModelError``."""
        path = self.folder / "scheduler" / "scheduler_config.json"
        config = read_json(path)
        self._agree(path, "scheduler", config.get("_class_name"))
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        for key, value in settings.items():
            if isinstance(value, dict) or not key.isidentifier():
                raise ModelError(f"{path}: {key!r} is not a scheduler's setting")
        return settings | {"_class_name": self.classes["scheduler"][1]}

    def vocabulary(self) -> int:
        """How many tokens the text encoder knows.  Raises ``ModelError``."""
        path = self.folder / "text_encoder" / "config.json"
        size = read_json(path).get("vocab_size")
        if not isinstance(size, int):
            raise ModelError(f"{path}: vocab_size is {size!r}, not a number")
        return size

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


def _recipe(path: Path, index: Mapping[str, Any]) -> Recipe:
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in RECIPES:
        raise ModelError(f"{path}: a {name!r} cannot be exported", hint=f"known pipelines: {', '.join(RECIPES)}")
    return RECIPES[name]


def _class_of(path: Path, key: str, value: list[Any]) -> str | None:
    if value == [None, None]:
        return None
    if len(value) != 2 or not all(isinstance(word, str) for word in value):
        raise ModelError(f"{path}: {key} is {value!r}, not a library and a class")
    return ".".join(value)


def _refuse_unknown(path: Path, found: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ModelError(f"{path}: {unknown[0]!r} is not known, so its effect would be lost")
