"""The whole export, killed, interrupted, doubled and starved: every target is absent, as it was, or complete.

The names of the tests begin with the rows of the list of faults: E1 killed, E2 two at once, E5 no room, E8 replaced, E9
interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

if os.name == "nt" or not hasattr(os, "fork") or not Path("/proc/self/stat").exists():
    pytest.skip("these tests fork and look into /proc", allow_module_level=True)
if not all(map(find_spec, ("torch", "optimum", "nncf"))):
    pytest.skip("needs the export extra", allow_module_level=True)

import fake_hub
from export_nursery import Child, Nursery, conditions, open_nursery, write_old

from ovenbird_export import publish

pytestmark = pytest.mark.export

VARIANTS = ("int8", "int8-weights")
ALL = ("--precision", ",".join(VARIANTS), "--name", "least")
OLD = dict.fromkeys(VARIANTS, "old")
WHOLE = dict.fromkeys(VARIANTS, "whole")
DAY_S = 24 * 3600


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with open_nursery(tmp_path_factory.mktemp("nursery") / "one", PYTHONHASHSEED="1") as found:
        yield found


@pytest.fixture(scope="module")
def source(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "least"
    assert nursery.start(f"write_source(Path({str(folder)!r}))").wait() == 0
    return folder


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red house\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def elsewhere(source: Path, prompt: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Child, Path]]:
    """The same export in a process of another hash seed; it runs while the other tests do."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with open_nursery(folder / "two", PYTHONHASHSEED="2") as other:
        child = other.export(source, folder / "out", *ALL, "--calibration", prompt)
        yield child, folder / "out"


@pytest.fixture(scope="module")
def watched(
    nursery: Nursery, source: Path, prompt: Path, elsewhere: object, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Child, Path, list[tuple[str, dict[str, str]]]]:
    """An export over old variants, and how these were at each moment."""
    folder = tmp_path_factory.mktemp("watched")
    write_old(folder / "out", *VARIANTS)
    before = f"watch(Path({str(folder / 'out')!r}), Path({str(folder / 'report')!r}))"
    child = nursery.export(source, folder / "out", *ALL, "--calibration", prompt, "--force", before=before)
    assert child.wait() == 0, child.stderr()
    return child, folder / "out", [json.loads(line) for line in (folder / "report").read_text().splitlines()]


def leftovers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith(".tmp-"))


def stages(child: Child) -> list[str]:
    return re.findall(r"^\[ ?\d+:\d\d\] (.*?) \.\.\. ", child.stderr(), re.MULTILINE)


def test_e1_e8_at_every_stage_old_variants_are_as_they_were(
    watched: tuple[Child, Path, list[tuple[str, dict[str, str]]]],
) -> None:
    child, folder, moments = watched
    assert conditions(folder) == WHOLE and leftovers(folder) == []
    begun = [moment for moment, _ in moments if " ... " in moment]
    assert len(begun) == len(stages(child)) - 1 > 30  # the last line is no stage
    at = next(number for number, (moment, _) in enumerate(moments) if "publishing ... " in moment)
    assert all(found == OLD for _, found in moments[: at + 1])
    renames = moments[at + 1 :]
    assert len(renames) == 4 * len(VARIANTS)
    for moment, found in renames:
        assert set(found.values()) <= {"old", "whole"} and len(found) >= len(VARIANTS) - 1, (moment, found)
    assert renames[-1][1] == WHOLE


def test_the_same_source_gives_the_same_bytes_whatever_the_hash_seed(
    watched: tuple[Child, Path, object], elsewhere: tuple[Child, Path]
) -> None:
    child, other = elsewhere
    assert child.wait() == 0, child.stderr()
    ours, theirs = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (watched[1], other)
    )
    assert set(ours) == set(theirs) and len(ours) > 40
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_e1_e8_killed_while_it_writes(nursery: Nursery, source: Path, tmp_path: Path) -> None:
    write_old(tmp_path / "out", "fp16", "int8")
    child = nursery.export(source, tmp_path / "out", "--force")
    child.reaches("unet: writing fp16")
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert conditions(tmp_path / "out") == {"fp16": "old", "int8": "old"}


@pytest.mark.parametrize("seed", range(2))
def test_e1_killed_at_a_random_time(nursery: Nursery, source: Path, tmp_path: Path, seed: int) -> None:
    killed_sometime(nursery, source, tmp_path, random.Random(seed).uniform(0.2, 6), "fp16")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_e1_killed_at_a_random_time_of_everything(
    nursery: Nursery, source: Path, prompt: Path, tmp_path: Path, seed: int
) -> None:
    delay = random.Random(seed).uniform(0, 30)
    killed_sometime(nursery, source, tmp_path, delay, "fp16,int8", "--calibration", str(prompt))


