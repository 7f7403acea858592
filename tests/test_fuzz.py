"""Parsers and what nobody would write: a little of it in every run, and what was found once, for ever.

``python -m tests.fuzz`` does the same for as long as one likes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pace import undisturbed, within

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import Breach, Fuzzer, fuzz
from fuzz_changes import Target, as_bytes
from fuzz_files import EXPORT, NESTLING, WEB_UI
from fuzz_targets import TARGETS

from ovenbird import Request, RequestError

DEEP = b"[" * 100_000 + b"]" * 100_000
HUGE = 10**400


def setting(name: str, **changes: Any) -> bytes:
    return json.dumps(json.loads((NESTLING / name).read_text()) | changes).encode()


def compiled(header: bytes) -> bytes:
    rest = header + b"\nblob"
    return hashlib.sha256(rest).digest() + rest


def manifest(**files: Any) -> bytes:
    [seed] = TARGETS["manifest"].seeds()
    told = json.loads(seed)
    return json.dumps(told | {"files": told["files"] | files}).encode()


def journal(line: bytes) -> bytes:
    [seed] = TARGETS["journal"].seeds()
    return seed + line + b"\n"


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">II", width, height) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def tuning(**changes: Any) -> bytes:
    [seed] = TARGETS["tuning notes"].seeds()
    told = json.loads(seed)
    told["measured"][0] |= changes
    return json.dumps(told).encode()


TOKENIZER = "tokenizer/tokenizer_config.json"
FOUND: list[tuple[str, str, bytes]] = [
    ("sizes", "too many digits for a float", b"9" * 400 + b"TB"),
    ("model names", "longer than a file's name", b"nest" * 100),
    ("model names", "the home of nobody", b"~nobody-at-all/x"),
    ("model names", "a home with NUL", b"~a\0b"),
    ("devices", "automatically none", b"auto:-cpu"),
    (
        "scheduler_config",
        "beyond floats",
        json.dumps({"_class_name": "DDIMScheduler", "trained_betas": [HUGE]}).encode(),
    ),
    (
        "scheduler_config",
        "beyond floats, clipped",
        json.dumps({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": HUGE}).encode(),
    ),
    ("manifest", "a file with NUL", manifest(**{"a\0b": {"size": 1, "sha256": ""}})),
    ("manifest", "a file with half a character", manifest(**{"a\ud800": {"size": 1, "sha256": ""}})),
    ("manifest", "longer than a file's name", manifest(**{"a" * 300: {"size": 1, "sha256": ""}})),
    ("unet config", "channels in words", setting("unet/config.json", in_channels="\n")),
    ("unet config", "a size in words", setting("unet/config.json", sample_size="{}%s")),
    ("unet config", "layers beyond floats", setting("unet/config.json", layers_per_block=HUGE)),
    (
        "unet config",
        "endless layers of the least size",
        setting("unet/config.json", layers_per_block=1 << 63, sample_size=1),
    ),
    ("vae config", "no list of blocks", setting("vae_decoder/config.json", block_out_channels=0.0)),
    ("vae config", "channels that are no number", setting("vae_decoder/config.json", latent_channels=float("nan"))),
    ("text config", "wider than memory", setting("text_encoder/config.json", hidden_size=-HUGE, vocab_size=[1])),
    ("preprocessor", "a colour beyond floats", json.dumps({"image_mean": HUGE}).encode()),
    ("preprocessor", "an endless side", b'{"size": -Infinity}'),
    ("preprocessor", "an endless crop", b'{"crop_size": Infinity}'),
    ("vocab.json", "numbers in words", json.dumps({"<|startoftext|>": 0, "<|endoftext|>": "1"}).encode()),
    ("vocab.json", "numbers below zero", json.dumps({"<|startoftext|>": 0, "<|endoftext|>": -1}).encode()),
    ("merges.txt", "of tokens that are not there", b"#version: 0.2\nnot there\n"),
    ("tokenizer.json", "merges that are numbers", b'{"model": {"vocab": {"a": 1}, "merges": [7]}}'),
    ("tokenizer.json", "no model", b'{"model": [1]}'),
    ("tokenizer_config.json", "a length that is a list", setting(TOKENIZER, model_max_length=[77])),
    ("tokenizer_config.json", "a token without its text", setting(TOKENIZER, eos_token={"special": True})),
    ("downloads", "facts of another version", b'[{"name": "x", "etag": 1}]'),
    ("downloads", "no variant", b"[]"),
    ("lora names", "longer than a file's name", b"1e3" * 300),
    ("compiled", "deeper than Python reads", compiled(DEEP)),
    ("journal", "an item beyond numbers", journal(b'{"status": "done", "item": -Infinity, "sha256": "ab"}')),
    ("journal", "a line deeper than Python reads", journal(DEEP)),
    ("journal", "a header deeper than Python reads", DEEP + b"\n"),
    ("web ui settings", "steps beyond floats", WEB_UI.replace(b"Hires steps: 10", b"Hires steps: 1" + b"0" * 400)),
    ("web ui settings", "a share of next to nothing", WEB_UI.replace(b"strength: 0.5", b"strength: 1e-320")),
    ("picture settings", "none that says anything", b'{"": null}'),
    ("pictures told of", "of more pixels than Pillow opens", png(60_000, 60_000)),
    ("what info is asked", "longer than a file's name", b"nest" * 100 + b".png"),
    ("tuning notes", "seconds beyond floats", tuning(seconds=[HUGE])),
    ("tuning notes", "threads in words", tuning(way={"precision": "fp16", "backend": "openvino", "threads": "two"})),
    ("tuning notes", "a variant that is a list", tuning(way={"precision": [], "backend": "openvino", "threads": 1})),
]
"""Target -> an input that once ended in a traceback."""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is written to the cache here is nothing for other tests to find, and their garbage takes no time here."""
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    with undisturbed():
        yield


