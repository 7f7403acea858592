"""Retrain nestling from nothing: python models/nestling/recipe [--work FOLDER] [--publish FOLDER]."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

import exam
import reader
import unet
import vae
import vocabulary

HERE = Path(__file__).resolve().parent
STEPS = {"vae": 4500, "reader": 600, "unet": 5000}


def train(work: Path, steps: dict[str, int]) -> None:
    """Every stage that is not finished yet; killed and started again, it goes on where it was."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer").exists():
        vocabulary.build(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    if not (work / "vae").exists():
        vae.train(work, steps["vae"])
    if not (work / "reader.pt").exists():
        reader.train(work, steps["reader"])
    if not (work / "unet").exists():
        coder = AutoencoderKL.from_pretrained(work / "vae").to(memory_format=torch.channels_last)
        unet.train(work, coder, tokenizer, reader.load(work), steps["unet"])


def publish(work: Path, target: Path) -> None:
    """The diffusers folder, in half precision, that the export starts from; and the reader as ONNX with its exam."""
    schedule = unet.SCHEDULE | dict(use_karras_sigmas=True, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=DPMSolverMultistepScheduler(**schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(target, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)
    _forget_where_it_was_made(target)
    reader.export(reader.load(work), target.parent / "reader" / "model.onnx")
    exam.write(target.parent / "reader" / "captions.json")


def _forget_where_it_was_made(folder: Path) -> None:
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/nestling"), help="checkpoints and latents")
    parser.add_argument("--publish", type=Path, default=HERE.parent / "source", help="where the finished model goes")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the steps; less is a rehearsal")
    options = parser.parse_args()
    train(options.work, {stage: max(2, round(count * options.share)) for stage, count in STEPS.items()})
    publish(options.work, options.publish)


main()
