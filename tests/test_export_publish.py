"""Publishing: whenever it is stopped, and by whatever, the target is absent or complete."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ovenbird.errors import Cancelled, RequestError, ResourceError
from ovenbird_export import publish

WHOLE = {"model.onnx": b"weights"}


def fill(folder: Path, content: bytes = WHOLE["model.onnx"]) -> None:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    publish.write_manifest(folder, {"format": 1})


def make(folder: Path, content: bytes = WHOLE["model.onnx"], *, force: bool = False) -> list[Path]:
    with publish.workspace(folder, ["fp16"], force=force) as space:
        fill(space.variant("fp16"), content)
        return space.publish()


def content(folder: Path) -> bytes:
    return (folder / "fp16" / "model.onnx").read_bytes()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_built_appears_whole_and_alone(tmp_path: Path) -> None:
    assert make(tmp_path / "a" / "b") == [tmp_path / "a" / "b" / "fp16"]
    assert listing(tmp_path / "a" / "b") == ["fp16"]
    facts = json.loads((tmp_path / "a" / "b" / "fp16" / "ovenbird.json").read_text())
    assert facts["files"]["model.onnx"]["size"] == len(WHOLE["model.onnx"])


def test_a_target_that_exists_is_refused_unless_forced(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(RequestError, match="exists") as caught:
        make(tmp_path, b"newer")
    assert caught.value.hint is not None and "--force" in caught.value.hint
    assert content(tmp_path) == WHOLE["model.onnx"]
    make(tmp_path, b"newer", force=True)
    assert content(tmp_path) == b"newer"
    assert listing(tmp_path) == ["fp16"]


def test_what_is_not_an_export_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "fp16").mkdir()
    (tmp_path / "fp16" / "diary.txt").write_text("dear")
    with pytest.raises(RequestError, match="not an export"):
        make(tmp_path, force=True)
    assert listing(tmp_path / "fp16") == ["diary.txt"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyboardInterrupt(), Cancelled),
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
        (OSError(errno.EFBIG, "File too large"), ResourceError),
        (Exception("File too large (os error 27)"), ResourceError),  # as Rust says it
        (RuntimeError("basic_ios::clear: iostream error"), ResourceError),  # as C++ does
        (PermissionError(errno.EACCES, "Permission denied", "x"), ResourceError),
        (RuntimeError("a tool's own"), RuntimeError),
    ],
)
def test_nothing_is_left_when_it_fails(tmp_path: Path, raised: BaseException, expected: type[Exception]) -> None:
    with pytest.raises(expected), publish.workspace(tmp_path / "a" / "b", ["fp16"], force=False) as space:
        fill(space.variant("fp16"))
        raise raised
    assert listing(tmp_path) == []


def test_a_tool_that_fails_on_a_full_disk_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(folder: Path) -> object:
        return type("Usage", (), {"free": 4096})

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(ResourceError, match="is full"), publish.workspace(tmp_path, ["fp16"], force=False):
        raise RuntimeError("a tool's own")
    with pytest.raises(ResourceError, match=r"0\.0 GB free; the export needs 5\.0 GB"):
        publish.require_space(tmp_path, 5_000_000_000)


def test_a_file_in_the_way_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="Not a directory"):
        make(tmp_path / "file" / "sub")


def test_when_the_second_rename_fails_the_old_one_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(path: Path, target: Path) -> Path:
        if target == tmp_path / "fp16" and not path.name.startswith("old-"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, target)

    make(tmp_path)
    real = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ResourceError, match="cannot be put in place"):
        make(tmp_path, b"newer", force=True)
    assert content(tmp_path) == WHOLE["model.onnx"]
    assert listing(tmp_path) == ["fp16"]


def test_two_at_once_keep_the_first(tmp_path: Path) -> None:
    with publish.workspace(tmp_path, ["fp16"], force=False) as second:
        fill(second.variant("fp16"))
        make(tmp_path)
        assert second.publish() == [tmp_path / "fp16"]  # the same bytes: nothing to complain about
    with publish.workspace(tmp_path, ["fp32"], force=False) as second:
        fill(second.variant("fp32"), b"other")
        fill(tmp_path / "fp32")
        with pytest.raises(ResourceError, match="cannot be put in place"):
            second.publish()
    assert listing(tmp_path) == ["fp16", "fp32"]


def test_only_old_leftovers_of_ours_are_removed(tmp_path: Path) -> None:
    yesterday = time.time() - 25 * 3600
    for name in (".tmp-12-0123abcd", ".tmp-mine", "fp32"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (yesterday, yesterday))
    (tmp_path / ".tmp-34-0123abcd").mkdir()
    make(tmp_path)
    assert listing(tmp_path) == [".tmp-34-0123abcd", ".tmp-mine", "fp16", "fp32"]


CHILD = """
import os, signal, sys
from pathlib import Path
from ovenbird_export import publish
folder, moment, number = Path(sys.argv[1]), int(sys.argv[2]), getattr(signal, sys.argv[3])
count = 0
def step(name):
    real = getattr(os if name == 'fsync' else Path, name)
    def wrapped(*args, **options):
        global count
        if count == moment:
            os.kill(os.getpid(), number)
        count += 1
        return real(*args, **options)
    setattr(os if name == 'fsync' else Path, name, wrapped)
for name in ('fsync', 'rename', 'write_bytes', 'write_text', 'mkdir'):
    step(name)
for content in (b'weights', b'newer'):
    with publish.workspace(folder, ['fp16'], force=content == b'newer') as space:
        space.variant('fp16').mkdir()
        (space.variant('fp16') / 'model.onnx').write_bytes(content)
        publish.write_manifest(space.variant('fp16'), {'format': 1})
        space.publish()
print('done', count)
"""


def run_child(folder: Path, moment: int, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(folder), str(moment), how]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_stopped_at_any_step_the_target_is_absent_or_complete(tmp_path: Path, how: str) -> None:
    steps = int(run_child(tmp_path / "whole", -1, how).stdout.split()[1])
    assert steps > 15
    for moment in range(0, steps, 1 if how == "SIGKILL" else 4):
        folder = tmp_path / f"at-{moment}"
        done = run_child(folder, moment, how)
        assert done.returncode == (-signal.SIGKILL if how == "SIGKILL" else 1)
        target = folder / "fp16"
        if target.exists():
            facts = json.loads((target / "ovenbird.json").read_text())
            assert facts["files"]["model.onnx"] == publish._describe(target / "model.onnx")
        if how == "SIGTERM":
            assert "Cancelled: the export was stopped" in done.stderr
            assert not folder.exists() or listing(folder) == ["fp16"]
