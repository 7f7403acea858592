"""Stage 2: a small network that reads the attributes off a picture; it has seen rendered pictures only."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drawing import render
from scenes import ATTRIBUTES, random_scene
from training import Average, Checkpoint, Log, Muon
from vae import to_tensor

SIZE = 128
SPLITS = [len(values) for values in ATTRIBUTES.values()]


def build() -> nn.Sequential:
    """Five strided convolutions and one head over all attributes; (N, 3, 128, 128) -> (N, sum of SPLITS)."""
    layers: list[nn.Module] = []
    channels = (3, 24, 48, 64, 96, 96)
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(0.1), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, sum(SPLITS))
    )


def examples(seed: int, count: int, held_out: bool) -> tuple[Tensor, Tensor]:
    """Rendered pictures (N, 3, 128, 128) and their labels (N, 8)."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, held_out) for _ in range(count)]
    pictures = [np.asarray(render(scene, rng)) for scene in scenes]
    return to_tensor(pictures), torch.tensor([scene.labels() for scene in scenes])


def roughen(x: Tensor) -> Tensor:
    """Blur, noise and a shift of brightness, so that small faults of a generated picture do not matter."""
    width = (1, 1, 3, 5)[int(torch.randint(4, ()))]
    x = F.avg_pool2d(x, width, 1, width // 2, count_include_pad=False)
    x = x + 0.1 * torch.rand(()) * torch.randn_like(x) + 0.15 * (torch.rand(len(x), 3, 1, 1) - 0.5)
    return x.clamp(-1, 1)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the attributes."""
    parts = zip(logits.split(SPLITS, 1), labels.T, strict=True)
    return torch.stack([F.cross_entropy(part, label) for part, label in parts]).mean()


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of right answers per attribute."""
    answers = torch.stack([part.argmax(1) for part in logits.split(SPLITS, 1)], 1)
    return dict(zip(ATTRIBUTES, (answers == labels).float().mean(0).tolist(), strict=True))


def train(work: Path, steps: int) -> nn.Sequential:
    """Train to ``work/reader.pt`` (resumed if there); write ``work/reader.onnx``."""
    torch.manual_seed(0)
    reader = build()
    optimiser, average = Muon([reader], 0.02, 2e-3), Average([reader], 0.99)
    checkpoint = Checkpoint(work / "reader_state.pt", [reader], optimiser, average)
    log = Log("reader", steps, 100)
    for step in range(checkpoint.load(), steps):
        optimiser.set_progress(step / steps)
        x, labels = examples(step, 64, held_out=False)
        loss = loss_of(reader(roughen(x)), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        average.update()
        log.add(step, loss=loss.item())
        if step % 250 == 249:
            checkpoint.save(step + 1)
    average.swap()
    reader.eval()
    x, labels = examples(987_654_321, 600, held_out=True)
    with torch.no_grad():
        scores = accuracy(reader(x), labels)
    print("reader, held-out rendered pictures:", {k: round(v, 4) for k, v in scores.items()}, flush=True)
    torch.save(reader.state_dict(), work / "reader.pt")
    return reader


def load(work: Path) -> nn.Sequential:
    """The trained reader, ready to read."""
    reader = build()
    reader.load_state_dict(torch.load(work / "reader.pt", weights_only=True))
    return reader.eval()


def export(reader: nn.Module, path: Path) -> None:
    """Write the reader as ONNX: ``picture`` (N, 3, 128, 128) in -1 .. 1 -> ``logits`` (N, sum of SPLITS)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        reader,
        (torch.zeros(1, 3, SIZE, SIZE),),
        path,
        input_names=["picture"],
        output_names=["logits"],
        dynamic_axes={"picture": {0: "pictures"}, "logits": {0: "pictures"}},
        dynamo=False,
    )
