"""Plans that fit a limit of memory: R8 and R14, and E10 when memory is short all the same."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from PIL import Image

from ovenbird import Pipeline, Request, RequestError, ResourceError, budget
from ovenbird.backends import SHALLOW, Edits
from ovenbird.budget import KEEP, Cast, Job, Setting, choose, foresee, needs, settings
from ovenbird.bundle import Bundle
from ovenbird.cli import main
from ovenbird.memory import MIB, Cost, Need
from ovenbird.presets import Shortcuts
from ovenbird.sizes import parse_size
from ovenbird.stages import MOST_SHAPES, Stages
from ovenbird.timing import Timings

WISH: dict[str, Any] = {"prompt": "a red house", "num_inference_steps": 2, "seed": 5}
ASKED = Setting("all", 1, None)
SPACE = {"text_encoder": 100, "vae_encoder": 40, "unet": 1000, SHALLOW: 30, "vae_decoder": 60}
"""Of components that a plan can do without, or not; in MiB."""


CAST = Cast(("text_encoder",), "vae_decoder", None, False, 4, 4, 8)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open("nestling")


def cost(need: Need) -> Cost:
    """Of a fake component: its space, and a byte for each number that goes in."""
    rows, *sides = need.shape
    size = SPACE[need.component] * MIB
    return Cost(size, size + rows * MIB * sides[-1] // 8)


def jobs(count: int = 1, **changes: Any) -> list[Job]:
    wish = Request(**{**WISH, **changes}).settled(512)
    return [Job(wish, count, 2 if wish.guidance_scale > 1 else 1)]


def peak(setting: Setting, jobs: Sequence[Job]) -> int:
    return foresee(list(needs(CAST, jobs, setting)) * 2, KEEP[setting.keep], cost, 0, [])


def test_what_is_called_for_follows_from_the_request() -> None:
    names = [need.component for need in needs(CAST, jobs(), ASKED)]
    assert names == ["text_encoder", "unet", "vae_decoder"]
    assert Need("unet", (2, 4, 64, 64)) in needs(CAST, jobs(), ASKED)
    assert Need("unet", (1, 4, 64, 64)) in needs(CAST, jobs(guidance_scale=1.0), ASKED)
    assert Need("unet", (2, 4, 32, 32)) in needs(CAST, jobs(tile_size=256), ASKED)
    photo = Image.new("RGB", (320, 192))
    assert Need("vae_encoder", (1, 3, 192, 320)) in needs(CAST, jobs(image=photo), ASKED)
    tiled = list(needs(CAST, jobs(height=768), replace(ASKED, vae_tile=256)))
    assert tiled[-1] == Need("vae_decoder", (1, 4, 32, 32))
    hires = list(needs(CAST, jobs(hires_scale=1.5, hires_upscaler="lanczos", height=256, width=256), ASKED))
    assert [need.shape[-1] for need in hires[1:]] == [32, 32, 384, 48, 48]


def test_batches_that_do_not_come_out_even_are_foreseen() -> None:
    rows = [need.shape[0] for need in needs(CAST, jobs(5), Setting("all", 2, None)) if need.component == "unet"]
    assert rows == [4, 4, 2]
    rows = [need.shape[0] for need in needs(CAST, jobs(5), Setting("one stage", 2, None)) if need.component == "unet"]
    assert rows == [4, 4, 2]
    assert len(list(needs(CAST, jobs(1000), ASKED))) < 20


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("every", [1, 2])
def test_what_is_foreseen_to_be_in_memory_is_what_stages_hold(bundle: Bundle, keep: str, every: int) -> None:
    held: dict[Need, bool] = {}

    class Compiled:
        cache = precision = device = ""
        flop = None
        inputs: Any = ()

        def __init__(self, need: Need) -> None:
            self.need = need
            held[need] = True

        def __call__(self, inputs: Any) -> Any: ...

        def __del__(self) -> None:
            del held[self.need]

    def compile(folder: Path, shapes: Any, edits: Edits, **_: Any) -> Compiled:
        return Compiled(Need.of(SHALLOW if edits.shallow else folder.name, shapes))

    backend: Any = SimpleNamespace(compile=compile)
    stages = Stages(
        bundle, backend, "f32", Timings(), KEEP[keep].groups, lambda _: None, Shortcuts(reuse_every=every).edits
    )
    stages.most_shapes = KEEP[keep].most_shapes
    sizes = [64, 128, 192, 256, 64]
    cast = CAST._replace(reuses=every > 1)
    called = [need for size in sizes for need in needs(cast, jobs(3, height=size), Setting(keep, 2, None))]
    inputs = {"text_encoder": "input_ids", "unet": "sample", SHALLOW: "sample", "vae_decoder": "latent_sample"}
    assert (SHALLOW in {need.component for need in called}) == (every > 1)
    most = 0
    for index, need in enumerate(called):
        stages.component(need.component, {inputs[need.component]: need.shape})
        most = max(most, sum(cost(other).held for other in held))
        assert foresee(called[: index + 1], KEEP[keep], cost, 0, []) == most
    assert all(sum(need.component == name for need in held) <= MOST_SHAPES for name in inputs)


def test_the_fastest_setting_that_fits_is_chosen() -> None:
    asked = Setting("all", 4, None)
    four = jobs(4, width=1024, height=1024)
    tried = list(settings(asked, four))
    assert tried[0] == asked and tried[3] == Setting("one stage", 4, None)
    assert tried[4] == Setting("all", 2, None) and tried[-1] == Setting("one stage", 1, 256)
    assert [setting.vae_tile for setting in tried] == [None] * 12 + [512] * 12 + [384] * 12 + [256] * 12
    for setting in tried:
        limit = peak(setting, four)
        plan = choose(partial(settings, asked), four, limit, peak)
        assert plan.peak <= limit and tried.index(plan.setting) <= tried.index(setting)


@tries(deadline=None, max_examples=40)
@given(st.integers(1, 4 << 30), st.integers(1, 9), st.integers(1, 40), st.sampled_from([64, 512, 1024]))
def test_r8_a_plan_fits_or_the_least_that_would_is_named(limit: int, batch: int, count: int, side: int) -> None:
    ways, wishes = partial(settings, Setting("all", batch, None)), jobs(count, width=side, height=side)
    try:
        assert choose(ways, wishes, limit, peak).peak <= limit
    except ResourceError as error:
        assert error.hint
        enough = parse_size("x", error.hint.split()[1])
        assert enough > limit
        assert choose(ways, wishes, enough, peak).peak <= enough < limit + 4096 * MIB
        fits = re.search(r"(\d+)x(\d+) pixels would fit", error.hint)
        if fits:
            smaller = jobs(count, width=int(fits[1]), height=int(fits[2]))
            assert choose(ways, smaller, limit, peak).peak <= limit


def test_r8_r14_absurd_sizes_and_batches_are_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    pipeline = Pipeline.open("nestling", batch_size=1000, max_memory="1GiB")
    monkeypatch.setattr(type(pipeline.backend), "compile", lambda *_, **__: pytest.fail("it was loaded"))
    for change in ({"width": 4096, "height": 4096}, {"num_images_per_prompt": 1000, "width": 1024, "height": 1024}):
        pipeline.asked = replace(pipeline.asked, batch_size=1000)
        pipeline.max_memory = 200 * MIB
        with pytest.raises(ResourceError, match=r"max_memory: 200\.0 MiB is not enough") as caught:
            pipeline.stream(Request(**WISH | change))
        assert caught.value.exit_code == 4
        pipeline.max_memory = None
        monkeypatch.setattr(budget, "total_memory", lambda: 300 * MIB)
        with pytest.raises(ResourceError, match=r"memory: this run takes about .* and the machine has 300.0 MiB"):
            pipeline.stream(Request(**WISH | change))


def test_e10_more_than_is_available_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.open("nestling")
    monkeypatch.setattr(budget, "available_memory", lambda: 100 * MIB)
    monkeypatch.setattr(budget, "resident", lambda: 20 * MIB)
    with pytest.warns(UserWarning, match="100.0 MiB is available; --max-memory"):
        plan = pipeline.plan(Request(**WISH))
    assert plan and plan.setting == ASKED and plan.limit is None


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_pictures_of_every_plan_are_the_same(backend: str) -> None:
    wish = Request(**WISH, num_images_per_prompt=2)
    pipeline = Pipeline.open("nestling", backend, inference_precision="f32")
    pictures = []
    for keep in KEEP:
        pipeline.asked = Setting(keep, 1, None)
        pictures.append([image.tobytes() for image in pipeline.generate(wish).images])
        assert pipeline.setting.keep == keep
    assert pictures == pictures[:1] * len(KEEP)


def test_the_limit_that_a_refusal_names_is_enough() -> None:
    wish = Request(**WISH, width=256)
    tight = Pipeline.open("nestling", max_memory=1)
    with pytest.raises(ResourceError) as caught:
        tight.generate(wish)
    assert caught.value.hint
    least = caught.value.hint.split()[1]
    report = Pipeline.open("nestling", max_memory=least).generate(wish).timings
    assert report.planned_peak_mib and report.planned_peak_mib * MIB <= parse_size("x", least)
    assert f"foreseen: {report.planned_peak_mib:.0f}" in report.table()


def test_what_an_earlier_run_left_makes_room_for_a_limit() -> None:
    pipeline = Pipeline.open("nestling", max_memory="1GiB")
    pipeline.generate(Request(**WISH))
    pipeline.generate(Request(**WISH, width=64, height=64))
    assert {need.shape[-1] for need in pipeline._stages.present if need.component == "unet"} == {8}


def test_a_limit_where_nothing_can_be_foreseen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.open("nestling", max_memory="8GiB")
    pipeline.backend.device = "gpu"
    with pytest.raises(RequestError, match="max_memory: what openvino takes on gpu cannot be foreseen"):
        pipeline.plan(Request(**WISH))
    pipeline.max_memory = None
    assert pipeline.plan(Request(**WISH)) is None


def run(*words: str) -> Any:
    return CliRunner().invoke(main, ["generate", "--prompt", "a red house", "--num-inference-steps", "2", *words])


def test_the_command_prints_the_plan_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fine = run("--max-memory", "2GiB")
    assert fine.exit_code == 0
    assert "memory: one stage at a time; one picture at a time; about" in fine.stderr and "of 2.0 GiB" in fine.stderr
    refused = run("--max-memory", "0.1GiB", "--output", "b.png")
    assert refused.exit_code == 4 and not Path("b.png").exists()
    assert "error: max_memory: 102.4 MiB is not enough" in refused.stderr
    assert "hint: --max-memory" in refused.stderr
    for wrong in ("lots", "-1GiB", "2", ""):
        assert run("--max-memory", wrong).exit_code == 2


SHORT = """
import resource, sys
from pathlib import Path
from ovenbird import Pipeline, Request

def limit(room):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20),) * 2)

backend, room, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pipeline = Pipeline.open("nestling", backend, inference_precision="f32")
wish = Request(prompt="a", num_inference_steps=1, seed=1, scheduler="ddim", width=512, height=512)
if when == "compiling":
    limit(room)
events = pipeline.stream(wish)
if when == "calling":
    next(events)
    limit(room)
try:
    list(events)
except Exception as error:
    print(type(error).__name__, error.exit_code, error, sep="|")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("when, room", [("compiling", 40), ("calling", 40)])
def test_e10_a_runtime_without_memory_names_its_component(backend: str, when: str, room: int) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SHORT, backend, str(room), when]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    kind, code, message = done.stdout.strip().split("|")
    assert (kind, code) == ("ResourceError", "4")
    component = {"compiling": ("text_encoder", "unet"), "calling": ("unet", "vae_decoder")}[when]
    assert message.removesuffix(": there is not enough memory for it") in component
