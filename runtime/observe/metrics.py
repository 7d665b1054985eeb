"""The numbers of a run as they come: `metrics.jsonl`, one JSON object a line, flushed line by line.

    {"kind": "step", "step": 12, "loss": 0.41, "rate": 0.05, "samples_per_s": 5120.0, "time_s": 3.25}
    {"kind": "evaluation", "step": 12, "split": "validation", "loss": 0.38, "accuracy": 0.91}
    {"kind": "work", "rank": 0, "micro_batches": {"0": 120, "1": 14}, "kernels": {"1": 22}, "attempts": 15,
     "misses": 1, "left": 3}
    {"kind": "end", "step": 960, "reason": "all epochs done"}

JSON has no NaN and no infinity: both are written as null, which `pandas.read_json(..., lines=True)`,
JavaScript and jq all accept, and are read back as NaN. A crash may cut the last line: the reader skips what
is no JSON object and counts it. A resumed run appends and repeats the steps since its checkpoint: the later
ones count.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Row = dict[str, Any]


class Metrics:
    """Appends to a `metrics.jsonl`; written by rank 0 only."""

    def __init__(self, path: Path) -> None:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a crash cut the last line: it must not swallow ours too
                    file.write(b"\n")
        self._file = path.open("a", encoding="utf-8")

    def write(self, *, kind: str, **fields: Any) -> None:
        """Append one line and flush it. 6 us, so every step can have one."""
        row = {"kind": kind, **{name: _as_json(value) for name, value in fields.items()}}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class History:
    """What a `metrics.jsonl` holds, by kind, in order of the steps."""

    steps: list[Row]
    evaluations: list[Row]
    end: Row | None
    skipped: int  # lines that were no JSON objects
    work: Sequence[Row] = ()  # who computed what, by rank and whose it was (claims.py)

    def evaluated(self, split: str) -> list[Row]:
        """The evaluations on one split: "validation", "test"."""
        return [row for row in self.evaluations if row.get("split") == split]


def read_metrics(path: Path) -> History:
    """All rows; a missing file is an empty history."""
    steps: list[Row] = []
    evaluations: list[Row] = []
    work: list[Row] = []
    end: Row | None = None
    skipped = 0
    content = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in content.split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            skipped += 1
            continue
        row = {name: math.nan if value is None else value for name, value in row.items()}
        if row.get("kind") == "step" and isinstance(row.get("step"), int):
            if steps and row["step"] <= steps[-1]["step"]:  # resumed from an earlier step
                steps = [earlier for earlier in steps if earlier["step"] < row["step"]]
                evaluations = [e for e in evaluations if e.get("step", 0) < row["step"]]
            steps.append(row)
        elif row.get("kind") == "evaluation" and isinstance(row.get("step"), int):
            evaluations.append(row)
        elif row.get("kind") == "work":
            work.append(row)
        elif row.get("kind") == "end":
            end = row
    return History(steps, evaluations, end, skipped, work)


def _as_json(value: Any) -> Any:
    """NumPy scalars as Python's, and what JSON cannot say as null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
