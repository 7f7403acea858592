"""The exam: captions of scenes that training never saw, and what pictures of them should show."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scenes import ATTRIBUTES, caption, random_scene

CAPTIONS = 300
STEPS = 32
"""The default of ``ovenbird generate``."""


def captions(count: int) -> list[dict[str, Any]]:
    """What is asked for in words, and the attributes that the words mention."""
    rng = random.Random(2026)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    told = [(scene, *caption(scene, rng)) for scene in scenes]
    return [
        {"text": text, "shows": {name: value for name, value in asdict(scene).items() if name in said}}
        for scene, text, said in told
    ]


def write(path: Path) -> None:
    """``captions.json``, for the reader beside it; a caption to a line."""
    lines = ",\n".join(json.dumps(entry) for entry in captions(CAPTIONS))
    text = f'{{"attributes": {json.dumps(ATTRIBUTES)},\n"num_inference_steps": {STEPS},\n"captions": [\n{lines}\n]}}\n'
    path.write_text(text, encoding="utf-8", newline="\n")
