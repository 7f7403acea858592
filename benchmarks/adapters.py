"""ovenbird and its peers behind one small interface: what a child process does when it draws.

An adapter loads a folder, as fast as its library can be made to run, and draws.  What a library is told beyond that
stands here, so that anyone can see whether it was treated fairly; nothing of another library is imported beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from benchmarks import children
from ovenbird import machine

IR, ONNX = "openvino_model.xml", "model.onnx"


@dataclass(frozen=True)
class Wish:
    """What is drawn."""

    prompt: str
    steps: int
    size: int
    """Pixels of both sides."""
    seed: int = 0
    guidance_scale: float = 7.5
    pictures: int = 1


Told = Callable[[], object]
"""Called after every step."""


class Adapter(Protocol):
    """A library that has loaded a model for pictures of one size."""

    def draw(self, wish: Wish, told: Told) -> list[Image.Image]:
        """The pictures."""
        ...

    def ran(self) -> dict[str, Any]:
        """At least ``precision``: the arithmetic of the U-Net."""
        ...


class Ovenbird:
    """Settings are keyword arguments of ``Pipeline.open``."""

    def __init__(self, folder: Path, size: int, settings: Mapping[str, Any]) -> None:
        from ovenbird import Pipeline

        self.pipeline = Pipeline.open(folder, **settings)

    def draw(self, wish: Wish, told: Told) -> list[Image.Image]:
        from ovenbird import Request, Step

        request = Request(
            prompt=wish.prompt,
            seed=wish.seed,
            num_inference_steps=wish.steps,
            guidance_scale=wish.guidance_scale,
            height=wish.size,
            width=wish.size,
            num_images_per_prompt=wish.pictures,
        )
        return self.pipeline.generate(request, lambda event: told() if isinstance(event, Step) else None).images

    def stages(self) -> dict[str, float]:
        """Seconds so far."""
        spent = self.pipeline.timings
        texts = sum(spent.sum(name) for name in spent.seconds if name.startswith("text_encoder"))
        decoder = sum(spent.sum(name) for name in spent.seconds if name.endswith("vae_decoder"))
        return {"text encoder": texts, "steps": spent.sum("step"), "VAE": decoder}

    def ran(self) -> dict[str, Any]:
        report = self.pipeline.report()
        return {"precision": report.precision["unet"], "cache": report.compile_cache["unet"], "report": asdict(report)}


class OpenVINOGenAI:
    """Static shapes, the noise of torch, and the arithmetic that OpenVINO chooses by itself.

    With the setting ``cache`` it keeps compiled models, as ovenbird does.
    """

    def __init__(self, folder: Path, size: int, settings: Mapping[str, Any]) -> None:
        import openvino_genai

        self.properties = {"CACHE_DIR": os.environ["OVENBIRD_CACHE"]} if settings.get("cache") else {}
        self.pipeline = openvino_genai.Text2ImagePipeline(folder)
        self.pipeline.reshape(1, size, size, Wish.guidance_scale)
        self.pipeline.compile("CPU", **self.properties)

    def draw(self, wish: Wish, told: Told) -> list[Image.Image]:
        found = self.pipeline.generate(
            wish.prompt,
            height=wish.size,
            width=wish.size,
            num_inference_steps=wish.steps,
            guidance_scale=wish.guidance_scale,
            generator=_noise_of_genai(wish.seed),
            callback=lambda step, count, latent: bool(told()),
        )
        return [Image.fromarray(np.array(pixels)) for pixels in found.data]

    def ran(self) -> dict[str, Any]:
        # It does not show its models, so OpenVINO is asked what it chooses for another one with these properties.
        import openvino as ov
        from openvino import opset13 as ops

        x = ops.parameter([1, 8], np.float32, name="x")
        model = ov.Model([ops.relu(x)], [x], "asked")
        return {"precision": _arithmetic(ov.Core().compile_model(model, "CPU", dict(self.properties)))}


class OptimumIntel:
    """Static shapes, and the arithmetic that OpenVINO chooses by itself."""

    def __init__(self, folder: Path, size: int, settings: Mapping[str, Any]) -> None:
        from optimum.intel import OVDiffusionPipeline

        self.pipeline = OVDiffusionPipeline.from_pretrained(folder, compile=False, **settings)
        self.pipeline.reshape(batch_size=1, height=size, width=size, num_images_per_prompt=1)
        self.pipeline.compile()

    def draw(self, wish: Wish, told: Told) -> list[Image.Image]:
        return _as_diffusers_do(self.pipeline, wish, told)

    def ran(self) -> dict[str, Any]:
        return {"precision": _arithmetic(self.pipeline.unet.request)}


class OptimumONNX:
    """ONNX Runtime on the processor, which calculates in float32."""

    def __init__(self, folder: Path, size: int, settings: Mapping[str, Any]) -> None:
        from optimum.onnxruntime import ORTDiffusionPipeline

        provider = "CPUExecutionProvider"
        self.pipeline: Any = ORTDiffusionPipeline.from_pretrained(folder, provider=provider, **settings)

    def draw(self, wish: Wish, told: Told) -> list[Image.Image]:
        return _as_diffusers_do(self.pipeline, wish, told)

    def ran(self) -> dict[str, Any]:
        return {"precision": "f32"}


class Diffusers:
    """torch, in the arithmetic that the setting ``torch_dtype`` names."""

    def __init__(self, folder: Path, size: int, settings: Mapping[str, Any]) -> None:
        import torch
        from diffusers import DiffusionPipeline

        kind = getattr(torch, settings["torch_dtype"])
        self.pipeline: Any = DiffusionPipeline.from_pretrained(folder, torch_dtype=kind)

    def draw(self, wish: Wish, told: Told) -> list[Image.Image]:
        return _as_diffusers_do(self.pipeline, wish, told)

    def ran(self) -> dict[str, Any]:
        return {"precision": {"bfloat16": "bf16", "float32": "f32"}[str(self.pipeline.unet.dtype).rpartition(".")[2]]}


class Library(NamedTuple):
    """An adapter, and what it needs."""

    adapter: Callable[[Path, int, Mapping[str, Any]], Adapter]
    module: str
    graphs: tuple[str, ...] = ()
    """The kinds of files of which a folder must have one."""


LIBRARIES = {
    "ovenbird": Library(Ovenbird, "ovenbird", (IR, ONNX)),
    "openvino-genai": Library(OpenVINOGenAI, "openvino_genai", (IR,)),
    "optimum-intel": Library(OptimumIntel, "optimum.intel", (IR,)),
    "optimum-onnx": Library(OptimumONNX, "optimum.onnxruntime", (ONNX,)),
    "diffusers": Library(Diffusers, "diffusers"),
}


def run(told: dict[str, Any]) -> children.Answer:
    """A job, in this process; seconds, and MiB of memory."""
    wishes = [Wish(**each) for each in told["wishes"]]
    clock = _Clock(told["asked_at"])
    adapter = LIBRARIES[told["library"]].adapter(Path(told["folder"]), wishes[0].size, told["settings"])
    found: dict[str, Any] = {"loaded_s": clock.now()}
    if told["warm_up"]:
        adapter.draw(Wish(**{**told["wishes"][0], "steps": 1}), lambda: None)
        found["warm_s"] = clock.now()
    stages = getattr(adapter, "stages", dict)  # peers tell none
    spent, before = stages(), machine.peak_rss_mib()
    counts_anew = children.forget_peak()
    found["pictures_s"] = []
    for number, wish in enumerate(wishes):
        began = time.perf_counter()
        images = adapter.draw(wish, clock.step)
        found["pictures_s"].append(time.perf_counter() - began)
        if told["pictures"]:
            images[0].save(Path(told["pictures"]) / f"{number}.png")
        found.setdefault("png_s", clock.now())
    drawing, drawn = machine.peak_rss_mib(), sum(wish.pictures for wish in wishes)
    found["stages_s"] = {name: (seconds - spent[name]) / drawn for name, seconds in stages().items()}
    peaks = [peak for peak in (before, drawing) if peak]
    found |= {"peak_mib": max(peaks, default=None), "drawing_peak_mib": drawing if counts_anew else None}
    return {**found, "first_step_s": clock.first, **adapter.ran()}


class _Clock:
    """Seconds since this process was asked for, and those of the first step."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.first: float | None = None

    def now(self) -> float:
        return time.time() - self._began

    def step(self) -> None:
        if self.first is None:
            self.first = self.now()


def _as_diffusers_do(pipeline: Any, wish: Wish, told: Told) -> list[Image.Image]:
    import torch

    def stepped(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        told()
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = pipeline(
        wish.prompt,
        height=wish.size,
        width=wish.size,
        num_inference_steps=wish.steps,
        guidance_scale=wish.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(wish.seed),
        callback_on_step_end=stepped,
    ).images
    return images


def _noise_of_genai(seed: int) -> Any:
    import openvino as ov
    import openvino_genai

    from ovenbird.noise import TorchNoise

    class Noise(openvino_genai.Generator):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.noise = TorchNoise(seed)

        def next(self) -> float:
            return float(self.noise(1)[0])

        def randn_tensor(self, shape: Any) -> Any:
            return ov.Tensor(self.noise(tuple(shape)))

    return Noise()


def _arithmetic(compiled: Any) -> str:
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


if __name__ == "__main__":
    children.answer(run)
