"""Who computed what: micro-batches and weight gradients that ranks took from each other, in a table.

rank  micro-batches  of others        kernels of others  tried  missed  left
   0            134  14 of 1, 2 of 3  22 of 1               17       1     3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .history import Row

TITLES = ("rank", "micro-batches", "of others", "kernels of others", "tried", "missed", "left")
NOTE = (
    "tried, missed: claims of others' micro-batches, and those for which somebody was quicker;\n"
    "  left: steps of which faster ranks were left the rest"
)


def work_table(rows: Sequence[Row]) -> str:
    """A line for each rank, from the last of its rows of kind "work"; empty where nothing could be taken."""
    latest = {int(row["rank"]): row for row in rows if "rank" in row}
    lines = [_line(rank, latest[rank]) for rank in sorted(latest)]
    if not lines:
        return ""
    widths = [max(map(len, column)) for column in zip(TITLES, *lines, strict=True)]
    shown = [
        "  " + "  ".join(cell.ljust(w) if i in (2, 3) else cell.rjust(w) for i, (cell, w) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in (TITLES, *lines))
    ]
    return "\n".join([*map(str.rstrip, shown), f"  {NOTE}"])


def _line(rank: int, row: Row) -> tuple[str, ...]:
    computed, kernels = _counts(row.get("micro_batches")), _counts(row.get("kernels"))
    others = {of: count for of, count in computed.items() if of != rank}
    numbers = [f"{int(row.get(name, 0)):,}" for name in ("attempts", "misses", "left")]
    return (str(rank), f"{sum(computed.values()):,}", _of(others), _of(kernels), *numbers)


def _counts(value: Any) -> dict[int, int]:
    """By rank; JSON has its keys as strings. A damaged line's are left out."""
    counts = value.items() if isinstance(value, Mapping) else ()
    return {int(of): count for of, count in counts if of.isdecimal() and isinstance(count, int)}


def _of(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{counts[of]:,} of {of}" for of in sorted(counts)) or "–"
