"""The table of families, sources and variants: every cell is exported, proven, verified and made pictures with.

Minutes, so most of it is not part of CI.  ``python -m benchmarks matrix`` runs all of it and keeps what passed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ovenbird import Pipeline, Request
from ovenbird.backends import BACKENDS
from ovenbird.bundle import Bundle
from ovenbird_export.precisions import PRECISIONS
from ovenbird_export.sources import Wanted

pytest.importorskip("torch")
pytest.importorskip("optimum")
pytest.importorskip("huggingface_hub")

import export_tiny
import fake_hub
import original_layout
import test_export_original as single

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]  # other people's warnings

DRAWN = ("sd15", "sd20", "sd21", "turbo", "sdxl", "lcm")
"""Families that the engine has a sampler and all inputs for."""
Make = Callable[..., list[Path]]
Tell = Callable[[str, object], None]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The export, with pictures that are as small as can be."""
    from ovenbird_export import calibration, fidelity
    from ovenbird_export.export import Wish, export_folder

    for module in (calibration, fidelity):
        monkeypatch.setattr(module, "LARGEST_SIDE", 64)

    def make(wanted: Wanted, *precisions: str) -> list[Path]:
        return export_folder(wanted, tmp_path / "out", Wish(precisions=tuple(PRECISIONS[name] for name in precisions)))

    return make


def check(folder: Path, drawn: bool) -> None:
    """Every byte is as the manifest says, every component passed on both runtimes, and the engine draws."""
    bundle = Bundle.open(folder)
    bundle.verify(full=True)
    assert bundle.manifest and bundle.precision == folder.name
    verification = bundle.manifest["verification"]
    assert all(set(figures) == set(BACKENDS) for figures in verification["components"].values())
    assert (verification["pictures"] is not None) == drawn
    wish = Request(prompt="a red house", seed=1, num_inference_steps=2, height=64, width=72)
    for runtime in BACKENDS if drawn else ():
        [image] = Pipeline.open(folder, runtime).generate(wish).images
        assert image.size == (72, 64)


def tell(record_property: Tell, source: str, family: str, *variants: str) -> None:
    """What passed, for the record."""
    for name, value in (("source", source), ("family", family), ("variants", ",".join(variants))):
        record_property(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("family", export_tiny.TINIES)
def test_every_family_in_every_variant(made: Make, tmp_path: Path, family: str, record_property: Tell) -> None:
    export_tiny.write_source(tmp_path / "source", family)
    drawn = family in DRAWN
    # Ranges for eight bits are measured while the model draws.
    variants = list(PRECISIONS) if drawn else ["fp32", "fp16", "int8-weights"]
    for folder in made(Wanted(str(tmp_path / "source")), *variants):
        check(folder, drawn)
    tell(record_property, "folder", family, *variants)


@pytest.mark.slow
@pytest.mark.parametrize("family", export_tiny.TINIES)
def test_every_family_from_the_hub(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, record_property: Tell
) -> None:
    export_tiny.write_source(tmp_path / "source", family)
    files = [path for path in (tmp_path / "source").rglob("*") if path.is_file()]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_hub.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        commit = server.commit({path.relative_to(tmp_path / "source").as_posix(): path.read_bytes() for path in files})
        [folder] = made(Wanted("owner/name"), "fp16")
    check(folder, family in DRAWN)
    manifest = Bundle.open(folder).manifest
    assert manifest and manifest["source"]["commit"] == commit
    tell(record_property, "OWNER/NAME", family, "fp16")


@pytest.mark.parametrize(
    ("family", "suffix"),
    [
        pytest.param(family, suffix, marks=[] if (family, suffix) == ("SD 1.x", ".ckpt") else [pytest.mark.slow])
        for family in single.TINY
        for suffix in (".safetensors", ".ckpt")
    ],
)
def test_every_layout_from_one_file(
    made: Make, tmp_path: Path, family: str, suffix: str, record_property: Tell
) -> None:
    export_tiny.write_tokenizer(tmp_path / "tokenizer")
    modules = single.build(family, single.TINY[family])
    file = single.save(original_layout.checkpoint(family, modules), tmp_path / f"model{suffix}")
    [folder] = made(Wanted(str(file), tokenizer=str(tmp_path / "tokenizer"), prediction_type="v_prediction"), "fp16")
    check(folder, drawn=True)
    bundle = Bundle.open(folder)
    assert bundle.manifest and bundle.name == "model"
    facts = bundle.manifest["source"]
    assert (facts["layout"], facts["prediction_type"]) == (family, "v_prediction: asked for")
    tell(record_property, suffix, family, "fp16")
