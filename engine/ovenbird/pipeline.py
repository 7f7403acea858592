"""The only file that knows the order of things."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, groupby, islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from ovenbird import families, reporting, schedulers
from ovenbird.autoencoder import DECODERS, Autoencoder, Decoded
from ovenbird.backends import SHALLOW, Arrays, Backend, Shapes, create
from ovenbird.budget import KEEP, Cast, Job, Plan, Setting, needs, plan
from ovenbird.bundle import EMBEDDED, Bundle
from ovenbird.canvas import Canvas, Start
from ovenbird.choice import AUTO, DEFAULT_BACKEND, Choice, Leeway
from ovenbird.denoiser import (
    Conditioning,
    Corner,
    Latents,
    Model,
    beside,
    guided,
    guided_within,
    plain,
    reusing,
    rows,
    tiled,
)
from ovenbird.embeddings import NO_EMBEDDINGS, Embeddings, Wanted
from ovenbird.errors import Cancelled, ModelError, NumericError, RequestError
from ovenbird.metadata import save_picture
from ovenbird.models import choose_model, open_model, tokenizer_folder
from ovenbird.noise import Draw, TorchNoise, varied
from ovenbird.presets import DEFAULT_PRESET, NO_SHORTCUTS, PRESETS, WHOLE, Shortcuts, shortcuts
from ovenbird.request import LATENT, Request, check_count
from ovenbird.result import Developing, Picture, Result, Step
from ovenbird.safety import ON, Checker, SafetyChecker, notice
from ovenbird.settings import facts
from ovenbird.sizes import parse_size
from ovenbird.stages import Stages
from ovenbird.timing import TimingReport, Timings

if TYPE_CHECKING:
    from ovenbird.schedulers import Scheduler

T = TypeVar("T")
_DRAWN_APART = ("seed", "variation_seed", "variation_strength")
_TOLD_APART = (*_DRAWN_APART, "blend", "image", "mask_image", "strength")
_SHOWN_APART = (*_DRAWN_APART, "prompt", "negative_prompt", "to_prompt", "blend")
"""Fields that make no difference to what the U-Net is told of the texts, and to the canvas."""


class Sheet(NamedTuple):
    """A picture that is about to be drawn."""

    number: int
    wish: Request
    """One of the passes of what was asked for."""
    conditioning: Conditioning
    canvas: Canvas

    def start(self, scheduler: Scheduler, count: int, first: int) -> tuple[Start, Draw]:
        """What its run starts from, and the noise that comes after that."""
        seed, other, strength = self.wish.seed, self.wish.variation_seed, self.wish.variation_strength
        assert seed is not None
        noise: Draw = TorchNoise(seed)
        if strength:
            assert other is not None
            return self.canvas.start(scheduler, count, first, varied(noise, TorchNoise(other), strength)), noise
        return self.canvas.start(scheduler, count, first, noise), noise

    @property
    def kind(self) -> Hashable:
        """Sheets of one kind can be drawn side by side."""
        shapes = tuple((name, array.shape) for name, array in self.conditioning.items())
        return self.wish.like(*_SHOWN_APART), shapes


class Pipeline:
    """A model on a runtime; components are compiled when first needed and, with ``keep``, stay for the next request."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        inference_precision: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        timings: Timings | None = None,
        keep: bool = True,
        batch_size: int = 1,
        max_memory: int | str | None = None,
        embeddings: Embeddings = NO_EMBEDDINGS,
        vae_tile: int | None = None,
        decoder: str = "full",
        safety_checker: bool = True,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        chosen: str = "",
    ) -> None:
        """See ``open``; ``chosen`` is what the report tells of why it is this variant."""
        check_count("batch_size", batch_size)
        self.bundle, self.backend, self.embeddings = bundle, backend, embeddings
        self.asked = self.setting = Setting("all" if keep else "one stage", batch_size, vae_tile)
        """How runs are to be made, and how the last one was, which ``max_memory`` may have changed."""
        self.max_memory = parse_size("max_memory", max_memory) if isinstance(max_memory, str) else max_memory
        self.timings = timings or Timings()
        self.precision = inference_precision or backend.best_precision(bundle.precision)
        self.scheduler_overrides = dict(scheduler_config or {})
        self.shortcuts, self.chosen = shortcuts, chosen
        groups = KEEP[self.setting.keep].groups
        self._stages = Stages(bundle, backend, self.precision, self.timings, groups, embeddings.rows, shortcuts.edits)
        self.autoencoder = Autoencoder(bundle, self._component, self._stages.ran, tile=vae_tile, decoder=decoder)
        self.safety_checker = SafetyChecker(bundle, safety_checker, self._checker)
        self.planned: Plan | None = None
        """Of the last run."""
        self.ran = self._stages.ran
        self.tally: Counter[str] = Counter()
        """How many ``pictures`` and ``previews`` were made."""
        self._stopped = Event()

    @classmethod
    def open(
        cls,
        model: str | Path = EMBEDDED,
        backend: str | None = None,
        device: str = "cpu",
        *,
        threads: int | None = None,
        precision: str | None = None,
        inference_precision: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        timings: Timings | None = None,
        keep: bool = True,
        batch_size: int = 1,
        max_memory: int | str | None = None,
        embeddings: Wanted = (),
        tokenizer: str | Path | None = None,
        vae_tile: int | None = None,
        decoder: str | None = None,
        safety_checker: bool = True,
        offline: bool = False,
        allow_foreign_ir: bool = False,
        preset: str = DEFAULT_PRESET,
        **instead: Any,
    ) -> Pipeline:
        """Find and check a model and start a runtime; nothing is compiled yet.

        ``model`` is a name, a folder, or ``OWNER/NAME[@REVISION]`` of an exported model on the Hugging Face Hub, which
        is downloaded; ``offline`` takes what was downloaded before.  ``precision`` is the variant of the folder
        (``fp32``, ``fp16``), ``inference_precision`` the arithmetic (``f32``, ``bf16``): None takes what the weights
        and the processor make best.  ``precision="auto"``, and presets in eight bits where no precision is given, take
        the variant that ``ovenbird tune`` found to be the fastest here, with ``backend`` (else ``openvino``) and
        ``threads`` where these are not given; without a tuning, int8 if the processor is quick at it, else fp16.
        ``scheduler_config`` replaces single entries of the folder's own.  ``embeddings`` are files of textual inversion
        (Gal et al., 2022), which name their words themselves, or word -> file.  ``tokenizer`` is a folder with
        ``vocab.json`` and ``merges.txt``, or a name on the Hub, that is read instead of the model's own.

        Without ``keep`` one stage at a time is in memory; ``batch_size`` pictures are drawn side by side.  Pictures
        with a side longer than ``vae_tile`` pixels are decoded and encoded in tiles; the ``tiny`` decoder is for models
        that have one; without ``safety_checker`` that of the model is not asked.  With ``max_memory``, in bytes or as
        ``"2GiB"``, a run keeps less, draws fewer at a time, or uses tiles, so that it fits: see ``plan``.

        ``preset``, a row of ``presets.PRESETS``, may make it quicker and less exact; fields of ``presets.Shortcuts``
        may be given by name, instead of what it says of them.  ``decoder=None`` is ``full``, but for ``fast`` and a
        model that has the tiny one.  A preset that would have int8 warns where it takes another variant.

        Graphs with operators that no export of Stable Diffusion has are refused when they are needed, unless
        ``allow_foreign_ir``, which reads them in a process of their own first: only for folders of people you trust.

        Raises ``RequestError``, ``ModelError`` or ``MissingExtraError``.
        """
        timings = timings or Timings()
        ways = shortcuts(preset, instead)
        check_count("batch_size", batch_size)
        max_memory = parse_size("max_memory", max_memory) if isinstance(max_memory, str) else max_memory
        eight_bits = precision is None and PRESETS[preset].eight_bits
        with timings.stage("load"):
            # What is wrong with these stops here.
            runtime = create(backend or DEFAULT_BACKEND, device, threads, allow_foreign=allow_foreign_ir)
            other = None if tokenizer is None else tokenizer_folder(tokenizer, offline=offline)
            choice = Choice("")
            if precision == AUTO or eight_bits:
                leeway = Leeway(backend, threads, device, only_openvino=not ways.exactly)
                bundle, choice = choose_model(model, leeway, offline=offline)
                if (choice.backend, choice.threads) != (runtime.name, threads):
                    runtime = create(choice.backend, device, choice.threads, allow_foreign=allow_foreign_ir)
            else:
                bundle = open_model(model, precision, runtime.name, offline=offline)
            if other is not None:
                bundle = families.with_tokenizer(bundle, other)
            words = families.read_embeddings(bundle, embeddings)
            bundle.verify_once()
        if eight_bits and choice.precision != "int8":
            warnings.warn(f"preset {preset}, which would have int8, takes {choice}", stacklevel=2)
        return cls(
            bundle,
            runtime,
            inference_precision=inference_precision,
            scheduler_config=scheduler_config,
            timings=timings,
            keep=keep,
            batch_size=batch_size,
            max_memory=max_memory,
            embeddings=words,
            vae_tile=vae_tile,
            decoder=decoder or _decoder(bundle, preset),
            safety_checker=safety_checker,
            shortcuts=ways,
            chosen=str(choice),
        )

    def scheduler(self, request: Request) -> Scheduler:
        """The sampler that this request means.  Raises ``RequestError`` for an unknown name."""
        config = {**self.bundle.scheduler_config, **self.scheduler_overrides}
        if request.scheduler is None:
            return schedulers.from_config(config)
        return schedulers.from_name(request.scheduler, config)

    def generate(
        self,
        requests: Request | Sequence[Request],
        callback: Callable[[Step | Picture], object] | None = None,
        *,
        preview_every: int | None = None,
    ) -> Result:
        """All the pictures of one request or several.

        ``callback`` is told of every step and every picture; when it answers ``False`` the run ends at the next step,
        with ``Cancelled``, whose ``result`` has what was finished.  Raises what ``stream`` raises.
        """
        pictures: list[Picture] = []
        try:
            for event in self.stream(requests, preview_every=preview_every):
                if isinstance(event, Picture):
                    pictures.append(event)
                if callback is not None and callback(event) is False:
                    self.cancel()
        except Cancelled as stop:
            stop.result = Result(pictures, self.report())
            raise
        return Result(pictures, self.report())

    def save(self, picture: Picture, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a picture that this pipeline made, as PNG, JPEG or WebP by the end of its name, with its settings.

        ``ovenbird info`` shows these, and ``--params-from`` takes them; ``picture.image.save`` writes none.  Raises
        ``RequestError`` for another end, and for a file that exists unless ``overwrite``; ``ResourceError`` where it
        cannot be written, and then there is nothing of it.
        """
        with self.timings.stage("save"):
            save_picture(picture.image, Path(path), facts(self, picture), overwrite=overwrite)

    def check(self, requests: Request | Sequence[Request]) -> None:
        """Raises what ``stream`` raises of requests that this model cannot do; nothing is compiled."""
        for wish in self._settled(requests):
            self._check(wish, self.scheduler(wish))

    def cancel(self) -> None:
        """End the run at its next step with ``Cancelled``; from any thread, or from a signal handler."""
        self._stopped.set()

    def stream(
        self, requests: Request | Sequence[Request], *, preview_every: int | None = None
    ) -> Iterator[Step | Picture]:
        """The same, as it happens: a ``Step`` after each step of the sampler, a ``Picture`` after each decoding.

        After every ``preview_every`` steps but the last, ``Step.previews`` are what the model takes the pictures for,
        without the noise: by the tiny decoder if the folder has one, else by the one that makes the pictures, which
        takes time, and memory beside the U-Net.  Raises ``RequestError`` before anything is compiled, and what ``plan``
        raises; ``NumericError`` when a result is not finite, ``Cancelled`` after ``cancel``, ``ResourceError`` when
        memory is short all the same.
        """
        if preview_every is not None:
            check_count("preview_every", preview_every)
        wishes = self._settled(requests)
        self.check(wishes)
        self._prepare(wishes, preview_every is not None)
        self._stopped.clear()
        return self._run(chain.from_iterable(wish.singles() for wish in wishes), preview_every)

    def plan(self, requests: Request | Sequence[Request], *, previews: bool = False) -> Plan | None:
        """How these requests would be made, and the memory that this takes; None where that cannot be foreseen.

        With ``max_memory`` it is the fastest way that fits; without, there is a warning when memory may not be enough.
        Raises ``ResourceError``, with the least that would do, when there is no way.
        """
        wishes, present = self._settled(requests), self._stages.present
        facts = (self.bundle, self.backend, self.precision, self._cast(previews))
        return plan(*facts, self.asked, self._jobs(wishes), self.max_memory, present)

    def _settled(self, requests: Request | Sequence[Request]) -> list[Request]:
        given = [requests] if isinstance(requests, Request) else requests
        if isinstance(given, str) or not all(isinstance(wish, Request) for wish in given):
            raise RequestError(f"requests: {given!r:.60} is no Request", hint='such as Request(prompt="a red house")')
        settled = [wish.settled(self.bundle.default_size) for wish in given]
        return [wish.guided_within(self.shortcuts.guidance_interval) for wish in settled]

    def _prepare(self, wishes: Sequence[Request], previews: bool) -> None:
        """Plan, and make room for it."""
        self.planned = self.plan(wishes, previews=previews)
        self.setting = self.planned.setting if self.planned else self.asked
        _, self._stages.groups, self._stages.most_shapes = KEEP[self.setting.keep]
        self.autoencoder.tile = self.setting.vae_tile
        if self.max_memory is not None:
            self._stages.release(set(needs(self._cast(previews), self._jobs(wishes), self.setting)))

    def _cast(self, previews: bool) -> Cast:
        checked = self.safety_checker.state == ON
        glance = DECODERS[self.autoencoder.quickest] if previews else None
        return Cast.of(self.bundle, DECODERS[self.autoencoder.decoder], glance, checked, self.shortcuts.reuses)

    def _jobs(self, wishes: Iterable[Request]) -> list[Job]:
        """Neighbours that can be drawn side by side are one."""
        alike = groupby(wishes, lambda wish: wish.like(*_SHOWN_APART, "num_images_per_prompt"))
        found = [list(group) for _, group in alike]
        return [
            Job(group[0], sum(len(wish.singles()) for wish in group), 1 + self._guides_together(group[0]))
            for group in found
        ]

    def _check(self, wish: Request, scheduler: Scheduler) -> None:
        plain = self._latent_channels
        if self._unet_channels not in (plain, 2 * plain + 1):
            raise ModelError(f"unet: it takes {self._unet_channels} channels; known are {plain} and {2 * plain + 1}")
        if self._unet_channels != plain and wish.mask_image is None:
            raise RequestError(
                f"mask_image: {self.bundle.name} was trained to fill in pictures: it needs one, and a mask",
                hint="give image and mask_image (--init-image FILE --mask FILE), or take another model",
            )
        families.check(self.bundle, wish, self.embeddings)
        encodes = wish.image is not None or wish.hires_upscaler not in (None, LATENT)
        if encodes and not (self.bundle.path / "vae_encoder").is_dir():
            raise ModelError(f"{self.bundle.path} has no vae_encoder, so it cannot start from an image")
        for part in wish.passes:
            scheduler.calls(part.num_inference_steps, _first(part, scheduler))
        scheduler.check_eta(wish.eta)

    def _run(self, singles: Iterable[Request], preview_every: int | None) -> Iterator[Step | Picture]:
        """In rounds: all that the text encoders do for a round, all that the U-Net does, then the decoder.

        Of pictures that are enlarged the U-Net makes all small ones before the first large one.
        """
        numbered = enumerate(singles)
        told: dict[Hashable, Conditioning] = {}
        canvases: dict[Hashable, Canvas] = {}
        while wishes := dict(islice(numbered, self.setting.round)):
            passes = {number: wish.passes for number, wish in wishes.items()}
            told = _each(chain.from_iterable(passes.values()), _TOLD_APART, told, self._condition)
            canvases = _each((small for small, *_ in passes.values()), _SHOWN_APART, canvases, self._canvas)
            sheets = [
                Sheet(number, small, _told(told, small), canvases[small.like(*_SHOWN_APART)])
                for number, (small, *_) in passes.items()
            ]
            drawn = yield from self._drawn(sheets, preview_every)
            again = self._enlarged({number: wish for number, wish in wishes.items() if wish.hires_scale}, drawn)
            sheets = [Sheet(number, large, _told(told, large), canvas) for number, large, canvas in again]
            drawn |= yield from self._drawn(sheets, preview_every)
            for number, (sheet, latents) in drawn.items():
                self.tally["pictures"] += 1
                yield self._picture(wishes[number], sheet, latents)

    def _drawn(
        self, sheets: Sequence[Sheet], preview_every: int | None
    ) -> Generator[Step, None, dict[int, tuple[Sheet, Latents]]]:
        """By their numbers, with their latents."""
        drawn: dict[int, tuple[Sheet, Latents]] = {}
        for batch in self._batches(sheets):
            latents = yield from self._draw(batch, preview_every)
            drawn |= {sheet.number: (sheet, latents[k : k + 1]) for k, sheet in enumerate(batch)}
        return drawn

    def _enlarged(
        self, wishes: Mapping[int, Request], drawn: Mapping[int, tuple[Sheet, Latents]]
    ) -> list[tuple[int, Request, Canvas]]:
        """The second passes and what they start from: all that the decoder does for it, then what the encoder does."""
        small = [number for number, wish in wishes.items() if wish.hires_upscaler != LATENT]
        images = {number: Image.fromarray(self._decoded(*drawn[number]).pixels) for number in small}
        found = []
        for number, wish in wishes.items():
            _, large = wish.passes
            if number in images:
                canvas = self._canvas(large.starting_from(images[number]))
            else:
                canvas = Canvas.enlarged(drawn[number][1], *self._shape(large)[2:])
            found.append((number, large, canvas))
        return found

    def _condition(self, wish: Request) -> Conditioning:
        return families.condition(self.bundle, self._encoder, wish, self.embeddings)

    def _canvas(self, wish: Request) -> Canvas:
        return Canvas.of(wish, self._shape(wish), self._unet_channels != self._latent_channels, self.autoencoder.encode)

    def _batches(self, sheets: Sequence[Sheet]) -> Iterator[list[Sheet]]:
        """Neighbours of one kind, so many that they may be drawn side by side."""
        for _, alike in groupby(enumerate(sheets), lambda pair: (pair[1].number - pair[0], pair[1].kind)):
            while batch := [sheet for _, sheet in islice(alike, self.setting.batch_size)]:
                yield batch

    def _draw(self, sheets: Sequence[Sheet], preview_every: int | None) -> Generator[Step, None, Latents]:
        """From noise to latents (N, 4, H/8, W/8), with pictures of one kind side by side."""
        wish = sheets[0].wish
        scheduler, shape, count = self.scheduler(wish), self._shape(wish), wish.num_inference_steps
        first = _first(wish, scheduler)
        model = self._model(wish, families.together([sheet.conditioning for sheet in sheets]))
        starts, noises = zip(*[sheet.start(scheduler, count, first) for sheet in sheets], strict=True)
        latents, known, more = Start.together(starts)
        steps = scheduler.steps(
            model if more is None else beside(model, more),
            latents,
            count,
            noise=lambda: np.concatenate([noise(shape) for noise in noises]),
            start=first,
            eta=wish.eta,
            known=known,
        )
        numbers, calls = range(sheets[0].number, sheets[-1].number + 1), scheduler.calls(count, first)
        for step, (latents, clean) in enumerate(self.timings.each("step", steps), 1):
            if not np.isfinite(latents).all():
                raise NumericError(f"unet: the latents are not finite after step {step} of {scheduler.label}")
            seen = preview_every is not None and step % preview_every == 0 and step < calls
            yield Step(numbers, step, calls, latents, self._previews(sheets, clean, step) if seen else ())
            self._check_stopped()
        return latents

    def _model(self, wish: Request, conditioning: Conditioning) -> Model:
        """The U-Net with guidance, for whole pictures, whether it sees them at once or by tiles."""
        factor, (*_, height, width) = self.bundle.vae_scale_factor, self._shape(wish)
        apart = families.guides(self.bundle, wish) and not self._guides_together(wish)
        start, stop = wish.guidance_interval or WHOLE
        last = len(self.scheduler(wish).trained) - 1

        def guides(timestep: float) -> bool:
            return start <= max(0.0, 1 - timestep / last) <= stop  # some models have a step beyond the last one

        most = (wish.tile_size or max(height, width) * factor) // factor
        tile = (min(height, most), min(width, most))

        def at(corner: Corner) -> Model:
            top, left = (cells * factor for cells in corner)
            told = families.FAMILIES[self.bundle.family].at(conditioning, top, left)
            if not apart:
                return guided(self._unet(told, tile), told, wish.guidance_scale)
            without, given = (plain(self._unet(half, tile), half) for half in families.halves(told))
            return guided_within(without, given, wish.guidance_scale, guides)

        return tiled(at, height, width, tile)

    def _guides_together(self, wish: Request) -> bool:
        """Whether both halves of guidance go through the U-Net in one call."""
        return families.guides(self.bundle, wish) and wish.guidance_interval == WHOLE

    def _unet(self, conditioning: Conditioning, tile: tuple[int, int]) -> Callable[[Arrays], Arrays]:
        """For as many rows as the conditioning has, and one picture each, if deep features are used again."""
        shapes = {"sample": (rows(conditioning), self._unet_channels, *tile), **_shapes(conditioning)}
        full = self._component("unet", shapes)
        if not self.shortcuts.reuses:
            return full
        return reusing(full, self._component(SHALLOW, shapes), self.shortcuts.reuse_every)

    def _previews(self, sheets: Sequence[Sheet], clean: Latents, step: int) -> tuple[Image.Image, ...]:
        self.tally["previews"] += len(sheets)
        seen = [self._decoded(sheet, clean[k : k + 1], step) for k, sheet in enumerate(sheets)]
        return tuple(self._checked(made)[0] for made in seen)

    def _picture(self, wish: Request, sheet: Sheet, latents: Latents) -> Picture:
        made = self._decoded(sheet, latents)
        image, flagged = self._checked(made)
        state = self.safety_checker.state
        developing = Developing(self.autoencoder.decoder, made.tile, made.precision, made.retried, state)
        return Picture(sheet.number, wish, image, flagged, developing)

    def _decoded(self, sheet: Sheet, latents: Latents, step: int | None = None) -> Decoded:
        """By the chosen decoder, or for a glance after a ``step`` by the quickest."""
        decoder, when = self.autoencoder.decoder, "after the last step"
        if step is not None:
            decoder, when = self.autoencoder.quickest, f"after step {step}"
        made = self.autoencoder.decode(latents, decoder, f"{when} of {self.scheduler(sheet.wish).label}")
        return made._replace(pixels=sheet.canvas.finish(made.pixels))

    def _checked(self, made: Decoded) -> tuple[Image.Image, bool | None]:
        """What may be shown, and whether the safety checker flagged what was made."""
        image = Image.fromarray(made.pixels)
        flagged = self.safety_checker(image)
        return notice(image.size) if flagged else image, flagged

    def _shape(self, wish: Request) -> tuple[int, int, int, int]:
        """Of one picture's latents."""
        assert wish.height and wish.width
        factor = self.bundle.vae_scale_factor
        return (1, self._latent_channels, wish.height // factor, wish.width // factor)

    def _encoder(self, name: str) -> Callable[[Arrays], Arrays]:
        return self._component(name, {"input_ids": (1, 77)})

    def _checker(self, shape: tuple[int, ...]) -> Checker:
        # Its scores are compared with thresholds to three decimals, so never in less than f32.
        run = self._component("safety_checker", {"clip_input": shape}, "f32")
        return Checker(run, self.ran["safety_checker"].inputs)

    def _component(self, name: str, shapes: Shapes, precision: str | None = None) -> Callable[[Arrays], Arrays]:
        self._check_stopped()
        return self._stages.component(name, shapes, precision)

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Cancelled("the run was stopped; what was finished is kept")

    @cached_property
    def _unet_channels(self) -> int:
        return int(self.bundle.config("unet").get("in_channels", self._latent_channels))

    @cached_property
    def _latent_channels(self) -> int:
        return int(self.bundle.config("vae_decoder").get("latent_channels", 4))

    def report(self, *, measured: bool = False) -> TimingReport:
        """Where the time has gone since this pipeline was opened, and which share of the machine's peak was reached.

        That peak is the one remembered from an earlier report.  With ``measured`` it is measured now, for half a second
        that does not count, unless it was seen twice: the first time other work may have been in the way.
        """
        return reporting.report(self, measured=measured)


def _decoder(bundle: Bundle, preset: str) -> str:
    """Of a preset."""
    return "tiny" if PRESETS[preset].tiny_decoder and (bundle.path / DECODERS["tiny"]).is_dir() else "full"


def _each(
    wishes: Iterable[Request],
    apart: Sequence[str],
    known: Mapping[Hashable, T],
    make: Callable[[Request], T],
) -> dict[Hashable, T]:
    """What is made of each of these wishes, once for all that are alike, and not again if it is known."""
    found: dict[Hashable, T] = {}
    for wish in wishes:
        key = wish.like(*apart)
        if key not in found:
            found[key] = known[key] if key in known else make(wish)
    return found


def _told(told: Mapping[Hashable, Conditioning], wish: Request) -> Conditioning:
    return families.blended(told[wish.like(*_TOLD_APART)], wish.blend)


def _shapes(conditioning: Conditioning) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in conditioning.items()}


def _first(wish: Request, scheduler: Scheduler) -> int:
    """The call of the U-Net that a run starts with."""
    return scheduler.start_at(wish.num_inference_steps, 1.0 if wish.strength is None else wish.strength)