def killed_sometime(nursery: Nursery, source: Path, folder: Path, delay: float, precision: str, *words: str) -> None:
    write_old(folder / "out", "fp16", "int8")
    child = nursery.export(source, folder / "out", "--precision", precision, *words, "--force")
    time.sleep(delay)
    child.send(signal.SIGKILL)
    child.wait()
    found = conditions(folder / "out")
    assert set(found.values()) <= {"old", "whole"}, found
    assert len(leftovers(folder / "out")) <= 1
    if "publishing ..." not in child.stderr():
        assert found == {"fp16": "old", "int8": "old"}


@pytest.mark.slow
def test_e1_killed_at_every_stage(
    nursery: Nursery, source: Path, prompt: Path, tmp_path: Path, watched: tuple[Child, Path, object]
) -> None:
    for number, stage in enumerate(stages(watched[0])[:-1]):
        folder = tmp_path / str(number)
        child = nursery.export(source, folder, *ALL, "--calibration", prompt)
        child.reaches(f"{stage} ... ")
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert set(conditions(folder).values()) <= ({"whole"} if stage == "publishing" else set()), stage


def test_e1_e2_after_a_kill_two_at_once_both_end_and_sweep(nursery: Nursery, source: Path, tmp_path: Path) -> None:
    for stage in ("text_encoder: writing fp16", "unet: reading"):
        child = nursery.export(source, tmp_path / "out")
        child.reaches(stage)
        child.send(signal.SIGKILL)
        child.wait()
    old, young = leftovers(tmp_path / "out")
    os.utime(old, (time.time() - DAY_S - 60,) * 2)
    both = [nursery.export(source, tmp_path / "out", "--format", "ir") for _ in range(2)]
    assert [child.wait() for child in both] == [0, 0], [child.stderr() for child in both]
    assert conditions(tmp_path / "out") == {"fp16": "whole"}
    assert leftovers(tmp_path / "out") == [young]


@pytest.mark.parametrize(
    ("stage", "number"), [("unet: exporting", signal.SIGTERM), ("unet: proving", signal.SIGINT)], ids=str
)
def test_e9_interrupted(nursery: Nursery, source: Path, tmp_path: Path, stage: str, number: int) -> None:
    child = nursery.export(source, tmp_path / "new" / "out")
    child.reaches(stage)
    child.send(number)
    assert child.wait() == 130, child.stderr()
    assert child.stderr().splitlines()[-1] == "error: the export was stopped; what was not finished is removed"
    assert child.stdout() == ""
    assert not (tmp_path / "new").exists()


