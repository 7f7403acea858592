"""What the model card promises, over fewer captions than the benchmark."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from ovenbird import Bundle, Pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import attributes
from scenes import ATTRIBUTES, Scene

CAPTIONS = 40


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("nestling")


@pytest.fixture(scope="module")
def reader(pipeline: Pipeline) -> attributes.Reader:
    return attributes.Reader(attributes.held_out(CAPTIONS), pipeline.backend)


def test_there_are_at_least_20_000_scenes_of_8_attributes() -> None:
    assert len(ATTRIBUTES) == 8
    assert math.prod(len(values) for values in ATTRIBUTES.values()) >= 20_000


def test_captions_differ_and_drawings_repeat() -> None:
    import random

    from drawing import render
    from scenes import caption

    scene = Scene("night", "snow", "hills", "disc", "house", "red", "large", "left")
    rng = random.Random(0)
    assert len({caption(scene, rng)[0] for _ in range(100)}) > 80
    pictures = [np.asarray(render(scene, random.Random(seed))) for seed in (1, 1, 2)]
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()


def test_the_folder_is_whole_and_small(nestling: Path) -> None:
    bundle = Bundle.open("nestling")
    bundle.verify()
    assert bundle.embedded
    files = [*(nestling / "source").rglob("*"), *(nestling / "fp16").rglob("*"), *(nestling / "reader").rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 60e6


def test_it_has_the_classes_of_stable_diffusion(nestling: Path) -> None:
    index = json.loads((nestling / "source" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    parts = {name: index[name][1] for name in ("text_encoder", "unet", "vae", "tokenizer")}
    assert parts == {
        "text_encoder": "CLIPTextModel",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "tokenizer": "CLIPTokenizer",
    }


def test_pictures_show_what_held_out_captions_ask(pipeline: Pipeline, reader: attributes.Reader) -> None:
    exam = attributes.held_out(CAPTIONS)
    seen = attributes.readings(pipeline, reader, exam.requests())
    right = attributes.score(seen, exam.captions)["all"]
    shuffled = attributes.score(seen, [*exam.captions[1:], exam.captions[0]])["all"]
    assert right >= 0.92
    assert shuffled <= 0.6


def test_the_reader_is_right_on_drawings(reader: attributes.Reader) -> None:
    scores = attributes.score(*attributes.rendered(reader, 100))
    assert min(scores.values()) >= 0.95


def test_reconstructions_have_30_db(pipeline: Pipeline) -> None:
    assert np.mean(attributes.reconstruction(pipeline, 20)) >= 30


def test_a_negative_prompt_takes_the_night_away(pipeline: Pipeline, reader: attributes.Reader) -> None:
    shares = attributes.night_share(pipeline, reader, 20)
    without, negative = shares.values()
    assert negative < without
