"""The model folder: find it, refuse what is strange, check its bytes, say what is in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ovenbird import cache, component_config
from ovenbird.disk import expanded, is_file, is_folder
from ovenbird.errors import ModelError, RequestError

MANIFEST = "ovenbird.json"
MANIFEST_FORMAT = 1
COMPONENTS = (
    "text_encoder",
    "text_encoder_2",
    "unet",
    "vae_decoder",
    "vae_encoder",
    "tiny_vae_decoder",
    "safety_checker",
)
PRECISIONS = ("fp16", "fp32", "int8", "int8-weights")
"""Variants in the order in which they are preferred when none is asked for."""
IR = ("openvino_model.xml", "openvino_model.bin")
ONNX = ("model.onnx", "model.onnx_data", "model.onnx.data", "weights.pb")
"""A graph, and what it may have its weights in."""
FORMATS = {"openvino": (IR, ONNX), "onnxruntime": (ONNX,)}
"""Runtime -> the formats that it reads, the best first."""
FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",
    "LatentConsistencyModelPipeline": "sd",
    "LatentConsistencyModelImg2ImgPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
}
"""``_class_name`` in ``model_index.json`` -> family."""
EXPORTERS = re.compile(r"^(OV|ORT|Onnx)(?=[A-Z])")
"""What optimum-intel, optimum-onnx and old diffusers put before it."""
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
"""What is read of a tokenizer's folder."""
CONSTANT = re.compile(rb'<data element_type="(\w+)"[^<>]* size="(\d{1,18})"')
LARGEST_JSON, LARGEST_IR = 16 << 20, 128 << 20
EMBEDDED = "nestling"
UNKNOWN = "unknown"
"""The precision of a folder that does not tell it."""


