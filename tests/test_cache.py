"""What is kept on the disk: notes, and compiled models, which are mapped, limited, and never trusted."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ovenbird import ModelError, RequestError, cache, cli, compiled, mapped
from ovenbird.bundle import Bundle
from ovenbird.commands.cache import COLUMNS, _row
from ovenbird.sizes import parse_size, show_size

FACTS = {"model": "toy fp16", "component": "unet"}
BLOB = bytes(range(256)) * 64
needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own; warnings come again in each test."""
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(compiled.LIMIT, raising=False)
    cache.warn_once.cache_clear()
    return tmp_path / "cache" / "compiled"


def key(number: int) -> str:
    return compiled.name({"number": number})


def keep(number: int, blob: bytes = BLOB) -> Path:
    def export(file: IO[bytes]) -> None:
        file.write(blob)

    compiled.keep(key(number), FACTS, export)
    folder = compiled.folder()
    assert folder is not None
    return folder / key(number)


def there(home: Path) -> set[int]:
    return {number for number in range(10) if (home / key(number)).exists()}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GiB", 20 << 30),
        ("1.5 gb", 1_500_000_000),
        ("500MB", 500_000_000),
        ("500 MiB", 500 << 20),
        ("1.5G", 3 << 29),
        ("0B", 0),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size("limit", text) == size


@pytest.mark.parametrize("text", ["", "20", "GiB", "-1GB", "20X", "1e3MB", "nanGB", "20 giga", "x" * 1000])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"limit: .* is not a size"):
        parse_size("limit", text)


def test_sizes_as_people_read_them() -> None:
    assert [show_size(size) for size in (0, 1023, 1024, 20 << 30)] == ["0 B", "1023 B", "1.0 KiB", "20.0 GiB"]


def test_a_wrong_limit_stops_before_a_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from ovenbird.backends import create

    monkeypatch.setenv(compiled.LIMIT, "plenty")
    with pytest.raises(RequestError, match="OVENBIRD_CACHE_LIMIT: 'plenty' is not a size"):
        create("openvino")


def test_what_was_kept_is_mapped_and_listed(home: Path) -> None:
    path = keep(1)
    found = compiled.load(key(1))
    assert found is not None and found.facts == FACTS
    assert found.blob.bytes.tobytes() == BLOB
    assert found.blob.bytes.ctypes.data % compiled.PAGE_BYTES == 0
    (entry,) = compiled.entries()
    assert (entry.path, entry.size, entry.facts) == (path, path.stat().st_size, FACTS)
    assert [each.name for each in home.glob("*.blob")] == [key(1)]


def test_pages_that_were_dropped_come_again() -> None:
    keep(1)
    found = compiled.load(key(1))
    assert found is not None
    found.blob.drop_pages()
    assert found.blob.bytes.tobytes() == BLOB


def test_pages_are_dropped_again_and_again_while_they_are_read() -> None:
    keep(1)
    found = compiled.load(key(1))
    assert found is not None
    dropped = []

    class Watched(mmap.mmap):
        def madvise(self, *advice: int) -> None:
            dropped.append(advice)

    watched = found.blob._replace(mapping=Watched(-1, 4096))
    with pytest.raises(ZeroDivisionError), mapped.dropping([watched]):
        while len(dropped) < 3:
            assert found.blob.bytes.tobytes() == BLOB
        raise ZeroDivisionError
    assert len(dropped) >= 4 and not [each for each in threading.enumerate() if "drop" in each.name]


TICK_S = 0.02  # longer than those of the clock that files are stamped by


def test_what_nobody_has_touched_is_not_summed_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, summed = keep(1), []
    monkeypatch.setattr("hashlib.file_digest", lambda file, name: summed.append(name) or hashlib.new(name, file.read()))
    for _ in range(3):
        assert compiled.load(key(1)) is not None
    assert summed == []
    time.sleep(TICK_S)
    os.utime(path)
    for _ in range(3):
        assert compiled.load(key(1)) is not None
    assert summed == ["sha256"]
    (home / key(1)).with_suffix(".seen").write_bytes(b"\xff of something else")
    assert compiled.load(key(1)) is not None and len(summed) == 2
    compiled.clear()
    assert not [*home.iterdir()]


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    **{
        f"byte {at} flipped": lambda d, at=at: d[:at] + bytes([d[at] ^ 1]) + d[at + 1 :] for at in (0, 31, 40, 5000, -1)
    },
    **{f"cut to {size}": lambda d, size=size: d[:size] for size in (0, 1, 31, 32, 40, 4096, 5000)},
    "longer": lambda d: d + b"\0",
    "zeros": lambda d: bytes(len(d)),
    "something else": lambda d: b"<html>\n" * 1000,
}