LIMIT = "__import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.parametrize(
    "before",
    [
        LIMIT.format(3_000),  # for the tokenizer, which Rust writes
        LIMIT.format(60_000),  # for torch
        "from ovenbird_export import graphs\n"
        f"graphs.write_ir = lambda *_, real=graphs.write_ir: ({LIMIT.format(3_000)}, real(*_))",  # for OpenVINO
    ],
    ids=["rust", "python", "c++"],
)
def test_e5_no_file_may_grow(nursery: Nursery, source: Path, tmp_path: Path, before: str) -> None:
    child = nursery.export(source, tmp_path / "out", before=before)
    assert_starved(child, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1m", "2500k", "3500k"])
def test_e5_a_small_disk(nursery: Nursery, source: Path, tmp_path: Path, size: str) -> None:
    child = nursery.start(
        f"""
mount_little(Path({str(tmp_path)!r}), {size!r})
from ovenbird_export import publish
publish.require_space = lambda *_: None  # it would refuse at once
try:
    run_export([{str(source)!r}, {str(tmp_path / "out")!r}])
finally:
    print(os.listdir({str(tmp_path)!r}))
"""
    )
    if child.wait() == 77:
        pytest.skip("no file system may be mounted here")
    assert_starved(child, tmp_path / "out")
    assert child.stdout() == "[]\n"


def assert_starved(child: Child, folder: Path) -> None:
    assert child.wait() == 4, child.stderr()
    error, hint = child.stderr().splitlines()[-2:]
    assert error == f"error: the disk of {folder} is full" and hint.startswith("hint: make room"), child.stderr()


def test_e5_a_folder_without_room_is_refused_before_anything_is_computed(
    nursery: Nursery, source: Path, tmp_path: Path
) -> None:
    before = "import shutil; shutil.disk_usage = lambda _: type('Usage', (), {'free': 5 << 20})"
    child = nursery.export(source, tmp_path / "out", before=before)
    assert child.wait() == 4
    assert "GB free; the export needs" in child.stderr() and "hint: make room" in child.stderr()
    assert "text_encoder" not in child.stderr()
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_e5_a_folder_that_may_not_be_written(nursery: Nursery, source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        before = """
from ovenbird_export import publish
begin = publish.workspace
def as_somebody_else(*words, **options):
    os.setuid(65534)  # not before: the packages may lie where only root can read
    return begin(*words, **options)
publish.workspace = as_somebody_else
"""
        child = nursery.export(source, Path(folder) / "out", before=before)
        assert child.wait() == 4
        assert child.stderr() == f"error: {folder}/out: Permission denied\n"
        assert list(Path(folder).iterdir()) == []


def test_e1_a_synthetic_model_killed_while_it_is_made(nursery: Nursery, tmp_path: Path) -> None:
    child = nursery.export("synthetic:tiny", tmp_path)
    child.reaches("synthetic:tiny: vae")
    child.send(signal.SIGKILL)
    child.wait()
    assert conditions(tmp_path) == {} and len(leftovers(tmp_path)) == 1


def test_e1_a_model_of_the_hub_killed_on_the_way(
    nursery: Nursery, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    with fake_hub.serve() as hub:
        files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.*")}
        commit = hub.commit(files)
        hub.faults[weights] = [fake_hub.stall(1_000)]
        world = {"OVENBIRD_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1"}
        before = f"os.environ |= {world!r}"
        words = ("owner/name", tmp_path / "out", "--revision", commit, "--format", "ir")
        child = nursery.export(*words, before=before)
        child.reaches(weights)
        child.send(signal.SIGKILL)
        child.wait()
        assert conditions(tmp_path / "out") == {}
        child = nursery.export(*words, before=before)
        assert child.wait() == 0, child.stderr()
    assert conditions(tmp_path / "out") == {"fp16": "whole"}
    found = json.loads((tmp_path / "out" / "fp16" / "ovenbird.json").read_text())["source"]
    assert (found["repo"], found["commit"]) == ("owner/name", commit)
    # What is in the cache is enough, as the job of docs/ci.md has it.
    offline = nursery.export("owner/name", tmp_path / "again", *words[2:], "--offline", before=before)
    offline.reaches("unet: reading the weights")
    offline.send(signal.SIGINT)
    assert offline.wait() == 130
    assert (tmp_path / "cache" / "hub" / "owner--name" / commit / weights).is_file()


CHILD = """
import sys
from pathlib import Path
from ovenbird.errors import RequestError, ResourceError
from ovenbird_export import publish
folder, number, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for turn in range(rounds):
    try:
        with publish.workspace(folder, ["fp16"], force=True) as space:
            space.variant("fp16").mkdir()
            for name in "abc":
                (space.variant("fp16") / name).write_text(f"{number} {turn}")
            publish.write_manifest(space.variant("fp16"), {"format": 1})
            space.publish()
    except ResourceError as error:  # another one was faster, and has other bytes
        assert "cannot be put in place" in str(error), error
    except RequestError as error:  # another one replaced it between two looks
        assert "is not an export" in str(error), error
"""


def test_e2_four_processes_that_replace_each_other(tmp_path: Path) -> None:
    words = [sys.executable, "-c", CHILD, str(tmp_path / "out")]
    children = [subprocess.Popen([*words, str(number), "50"]) for number in range(4)]
    seen = set()
    while any(child.poll() is None for child in children):
        try:  # one generation, opened as a folder, whatever happens to its name
            descriptor = os.open(tmp_path / "out" / "fp16", os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            opened = Path(f"/proc/self/fd/{descriptor}")
            seen.add(frozenset((opened / name).read_text() for name in "abc"))
        except FileNotFoundError:
            continue  # it was replaced, and removed, meanwhile
        finally:
            os.close(descriptor)
    assert [child.returncode for child in children] == [0, 0, 0, 0]
    assert all(len(generation) == 1 for generation in seen) and len(seen) > 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fp16"]
    manifest = json.loads((tmp_path / "out" / "fp16" / "ovenbird.json").read_text())
    for name, facts in manifest["files"].items():
        assert facts["sha256"] == hashlib.sha256((tmp_path / "out" / "fp16" / name).read_bytes()).hexdigest()


def test_e2_what_another_one_removes_meanwhile_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / ".tmp-1-0123abcd"
    gone.mkdir()

    def is_symlink(path: Path) -> bool:  # the last look at it before its age
        path.rmdir()
        return False

    monkeypatch.setattr(Path, "is_symlink", is_symlink)
    publish.sweep(tmp_path)
    assert not gone.exists()
