from __future__ import annotations

from collections.abc import Iterator

import pytest

from ovenbird.timing import Call, Flop, Peak, Reached, Timings


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_e11_stages_calls_and_items_are_counted_apart() -> None:
    clock = FakeClock()
    timings = Timings(clock)

    def work(seconds: float) -> float:
        clock.now += seconds
        return seconds

    def items() -> Iterator[int]:
        for number in range(2):
            work(1.0)
            yield number

    with timings.stage("load"):
        work(2.0)
    watched = timings.watch("unet", work)
    assert watched(0.5) == 0.5
    watched(0.25)
    for _ in timings.each("step", items()):
        work(10.0)  # the consumer's own time
    assert timings.seconds == {"load": [2.0], "unet": [0.5, 0.25], "step": [1.0, 1.0]}
    assert timings.total() == 2.0 + 0.75 + 2.0 + 20.0


def test_a_failing_stage_is_still_counted() -> None:
    clock = FakeClock()
    timings = Timings(clock)
    try:
        with timings.stage("unet"):
            clock.now += 3
            raise RuntimeError
    except RuntimeError:
        pass
    assert timings.sum("unet") == 3


def test_calls_of_known_arithmetic_are_kept_with_it_and_failed_ones_are_not() -> None:
    clock = FakeClock()
    timings = Timings(clock)

    def work(seconds: float) -> float:
        clock.now += seconds
        return 1 / seconds

    timings.watch("unet", work, Flop(6e9, 0))(2.0)
    timings.watch("unet", work, Flop(3e9, 0))(3.0)
    timings.watch("unet", work)(4.0)
    timings.watch("unet", work, Flop(0, 0))(5.0)
    with pytest.raises(ZeroDivisionError):
        timings.watch("unet", work, Flop(3e9, 0))(0.0)
    assert timings.seconds["unet"] == [2.0, 3.0, 4.0, 5.0, 0.0]
    assert [(call.seconds, call.rate) for call in timings.calls["unet"]] == [(2.0, 3e9), (3.0, 1e9)]


def test_the_share_is_that_of_the_median_call() -> None:
    asked = []

    def peak(kind: str, reached: float) -> Peak:
        asked.append((kind, reached))
        return Peak(400.0, "2026-03-01 12:34")

    calls = [Call(1.0, Flop(1e9, 0)), Call(8.0, Flop(1607e9, 0)), Call(9.0, Flop(1607e9, 0))]
    found = Reached.of(calls, "bf16", peak)
    assert (found.gflop_per_call, found.gflop_per_s) == (1607, 1607 / 9)
    assert asked == [("bf16", 1607 / 9)] and found.share == 1607 / 9 / 400
    expected = "1607 GFLOP a call, 179 GFLOP/s: 45% of the bf16 peak, 400 GFLOP/s, measured 2026-03-01 12:34"
    assert str(found).strip() == expected


def test_a_mixed_graph_is_next_to_the_peak_of_int8_and_says_so() -> None:
    calls = [Call(0.01, Flop(2e9, 1.5e9))]
    found = Reached.of(calls, "f32", lambda kind, _: Peak(800.0, "2026-03-01 12:34") if kind == "int8" else None)
    assert (found.peak_of, found.share, found.int8_share) == ("int8", 0.25, 0.75)
    assert str(found).endswith("25% of the int8 peak, 800 GFLOP/s, measured 2026-03-01 12:34, with 75% of it in int8")


def test_without_a_peak_there_is_no_share() -> None:
    found = Reached.of([Call(0.5, Flop(1.49e9, 0))], "f32", lambda *_: None)
    assert (found.share, found.peak_gflop_per_s, found.peak_measured) == (None, None, None)
    assert str(found).strip() == "1.49 GFLOP a call, 2.98 GFLOP/s; the peak in f32 was not measured"
