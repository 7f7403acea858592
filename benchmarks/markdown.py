"""Tables as Markdown has them."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows that are shorter than the header are filled up with nothing."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_filled(cells, len(header)))} |" for cells in lines)


def _filled(cells: Sequence[str], count: int) -> list[str]:
    return [cell.replace("|", "\\|") for cell in [*cells, *[""] * (count - len(cells))]]