@pytest.mark.parametrize("kind", SPOILED)
def test_e7_a_damaged_entry_is_removed_with_one_warning(kind: str) -> None:
    path = keep(1)
    time.sleep(TICK_S)
    path.write_bytes(SPOILED[kind](path.read_bytes()))
    assert len(compiled.entries()) == 1
    with pytest.warns(UserWarning, match="is damaged") as caught:
        assert compiled.load(key(1)) is None
    assert len(caught) == 1 and not path.exists()
    keep(1)
    assert compiled.load(key(1)) is not None


def test_the_entry_that_was_used_longest_ago_goes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = keep(0).stat().st_size
    monkeypatch.setenv(compiled.LIMIT, f"{3 * size}B")
    for number in (1, 2):
        keep(number)
    for number, age in ((0, 300), (1, 200), (2, 100)):
        os.utime(home / key(number), (0, time.time() - age))
    compiled.load(key(0))
    assert [entry.path.name for entry in compiled.entries()] == [key(0), key(2), key(1)]
    keep(3)
    assert there(home) == {0, 2, 3}
    keep(4, BLOB * 2)
    assert there(home) == {3, 4}
    keep(3)  # replaces itself
    assert there(home) == {3, 4}


def test_what_is_in_use_is_never_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = keep(0).stat().st_size
    monkeypatch.setenv(compiled.LIMIT, f"{2 * size}B")
    keep(1)
    used = compiled.load(key(0))
    os.utime(home / key(0), (0, 0))
    keep(2)
    assert there(home) == {0, 2}
    assert compiled.clear() == (1, size, 1)
    assert there(home) == {0}
    assert used is not None and used.blob.bytes.tobytes() == BLOB
    del used
    assert compiled.clear() == (1, size, 0)


def test_an_entry_larger_than_the_limit_is_not_kept_and_costs_the_others_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = keep(0).stat().st_size
    monkeypatch.setenv(compiled.LIMIT, f"{size}B")
    with pytest.warns(UserWarning, match=r"is not kept: .* limited to .* by OVENBIRD_CACHE_LIMIT") as caught:
        keep(1, BLOB * 2)
        keep(2, BLOB * 2)
    assert len(caught) == 1
    assert [path.name for path in home.glob("*.blob")] == [key(0)]


def test_leftovers_older_than_a_day_go_with_the_next_write(home: Path) -> None:
    keep(0)
    names = [".part-0123abcd", ".part-4567cdef", ".part-other", "part-0123abcd"]
    for folder in (home, home.parent):
        for name in names:
            (folder / name).write_bytes(b"x")
            if name != ".part-4567cdef":
                os.utime(folder / name, (0, 0))
    keep(1)
    cache.write("note", b"")
    for folder in (home, home.parent):
        assert {path.name for path in folder.iterdir() if "part" in path.name} == set(names[1:])


def test_clearing_removes_compiled_models_and_nothing_else(home: Path) -> None:
    keep(0)
    keep(1)
    (home / ".part-0123abcd").write_bytes(b"left by a killed run")
    (home / "mine.blob").write_bytes(b"")
    (home / compiled.name({})).mkdir()
    cache.write("a.verified", b"")
    (home.parent / "hub").mkdir()
    (home.parent / "hub" / key(0)).write_bytes(b"a download")
    before = set(home.parent.rglob("*"))
    gone = {home / key(0), home / key(1), home / ".part-0123abcd", *home.glob("*.seen")}
    assert compiled.clear()[::2] == (3, 0)
    assert set(home.parent.rglob("*")) == before - gone


def test_a_part_that_is_being_written_is_not_cleared() -> None:
    def export(file: IO[bytes]) -> None:
        file.write(BLOB)
        assert compiled.clear() == (0, 0, 1)

    compiled.keep(key(0), FACTS, export)
    assert compiled.load(key(0)) is not None


BOGUS = ["missing", "a file", "/proc/x", "no home"]


