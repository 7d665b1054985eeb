"""What `weft predict` writes where it is to write CSV: a header, and a line for each sample, in their order.

sample,class,probability        of a run that was trained to tell classes apart, or its ONNX file with names
0,birke,0.998123

sample,probability_0,probability_1      of a run that was trained to judge labels, each by itself
0,0.998123,0.25

sample,dense_2_0,dense_2_1      of any other model: the numbers of its output, which read back as they were
0,0.25,-1.5

Further outputs, as an ensemble's deviations, follow in columns of their own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import Mistake
from ..observe import RunFolder
from ..train.job import Job, load_job
from .repository import Platform
from .request import ModelInfo, TensorInfo

SUFFIX = ".csv"
ROWS = 4096
"""Samples whose lines are made at once."""


@dataclass(frozen=True, slots=True)
class Table:
    """How the values of `output`, and of others, become lines; `labels` are the names of `output`'s classes.

    They are None where it has no classes. A class beyond the names is written as its number: a run's data may
    have none, or its model more outputs. `binary`: each number is the logit of a label that may hold or not.
    """

    output: TensorInfo
    labels: tuple[str, ...] | None = None
    others: tuple[TensorInfo, ...] = ()
    binary: bool = False

    def __post_init__(self) -> None:
        for each in (self.output, *self.others):
            if len(each.shape) > 2:
                raise Mistake(
                    f"{each.name} gives {tuple(each.shape[1:])} for a sample, and a line of a CSV file holds "
                    "one row of numbers: name an .npy file for the predictions, and the output with --output"
                )

    @property
    def header(self) -> list[str]:
        """The columns' names."""
        if self.labels is not None:
            first = ["class", "probability"]
        else:
            first = _columns(replace(self.output, name="probability") if self.binary else self.output)
        return ["sample", *first, *(name for each in self.others for name in _columns(each))]

    def rows(self, values: Sequence[NDArray[np.generic]], start: int) -> Iterator[list[str]]:
        """The lines of samples `start` and on, of which `values` are the model's, an array an output."""
        first, *others = (each.reshape(len(each), -1) for each in values)
        if self.labels is not None:
            told = self._told(first)
        else:
            told = _probabilities(first) if self.binary else _shown(first)
        for number, each in enumerate(zip(told, *map(_shown, others), strict=True), start):
            yield [str(number), *(cell for cells in each for cell in cells)]

    def _told(self, values: NDArray[np.generic]) -> Iterator[list[str]]:
        """Of each sample its class and the probability of that."""
        # Logits of 1000 are no reason for an overflow; of NaN the greatest would be as right as any.
        logits = values.astype(np.float64)
        finite = np.logical_and.reduce(np.isfinite(logits), axis=1)
        greatest = np.where(finite[:, None], logits, 0.0).argmax(axis=1)
        with np.errstate(invalid="ignore"):
            shares = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        for known, index, share in zip(finite, greatest, shares, strict=True):
            yield [self._name(int(index)), f"{share:.6g}"] if known else ["", "nan"]

    def _name(self, index: int) -> str:
        return self.labels[index] if self.labels and index < len(self.labels) else str(index)

    def text(self, *values: NDArray[np.generic]) -> Iterator[str]:
        """The whole table of all outputs' values, some lines at a time."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.header)
        for start in range(0, len(values[0]), ROWS):
            writer.writerows(self.rows([each[start : start + ROWS] for each in values], start))
            yield file.getvalue()
            file.seek(file.truncate(0))


def _columns(output: TensorInfo) -> list[str]:
    count = output.shape[1] if len(output.shape) > 1 else 1
    return [output.name] if count == 1 else [f"{output.name}_{i}" for i in range(count)]


def _probabilities(values: NDArray[np.generic]) -> Iterator[list[str]]:
    """Of each logit the probability; nan for what is no finite number."""
    logits = values.astype(np.float64)
    with np.errstate(over="ignore"):
        found = np.where(np.isfinite(logits), 1 / (1 + np.exp(-logits)), np.nan)
    return ([f"{one:.6g}" for one in row] for row in found)


def _shown(values: NDArray[np.generic]) -> Iterator[list[str]]:
    """Numbers in the fewest digits that tell them from all others of their type."""
    return (list(map(str, row)) for row in values)


def table_for(model: Path, info: ModelInfo, outputs: Sequence[TensorInfo]) -> Table:
    """The table of some outputs; of a classifier its classes. Mistake for an output with more than one axis.

    A run says by its loss what it predicts; a file of `weft export` is a classifier's if it names classes.
    """
    first, others = outputs[0], tuple(outputs[1:])
    if info.platform != Platform.CHECKPOINT:
        return Table(first, info.labels if info.labels and first == info.outputs[0] else None, others)
    predicts = job_of(model).model.loss.predicts
    return Table(first, info.labels if predicts == "classes" else None, others, binary=predicts == "labels")


def job_of(model: Path) -> Job:
    """The job of a run, or of a checkpoint in its folder."""
    folder = model.parent.parent if model.suffix == ".safetensors" else model
    return load_job(str(RunFolder.open(folder).job))
