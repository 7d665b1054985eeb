"""What a `metrics.jsonl` (metrics.py) tells of a run: its steps by columns, all other rows as they are.

    lines      step step step step step evaluation step step …
    read       at once, by a pattern ────┘ └ by json ┘ at once …

A run of a million steps has 160 MB of lines, which are read in pieces, and five numbers of each are kept.
What is no row, as where a crash has cut the last line, is skipped and counted.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from sys import float_info, intern
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import Mistake

Row = dict[str, Any]
Series = NDArray[np.float64]

NUMBERS: Final = {
    "start": ("step", "ranks"),
    "step": ("step", "epoch", "loss", "rate", "samples_per_s", "time_s"),
    "evaluation": ("step", "loss", "accuracy"),
    "exchange": ("step", "portion_bytes", "credit"),
    "work": ("rank", "attempts", "misses", "left"),
    "end": ("step",),
}
"""The fields of each kind that are numbers, where they are there."""

COUNTS: Final = {
    "start": ("step", "ranks"), "step": ("step",), "exchange": NUMBERS["exchange"], "work": NUMBERS["work"],
}  # fmt: skip
"""Those that are whole numbers."""

COLUMNS: Final = ("step", "loss", "rate", "samples_per_s", "time_s")
"""What is kept of a step; its time is counted over all starts."""

BLOCK_BYTES: Final = 1 << 18
LARGEST: Final = float_info.max

STEP: Final = b'{"kind": "step", '
"""How the line of a step begins, as Metrics writes it."""

PLAIN_STEP: Final = re.compile(
    rb'^{"kind": "step", "step": (\d+), "epoch": \d+, "loss": (N), "rate": (N), "samples_per_s": (N), '
    rb'"time_s": (N)}\n'.replace(b"N", rb"-?\d[-+.\de]*"),
    re.MULTILINE,
)
"""Such a line whole, of numbers alone. One by one, as JSON, a million of them took four times as long."""


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The steps of a run, ascending: columns of float64, NaN where a row had no such number."""

    step: Series
    loss: Series
    rate: Series
    samples_per_s: Series

    def __len__(self) -> int:
        return len(self.step)

    @property
    def last(self) -> int:
        """The number of the last step; there must be one."""
        return int(self.step[-1])

    @property
    def speed(self) -> float:
        """Samples a second, the median of those that are known; NaN where none is."""
        known = self.samples_per_s[np.isfinite(self.samples_per_s)]
        return float(np.median(known)) if len(known) else math.nan


@dataclass(frozen=True, slots=True)
class History:
    """What a `metrics.jsonl` holds, by kind, in order of the steps."""

    steps: Steps
    evaluations: list[Row]
    end: Row | None
    skipped: int  # lines that were no rows
    work: Sequence[Row] = ()  # who computed what since the last start, by rank and whose it was (claims.py)
    seconds: float = math.nan  # what the steps took, over all starts
    start: int = 0  # behind this step it started last
    exchange: Row | None = None  # how gradients travelled last, since then

    def evaluated(self, split: str) -> list[Row]:
        """The evaluations on one split: "validation", "test"."""
        return [row for row in self.evaluations if row.get("split") == split]


def read_metrics(path: Path) -> History:
    """All rows; a missing file is an empty history. Mistake where the file cannot be read."""
    reader = _Reader()
    for block in _blocks(path):
        for of_steps, lines in groupby(block, key=lambda line: line.startswith(STEP)):
            run = list(lines)
            if not (of_steps and reader.take_steps(run)):
                reader.take(run)
    return reader.history()


def _blocks(path: Path) -> Iterator[list[bytes]]:
    try:
        with path.open("rb") as file:
            while block := file.readlines(BLOCK_BYTES):
                yield block
    except FileNotFoundError:
        return
    except OSError as error:
        raise Mistake(f"{path}: cannot be read: {error.strerror}") from None


class _Reader:
    """A history that grows line by line."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in COLUMNS}
        self._step, self._elapsed = self._columns["step"], self._columns["time_s"]
        self._evaluations: list[Row] = []
        self._work: list[Row] = []
        self._end: Row | None = None
        self._exchange: Row | None = None
        self._start, self._before = 0, 0.0  # the last start; how long all before it took
        self._skipped = 0

    def history(self) -> History:
        """What was read until now."""
        columns = {name: np.asarray(column) for name, column in self._columns.items()}
        elapsed = columns.pop("time_s")
        seconds = float(elapsed[-1]) if len(elapsed) else math.nan
        return History(
            Steps(**columns), self._evaluations, self._end, self._skipped, self._work, seconds, self._start,
            self._exchange,
        )  # fmt: skip

    def take_steps(self, lines: Sequence[bytes]) -> bool:
        """Take lines all at once; False, and none is taken, where not all are plain steps that follow on."""
        found = PLAIN_STEP.findall(b"".join(lines))
        if len(found) < len(lines):
            return False
        try:
            columns = np.array([list(map(float, column)) for column in zip(*found, strict=True)])
        except ValueError:  # 1-2
            return False
        steps, elapsed = columns[0], columns[-1]
        if self._reaches(steps[0]) or (np.diff(steps) <= 0).any() or not np.isfinite(columns).all():
            return False
        elapsed += self._before
        for column, values in zip(self._columns.values(), columns, strict=True):
            column.frombytes(values.tobytes())
        return True

    def take(self, lines: Iterable[bytes]) -> None:
        """Take lines one after the other, of rows of any kind."""
        for line in lines:
            if not line.strip():
                continue
            if (row := _row(line)) is None:
                self._skipped += 1
            else:
                self._take_row(row)

    def _take_row(self, row: Row) -> None:
        match row.get("kind"):
            case "start":
                self._start_behind(row.get("step", 0))
            case "step":
                if self._reaches(row["step"]):  # no start was written
                    self._start_behind(row["step"] - 1)
                for name, column in self._columns.items():
                    column.append(row.get(name, math.nan))
                self._elapsed[-1] += self._before
            case "evaluation":
                self._evaluations.append(row)
            case "exchange":
                self._exchange = row
            case "work":
                self._work.append(row)
            case "end":
                self._end = row

    def _reaches(self, step: float) -> bool:
        """Whether the steps that were read reach so far."""
        return bool(self._step) and step <= self._step[-1]

    def _start_behind(self, step: int) -> None:
        """The run went on behind a step: what was written of later ones counts no more."""
        self._start = step
        kept = bisect_right(self._step, step)
        for column in self._columns.values():
            del column[kept:]
        self._evaluations = [row for row in self._evaluations if row.get("step", 0) <= step]
        self._before = self._elapsed[-1] if self._elapsed else 0.0
        self._work, self._end, self._exchange = [], None, None


def _row(line: bytes) -> Row | None:
    """A row, null as NaN; None where its numbers are none."""
    try:
        read = json.loads(line.decode(errors="replace"))
        # Names that all rows share: each line's own were a third of the memory that a million of them took.
        row: Row = {intern(n): math.nan if v is None else v for n, v in read.items()}
        numbers = [row[name] for name in NUMBERS.get(row.get("kind", ""), ()) if name in row]
    except (ValueError, AttributeError, TypeError):
        return None
    # (A column has no place for an integer of a hundred digits.)
    sound = all(isinstance(number, int | float) and not abs(number) > LARGEST for number in numbers)
    sound = sound and all(isinstance(row.get(name, 0), int) for name in COUNTS.get(row.get("kind", ""), ()))
    sound = sound and (row.get("kind") != "step" or "step" in row)
    return row if sound else None
