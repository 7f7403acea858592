"""What this computer is, as far as it says."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

ISA_FLAGS = ("amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "asimd")
EIGHT_BITS = ("amx_int8", "avx512_vnni", "avx_vnni")
"""Instruction sets with products of eight bits that are summed at once."""
ALLOWED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("sse41", "avx", "avx2", "avx512_core"), ()),
    **dict.fromkeys(("avx2_vnni", "avx2_vnni_2"), ("avx_vnni",)),
    **dict.fromkeys(("avx512_core_vnni", "avx512_core_bf16"), ("avx512_vnni",)),
    **dict.fromkeys(("avx512_core_fp16", "avx10_1_512"), ("avx512_vnni", "avx_vnni")),
}
"""Limit of oneDNN -> which of those it leaves; others leave all."""
WITHOUT_BF16 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
"""Limits that leave no products of bf16, which oneDNN then does by way of float32: 3 times slower than that."""
CPUS, SIBLINGS = Path("/sys/devices/system/cpu"), "topology/thread_siblings_list"
THERMAL = Path("/sys/class/thermal")


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """How many of those are cores of their own, and not one more thread of another's."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    try:
        siblings = {(CPUS / f"cpu{number}" / SIBLINGS).read_text() for number in os.sched_getaffinity(0)}
    except OSError:
        return usable_cores()
    return len(siblings)


def cpu_name() -> str:
    """The processor's own name for itself."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The vector and matrix instruction sets that matter here, most capable first; empty where unknown."""
    found = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return [flag for flag in ISA_FLAGS if flag in found]


def isa_limit() -> str:
    """What keeps runtimes from the processor's newest instruction sets, as if it were a smaller one; empty for nothing.

    oneDNN, which OpenVINO calculates with, reads it.
    """
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower()


def quick_at_eight_bits() -> str | None:
    """The instruction set that multiplies eight bits quickly, if the processor has one that it may use.

    Measured with OpenVINO on one U-Net call of Stable Diffusion 1.5 (batch 2, 64x64 latents, two cores of a Sapphire
    Rapids), float32 against int8: 6.1 s (bf16 1.65 s) and 1.25 s with AMX; limited to AVX2 and VNNI 9.5 s and 4.3 s;
    limited to AVX2 9.5 s and 11.0 s, so that int8 is slower without these.
    """
    allowed = ALLOWED.get(isa_limit(), EIGHT_BITS)
    return next((name for name in instruction_sets() if name in allowed), None)


def overflows_at_eight_bits() -> bool:
    """Whether two products of eight bits are summed in sixteen, where large ones are cut off.

    So do x86 processors (``vpmaddubsw``) without instructions that are quick at it; so may those that do not say.
    """
    return quick_at_eight_bits() is None and platform.machine().lower() in ("x86_64", "amd64")


def leaves_bf16() -> bool:
    """Whether oneDNN may use instructions for bf16, if the processor has them."""
    return isa_limit() not in WITHOUT_BF16


def peak_rss_mib() -> float | None:
    """The most memory this process has held, in MiB; None where it cannot be read."""
    with suppress(OSError, ValueError):  # what ru_maxrss says is never less than what the parent held
        lines = dict(line.split(":", 1) for line in (PROC / "self/status").read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def resident() -> int | None:
    """Bytes of memory that this process holds now, files that are mapped among them; None where it cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def give_back() -> None:
    """Return freed memory to the system: of what ONNX Runtime frees, glibc keeps hundreds of MiB."""
    with suppress(OSError, AttributeError, TypeError):  # another C library, or none that Python can load
        ctypes.CDLL(None).malloc_trim(0)


def total_memory() -> int | None:
    """Bytes of memory and swap that this process could ever have; None where it cannot be read."""
    facts = _meminfo()
    rooms = [most for most, _ in _control_groups()]
    if "MemTotal" in facts:
        rooms.append(facts["MemTotal"] + facts.get("SwapTotal", 0))
    return min(rooms, default=None)


def available_memory() -> int | None:
    """Bytes that this process could still take before others suffer; None where it cannot be read.

    The least of what the kernel says is available and what each control group, of a container say, has left.
    """
    rooms = [most - used for most, used in _control_groups()]
    available = _meminfo().get("MemAvailable")
    if available is not None:
        rooms.append(available)
    return max(0, min(rooms)) if rooms else None


PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""What version 1 of control groups says instead of nothing is near 2**63."""


def _meminfo() -> dict[str, int]:
    """Bytes by name."""
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
        return {name: int(value.split()[0]) << 10 for name, _, value in (line.partition(":") for line in lines)}
    except (OSError, ValueError, IndexError):
        return {}


def _control_groups() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group with a limit that this process is in."""
    for folder, most, used, files in _group_folders():
        with suppress(OSError, ValueError, IndexError):  # "max", or a group that is not shown to us
            limit = int((folder / most).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            reclaimable = sum(int(stat.get(f"{files}{kind}_file", 0)) for kind in ("inactive", "active"))
            if limit < NO_LIMIT:
                yield limit, int((folder / used).read_text()) - reclaimable


def _group_folders() -> Iterator[tuple[Path, str, str, str]]:
    """Folder, name of the limit, name of the use, and a prefix; the groups that hold a group count, too."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines):
        inner = Path(path.lstrip("/"))
        if "memory" in controllers.split(","):
            for group in (inner, *inner.parents):
                yield CGROUPS / "memory" / group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        elif number == "0":
            for group in (inner, *inner.parents):
                yield CGROUPS / group, "memory.max", "memory.current", ""


def seconds_since_process_start() -> float | None:
    """Seconds since the kernel made this process, or None where it cannot be read.

    Nor can it where a shell became this program after others: the last of ``sh -c "pip install ... && python ..."`` has
    the age of that shell, and the time that its children took.
    """
    try:
        fields = (PROC / "self/stat").read_text().rpartition(")")[2].split()
        ticks, second = int(fields[19]), os.sysconf("SC_CLK_TCK")
        if int(fields[13]) + int(fields[14]) > second / 2:
            return None
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / second
    except (OSError, AttributeError, ValueError):
        return None


def load_average() -> float | None:
    """How many threads, of all programs, wanted to run in the last minute; None where it cannot be read."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def cpu_mhz() -> float | None:
    """The frequency of the fastest core now; None where it cannot be read."""
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
        return max((float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")), default=None)
    except (OSError, ValueError):
        return None


def cpu_celsius() -> float | None:
    """The hottest thermal zone that names itself after the processor; None where there is none to read."""
    found = []
    for zone in THERMAL.glob("thermal_zone*"):
        with suppress(OSError, ValueError):
            if any(word in (zone / "type").read_text().lower() for word in ("cpu", "x86_pkg", "k10", "soc")):
                found.append(int((zone / "temp").read_text()) / 1000)
    return max(found, default=None)


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
