from __future__ import annotations

from collections.abc import Iterator

from ovenbird.timing import Timings


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_stages_calls_and_items_are_counted_apart() -> None:
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
