"""What is fuzzed: a row for every parser that is ours."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache as once
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from fuzz_changes import Target, as_bytes, as_json, either, json_of, text_of
from fuzz_files import FILES, NESTLING

from ovenbird import (
    Pipeline,
    Request,
    bundle,
    cache,
    hub,
    journal,
    models,
    prompts,
    schedulers,
    sizes,
)
from ovenbird.backends import create, devices
from ovenbird.errors import RequestError
from ovenbird.jobs import Jobs
from ovenbird.safety import Preparation
from ovenbird.text import PromptTokenizer, tokenize


def _file(parse: Callable[[Path], object], name: str = "file") -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        return parse(folder / name)

    return read


# Words


def _prompt(data: bytes, folder: Path) -> object:
    text = text_of(data)
    try:
        Request(prompt=text, prompt_syntax="webui")
    except RequestError:  # half a character, or too long
        raise
    found = prompts.webui(text)
    assert all(abs(piece.weight) <= prompts.LARGEST_WEIGHT for section in found for piece in section)
    tokens = [tokenize([_tokenizer()], [text], syntax) for syntax in prompts.SYNTAXES]
    assert all(np.isfinite(each[0][0].weights).all() for each in tokens)
    return tokens


@once
def _tokenizer() -> PromptTokenizer:
    return PromptTokenizer.open(NESTLING / "tokenizer")


MARKS = (b"(", b")", b"[", b"]", b":", b"\\", b"BREAK", b" AND ", b"<lora:a:1>", b"(a:1.3)", b"[a:b:0.5]", b"|", b",")
MARKS += (b":1e9)", b":-99)", b"\xe2\x80\xa8", b"\xf0\x9f\x8f\xa0", b"\xff", b"\0", b"(" * 500, b"[" * 500, b":9" * 300)


def _size(data: bytes, folder: Path) -> object:
    return sizes.show_size(sizes.parse_size("max_memory", text_of(data)))


def _model(data: bytes, folder: Path) -> object:
    """What ``--model`` may be, up to where the Hub would be asked or a folder opened."""
    text = text_of(data)
    wish = models._wish(text, None, "openvino")
    return wish.shelf.home if wish else bundle.find(text)


def _device(data: bytes, folder: Path) -> object:
    name = text_of(data)
    for known in (["CPU"], ["CPU", "GPU.0", "GPU.1", "NPU"]):
        found = devices.parse(name, known)
        assert found.members, "no device at all"
    with suppress(RequestError):
        create("onnxruntime", name)
    return found


def _sampler(data: bytes, folder: Path) -> object:
    return schedulers.from_name(text_of(data), _config())


@once
def _config() -> Any:
    return json.loads((NESTLING / "scheduler" / "scheduler_config.json").read_text())


# Settings


def _scheduler(data: bytes, folder: Path) -> object:
    (folder / "scheduler.json").write_bytes(data)
    found = schedulers.from_config(bundle.read_json(folder / "scheduler.json"))
    walk = found.steps(lambda x, t: x * 0, np.zeros((1, 4, 2, 2), np.float32), 3, noise=lambda: np.ones((1, 4, 2, 2)))
    return [found.timesteps(20), found.label, *walk]


def _schedulers() -> Iterable[bytes]:
    yield (NESTLING / "scheduler" / "scheduler_config.json").read_bytes()
    for sampler in schedulers.SAMPLERS.values():
        yield json_of({"_class_name": sampler.class_name, **sampler.options})


GRAPHS = {
    ".xml": b'<net><data element_type="f16" shape="4" offset="0" size="8" /></net>',
    **dict.fromkeys((".bin", ".onnx"), b"\0"),
}
"""What stands for graphs, of which nothing but sizes is looked at here."""


def _manifest() -> bytes:
    told = json.loads((NESTLING / bundle.MANIFEST).read_text())
    for name in told["files"]:
        content = GRAPHS.get(Path(name).suffix) or (NESTLING / name).read_bytes()
        told["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json_of(told)


def _folder_with(name: str) -> Callable[[bytes, Path], Path]:
    """A model folder in which one file is the input, and the others are nestling's; with a manifest only as input."""

    def write(data: bytes, folder: Path) -> Path:
        model = folder / f"model-{name.replace('/', '-')}"
        for path in NESTLING.rglob("*") if not model.exists() else ():
            to = model / path.relative_to(NESTLING)
            if path.is_file() and path.name != bundle.MANIFEST:
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(GRAPHS.get(path.suffix) or path.read_bytes())
        (model / name).write_bytes(data)
        return model

    return write