def fuzzer(name: str, folder: Path) -> Fuzzer:
    if name in EXPORT:
        pytest.importorskip("safetensors")
        pytest.importorskip("torch")
    return Fuzzer(TARGETS[name], folder, seed=0)


@pytest.mark.parametrize(("name", "data"), [row[::2] for row in FOUND], ids=[f"{row[0]}: {row[1]}" for row in FOUND])
def test_what_was_found_once_is_a_value_or_refused(name: str, data: bytes, tmp_path: Path) -> None:
    fuzzer(name, tmp_path).check(data)


@pytest.mark.parametrize("name", list(TARGETS))
def test_seeds_are_read_and_a_few_changes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    found, until = fuzzer(name, tmp_path), time.monotonic() + 0.05
    found.seeds_hold()
    for data in islice(found.inputs(), 100):
        found.check(data)
        if time.monotonic() > until:
            break
    assert found.seen


def test_a_parser_that_breaks_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(data: bytes, folder: Path) -> object:
        if b"b" in data:
            raise KeyError("b")
        if b"slow" in data:
            end = time.process_time() + 1.1
            while time.process_time() < end:
                pass
        return b"x" * (300 << 20 if b"large" in data else 1)

    monkeypatch.setitem(TARGETS, "broken", Target(parse, lambda: [b"a"], as_bytes(b"b")))
    broken = Fuzzer(TARGETS["broken"], tmp_path, seed=0)
    broken.check(b"a")
    for data, said in ((b"ab", "KeyError: 'b' at KeyError"), (b"slow", "it took 1"), (b"large", r"it took \d+ MiB")):
        with pytest.raises(Breach, match=said):
            broken.check(data)
    assert len(fuzz("broken", 0.005, 0, tmp_path / "kept")) == 1
    assert b"b" in next(path for path in (tmp_path / "kept").iterdir() if not path.suffix).read_bytes()


@pytest.mark.parametrize("field", ["seed", "guidance_scale", "prompt", "height", "eta", "target_size"])
def test_r8_r12_r13_a_number_that_python_does_not_show_is_refused_by_name(field: str) -> None:
    with pytest.raises(RequestError, match=f"^{field}: "):
        Request(**{"prompt": "", field: 10**5000})  # type: ignore[arg-type]


def test_r2_a_long_list_is_refused_in_no_time() -> None:
    values = [0] * 10**7
    with within(0.1), pytest.raises(RequestError, match=r"^height: \[0, 0, .*\.\.\."):
        Request(prompt="", height=values)  # type: ignore[arg-type]


def test_an_ir_that_claims_much_is_looked_through_in_time_that_grows_with_it(tmp_path: Path) -> None:
    data = b'<data element_type="f16"' * 20_000
    fuzzer("precision in IR", tmp_path).check(data)
