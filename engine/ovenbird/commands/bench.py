"""``ovenbird bench``: how long pictures take on this machine, measured as a user would meet it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import click

from ovenbird import __version__, machine, progress
from ovenbird.bundle import EMBEDDED
from ovenbird.commands.completing import complete_model
from ovenbird.commands.options import (
    DEVICES,
    LOADING,
    MEMORY,
    SAMPLING,
    SIDES,
    SPEED,
    VARIANT,
    options,
    pipeline_of,
    request_of,
    timings_since_start,
)
from ovenbird.pages import JSON, QUIET, Page, under
from ovenbird.pipeline import Pipeline
from ovenbird.request import Request, check_count
from ovenbird.sizes import counted
from ovenbird.timing import REACHED, Reached

PROMPT = "a large red house on the left in the snow at night under the stars"
NOISY = 0.1
"""Of the median; where runs differ by more, something else had the machine."""
BUSY = 0.25
"""Of the threads; with more load than that before anything began, something else has the machine."""
MEASURED = under(
    "What is measured",
    click.option("--pictures", type=int, default=3, help="How many runs are timed, behind one that is not."),
    click.option("--prompt", default=PROMPT, help="Its words hardly matter for the time."),
)


@click.command(
    cls=Page,
    short_help="Measure how long pictures take on this machine.",
    context_settings={"show_default": True},
    examples=(
        "ovenbird bench",
        "ovenbird bench models/sd15 --num-inference-steps 20 --pictures 5",
        "ovenbird bench models/sd15 --precision int8 --threads 8 --json",
        "ovenbird bench models/sd15 --batch-size 4 --quiet",
    ),
)
@click.argument("model", default=EMBEDDED, shell_complete=complete_model)
@options(MEASURED, SIDES, SAMPLING, LOADING, VARIANT, DEVICES, SPEED, MEMORY, under("What is shown", JSON, QUIET))
def bench(pictures: int, as_json: bool, **typed: Any) -> None:
    """Measure how long pictures by MODEL take here: seconds, pictures an hour, memory, share of the peak.

    One picture is made first and not counted, since a size is compiled at its first use.  Then as many as --pictures
    says are timed one by one, or --batch-size of them at once; what is told is the median, the least and the most.
    Settings are those of generate, and so are their defaults.  Nothing is written, but for the cache.
    """
    timings = timings_since_start()
    check_count("pictures", pictures)
    typed |= {"report": None, "preview_every": None, "quiet": False}
    request = request_of(typed, num_images_per_prompt=typed["batch_size"])
    load = machine.load_average()
    pipeline = pipeline_of(typed, timings)
    if typed["seed"] is None:
        request = replace(request, seed=0)  # the same noise each time, so that nothing differs but the machine
    told = measure(pipeline, request.settled(pipeline.bundle.default_size), pictures)
    told["load_average"] = {"before": load, "after": machine.load_average()}
    told["notes"] = list(_notes(told))
    click.echo(json.dumps(told, indent=2) if as_json else "\n".join(_lines(told)))


def measure(pipeline: Pipeline, request: Request, count: int) -> dict[str, Any]:
    """Time ``count`` runs of a settled request, after one that is not counted; seconds are of one picture."""
    each = request.num_images_per_prompt
    first = _timed(pipeline, request) / each
    progress.note(f"the first picture, not counted, took {first:.2f} s")
    steps, seconds = len(pipeline.timings.seconds["step"]), []
    for number in range(1, count + 1):
        seconds.append(_timed(pipeline, request) / each)
        progress.note(f"{number} of {count}: {seconds[-1]:.2f} s a picture")
    report = pipeline.report(measured=True)
    middle = median(seconds)
    return {
        "model": pipeline.bundle.name,
        "variant": pipeline.bundle.precision,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "scheduler": pipeline.scheduler(request).label,
        "batch_size": each,
        "shortcuts": report.shortcuts,
        "chosen": report.chosen,
        "first_picture_s": first,
        "compile_cache": report.compile_cache,
        "seconds": seconds,
        "median_s": middle,
        "min_s": min(seconds),
        "max_s": max(seconds),
        "pictures_an_hour": 3600 / middle,
        "pictures_an_hour_a_thread": 3600 / middle / report.threads,
        "step_s": median(pipeline.timings.seconds["step"][steps:]),
        "peak_rss_mib": report.peak_rss_mib,
        "reached": {name: asdict(reached) for name, reached in report.reached.items()},
        "runtime": f"{report.runtime} {report.runtime_version}",
        "device": report.device,
        "threads": report.threads,
        "precision": report.precision,
        "cpu": report.cpu,
        "cores": machine.physical_cores(),
        "instruction_sets": report.instruction_sets,
        "isa_limit": machine.isa_limit(),
        "memory_bytes": machine.total_memory(),
        "ovenbird": __version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _timed(pipeline: Pipeline, request: Request) -> float:
    began = time.perf_counter()
    pipeline.generate(request)
    return time.perf_counter() - began


def _notes(told: Mapping[str, Any]) -> Iterator[str]:
    spread = (told["max_s"] - told["min_s"]) / told["median_s"]
    if spread > NOISY:
        yield f"runs differ by {spread:.0%}: something else may have had the machine; measure again, or more --pictures"
    if note := busy(told["load_average"]["before"]):
        yield note


def busy(load: float | None) -> str:
    """What to say of the load average before anything began, or nothing."""
    if load is None or load <= BUSY * machine.usable_cores():
        return ""
    return f"the load average was {load:.1f} before anything began: other work slows this down"


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    for name, value in _rows(told):
        yield f"{name:<16}{value}"


def _rows(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    size = f"{told['width']}x{told['height']}"
    steps = f"{told['num_inference_steps']} steps of {told['scheduler']}, guidance {told['guidance_scale']:g}"
    yield "model", f"{told['model']} {told['variant']}, {size}, {steps}, {told['batch_size']} at once"
    if told["shortcuts"] != "none":
        yield "shortcuts", told["shortcuts"]
    if told["chosen"]:
        yield "chosen", told["chosen"]
    many = len(told["seconds"])
    spread = f"{told['min_s']:.2f} to {told['max_s']:.2f}, {counted(many, 'run')}"
    yield "a picture", f"{told['median_s']:.2f} s   ({spread})"
    each = f"{told['pictures_an_hour_a_thread']:,.0f} for each thread"
    yield "an hour", f"{told['pictures_an_hour']:,.0f} pictures, {each}"
    yield "a step", f"{told['step_s']:.3f} s"
    states = ", ".join(f"{name} {state}" for name, state in told["compile_cache"].items())
    yield "the first", f"{told['first_picture_s']:.2f} s, with compiling (cache: {states})"
    yield "peak memory", f"{told['peak_rss_mib']:.0f} MiB" if told["peak_rss_mib"] else "not measured here"
    for name, reached in told["reached"].items():
        yield REACHED.get(name, name), str(Reached(**reached)).strip()
    ran = ", ".join(f"{name} {kind}" for name, kind in told["precision"].items())
    yield "ran in", ran
    yield "on", f"{told['runtime']} on {told['device']}, {told['threads']} threads of {told['cpu']}"
    yield "instructions", ", ".join(told["instruction_sets"]) or "not known here"
    yield from (("note", text) for text in told["notes"])
