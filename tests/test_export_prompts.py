"""What the engine tells the U-Net of a prompt is what diffusers tells it, with ``clip_skip`` and learned words too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("optimum")

import export_tiny  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from ovenbird import Bundle, Request, RequestError  # noqa: E402
from ovenbird.backends import BACKENDS, create  # noqa: E402
from ovenbird.embeddings import Embeddings  # noqa: E402
from ovenbird.families import check, condition, read_embeddings  # noqa: E402
from ovenbird_export.export import write_rest  # noqa: E402
from ovenbird_export.job import Job  # noqa: E402
from ovenbird_export.precisions import PRECISIONS  # noqa: E402
from ovenbird_export.source import Source  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]  # other people's warnings

PROMPT, NEGATIVE = "a red house (a cat)", "cat"
LEARNED = ("a <cat>house by zqx", "zqx " * 90)


class Model(NamedTuple):
    """Text encoders as the export makes them, and diffusers' pipeline that knows the same words."""

    bundle: Bundle
    words: Embeddings
    theirs: Any


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """By the name of a tiny source, made when it is first asked for; the prompts' side of an export and no more."""
    from ovenbird_export import convert

    made: dict[str, Model] = {}

    def make(name: str) -> Model:
        root = tmp_path_factory.mktemp(name)
        write_source(root / "source", name)
        source = Source.open(root / "source")
        folder = root / "fp32"
        job = Job(source, (PRECISIONS["fp32"],), {"fp32": folder}, root / "scratch")
        write_rest(job, folder)
        for part in source.parts:
            if part.name.startswith("text_encoder"):
                convert.convert(job, part)
        shutil.copytree(root / "source" / "unet", folder / "unet")
        bundle = Bundle(folder, name, source.recipe.family, "fp32", {"clip_skip": source.clip_skip})
        kind = getattr(diffusers, source.recipe.pipeline)
        absent = dict.fromkeys(("image_encoder", "feature_extractor", "safety_checker")) if name == "sd15" else {}
        theirs = kind.from_pretrained(root / "source", **absent)
        return Model(bundle, learn(bundle, theirs, root), theirs)

    def known(name: str) -> Model:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return known


def write_source(folder: Path, name: str) -> None:
    export_tiny.write_source(folder, name)
    if name == "sdxl":
        # As SDXL has it: where the text ends is where the highest id is, be it a learned word's.
        path = folder / "text_encoder_2" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))


def learn(bundle: Bundle, theirs: Any, folder: Path) -> Embeddings:
    """Two words, of three vectors and of one, for both."""
    draw = np.random.default_rng(0).standard_normal
    files = {"<cat>": folder / "cat.safetensors", "zqx": folder / "zqx.safetensors"}
    for (word, file), count in zip(files.items(), (3, 1), strict=True):
        vectors = [draw((count, 32), np.float32), draw((count, 32), np.float32)]
        if bundle.family == "sd":
            save_file({word: vectors[0]}, file)
            theirs.load_textual_inversion(str(file))
            continue
        save_file({"clip_l": vectors[0], "clip_g": vectors[1]}, file)
        for rows, end in zip(vectors, ("", "_2"), strict=True):
            into = {
                "text_encoder": getattr(theirs, f"text_encoder{end}"),
                "tokenizer": getattr(theirs, f"tokenizer{end}"),
            }
            theirs.load_textual_inversion(torch.from_numpy(rows), token=word, **into)
    return read_embeddings(bundle, files)


@pytest.fixture(scope="module")
def encoders(model: Callable[[str], Model]) -> Callable[[str, str], Callable[[str], Any]]:
    """(family, runtime) -> a text encoder by its name, compiled once."""

    @cache
    def compiled(family: str, runtime: str, name: str) -> Any:
        bundle, words, _ = model(family)
        shapes = {"input_ids": (1, 77)}
        return create(runtime).compile(
            bundle.path / name, shapes, precision="f32", cache_key=None, rows=words.rows(name)
        )

    return lambda family, runtime: lambda name: compiled(family, runtime, name)


@torch.no_grad()
def expected(model: Model, wish: Request) -> dict[str, Any]:
    negative, prompt = wish.texts
    options = {"negative_prompt": negative or None, "clip_skip": wish.clip_skip or None}
    if model.bundle.family == "sdxl":
        states, without, pooled, pooled_without = model.theirs.encode_prompt(prompt, device="cpu", **options)
        return {
            "encoder_hidden_states": torch.cat([without, states]).numpy(),
            "text_embeds": torch.cat([pooled_without, pooled]).numpy(),
        }
    states, without = model.theirs.encode_prompt(prompt, "cpu", 1, True, **options)
    return {"encoder_hidden_states": torch.cat([without, states]).numpy()}


DEEPEST = {"sd15": 1, "sd21": 2, "sdxl": 1}


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize(
    ("family", "skip"), [(name, skip) for name, most in DEEPEST.items() for skip in range(most + 1)]
)
def test_the_unet_is_told_what_diffusers_tells_it(
    model: Callable[[str], Model],
    encoders: Callable[[str, str], Callable[[str], Any]],
    family: str,
    skip: int,
    runtime: str,
) -> None:
    made = model(family)
    for prompt, negative in ((PROMPT, ""), (PROMPT, NEGATIVE), LEARNED, LEARNED[::-1]):
        wish = Request(prompt=prompt, negative_prompt=negative, clip_skip=skip, height=64, width=64, seed=0)
        check(made.bundle, wish)
        found = condition(made.bundle, encoders(family, runtime), wish, made.words)
        for name, array in expected(made, wish).items():
            np.testing.assert_allclose(found[name], array, atol=1e-5)


@pytest.mark.parametrize("family", DEEPEST)
def test_the_deepest_skip_is_known_before_anything_is_compiled(model: Callable[[str], Model], family: str) -> None:
    wish = Request(prompt=PROMPT, clip_skip=DEEPEST[family] + 1)
    with pytest.raises(RequestError, match=f"clip_skip: {wish.clip_skip} is too many") as caught:
        check(model(family).bundle, wish)
    assert caught.value.hint == f"the nearest is {DEEPEST[family]}"
