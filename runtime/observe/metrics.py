"""The numbers of a run as they come: `metrics.jsonl`, one JSON object a line, flushed line by line.

    {"kind": "start", "step": 0, "ranks": 4}
    {"kind": "step", "step": 12, "loss": 0.41, "rate": 0.05, "samples_per_s": 5120.0, "time_s": 3.25}
    {"kind": "evaluation", "step": 12, "split": "validation", "loss": 0.38, "accuracy": 0.91}
    {"kind": "exchange", "step": 20, "portion_bytes": 1048576, "credit": 2, "rule": "lower_layer_first",
     "plan": "wire, at most 2 under way: dense_2 | dense_1; 0 of 4 items put off"}
    {"kind": "work", "rank": 0, "micro_batches": {"0": 120, "1": 14}, "kernels": {"1": 22}, "attempts": 15,
     "misses": 1, "left": 3}
    {"kind": "end", "step": 960, "reason": "all epochs done"}

JSON has no NaN and no infinity: both are written as null, which `pandas.read_json(..., lines=True)`,
JavaScript and jq all accept, and are read back as NaN. A crash may cut the last line: the reader skips what
is no such object and counts it. A run that is resumed appends: "start" says behind which step, and what was
written of later ones, of who computed what and of an end counts no more. `time_s` counts from the start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from types import TracebackType
from typing import Any, Final, Self

from ..errors import MachineError, Mistake

Row = dict[str, Any]

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


class Metrics:
    """Appends to a `metrics.jsonl`; written by rank 0 only, and by one process at a time.

    Raises MachineError where the file cannot be written, Mistake where another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise self._could_not_write(error) from error
        try:
            self._own()
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read() != b"\n":  # a crash cut the last line: it must not swallow ours too
                    self._append(b"\n")
        except BaseException:
            self.close()
            raise

    def write(self, *, kind: str, **fields: Any) -> None:
        """Append one line, at once. 6 us, so every step can have one. MachineError where the disk is full."""
        row = {"kind": kind, **{name: _as_json(value) for name, value in fields.items()}}
        self._append(json.dumps(row, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

    def _append(self, line: bytes) -> None:
        try:
            while line:  # a disk that fills up takes a part of it
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._could_not_write(error) from error

    def _own(self) -> None:
        """Refuse a run to which another process writes, as far as the file system can tell."""
        with contextlib.suppress(OSError):  # some know no locks
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Mistake(
                    f"{self._path.parent}: another process trains this run; let it end, or end it"
                ) from None

    def _could_not_write(self, error: OSError) -> MachineError:
        return MachineError(f"{self._path}: cannot be written: {error.strerror or error}")

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
    skipped: int  # lines that were no such objects
    work: Sequence[Row] = ()  # who computed what since the last start, by rank and whose it was (claims.py)
    seconds: float = math.nan  # what the steps took, over all starts
    start: int = 0  # behind this step it started last
    exchange: Row | None = None  # how gradients travelled last, since then

    def evaluated(self, split: str) -> list[Row]:
        """The evaluations on one split: "validation", "test"."""
        return [row for row in self.evaluations if row.get("split") == split]


def read_metrics(path: Path) -> History:
    """All rows; a missing file is an empty history. Mistake where the file cannot be read."""
    steps: list[Row] = []
    elapsed: list[float] = []  # until each of them
    evaluations: list[Row] = []
    work: list[Row] = []
    end: Row | None = None
    exchange: Row | None = None
    start, before = 0, 0.0  # the last start; how long all before it took
    skipped = 0
    for line in _lines(path):
        if (row := _row(line)) is None:
            skipped += 1
            continue
        kind, step = row.get("kind"), row.get("step", 0)
        repeated = kind == "step" and bool(steps) and step <= steps[-1]["step"]  # no start was written
        if kind == "start" or repeated:
            start = step - repeated
            while steps and steps[-1]["step"] > start:
                del steps[-1], elapsed[-1]
            evaluations = [row for row in evaluations if row.get("step", 0) <= start]
            before = elapsed[-1] if elapsed else 0.0
            work, end, exchange = [], None, None
        if kind == "step":
            steps.append(row)
            elapsed.append(before + row.get("time_s", math.nan))
        elif kind == "evaluation":
            evaluations.append(row)
        elif kind == "exchange":
            exchange = row
        elif kind == "work":
            work.append(row)
        elif kind == "end":
            end = row
    seconds = elapsed[-1] if elapsed else math.nan
    return History(steps, evaluations, end, skipped, work, seconds, start, exchange)


def _lines(path: Path) -> Iterator[str]:
    """One after the other: those of a million steps are 140 MB."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            yield from (line for line in file if line.strip())
    except FileNotFoundError:
        return
    except OSError as error:
        raise Mistake(f"{path}: cannot be read: {error.strerror}") from None


def _row(line: str) -> Row | None:
    """A row, null as NaN; None where its numbers are none."""
    try:
        # Names that all rows share: each line's own were a third of the memory that a million of them took.
        row: Row = {intern(n): math.nan if v is None else v for n, v in json.loads(line).items()}
        numbers = [row[name] for name in NUMBERS.get(row.get("kind", ""), ()) if name in row]
    except (ValueError, AttributeError, TypeError):
        return None
    sound = all(isinstance(number, int | float) for number in numbers)
    sound = sound and all(isinstance(row.get(name, 0), int) for name in COUNTS.get(row.get("kind", ""), ()))
    sound = sound and (row.get("kind") != "step" or "step" in row)
    return row if sound else None


def _as_json(value: Any) -> Any:
    """NumPy scalars as Python's, and what JSON cannot say as null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
