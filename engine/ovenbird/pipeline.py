"""The only file that knows the order of things."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ovenbird import families, machine, schedulers, vae
from ovenbird.backends import Arrays, Backend, CompiledModel, Shapes, create
from ovenbird.bundle import EMBEDDED, Bundle
from ovenbird.canvas import Canvas
from ovenbird.denoiser import Conditioning, Latents, beside, guided, rows
from ovenbird.errors import ModelError, NumericError, RequestError
from ovenbird.noise import TorchNoise
from ovenbird.request import Request, Result
from ovenbird.timing import TimingReport, Timings, middle

if TYPE_CHECKING:
    from ovenbird.schedulers import Scheduler


@dataclass(frozen=True)
class Step:
    """One step of the sampler is done."""

    picture: int
    index: int
    count: int
    latents: Latents


@dataclass(frozen=True)
class Picture:
    """One picture is done."""

    picture: int
    seed: int
    image: Image.Image


class Pipeline:
    """A model on a runtime; components are compiled when first needed and kept for the next request."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        inference_precision: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        timings: Timings | None = None,
        keep: bool = True,
    ) -> None:
        """Without ``keep`` encoders are let go once prompt and image are encoded, before the U-Net is compiled."""
        self.bundle, self.backend, self.keep = bundle, backend, keep
        self.timings = timings or Timings()
        self.precision = inference_precision or backend.best_precision(bundle.precision)
        self.scheduler_overrides = dict(scheduler_config or {})
        self._compiled: dict[tuple[str, tuple[Any, ...]], CompiledModel] = {}

    @classmethod
    def open(
        cls,
        model: str | Path = EMBEDDED,
        backend: str = "openvino",
        device: str = "cpu",
        *,
        threads: int | None = None,
        precision: str | None = None,
        inference_precision: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        timings: Timings | None = None,
    ) -> Pipeline:
        """Find and check a model folder and start a runtime; nothing is compiled yet.

        ``precision`` chooses the variant of the folder (``fp32``, ``fp16``), ``inference_precision`` the arithmetic
        (``f32``, ``bf16``): None takes what the weights and the processor make best.  ``scheduler_config`` replaces
        single entries of the folder's own.  Raises ``RequestError``, ``ModelError`` or ``MissingExtraError``.
        """
        timings = timings or Timings()
        with timings.stage("load"):
            bundle = Bundle.open(model, precision)
            bundle.verify_once()
            runtime = create(backend, device, threads)
        return cls(
            bundle, runtime, inference_precision=inference_precision, scheduler_config=scheduler_config, timings=timings
        )

    def scheduler(self, request: Request) -> Scheduler:
        """The sampler that this request means.  Raises ``RequestError`` for an unknown name."""
        config = {**self.bundle.scheduler_config, **self.scheduler_overrides}
        if request.scheduler is None:
            return schedulers.from_config(config)
        return schedulers.from_name(request.scheduler, config)

    def generate(self, request: Request) -> Result:
        """All the pictures of a request."""
        pictures = [event for event in self.stream(request) if isinstance(event, Picture)]
        return Result([p.image for p in pictures], [p.seed for p in pictures], self.report())

    def stream(self, request: Request) -> Iterator[Step | Picture]:
        """The same, as it happens: a ``Step`` after each step of the sampler, a ``Picture`` after each decoding.

        Raises ``RequestError`` before anything is compiled, ``NumericError`` when a result is not finite.
        """
        wish = request.settled(self.bundle.default_size)
        scheduler = self.scheduler(wish)
        self._check(wish, scheduler)
        return self._run(wish, scheduler)

    def _check(self, wish: Request, scheduler: Scheduler) -> None:
        plain = self._latent_channels
        if self._unet_channels not in (plain, 2 * plain + 1):
            raise ModelError(f"unet: it takes {self._unet_channels} channels; known are {plain} and {2 * plain + 1}")
        if self._unet_channels != plain and wish.mask_image is None:
            raise RequestError(
                f"mask_image: {self.bundle.name} was trained to fill in pictures: it needs one, and a mask",
                hint="give image and mask_image (--init-image FILE --mask FILE), or take another model",
            )
        families.check(self.bundle, wish)
        if wish.image is not None and not (self.bundle.path / "vae_encoder").is_dir():
            raise ModelError(f"{self.bundle.path} has no vae_encoder, so it cannot start from an image")
        scheduler.calls(wish.num_inference_steps, _first(wish, scheduler))
        scheduler.check_eta(wish.eta)

    def _run(self, wish: Request, scheduler: Scheduler) -> Iterator[Step | Picture]:
        assert wish.height and wish.width and wish.seed is not None
        factor = self.bundle.vae_scale_factor
        shape = (1, self._latent_channels, wish.height // factor, wish.width // factor)
        conditioning = families.condition(self.bundle, self._encoder, wish)
        canvas = Canvas.of(wish, shape, self._unet_channels != self._latent_channels, self._encode)
        if not self.keep:
            self._compiled = {key: model for key, model in self._compiled.items() if "encoder" not in key[0]}
        sample = (rows(conditioning), self._unet_channels, *shape[2:])
        unet = self._component("unet", {"sample": sample, **_shapes(conditioning)})
        model = guided(unet, conditioning, wish.guidance_scale)
        count, first = wish.num_inference_steps, _first(wish, scheduler)
        calls = scheduler.calls(count, first)
        for index in range(wish.num_images_per_prompt):
            seed = (wish.seed + index) % 2**64
            noise = TorchNoise(seed)
            latents, known, more = canvas.start(scheduler, count, first, noise)
            shown = model if more is None else beside(model, more)
            draw = partial(noise, shape)
            steps = scheduler.steps(shown, latents, count, noise=draw, start=first, eta=wish.eta, known=known)
            for step, latents in enumerate(self.timings.each("step", steps), 1):
                if not np.isfinite(latents).all():
                    raise NumericError(f"unet: the latents are not finite after step {step} of {scheduler.label}")
                yield Step(index, step, calls, latents)
            decoder = self._component("vae_decoder", {"latent_sample": shape})
            pixels = vae.decode(decoder, latents, self.bundle.config("vae_decoder"))
            yield Picture(index, seed, Image.fromarray(canvas.finish(pixels)))

    def _encoder(self, name: str) -> Callable[[Arrays], Arrays]:
        return self._component(name, {"input_ids": (1, 77)})

    def _encode(self, values: vae.Values) -> vae.Encoded:
        encoder = self._component("vae_encoder", {"sample": values.shape})
        return vae.encode(encoder, values, self.bundle.config("vae_encoder"))

    @cached_property
    def _unet_channels(self) -> int:
        return int(self.bundle.config("unet").get("in_channels", self._latent_channels))

    @cached_property
    def _latent_channels(self) -> int:
        return int(self.bundle.config("vae_decoder").get("latent_channels", 4))

    def _component(self, name: str, shapes: Shapes) -> Callable[[Arrays], Arrays]:
        key = (name, tuple(sorted(shapes.items())))
        if key not in self._compiled:
            with self.timings.stage("compile"):
                self._compiled[key] = self.backend.compile(
                    self.bundle.path / name, shapes, precision=self.precision, cache_key=self.bundle.key
                )
        return self.timings.watch(name, self._compiled[key])

    def report(self) -> TimingReport:
        """Where the time has gone since this pipeline was opened."""
        spent, compiled = self.timings, {name: model for (name, _), model in self._compiled.items()}
        steps = spent.seconds.get("step", [])
        return TimingReport(
            start_s=spent.seconds["start"][0] if "start" in spent.seconds else None,
            load_s=spent.sum("load"),
            compile_s=spent.sum("compile"),
            compile_cache={name: model.cache for name, model in compiled.items()},
            text_encoder_s=spent.sum("text_encoder") + spent.sum("text_encoder_2"),
            first_step_s=steps[0] if steps else 0.0,
            median_step_s=middle(steps),
            steps=len(steps),
            unet_calls=len(spent.seconds.get("unet", [])),
            vae_s=spent.sum("vae_encoder") + spent.sum("vae_decoder"),
            save_s=spent.sum("save"),
            total_s=spent.total() + spent.sum("start"),
            pictures=len(spent.seconds.get("vae_decoder", [])),
            peak_rss_mib=machine.peak_rss_mib(),
            runtime=self.backend.name,
            runtime_version=self.backend.version,
            device=self.backend.device,
            precision={name: model.precision for name, model in compiled.items()},
            weights=self.bundle.precision,
            threads=self.backend.threads,
            cpu=machine.cpu_name(),
            instruction_sets=machine.instruction_sets(),
        )


def _shapes(conditioning: Conditioning) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in conditioning.items()}


def _first(wish: Request, scheduler: Scheduler) -> int:
    """The call of the U-Net that a run starts with."""
    return scheduler.start_at(wish.num_inference_steps, 1.0 if wish.strength is None else wish.strength)