@dataclass(frozen=True)
class Bundle:
    """An exported model, ready to be compiled; nothing but JSON has been read."""

    path: Path
    name: str
    family: str
    precision: str
    manifest: Mapping[str, Any] | None = field(repr=False)
    """What ``ovenbird.json`` says; None for a folder that another tool wrote."""
    listing: str | None = field(default=None, repr=False)
    """The hash of the list of files that a download of such a folder was checked against."""
    words: Path | None = None
    """The folder of a tokenizer that is taken instead of the model's own, or of both."""

    @classmethod
    def open(cls, model: str | Path = EMBEDDED, precision: str | None = None) -> Bundle:
        """Find a model by name or path, choose a variant, and check that its files are there.

        Raises ``RequestError`` when nothing is found, ``ModelError`` when the folder cannot be trusted.
        """
        folder = _choose_variant(find(model), precision)
        index = read_json(folder / "model_index.json")
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
        if manifest is not None:
            _check_manifest(folder, manifest)
        stored = manifest["precision"] if manifest else _stored_precision(folder)
        if precision and stored not in (precision, UNKNOWN):
            raise RequestError(f"precision: {folder} is {stored}, not {precision}")
        name = str(manifest["name"]) if manifest else folder.name
        return cls(folder, printable(name), _family(folder, index), stored, manifest)

    @property
    def embedded(self) -> bool:
        """Whether this is the small model that comes with ovenbird."""
        return self.name == EMBEDDED and any(root in self.path.parents for root in model_roots())

    @cached_property
    def index(self) -> dict[str, Any]:
        """``model_index.json``."""
        return read_json(self.path / "model_index.json")

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """``scheduler/scheduler_config.json``."""
        return read_json(self.path / "scheduler" / "scheduler_config.json")

    def config(self, component: str) -> dict[str, Any]:
        """The component's ``config.json``; old exporters left it out, and every model of theirs is like SD 1.x."""
        path = self.path / component / "config.json"
        if path.exists() or self.manifest or self.family != "sd":
            return component_config.checked(path, read_json(path))
        cache.warn_once(f"{self.path} lacks a config.json; what it would say is taken from Stable Diffusion 1.5")
        return {}

    @cached_property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return int(2 ** (len(self.config("vae_decoder").get("block_out_channels", (128, 256, 512, 512))) - 1))

    @cached_property
    def default_size(self) -> int:
        """The side in pixels that the U-Net was trained for."""
        size = self.config("unet").get("sample_size") or 64
        return int(max(size) if isinstance(size, list) else size) * self.vae_scale_factor

    def tokenizer(self, part: str = "") -> Path:
        """The folder of its tokenizer; of the second one with ``_2``."""
        if self.words is None:
            return self.path / f"tokenizer{part}"
        inside = self.words / f"tokenizer{part}"
        return inside if inside.is_dir() else self.words

    @cached_property
    def words_digest(self) -> str | None:
        """The hash of a tokenizer that is not the model's own."""
        if self.words is None:
            return None
        places = (self.words, self.words / "tokenizer", self.words / "tokenizer_2")
        found = hashlib.sha256()
        for path in (place / name for place in places for name in TOKENIZER):
            found.update(path.read_bytes() if path.is_file() else b"")
        return f"sha256:{found.hexdigest()}"

    @property
    def clip_skip(self) -> int:
        """The largest ``clip_skip`` for which an exported text encoder has an output; 0 where nobody says."""
        return int(self.manifest.get("clip_skip", 0)) if self.manifest else 0

    @cached_property
    def key(self) -> str | None:
        """The hash of the manifest or the listing, which names these bytes and no others; None without either."""
        if self.manifest is None:
            return self.listing
        return manifest_hash(self.path)

    def require_unchanged(self) -> None:
        """Raises ``ModelError`` if an export has put another folder in this one's place since it was opened."""
        if self.manifest is None or manifest_hash(self.path) == self.key:
            return
        raise ModelError(f"{self.path} was replaced while it was in use", hint="run it again")

    def verify(self, *, full: bool = True) -> None:
        """Compare every file with the manifest: its size and, if ``full``, its sha256.

        A folder that passed once and whose files kept size, times and inode is not hashed again by ``verify_once``.
        Raises ``ModelError`` naming the first file that differs.
        """
        if self.manifest is None:
            return
        for name, facts in self.manifest["files"].items():
            _check_size(self.path / name, facts["size"])
        if not full:
            return
        for name, facts in self.manifest["files"].items():
            with (self.path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != facts["sha256"]:
                raise ModelError(f"{self.path / name} is damaged: its sha256 differs", hint="export the model again")

    def verify_once(self) -> None:
        """``verify`` in full the first time, and only sizes after that while the files look untouched."""
        if self.manifest is None:
            return
        self.verify(full=False)
        stamp = f"{self.key}.{cache.stamp(self.path / name for name in sorted(self.manifest['files']))}.verified"
        if cache.read(stamp) is None:
            self.verify(full=True)
            cache.write(stamp, b"")


def model_roots() -> list[Path]:
    """Where named models lie: beside the installed package, and in a checkout's ``models/``."""
    here = Path(__file__).resolve().parent
    return [here / "models", here.parents[1] / "models"]


def manifest_hash(folder: Path) -> str | None:
    """Names the bytes of a variant and no others; None where there is no manifest that can be read."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def known(name: str | None, key: str | None) -> Path | None:
    """The folder of a model that has a name here and a variant whose manifest has this hash; else the one of this name.

    Nothing is made of the name but comparisons, wherever it comes from.
    """
    folders = [path for root in model_roots() if root.is_dir() for path in sorted(root.iterdir())]
    for folder in folders:
        for manifest in (*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")):
            if key is not None and key == manifest_hash(manifest.parent):
                return folder
    return next((folder for folder in folders if folder.name == name and folder.is_dir()), None)


def find(model: str | Path) -> Path:
    """The folder of a model given by path or by name.  Raises ``RequestError``."""
    given = expanded(model)
    candidates = [given] if len(given.parts) != 1 else [*(root / given for root in model_roots()), given]
    for candidate in candidates:
        if is_folder(candidate):
            return candidate
    names = sorted({path.name for root in model_roots() if root.is_dir() for path in root.iterdir() if path.is_dir()})
    raise RequestError(
        f"model: {str(model)!r:.200} is neither a folder nor a known name",
        hint=f"known names: {', '.join(names)}; or make a folder with: ovenbird export SOURCE FOLDER",
    )


def _choose_variant(folder: Path, precision: str | None) -> Path:
    if precision is not None and precision not in PRECISIONS:
        raise RequestError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    if (folder / "model_index.json").is_file():
        return folder
    there = _variants(folder)
    if precision is None:
        return next(iter(there.values()))
    if precision not in there:
        raise RequestError(f"precision: {folder.name} has no {precision}", hint=f"it has: {', '.join(there)}")
    return there[precision]


def variants(folder: Path) -> dict[str, Path]:
    """Precision -> folder, of a folder that is a variant or holds some.

    Raises ``ModelError`` where there is none, or the only one cannot be trusted.
    """
    if (folder / "model_index.json").is_file():
        return {Bundle.open(folder).precision: folder}
    return _variants(folder)


def _variants(folder: Path) -> dict[str, Path]:
    there = {name: folder / name for name in PRECISIONS if (folder / name / "model_index.json").is_file()}
    if not there:
        raise ModelError(
            f"{folder} is not an exported model: no model_index.json",
            hint="make one with: ovenbird export SOURCE FOLDER",
        )
    return there


def _family(folder: Path, index: Mapping[str, Any]) -> str:
    name = EXPORTERS.sub("", str(index.get("_class_name", "")))
    if index.get("requires_aesthetics_score"):
        raise ModelError(f"{folder}: SDXL's refiner is not supported: it is told an aesthetic score")
    if name not in FAMILIES:
        raise ModelError(f"{folder}: a {name or 'nameless'} pipeline is not supported; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _stored_precision(folder: Path) -> str:
    """What most of the U-Net's weights are stored as, where there is an IR; ``unknown`` of an ONNX file."""
    path = folder / "unet" / "openvino_model.xml"
    if not path.is_file():
        return UNKNOWN
    with path.open("rb") as file:
        text, sizes = file.read(LARGEST_IR), Counter[str]()
    for kind, size in CONSTANT.findall(text):
        sizes[kind.decode()] += int(size)
    most = max(sizes, key=sizes.__getitem__, default="")
    if most in ("i8", "u8"):
        return "int8" if b'type="FakeQuantize"' in text else "int8-weights"
    return {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i4": "int4", "u4": "int4"}.get(most, UNKNOWN)


def _check_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    path = folder / MANIFEST
    if manifest.get("format") != MANIFEST_FORMAT or isinstance(manifest["format"], bool):
        raise ModelError(
            f"{path} has format {manifest.get('format')!r}; this ovenbird reads {MANIFEST_FORMAT}",
            hint="install a newer ovenbird, or export the model again",
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not isinstance(manifest.get("name"), str) or "precision" not in manifest:
        raise ModelError(f"{path} lacks files, name or precision", hint="export the model again")
    if not isinstance(manifest.get("clip_skip", 0), int):
        raise ModelError(f"{path}: clip_skip is {manifest['clip_skip']!r}, not a number", hint="export the model again")
    root = folder.resolve()
    for name, facts in files.items():
        # Some of these mean nothing on some systems; a manifest goes to all of them.
        strange = set(name) & set("\\:") or not name.isprintable()
        if strange or Path(name).is_absolute() or root not in (folder / name).resolve().parents:
            raise ModelError(f"{path} names a file outside its folder: {name!r:.200}")
        if not isinstance(facts, dict) or not isinstance(facts.get("size"), int) or "sha256" not in facts:
            raise ModelError(f"{path} gives no size and sha256 for {name!r:.200}", hint="export the model again")


def _check_size(path: Path, expected: int) -> None:
    found = path.stat().st_size if is_file(path) else None
    if found != expected:
        state = "is missing" if found is None else f"has {found} bytes, not {expected}"
        raise ModelError(f"{path} {state}", hint="export the model again")


def printable(name: str) -> str:
    """A name as it can be written into a picture: names of files may hold bytes that are no UTF-8, and line ends."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.  Raises ``ModelError`` when it is absent, too large, or not an object."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ModelError(f"{path} is larger than {LARGEST_JSON >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", hint="export the model again") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", hint="export the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not an object")
    return value