def _opened(name: str) -> Callable[[bytes, Path], object]:
    """Everything up to where a graph would be compiled."""
    write = _folder_with(name)

    def parse(data: bytes, folder: Path) -> object:
        pipeline = Pipeline.open(write(data, folder))
        request = Request(prompt="a house")
        pipeline.stream(request).close()  # type: ignore[attr-defined]
        return pipeline.plan(request)

    return parse


def _setting(name: str) -> Target:
    return Target(_opened(name), lambda: [(NESTLING / name).read_bytes()], as_json)


def _tokens(name: str) -> Target:
    write = _folder_with(f"tokenizer/{name}")

    def parse(data: bytes, folder: Path) -> object:
        place = write(data, folder) / "tokenizer"
        if name == "tokenizer.json":
            (place / "vocab.json").unlink(missing_ok=True)
        return PromptTokenizer.open(place)(prompts.plain("a red house, \u00e9"))

    change = as_bytes(b"\n", b" ", b"#version", b"a b\n", b"\xff") if name.endswith(".txt") else as_json
    return Target(parse, lambda: [(NESTLING / "tokenizer" / name).read_bytes()], change)


# Jobs


def _jobs(ending: str) -> Callable[[bytes, Path], object]:
    def parse(data: bytes, folder: Path) -> object:
        path = folder / f"jobs{ending}"
        path.write_bytes(data)
        with Jobs.read(path, {"num_inference_steps": 2}) as found:
            return [found.single(item.number, 7, 64) for item in found.items()]

    return parse


JOBS = (
    b'{"prompt": "a red house", "seed": 7, "num_images_per_prompt": 2}\n{"prompt": "a", "width": 64, "id": "x"}\n',
    b'{"prompt": "a", "guidance_scale": 1.5, "output": "b.png"}\n',
)
TABLES = (b'prompt,seed,width\na red house,7,64\n"a, b",,\n', b"prompt,eta\na,0.5\n")


def _journal(data: bytes, folder: Path) -> object:
    """What a run left in its folder, and somebody else wrote to."""
    (folder / journal.NAME).write_bytes(data)
    found = journal.Journal(folder)
    try:
        found.begin({"ovenbird": "0"}, restart=False, free=lambda: None)
        return found.done, found.failed, found.deaths
    finally:
        found.close()


def _journals() -> Iterable[bytes]:
    yield b"\n".join(
        (
            json_of({"journal": journal.VERSION, "ovenbird": "0", "seed": 7}),
            json_of({"status": "started", "by": "me:1", "items": [0, 1]}),
            json_of({"status": "died", "by": "me:1"}),
            json_of({"status": "failed", "item": 1, "error": "why", "exit_code": 4}),
            json_of({"status": "done", "item": 0, "sha256": "ab" * 32}) + b"\n",
        )
    )


