"""Sizes as people write and read them."""

from __future__ import annotations

import re

from ovenbird.errors import RequestError

UNITS = {"B": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("KMGT", 1)
    for ending, base in (("B", 1000), ("iB", 1024), ("", 1024))  # a letter alone is what docker and systemd mean by it
}
SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]+)", re.ASCII)


def parse_size(name: str, text: str) -> int:
    """Bytes: of ``20GiB``, ``500 MB`` or ``1.5G``, in any case.  Raises ``RequestError`` that names the setting."""
    found = SIZE.fullmatch(text.strip())
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise RequestError(
            f"{name}: {text[:64]!r} is not a size, a number with one of {', '.join(UNITS)}", hint="such as 20GiB"
        )
    return int(float(found[1]) * units[found[2].lower()])


def show_size(count: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def counted(number: int, name: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number} {name}{'s' * (number != 1)}"
