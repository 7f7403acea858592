"""How much memory there is, by what the kernel and its control groups say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ovenbird import machine

GIB = 1 << 30
BUSY = f"'{sys.executable}' -c 'import time\nwhile time.process_time() < 1: pass'"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 16 GiB, of which 10 are available, and 2 GiB of swap."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = ("MemTotal: 16777216 kB", "MemAvailable: 10485760 kB", "HugePages_Total: 0", "SwapTotal: 2097152 kB")
    (tmp_path / "proc/meminfo").write_text("\n".join(lines) + "\n")
    return tmp_path


def group(folder: Path, files: dict[str, int | str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def test_without_groups_it_is_what_the_kernel_says(kernel: Path) -> None:
    assert machine.available_memory() == 10 * GIB
    assert machine.total_memory() == 18 * GIB


def test_the_tightest_group_of_version_2_counts_less_what_can_be_taken_back(kernel: Path) -> None:
    (kernel / "proc/self/cgroup").write_text("0::/pod/box\n")
    stat = f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\nfile {2 * GIB}"
    group(kernel / "cgroup/pod", {"memory.max": 6 * GIB, "memory.current": 4 * GIB, "memory.stat": stat})
    group(kernel / "cgroup/pod/box", {"memory.max": "max", "memory.current": GIB, "memory.stat": stat})
    assert machine.available_memory() == 4 * GIB
    assert machine.total_memory() == 6 * GIB


def test_groups_of_version_1_are_read_too(kernel: Path) -> None:
    (kernel / "proc/self/cgroup").write_text("5:cpu,cpuacct:/\n4:memory:/docker/a:b\n")
    stat = f"cache 5\ntotal_inactive_file {GIB}\ntotal_active_file 0"
    box = {"memory.limit_in_bytes": 3 * GIB, "memory.usage_in_bytes": 2 * GIB, "memory.stat": stat}
    group(kernel / "cgroup/memory/docker/a:b", box)
    group(kernel / "cgroup/memory", {**box, "memory.limit_in_bytes": 9223372036854771712})
    assert machine.available_memory() == 2 * GIB
    assert machine.total_memory() == 3 * GIB


def test_a_group_that_is_over_its_limit_has_nothing_left(kernel: Path) -> None:
    (kernel / "proc/self/cgroup").write_text("0::/\n")
    group(kernel / "cgroup", {"memory.max": GIB, "memory.current": 2 * GIB, "memory.stat": "anon 5"})
    assert machine.available_memory() == 0


def test_where_nothing_can_be_read_nothing_is_known(kernel: Path) -> None:
    (kernel / "proc/meminfo").write_text("nonsense\n")
    (kernel / "proc/self/cgroup").write_text("0::/\n")
    group(kernel / "cgroup", {"memory.max": "max"})
    assert machine.available_memory() is None
    assert machine.total_memory() is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_this_machine_says_so() -> None:
    available, total = machine.available_memory(), machine.total_memory()
    assert total and available is not None and 0 <= available <= total


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_that_is_given_back_is_gone() -> None:
    machine.give_back()
    before = machine.resident()
    assert before
    block = b"x" * (50 << 20)
    assert machine.resident() > before + (40 << 20)
    del block
    machine.give_back()
    assert machine.resident() < before + (10 << 20)


def test_the_peak_is_this_process_own(kernel: Path) -> None:
    (kernel / "proc/self/status").write_text("Name:\tpython\nVmHWM:\t 2097152 kB\nVmRSS:\t 1024 kB\n")
    assert machine.peak_rss_mib() == 2048


def test_where_the_kernel_says_no_peak_it_is_still_told(kernel: Path) -> None:
    (kernel / "proc/self/status").write_text("Name:\tpython\n")
    found = machine.peak_rss_mib()
    assert found is None or found > 10


@pytest.mark.parametrize(("limit", "left"), [("", True), ("avx512_core_bf16", True), ("AVX512_CORE_VNNI", False)])
def test_a_limit_may_hide_bf16(limit: str, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert machine.leaves_bf16() is left
    if not left:
        from ovenbird.backends import create

        assert create("openvino").best_precision("fp16") == "f32"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="where Linux tells it")
@pytest.mark.parametrize(("before", "known"), [("true", True), (BUSY, False)])
def test_a_process_that_was_a_shell_before_does_not_know_when_it_began(before: str, known: bool) -> None:
    """Dash and bash end by becoming the last program."""
    said = "from ovenbird.machine import seconds_since_process_start as s; print(s() is not None)"
    shell = ["sh", "-c", f"{before} && exec '{sys.executable}' -c '{said}'"]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout == f"{known}\n"
