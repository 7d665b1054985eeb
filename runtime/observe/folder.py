"""A run's folder: one place for everything a run leaves behind.

runs/digits-20260314-150926/
    job.toml         the job as it ran
    metrics.jsonl    loss, rate, samples a second, evaluations
    trace.json       what every rank did, for Perfetto
    checkpoints/     what a resumed run starts from
    loss.png         drawn by `weft report`
    timeline.png
    portions.csv     when each portion of the gradient was ready, posted, done, used; by `weft report`
    compare.png      drawn by `weft report RUN OTHER`
    losses.png       drawn by `weft report RUN RUN RUN`
    model.onnx       by `weft export`
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from ..errors import MachineError, Mistake


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run. Rank 0 alone calls `create`; the others build theirs from the path it tells them."""

    path: Path

    @property
    def job(self) -> Path:
        """The job as it ran."""
        return self.path / "job.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def trace(self) -> Path:
        """Spans of all ranks, for Perfetto."""
        return self.path / "trace.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def loss_picture(self) -> Path:
        """Loss over steps."""
        return self.path / "loss.png"

    @property
    def timeline_picture(self) -> Path:
        """What the ranks did in a few steps."""
        return self.path / "timeline.png"

    @property
    def portions(self) -> Path:
        """When each portion of the gradient was ready, posted, done and used."""
        return self.path / "portions.csv"

    @property
    def compare_picture(self) -> Path:
        """A step of this run and one of another."""
        return self.path / "compare.png"

    @property
    def losses_picture(self) -> Path:
        """The losses of this run and of others over their steps."""
        return self.path / "losses.png"

    @property
    def name(self) -> str:
        """The job's name: the folder's without date and time."""
        return re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", self.path.resolve().name)

    def require_job(self) -> str:
        """The path of the job as it ran, to be read; a Mistake where it is not there.

        So it is of a run whose folder was moved while it trained: what came later lies under the old name,
        and its job.toml could not be read, was said, next to a list of packaged jobs.
        """
        if not os.path.isfile(self.job):
            raise Mistake(
                f"{self.path} lacks its job.toml: put it back, or go on with the job that was trained there: "
                f"weft train JOB --resume {self.path}"
            )
        return str(self.job)

    def keep(self, job: str) -> None:
        """Keep the text of the job that is trained here; MachineError where it cannot be written."""
        write_whole(self.job, lambda file: file.write(job))

    @classmethod
    def create(cls, parent: Path, name: str, now: time.struct_time | None = None) -> Self:
        """Make `parent/NAME-YYYYMMDD-HHMMSS`, with a number behind it if that is taken. Rank 0 only.

        A ~ that `parent` begins with is filled in.
        """
        try:
            parent = parent.expanduser()
        except RuntimeError as error:
            raise MachineError(
                f"cannot make a folder for the run in {parent} ({parent.parts[0]} is no home folder that is "
                "known here); choose another with --folder or [run] folder"
            ) from error
        stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
        stem += time.strftime("-%Y%m%d-%H%M%S", now or time.localtime())
        try:
            for number in range(1, 1000):
                path = parent / (stem if number == 1 else f"{stem}-{number}")
                try:
                    path.mkdir(parents=True)  # fails if another run was faster: nothing is ever shared
                except FileExistsError:
                    continue
                (path / "checkpoints").mkdir()
                return cls(path)
        except OSError as error:
            raise MachineError(
                f"cannot make a folder for the run in {parent} ({error.strerror}); "
                "choose another with --folder or [run] folder"
            ) from error
        raise MachineError(f"{parent} holds 999 runs named {stem}; choose another with --folder")

    @classmethod
    def open(cls, path: Path) -> Self:
        """The run in an existing folder; a Mistake says what was found instead."""
        if _is_run(path):
            return cls(path)
        if not path.exists():
            raise Mistake(f"there is no run {path}: no such folder{_suggestion(_runs(path.parent))}")
        belongs = f"; it belongs to the run {inside}" if (inside := run_of(path)) else ""
        if not path.is_dir():
            raise Mistake(f"{path} is a file, not a run's folder{belongs}")
        inside_it = _runs(path)
        if inside_it:
            raise Mistake(f"{path} is not a run but holds {len(inside_it)}" + _suggestion(inside_it))
        if belongs:
            raise Mistake(f"{path} is not a run{belongs}")
        if cls(path).job.is_file():
            raise Mistake(f"{path} is not a run: it holds a job, job.toml, and nothing that was trained")
        found = sorted(entry.name for entry in path.iterdir())
        listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise Mistake(
            f"{path} is not a run: it has no metrics.jsonl and no checkpoints, only {listed or 'nothing'}"
        )


def write_whole(path: Path, write: Callable[[TextIO], object]) -> None:
    """Write a file that at every instant is the one of before or the new one, whole.

    Raises MachineError where that is not possible; the one of before is then left as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            write(file)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error


def require_file(path: Path, called: str) -> None:
    """Raise Mistake where `path` is there and no file: what is written whole takes its place.

    For root that was so of /dev/null too, named by somebody who wanted no file.
    """
    if os.path.isdir(path):
        raise Mistake(f"{path} is a folder; name the file, as {path / called}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise Mistake(f"{path} is a device or a pipe, whose place the file would take; name a file")


class Files:
    """What a report writes beside its words; `lost` tells in sentences what could not be written."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def write(self, path: Path, write: Callable[[Path], bool | None]) -> bool:
        """Whether the file was written; `write` returns False where there was nothing to write."""
        try:
            return write(path) is not False
        except OSError as error:
            self.lost.append(f"{path}: cannot be written: {error.strerror or error}")
            return False


def run_of(path: Path) -> Path | None:
    """The run that a file is in, if any."""
    return next((parent for parent in path.parents if _is_run(parent)), None)


def _is_run(path: Path) -> bool:
    """Whether something was trained here; a job.toml alone may be anybody's."""
    folder = RunFolder(path)
    try:
        return folder.metrics.is_file() or folder.checkpoints.is_dir()
    except OSError as error:  # it lies in a folder of somebody else's
        raise Mistake(f"{path}: cannot be read: {error.strerror or error}") from None


def _runs(parent: Path) -> list[Path]:
    """The runs in a folder, newest first."""
    if not parent.is_dir():
        return []
    # By patterns, which pass over folders that may not be read.
    runs = {found.parent for name in ("metrics.jsonl", "checkpoints") for found in parent.glob(f"*/{name}")}
    return sorted(runs, key=lambda run: run.stat().st_mtime, reverse=True)


def _suggestion(runs: list[Path]) -> str:
    return f"; the newest run is {runs[0]}" if runs else ""