def _a_line(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One of the lines, as JSON."""
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))
    lines[place] = as_json(chance, lines[place], others)
    return b"\n".join(lines)


# The Hub


def _answer(data: bytes, folder: Path) -> object:
    """What the Hub says of a repository, and what is wanted of it."""
    with mock.patch("ovenbird.transfer.read", lambda session, url, most: data):
        commit, listing = hub.Repository("https://hub", "owner/name", None).resolve("main")  # type: ignore[arg-type]
    return commit, [hub.pick(listing, name, 1 << 20) for name in listing]


def _answers() -> Iterable[bytes]:
    files = [
        {"rfilename": "model_index.json", "size": 571, "blobId": "b" * 40},
        {"rfilename": "unet/model.onnx", "size": 99, "blobId": "c" * 40, "lfs": {"sha256": "d" * 64, "size": 99}},
    ]
    yield json_of({"sha": "a" * 40, "siblings": files, "private": False})


def _remembered(data: bytes, folder: Path) -> object:
    """What the cache says of a download."""
    shelf = hub.Shelf("owner/name", "exported")
    shelf.home.mkdir(parents=True, exist_ok=True)
    for kind in ("complete", "revision"):
        cache.write(shelf.key("a" * 40, kind), data)
    wish = models._wish("owner/name@" + "a" * 40, None, "openvino")
    assert wish
    cache.write(models._variants(wish, "a" * 40), data)
    with suppress(RequestError):  # it is not there
        models._stored(wish, offline=True)
    return shelf.files("a" * 40), shelf.commit("main")


TARGETS: dict[str, Target] = {
    "prompts": Target(
        _prompt,
        lambda: [b"a red house", b"(a:1.3) [b] \\(c\\) BREAK d", "\u00e9(\U0001f3e0:1.2), x".encode()],
        as_bytes(*MARKS),
    ),
    "sizes": Target(
        _size, lambda: [b"20GiB", b"500 MB", b"1.5G"], as_bytes(b"9" * 400, b"1" * 5000, b".", b"KiB", b"e9")
    ),
    "model names": Target(
        _model,
        lambda: [b"owner/name@main", b"nestling", b"./nestling"],
        as_bytes(b"@", b"/", b"~", b"--", b"..", b"\0", b"a" * 300),
    ),
    "devices": Target(
        _device,
        lambda: [b"cpu", b"auto:cpu", b"hetero:cpu"],
        as_bytes(b":", b",", b"-", b"gpu.1", b"npu", b"cuda:1", b"9" * 5000),
    ),
    "samplers": Target(_sampler, lambda: [b"euler_karras", b"DPM++ 2M"], as_bytes(b"_karras", b" SDE", b"a" * 5000)),
    "scheduler_config": Target(_scheduler, _schedulers, as_json),
    "model_index": _setting("model_index.json"),
    "manifest": Target(_opened(bundle.MANIFEST), lambda: [_manifest()], as_json),
    "unet config": _setting("unet/config.json"),
    "vae config": _setting("vae_decoder/config.json"),
    "text config": _setting("text_encoder/config.json"),
    "precision in IR": Target(
        _file(lambda path: bundle._stored_precision(path.parents[1]), "unet/openvino_model.xml"),
        lambda: [b'<net><data element_type="f16" shape="4" offset="0" size="8" /></net>'],
        as_bytes(b'<data element_type="f16"', b' size="9"', b'" size="' + b"9" * 5000, b'type="FakeQuantize"', b">"),
    ),
    "preprocessor": Target(
        _file(Preparation.read),
        lambda: [json_of({"size": {"shortest_edge": 224}, "crop_size": 224, "image_mean": [0.5] * 3, "resample": 3})],
        as_json,
    ),
    **{name: _tokens(name) for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")},
    "jobs.jsonl": Target(
        _jobs(".jsonl"), lambda: JOBS, either(_a_line, as_bytes(b"\n", b'"', b"\xff", b"\xef\xbb\xbf"))
    ),
    "jobs.csv": Target(
        _jobs(".csv"), lambda: TABLES, as_bytes(b",", b'"', b"\r\n", b";", b"\0", b"prompt", b"[", b"9" * 400)
    ),
    "journal": Target(_journal, _journals, either(_a_line, as_bytes(b"\n"))),
    "hub answers": Target(_answer, _answers, as_json),
    "downloads": Target(
        _remembered,
        lambda: [json_of([{"name": "model_index.json", "size": 571, "digest": "d" * 64}]), b"[]", b"a" * 40],
        as_json,
    ),
    **FILES,
}
"""Name -> a parser.  One more takes a row, and a function if its input has to be put somewhere first."""
