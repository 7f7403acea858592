"""``ovenbird tune``: measure once what is quick on this machine, so that --precision auto knows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from ovenbird import cache, machine, progress
from ovenbird.bundle import EMBEDDED, Bundle
from ovenbird.choice import Leeway, Tuning, facts, fastest, notes
from ovenbird.commands.bench import busy
from ovenbird.commands.cache import table
from ovenbird.commands.completing import complete_model
from ovenbird.commands.options import FOREIGN
from ovenbird.errors import Cancelled, ModelError, RequestError, ResourceError
from ovenbird.models import open_variants
from ovenbird.pages import JSON, QUIET, Page
from ovenbird.sizes import counted
from ovenbird.tuning import Race, prepare, ways

DEFAULT_MINUTES = 5.0
COLUMNS = ("variant", "runtime", "threads", "arithmetic", "seconds a call", "spread", "")


@click.command(
    cls=Page,
    short_help="Measure which variant, runtime and threads are quick here.",
    context_settings={"show_default": True},
    examples=("ovenbird tune", "ovenbird tune models/sd15 --minutes 10", "ovenbird tune models/sd15 --forget"),
)
@click.argument("model", default=EMBEDDED, shell_complete=complete_model)
@click.option("--minutes", type=float, default=DEFAULT_MINUTES, help="Begin nothing that would take longer than this.")
@click.option("--forget", is_flag=True, help="Measure nothing, and forget what was measured of the model.")
@FOREIGN
@JSON
@QUIET
def tune(model: str, minutes: float, forget: bool, allow_foreign_ir: bool, as_json: bool) -> None:
    """Measure what is quick on this machine: variants of MODEL, runtimes and numbers of threads.

    MODEL is a name, a folder, or OWNER/NAME[@REVISION], of which the variants count that were downloaded.

    Calls of the U-Net are measured at the model's own size with guidance, compiled one by one, first all, then those
    that are close again.  What was fastest is taken by --precision auto, and by --preset balanced and fast where
    --precision is not given: the variant, and the runtime and the threads where --backend and --threads are not given;
    a preset that changes graphs takes the fastest on OpenVINO, for no other runtime can.  Nothing else uses it.  It is
    kept in the cache, for these very files, this processor and these versions of the runtimes; with others, tune again.
    Ctrl-C stops it, and keeps what was measured if every variant was.
    """
    if not minutes > 0:
        raise RequestError(f"minutes: {minutes:g} is not more than 0")
    progress.begin()
    bundles = open_variants(model)
    told, text = _forgotten(bundles) if forget else _tuned(bundles, minutes, allow_foreign_ir)
    click.echo(json.dumps(told, indent=2) if as_json else text)
    if told.get("stopped"):
        raise Cancelled("tune was stopped; " + _fate(told))


def _forgotten(bundles: Sequence[Bundle]) -> tuple[dict[str, Any], str]:
    name = facts(_there(bundles))["model"]
    found = [path for path, _ in notes(name)]
    try:
        for path in found:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"{error.filename} cannot be removed: {error.strerror}") from error
    return {"model": name, "forgotten": len(found)}, f"{name}: {counted(len(found), 'tuning')} forgotten"


def _tuned(bundles: Sequence[Bundle], minutes: float, allow_foreign: bool) -> tuple[dict[str, Any], str]:
    there, known = _there(bundles), {bundle.precision: bundle for bundle in bundles}
    for bundle in bundles:
        bundle.verify_once()
    race = Race(
        ways(bundles), lambda way: prepare(known[way.precision], way, allow_foreign=allow_foreign), 60 * minutes
    )
    if not race.ways:
        raise ModelError(f"{bundles[0].path} has no graphs that an installed runtime reads")
    stopped, load = False, machine.load_average()
    try:
        race.run()
    except KeyboardInterrupt:
        stopped = True
    failed = {str(way): why for way, why in race.failed.items()}
    tuning = Tuning(facts(there), time.strftime("%Y-%m-%d"), bundles[0].default_size, race.measured, failed)
    if not tuning.measured and not stopped:
        raise ModelError(f"{tuning.facts['model']}: nothing could be measured: {next(iter(failed.values()))}")
    kept = _kept(tuning)
    told = {
        **asdict(tuning),
        "late": [str(way) for way in race.late],
        "remembered": kept,
        "stopped": stopped,
        "load_average": load,
        "chosen": str(Leeway().among(there)) if kept else "",
    }
    return told, "\n".join(_report(tuning, told))


def _there(bundles: Sequence[Bundle]) -> dict[str, Any]:
    return {bundle.precision: bundle.path for bundle in bundles}


def _kept(tuning: Tuning) -> bool:
    """Whether it is remembered: what does not know every variant would say nothing, and may not replace what does."""
    return bool(tuning.measured) and not tuning.missing and tuning.write()


def _fate(told: Mapping[str, Any]) -> str:
    return "what was measured is remembered" if told["remembered"] else "nothing of it is remembered"


def _report(tuning: Tuning, told: Mapping[str, Any]) -> Iterator[str]:
    here = f"{tuning.facts['cpu']} ({', '.join(tuning.facts['instruction_sets']) or 'instruction sets unknown'})"
    yield f"{tuning.facts['model']}, {tuning.size}x{tuning.size}, on {here}"
    if tuning.measured:
        yield from table([COLUMNS, *_rows(tuning)])
    yield from (f"left out: {way}: {why}" for way, why in tuning.failed.items())
    if told["late"]:
        yield f"left out for want of time (--minutes): {'; '.join(told['late'])}"
    if note := busy(told["load_average"]):
        yield f"note: {note}"
    if told["remembered"]:
        yield f"remembered in {cache.root()}; --precision auto takes {told['chosen']}"
    elif tuning.missing:
        yield f"not remembered, without {', '.join(tuning.missing)}: --minutes gives more time"
    else:
        yield "not remembered: there is no cache that can be written; set OVENBIRD_CACHE to a folder"


def _rows(tuning: Tuning) -> Iterator[Sequence[str]]:
    best = fastest(tuning.measured)
    for each in sorted(tuning.measured, key=lambda each: each.median):
        spread = f"{min(each.seconds):.3g} to {max(each.seconds):.3g}"
        threads = str(each.way.threads or tuning.facts["cores"])
        told = [each.way.precision, each.way.backend, threads, each.arithmetic, f"{each.median:.3g}", spread]
        yield [*told, "taken" if each is best else ""]
