"""What is seen of an export: whole lines that say when, what, how long and how much."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ovenbird import progress

LINE = re.compile(r"\[ ?\d+:\d\d\] \S.* \.\.\. (failed|\d+\.\d s(, \d+\.\d (MB|kB))?)")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by a test."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress.begin()
    return now


def test_a_line_says_when_what_how_long_and_how_much(
    clock: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "before").write_bytes(bytes(5000))
    clock[0] += 83.9
    with progress.stage("unet: writing fp16", tmp_path, tmp_path / "absent"):
        (tmp_path / "unet").mkdir()
        (tmp_path / "unet" / "model.onnx").write_bytes(bytes(2_340_000))
        clock[0] += 60
    with progress.stage("vae: writing", tmp_path / "before"):
        (tmp_path / "before").write_bytes(bytes(6700))
    with progress.stage("unet: proving fp16"):
        clock[0] += 6000
    progress.note("image_encoder is left out")
    progress.end(1_234_567_890)
    assert capsys.readouterr() == (
        "",
        "[ 1:23] unet: writing fp16 ... 60.0 s, 2.3 MB\n"
        "[ 2:23] vae: writing ... 0.0 s, 1.7 kB\n"
        "[ 2:23] unet: proving fp16 ... 6000.0 s\n"
        "[102:23] note: image_encoder is left out\n"
        "[102:23] done ... 6143.9 s, 1234.6 MB\n",
    )


@pytest.mark.parametrize(("raised", "end"), [(ValueError, "failed"), (KeyboardInterrupt, "stopped")])
def test_a_stage_that_does_not_end_well_ends_its_line(
    clock: list[float], capsys: pytest.CaptureFixture[str], raised: type[BaseException], end: str
) -> None:
    with pytest.raises(raised), progress.stage("unet: proving fp16"):
        raise raised
    assert capsys.readouterr().err == f"[ 0:00] unet: proving fp16 ... {end}\n"


def test_tools_are_quiet_in_a_stage_and_only_there(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    log = logging.getLogger("a tool")
    with progress.stage("tools: loading"):
        warnings.warn("old", FutureWarning, stacklevel=1)
        log.warning("picked another")
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.warns(FutureWarning):
        warnings.warn("old", FutureWarning, stacklevel=1)
    assert log.isEnabledFor(logging.WARNING)


def test_stages_of_two_threads_may_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    before = (logging.root.manager.disable, warnings.filters[:])
    first, second = progress.stage("first"), progress.stage("second")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("still quiet", FutureWarning, stacklevel=1)
    second.__exit__(None, None, None)
    assert (logging.root.manager.disable, warnings.filters[:]) == before


RUN = """
import sys
from ovenbird.cli import main
from ovenbird_export.cli import export
from ovenbird_export import export as whole, source
def stop(*_):
    raise whole.ModelError("far enough")
whole.publish.require_space = stop
main.add_command(export)
main(["export", *sys.argv[1:]])
"""


@pytest.mark.export
def test_nothing_but_lines_until_the_tools_are_loaded(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    words = [sys.executable, "-c", RUN, "synthetic:tiny", str(tmp_path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stdout == ""
    *lines, last = done.stderr.splitlines()
    assert last == "error: far enough"
    assert len(lines) == 5
    for line in lines:
        assert LINE.fullmatch(line), line
    assert re.search(r"synthetic:tiny: unet \.\.\. \d+\.\d s, \d+\.\d MB$", done.stderr, re.MULTILINE)
