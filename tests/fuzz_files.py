"""Parsers of files: tensors, checkpoints, sources of an export, compiled models, notes, pictures."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache as once
from pathlib import Path
from unittest import mock

import numpy as np
import pickle_parts
from click.testing import CliRunner
from fuzz_changes import Target, as_bytes, as_json, either, framed, json_of, text_of
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ovenbird import bundle, cache, choice, compiled, images, recall, tensors
from ovenbird.commands.info import info
from ovenbird.embeddings import Embeddings
from ovenbird.errors import RequestError

SOURCE = Path(__file__).resolve().parents[1] / "models" / "nestling" / "source"
NESTLING = SOURCE.parent / "fp16"


# Tensors


def _tensors() -> Iterable[bytes]:
    values = {"F32": b"\0\0\x80?" * 4, "F16": b"\0\x3c" * 4, "BF16": b"\x80?" * 4, "F64": b"\0" * 32}
    for kind, data in values.items():
        header = {"<cat>": {"dtype": kind, "shape": [1, 4], "data_offsets": [0, len(data)]}, "__metadata__": {"a": "b"}}
        yield _safetensors(header, data)
    one = _vectors(64)
    yield _safetensors({"emb_params": {"dtype": "F32", "shape": [2, 64], "data_offsets": [0, len(one)]}}, one)
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.a", "cond_stage_model.transformer.b")
    shapes = ([1, 4, 1, 1], [4], [4])
    facts = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [16 * place, 16 * place + 16]}
        for place, (name, shape) in enumerate(zip(names, shapes, strict=True))
    }
    yield _safetensors(facts, b"\0" * 48)


def _vectors(width: int) -> bytes:
    return np.linspace(0, 1, 2 * width, dtype=np.float32).tobytes()


def _safetensors(header: object, data: bytes) -> bytes:
    text = json_of(header)
    return struct.pack("<Q", len(text)) + text + data


def _header(data: bytes) -> bytes:
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def _with_header(data: bytes, header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data[8 + len(_header(data)) :]


HEADED = framed(_header, _with_header, as_json)


@once
def _nestling() -> bundle.Bundle:
    return bundle.Bundle.open(NESTLING)


def _embedding(data: bytes, folder: Path) -> object:
    (folder / "word.safetensors").write_bytes(data)
    place = f"{folder / 'word.safetensors'}:{text_of(data[8:18])}"
    keys = {"emb_params": "text_encoder"}
    return [Embeddings.open(_nestling(), keys, wanted) for wanted in (folder / "word.safetensors", [place])]


def _embeddings() -> Iterable[bytes]:
    width = _nestling().config("text_encoder")["hidden_size"]
    data = _vectors(width)
    yield _safetensors({"<zebra>": {"dtype": "F32", "shape": [2, width], "data_offsets": [0, len(data)]}}, data)


def _checkpoint(data: bytes, folder: Path) -> object:
    """A file in an original layout, up to where its tensors are read."""
    from ovenbird_export import layouts, original
    from ovenbird_export.pickled import open_file

    path = folder / "model.ckpt"
    path.write_bytes(data)
    found = open_file(path)
    family = layouts.detect(path, found.tensors)
    layouts.unused(path, family, found.tensors)
    pipeline = original._pipeline(path, family, found.tensors)
    return original._prediction(path, found, family, pipeline, None), layouts.autoencoder(path, found.tensors)


def _opens(data: bytes, folder: Path) -> object:
    from ovenbird_export.pickled import open_file

    (folder / "x.ckpt").write_bytes(data)
    return open_file(folder / "x.ckpt")


def _zipped(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "data/0": pickle_parts.NUMBERS}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return file.getvalue()


def _pickle(data: bytes) -> bytes:
    if data.startswith(b"PK"):
        return zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
    return data[len(pickle_parts.LEGACY_MAGIC) :]


def _with_pickle(data: bytes, pickled: bytes) -> bytes:
    return _zipped(pickled) if data.startswith(b"PK") else pickle_parts.LEGACY_MAGIC + pickled


def _checkpoints() -> Iterable[bytes]:
    program = pickle_parts.program({"state_dict": pickle_parts.entries({"a": pickle_parts.GOOD})})
    yield _zipped(program)
    yield pickle_parts.legacy(program)
    yield _zipped(pickle_parts.program({"a": pickle_parts.GOOD, "b": pickle_parts.call(pickle_parts.name("os", "x"))}))


OPCODES = tuple(
    bytes([code]) for code in b"(.0125FIJKLMNPQRSTUVXabcdeghijlopqrstu})]\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b"
)
OPCODES += (
    b"\x8c\x01a",
    b"\x8d",
    b"\x8e",
    b"\x8f",
    b"\x90",
    b"\x93",
    b"\x94",
    b"\x95",
    b"\x96",
    b"ctorch\nFloatStorage\n",
)
OPCODES += (b"2" * 500, b"\x85" * 1000, b"(" * 1000, b"q\0h\0", b"I" + b"9" * 4000 + b"\n", b"L9L\n", b"S'\\x'\n")


def _original() -> Iterable[bytes]:
    *_, whole = _tensors()
    yield whole


# Sources of an export


def source(name: str) -> Callable[[bytes, Path], object]:
    """A folder of diffusers in which one file is the input; the weights are not looked at."""

    def parse(data: bytes, folder: Path) -> object:
        from ovenbird_export.source import Source

        home = folder / "source"
        if not home.exists():
            shutil.copytree(SOURCE, home, ignore=shutil.ignore_patterns("*.safetensors"))
            for path in SOURCE.rglob("*.safetensors"):
                (home / path.relative_to(SOURCE)).write_bytes(next(iter(_tensors())))
        (home / name).write_bytes(data)
        found = Source.open(home)
        sizes = found.default_size, found.text_length, found.clip_skip, found.vocabulary("text_encoder")
        return sizes, found.index(), found.scheduler(), found.licence(), found.latents_alone

    return parse


def _lora(data: bytes, folder: Path) -> object:
    from ovenbird_export.lora import Lora

    (folder / "lora.safetensors").write_bytes(data)
    found = Lora.parse(f"{folder / 'lora.safetensors'}:0.5")
    found.check(["unet", "text_encoder"])
    return found.layers, found.alphas


def _loras() -> Iterable[bytes]:
    names = (
        "unet.mid.attn.lora_A.weight",
        "unet.mid.attn.lora_B.weight",
        "lora_te_a.lora_up.weight",
        "lora_te_a.lora_down.weight",
    )
    facts = {name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * k, 8 * k + 8]} for k, name in enumerate(names)}
    told = {"__metadata__": {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4})}}
    yield _safetensors(facts | told, b"\0" * 32)


def _lora_name(data: bytes, folder: Path) -> object:
    from ovenbird_export.lora import Lora

    with suppress(RequestError):  # no such file
        Lora.parse(text_of(data))
    (folder / "x").touch()
    return Lora.parse(f"{folder / 'x'}:{text_of(data)}")


# Files


def _kept(data: bytes, folder: Path) -> object:
    """A compiled model in the cache."""
    home = compiled.folder()
    assert home
    home.mkdir(parents=True, exist_ok=True)
    key = f"{'0' * 64}.blob"
    (home / key).write_bytes(data)
    entries, foreseen = compiled.entries(), list(_compiled_before())
    return entries, foreseen, compiled.load(key)


def _compiled_before() -> Iterable[object]:
    from ovenbird.memory import _compiled_before

    return _compiled_before()


def _blob(data: bytes, header: bytes) -> bytes:
    body = data[32:].partition(b"\n")[2]
    rest = header.replace(b"\n", b" ") + b"\n" + body
    return hashlib.sha256(rest).digest() + rest


def _blobs() -> Iterable[bytes]:
    facts = {
        "component": "unet",
        "shapes": {"sample": [2, 4, 16, 16]},
        "properties": {"INFERENCE_PRECISION_HINT": "f32"},
        "edits": {"shallow": False},
        "manifest": "a",
        "ports": [{"sample": "sample"}, {"out_sample": "out"}],
        "flop": [1, 2],
    }
    yield _blob(b"\0" * 32 + b"\nblob", json_of(facts))


def _tuning(data: bytes, folder: Path) -> object:
    facts = _facts()
    for name in (choice.note_name(facts), f"{'0' * 64}{choice.NOTE}"):
        cache.write(name, data)
    cache.write(f"{'1' * 64}{choice.NOTE}", next(iter(_tunings())))
    there = dict.fromkeys(("fp16", "int8"), NESTLING)
    with mock.patch.object(choice, "facts", lambda there: facts):
        found = [choice.Leeway(threads=count).among(there) for count in (None, 1)]
    with mock.patch.object(choice, "facts", lambda there: facts | {"cpu": "another"}):
        return [*found, choice.Leeway().among(there), [known.missing for _, known in choice.notes(facts["model"])]]


@once
def _facts() -> choice.Facts:
    return choice.facts(dict.fromkeys(("fp16", "int8"), NESTLING))


def _tunings() -> Iterable[bytes]:
    facts = _facts()
    measured = [
        {"way": {"precision": "fp16", "backend": "openvino", "threads": count}, "arithmetic": "f32", "seconds": [0.1]}
        for count in (None, 1)
    ]
    yield json_of(
        {"format": 1, "facts": facts, "date": "2026-11-21", "size": 128, "measured": measured}
        | {"failed": {"fp16 on onnxruntime, 1 thread": "why"}}
    )


def _image(path: Path) -> object:
    found = images.read("image", path)
    given = images.picture("image", found)
    with suppress(RequestError):  # it has transparent parts
        images.mask("mask_image", found)
    return given


def _images() -> Iterable[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 16, 4), np.uint8)
    for form, mode, more in (
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": 0}),
        ("PNG", "1", {}),
        ("JPEG", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        ("JPEG", "CMYK", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (16, 24))]}),
    ):
        file = io.BytesIO()
        Image.fromarray(noise).convert("RGB").convert(mode).save(file, form, **more)
        yield file.getvalue()


def _told(data: bytes, folder: Path) -> object:
    """What a picture says of itself, as ``ovenbird info`` shows it."""
    text = PngInfo()
    text.add_itxt("ovenbird", data.decode("utf-8", "replace"))
    Image.new("RGB", (8, 8)).save(folder / "told.png", pnginfo=text)
    return _shown(folder / "told.png")


def _recalled(chunk: str) -> Callable[[bytes, Path], object]:
    """What ``--params-from`` takes from a picture."""

    def parse(data: bytes, folder: Path) -> object:
        text = PngInfo()
        text.add_itxt(chunk, data.decode("utf-8", "replace"))
        Image.new("RGB", (8, 8)).save(folder / "again.png", pnginfo=text)
        return recall.read(folder / "again.png")

    return parse


OURS = {
    **{"prompt": "a", "negative_prompt": "", "prompt_syntax": "plain", "scheduler": "euler", "sampler": "Euler"},
    **{"num_inference_steps": 2, "guidance_scale": 7.5, "seed": 7, "width": 64, "height": 64, "strength": None},
    **{"variation_seed": None, "variation_strength": 0.0, "hires_scale": None, "model": "m", "ovenbird": "0.1.0"},
    **{"crops_coords_top_left": [0, 0], "guidance_interval": [0.0, 1.0]},
}
WEB_UI = (
    b"a (red:1.3) house\nNegative prompt: snow\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, "
    b'Size: 64x72, Model: "a, b", Clip skip: 2, Denoising strength: 0.5, Hires upscale: 2, Hires steps: 10, Eta: 0.5, '
    b"Variation seed: 3, Variation seed strength: 0.2, Version: v1.9"
)
PAIRS = (b", ", b": ", b'"', b"\n", b"Steps: ", b"Size: ", b"Clip skip: ", b"Hires steps: ", b"9" * 400, b"nan", b"inf")


def _shown(path: Path) -> object:
    asked = ["--", str(path)], ["--json", "--", str(path)]
    return [CliRunner().invoke(info, each, catch_exceptions=False, standalone_mode=False).output for each in asked]


def _named(data: bytes, folder: Path) -> object:
    """What ``ovenbird info`` is asked about."""
    return _shown(Path(text_of(data).replace("\0", "")))


def _pictures() -> Iterable[bytes]:
    file, text = io.BytesIO(), PngInfo()
    text.add_text("ovenbird", json.dumps({"prompt": "a house"}), zip=True)
    Image.new("L", (8, 8)).save(file, "PNG", pnginfo=text)
    yield file.getvalue()


def _settings() -> Iterable[bytes]:
    yield json_of({"prompt": "a house", "seed": 7, "width": 64, "embeddings": [{"word": "x"}], "strength": None})


def _checksummed(data: bytes, changed: bytes) -> bytes:
    """A PNG whose chunks have the checksums that they should."""
    out, at = changed[:8], 8
    while at + 12 <= len(changed):
        length = int.from_bytes(changed[at : at + 4], "big")
        chunk = changed[at + 4 : at + 8 + length]
        out += changed[at : at + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        at += 12 + length
    return out + changed[at:]


_chunks = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"zTXt", b"iTXt", b"VP8X", b"ALPH", b"ANMF")
PICTURES = as_bytes(*_chunks, b"\xff\xd8", b"\xff\xc2", b"\xff\xdb", b"\0\0\x0f\xff\0\0\x0f\xff")


def _file(parse: Callable[[Path], object], name: str = "file") -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return parse(folder / name)

    return read


FILES: dict[str, Target] = {
    "safetensors": Target(lambda data, folder: tensors.parse(folder / "x", data), _tensors, HEADED),
    "embeddings": Target(_embedding, _embeddings, HEADED),
    "weights": Target(_opens, _tensors, HEADED),
    "original layouts": Target(_checkpoint, _original, HEADED),
    "pickles": Target(_opens, _checkpoints, either(as_bytes(), framed(_pickle, _with_pickle, as_bytes(*OPCODES)))),
    "compiled": Target(_kept, _blobs, framed(lambda data: data[32:].partition(b"\n")[0], _blob, as_json)),
    "tuning notes": Target(_tuning, _tunings, as_json),
    "picture settings": Target(_told, _settings, as_json),
    "our settings": Target(_recalled("ovenbird"), lambda: [json_of(OURS)], as_json),
    "web ui settings": Target(_recalled("parameters"), lambda: [WEB_UI], as_bytes(*PAIRS)),
    "pictures told of": Target(_file(_shown, "x.png"), _pictures, framed(bytes, _checksummed, PICTURES)),
    "what info is asked": Target(_named, lambda: [b"nestling"], as_bytes(b"/", b"~", b"@", b".png", b"a" * 300)),
    "images": Target(_file(_image), _images, either(PICTURES, framed(lambda data: data, _checksummed, PICTURES))),
    **{
        f"source {name}": Target(source(name), lambda name=name: [(SOURCE / name).read_bytes()], as_json)
        for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json")
    },
    "lora": Target(_lora, _loras, HEADED),
    "lora names": Target(
        _lora_name, lambda: [b"0.5", b"1e3"], as_bytes(b":", b"/", b"\0", b"a" * 300, b"nan", b"inf", b"9" * 400)
    ),
}
EXPORT = ("weights", "original layouts", "pickles", "lora", "lora names", *(name for name in FILES if "source" in name))
"""Those that are of the export."""