@pytest.mark.parametrize("kind", BOGUS)
def test_e6_a_bogus_cache_is_empty_and_costs_one_warning(
    kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    place = {"missing": str(home.parent), "a file": str(tmp_path / "file"), "/proc/x": "/proc/x", "no home": ""}[kind]
    monkeypatch.setenv("OVENBIRD_CACHE", place)
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA") if kind == "no home" else ():
        monkeypatch.delenv(name, raising=False)
    if kind == "no home":
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert compiled.entries() == [] and compiled.load(key(0)) is None and compiled.clear() == (0, 0, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in (0, 1):
            compiled.keep(key(number), FACTS, lambda file: None)
            cache.write(f"note-{number}", b"")
    assert len(caught) == (kind in ("a file", "/proc/x"))
    assert (tmp_path / "file").read_text() == "mine"


FULL = """
import resource, signal, sys, warnings
from ovenbird import cache, compiled
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for number in (1, 2):
    compiled.keep(compiled.name({"number": number}), {}, lambda file: file.write(bytes(1 << 20)))
"""


def test_e5_a_full_disk_costs_a_warning_and_leaves_nothing(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=True)
    assert done.stderr.count("cannot be written (File too large)") == 1
    assert list(home.iterdir()) == []


CROWD = """
import random, sys, warnings
from ovenbird import compiled
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="a compiled model")  # what others use may leave no room
draw = random.Random(int(sys.argv[1]))
hits = 0
for _ in range(150):
    number = draw.randrange(8)
    found = compiled.load(compiled.name({"number": number}))
    if found is None:
        blob = bytes([number]) * (5000 * (number + 1))
        compiled.keep(compiled.name({"number": number}), {}, lambda file: file.write(blob))
    else:
        hits += 1
        assert found.blob.bytes.tobytes() == bytes([number]) * (5000 * (number + 1))
print(hits)
"""


def test_e2_several_processes_share_a_cache_that_is_too_small(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.LIMIT, "120 kB")
    crowd = [
        subprocess.Popen([sys.executable, "-c", CROWD, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for seed in range(4)
    ]
    ends = [(*process.communicate(), process.returncode) for process in crowd]
    for hits, shown, code in ends:
        assert code == 0, shown.decode()
        assert 0 < int(hits) < 150
    assert sum(path.stat().st_size for path in home.iterdir()) <= 120_000 + 4 * 48_000
    compiled.keep(key(9), {}, lambda file: None)
    assert sum(entry.size for entry in compiled.entries()) <= 120_000


def test_the_command_lists_and_clears(home: Path) -> None:
    facts = {**FACTS, "shapes": {"sample": [2, 4, 8, 8]}, "device": "cpu", "runtime": "openvino 2026.4.1-22982"}
    compiled.keep(key(0), facts, lambda file: None)
    path = keep(1)
    path.write_bytes(b"")
    os.utime(home / key(0), (0, 1e9))
    os.utime(path, (0, 2e9))
    lines = typed().output.splitlines()
    assert lines[0] == str(home)
    assert lines[1].split() == ["model", "component", "shapes", "device", "runtime", "size", "last", "used"]
    assert lines[2].split()[:3] == ["damaged", "0", "B"]
    assert lines[3].split()[:8] == ["toy", "fp16", "unet", "sample", "2x4x8x8", "cpu", "openvino", "2026.4.1"]
    assert lines[4] == "2 compiled models, 4.0 KiB of 20.0 GiB (OVENBIRD_CACHE_LIMIT)"
    told = json.loads(typed("--json").output)
    assert (told["folder"], told["limit_bytes"], told["bytes"]) == (str(home), 20 << 30, 4096)
    assert [entry["facts"] for entry in told["entries"]] == [None, facts]
    assert told["entries"][1]["last_used"] == "2001-09-09T01:46:40Z"
    assert typed("--clear").output == "2 compiled models removed, 4.0 KiB; everything else stays\n"
    assert json.loads(typed("--clear", "--json").output) == {"folder": str(home), "removed": 0, "size": 0, "left": 0}


def typed(*words: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["cache", *words])
    assert result.exit_code == exit_code, result.output
    return result


def test_the_command_does_not_remove_what_is_in_use(home: Path) -> None:
    keep(0)
    used = compiled.load(key(0))
    assert "1 not: in use" in typed("--clear", exit_code=4).stderr
    assert used is not None and there(home) == {0}


@pytest.mark.parametrize("place", ["missing", "file", "file/below", "/proc/x"])
def test_e6_the_command_works_on_bogus_folders(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / place))
    assert "0 compiled models" in typed().output and "0 compiled models" in typed("--clear").output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_e7_the_command_works_on_every_damaged_header(home: Path) -> None:
    facts = {**FACTS, "shapes": {"sample": [2]}, "device": "cpu", "runtime": "openvino"}
    compiled.keep(key(0), facts, lambda file: None)
    path = home / key(0)
    data = path.read_bytes()
    for at in range(32, 32 + len(json.dumps(facts))):
        for byte in b'0"{,\xff':
            path.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
            (entry,) = compiled.entries()
            assert len(_row(entry)) == len(COLUMNS)


def test_a_wrong_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.LIMIT, "20")
    assert "error: OVENBIRD_CACHE_LIMIT: '20' is not a size" in typed(exit_code=2).stderr


# With OpenVINO.


def write_ir(folder: Path, side: int = 8, layers: int = 1) -> Path:
    """Layers of side x side, whose weights OpenVINO copies, and a table, which it uses in place."""
    ov = pytest.importorskip("openvino")
    ops, draw = ov.opset13, np.random.default_rng(0)
    ids = ops.parameter([1, 4], np.int64, name="ids")
    x = ops.gather(ops.constant(draw.standard_normal((64, side), np.float32)), ids, ops.constant(0))
    for _ in range(layers):
        x = ops.relu(ops.matmul(x, ops.constant(draw.standard_normal((side, side), np.float32)), False, True))
    x.output(0).get_tensor().set_names({"y"})
    folder.mkdir(parents=True)
    ov.save_model(ov.Model([x], [ids], "toy"), folder / "openvino_model.xml", compress_to_fp16=False)
    return folder


def run(folder: Path, manifest: str | None = "one", device: str = "cpu") -> tuple[str, Any]:
    from ovenbird.backends import create

    model = create("openvino", device).compile(folder, {"ids": (1, 4)}, precision="f32", cache_key=manifest)
    return model.cache, model({"ids": np.array([[0, 1, 2, 3]])})["y"]


@pytest.mark.parametrize("kind", ["byte 5000 flipped", "cut to 5000", "cut to 0", "something else"])
def test_e7_openvino_compiles_anew_what_was_damaged(kind: str, home: Path, tmp_path: Path) -> None:
    folder = write_ir(tmp_path / "unet")
    state, expected = run(folder)
    assert state == "miss"
    (path,) = home.glob("*.blob")
    time.sleep(TICK_S)
    path.write_bytes(SPOILED[kind](path.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged") as caught:
        state, found = run(folder)
    assert state == "miss" and len(caught) == 1
    np.testing.assert_array_equal(found, expected)
    state, found = run(folder)
    assert state == "hit"
    np.testing.assert_array_equal(found, expected)


def test_e7_what_openvino_cannot_import_is_compiled_anew(home: Path, tmp_path: Path) -> None:
    folder = write_ir(tmp_path / "unet")
    run(folder)
    (path,) = home.glob("*.blob")
    compiled.keep(path.name, {"ports": [["ids"], ["y"]]}, lambda file: file.write(b"of another build"))  # type: ignore[arg-type, return-value]
    with pytest.warns(UserWarning, match="is damaged"):
        assert run(folder)[0] == "miss"
    assert run(folder)[0] == "hit"


def test_e7_without_a_manifest_nothing_is_kept(home: Path, tmp_path: Path) -> None:
    folder = write_ir(tmp_path / "unet")
    (state, before) = run(folder, manifest=None)
    path = folder / "openvino_model.bin"
    status, data = path.stat(), np.fromfile(path, np.float32)
    (data * 2).tofile(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again, after = run(folder, manifest=None)
    assert state == again == "off" and not home.exists()
    assert not np.array_equal(before, after)


def test_e6_a_bogus_cache_costs_openvino_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_ir(tmp_path / "unet")
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), "/proc/x"):
        monkeypatch.setenv("OVENBIRD_CACHE", place)
        with pytest.warns(UserWarning, match="cannot be written") as caught:
            assert run(folder)[0] == run(folder, "two")[0] == "miss"
        assert len(caught) == 1


READ_ONLY = """
import os, sys
from pathlib import Path
from ovenbird.backends import create
def closed(event, args):
    changes = event in ("os.mkdir", "os.remove", "os.rename", "os.utime", "os.chmod", "os.truncate")
    if changes or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if "cache/" in str(args[0]):
            raise PermissionError(13, "Permission denied", args[0])
if os.geteuid() == 0:
    sys.addaudithook(closed)  # modes do not hold root back, and who is not root may not read its packages
try:
    Path("cache/compiled/x").touch()
except PermissionError:
    compile = create("openvino").compile
    print(compile(Path("unet"), {"ids": (1, 4)}, precision="f32", cache_key="one").cache)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs modes of files")
def test_e6_a_read_only_cache_with_valid_entries_is_used(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVENBIRD_CACHE", "cache")
    run(write_ir(Path("unet")))
    tmp_path.chmod(0o755)
    home.chmod(0o555)
    words = [sys.executable, "-W", "error", "-c", READ_ONLY]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    home.chmod(0o755)
    assert (done.stdout, done.stderr) == ("hit\n", "")


@needs_proc
def test_openvino_writes_nothing_into_the_mapping_and_keeps_it_alive(nestling: Path, home: Path) -> None:
    from ovenbird.backends import create

    shapes = {"sample": (1, 4, 8, 8), "encoder_hidden_states": (1, 77, 128)}
    draw = np.random.default_rng(0)
    inputs = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    inputs["timestep"] = np.array(500.0)

    def compile_unet() -> Any:
        return create("openvino").compile(nestling / "fp16" / "unet", shapes, precision="f32", cache_key="one")

    def written(path: Path) -> list[int]:
        maps = [text for text in Path("/proc/self/smaps").read_text().split("VmFlags") if str(path) in text]
        return [int(text.partition("Anonymous:")[2].split()[0]) for text in maps]

    weights = nestling / "fp16" / "unet" / "openvino_model.bin"
    before = len(written(weights))  # other tests may have it in memory, too
    model = compile_unet()
    expected = model(inputs)["out_sample"]
    assert len(written(weights)) > before and not any(written(weights))
    model = compile_unet()
    for _ in range(2):
        np.testing.assert_array_equal(model(inputs)["out_sample"], expected)
    assert written(home) and not any(written(home))
    del model
    assert not written(home) and len(written(weights)) == before


PEAK = """
import sys
import threading
from pathlib import Path
import numpy as np
from ovenbird.backends import create
model = create("openvino").compile(Path(sys.argv[1]), {"ids": (1, 4)}, precision="f32", cache_key=sys.argv[2] or None)
model({"ids": np.array([[0, 1, 2, 3]])})
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(model.cache, int(peak.split()[1]) / 1024)
"""


@needs_proc
def test_a_large_model_is_not_copied_through_memory(tmp_path: Path) -> None:
    folder = write_ir(tmp_path / "unet", side=2048, layers=4)  # 64 MiB

    def measure(manifest: str) -> tuple[str, float]:
        words = [sys.executable, "-c", PEAK, str(folder), manifest]
        state, peak = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        return state, float(peak)

    (off, plain), (miss, writing), (hit, reading) = measure(""), measure("one"), measure("one")
    assert (off, miss, hit) == ("off", "miss", "hit")
    assert writing - plain < 48 and reading - plain < 32


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_while_a_model_is_kept_is_not_lost(home: Path) -> None:
    import _thread

    from ovenbird.backends import openvino

    class Runs:
        def export_model(self, stream: Any) -> None:
            stream.write(BLOB)
            _thread.interrupt_main()
            time.sleep(0.05)
            stream.write(BLOB)

    with pytest.raises(KeyboardInterrupt):
        openvino._keep(FACTS, {}, Runs())
    assert list(home.iterdir()) == []


@pytest.fixture
def copy(nestling: Path, tmp_path: Path) -> Path:
    shutil.copytree(nestling / "fp16", tmp_path / "copy" / "fp16")
    return tmp_path / "copy" / "fp16"


def preserve(path: Path, data: bytes, *, in_place: bool) -> None:
    """Other bytes under the times of the old ones."""
    status = path.stat()
    twin = path if in_place else path.with_suffix(".new")
    twin.write_bytes(data)
    os.replace(twin, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("in_place", [True, False])
def test_e7_weights_that_were_replaced_after_a_good_run_are_found(copy: Path, in_place: bool) -> None:
    Bundle.open(copy).verify_once()
    path = copy / "vae_decoder" / "openvino_model.bin"
    preserve(path, bytes(path.stat().st_size), in_place=in_place)
    with pytest.raises(ModelError, match="is damaged"):
        Bundle.open(copy).verify_once()


def test_e7_graphs_that_were_swapped_are_found(copy: Path) -> None:
    Bundle.open(copy).verify_once()
    files = [copy / name / "openvino_model.bin" for name in ("vae_decoder", "vae_encoder")]
    contents = [path.read_bytes() for path in files]
    for path, data in zip(files, reversed(contents), strict=True):
        preserve(path, data, in_place=True)
    with pytest.raises(ModelError, match=r"openvino_model\.bin has \d+ bytes, not"):
        Bundle.open(copy).verify_once()
