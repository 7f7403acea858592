"""What a run took: its seconds, memory and arithmetic, and what it ran on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovenbird import machine
from ovenbird.backends import SHALLOW
from ovenbird.memory import MIB
from ovenbird.timing import REACHED, Peak, Reached, TimingReport, middle, share

if TYPE_CHECKING:
    from ovenbird import Pipeline

AUTOENCODER = ("vae_encoder", "vae_decoder", "tiny_vae_decoder")


def report(pipeline: Pipeline, *, measured: bool) -> TimingReport:
    """See ``Pipeline.report``."""
    spent, ran = pipeline.timings, pipeline.ran
    steps = spent.seconds.get("step", [])
    return TimingReport(
        start_s=spent.seconds["start"][0] if "start" in spent.seconds else None,
        load_s=spent.sum("load"),
        compile_s=spent.sum("compile"),
        compile_cache={name: each.cache for name, each in ran.items()},
        text_encoder_s=spent.sum("text_encoder") + spent.sum("text_encoder_2"),
        first_step_s=steps[0] if steps else 0.0,
        fastest_step_s=min(steps, default=0.0),
        median_step_s=middle(steps),
        p90_step_s=share(steps, 0.9),
        steps=len(steps),
        unet_calls=len(spent.seconds.get("unet", [])),
        shallow_calls=len(spent.seconds.get(SHALLOW, [])),
        shortcuts=str(pipeline.shortcuts),
        vae_s=sum(map(spent.sum, AUTOENCODER)),
        safety_checker_s=spent.sum("safety_checker"),
        save_s=spent.sum("save"),
        total_s=spent.total() + spent.sum("start"),
        pictures=pipeline.tally["pictures"],
        previews=pipeline.tally["previews"],
        peak_rss_mib=machine.peak_rss_mib(),
        planned_peak_mib=pipeline.planned.peak / MIB if pipeline.planned else None,
        runtime=pipeline.backend.name,
        runtime_version=pipeline.backend.version,
        device=pipeline.backend.device,
        devices={name: each.device for name, each in ran.items()},
        precision={name: each.precision for name, each in ran.items()},
        weights=_weights(pipeline),
        chosen=pipeline.chosen,
        threads=pipeline.backend.threads,
        cpu=machine.cpu_name(),
        instruction_sets=machine.instruction_sets(),
        load_average=machine.load_average(),
        cpu_mhz=machine.cpu_mhz(),
        cpu_celsius=machine.cpu_celsius(),
        decoder=pipeline.autoencoder.decoder,
        vae_calls=sum(len(spent.seconds.get(name, [])) for name in AUTOENCODER),
        vae_tile=pipeline.autoencoder.tile if pipeline.autoencoder.tiled else None,
        vae_retries=pipeline.autoencoder.retries,
        safety_checker=pipeline.safety_checker.state,
        reached=_reached(pipeline, measured),  # last: what measuring takes is not the run's
    )


def _weights(pipeline: Pipeline) -> str:
    """As they are stored, and what becomes of them on processors where sums in eight bits would overflow."""
    stored, runtime = pipeline.bundle.precision, pipeline.backend
    if (stored, runtime.name, runtime.device) == ("int8", "openvino", "cpu") and machine.overflows_at_eight_bits():
        return "int8 (7 bits here)"
    return stored


def _reached(pipeline: Pipeline, measured: bool) -> dict[str, Reached]:
    """Of what ran on a processor, and was counted."""
    ran, calls = pipeline.ran, pipeline.timings.calls
    names = [name for name in REACHED if name in calls and ran[name].device == "cpu"]
    if not names:
        return {}
    from ovenbird.backends import peak  # imports OpenVINO, which alone counts

    known: dict[str, Peak | None] = {}

    def best(kind: str, reached: float) -> Peak | None:
        found = known.get(kind)
        if found is None or found.gflop_per_s < reached:  # else it would be measured for each component
            known[kind] = peak.best(kind, pipeline.backend.threads, reached, measured=measured)
        return known[kind]

    return {name: Reached.of(calls[name], ran[name].precision, best) for name in names}
