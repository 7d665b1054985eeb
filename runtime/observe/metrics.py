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
JavaScript and jq all accept. A crash may cut the last line. A run that is resumed appends: "start" says
behind which step, and what was written of later ones, of who computed what and of an end counts no more.
`time_s` counts from the start. history.py reads all of that back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import MachineError, Mistake


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


def _as_json(value: Any) -> Any:
    """NumPy scalars as Python's, and what JSON cannot say as null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
