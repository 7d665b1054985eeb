"""What `weft predict` writes where it is to write CSV: a header, and a line for each sample, in their order.

sample,class,probability        of a run that was trained to tell classes apart, or its ONNX file with names
0,birke,0.998123

sample,dense_2_0,dense_2_1      of any other model: the numbers of its output, which read back as they were
0,0.25,-1.5
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import Mistake
from ..observe import RunFolder
from ..train.job import load_job
from .repository import Platform
from .request import ModelInfo, TensorInfo

SUFFIX = ".csv"
ROWS = 4096
"""Samples whose lines are made at once."""


@dataclass(frozen=True, slots=True)
class Table:
    """How the values of `output` become lines; `labels` are the classes' names, None where it has no classes.

    A class beyond the names is written as its number: a run's data may have none, or its model more outputs.
    """

    output: TensorInfo
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.output.shape) > 2:
            raise Mistake(
                f"{self.output.name} gives {tuple(self.output.shape[1:])} for a sample, and a line of a CSV "
                "file holds one row of numbers: name an .npy file for the predictions"
            )

    @property
    def header(self) -> list[str]:
        """The columns' names."""
        if self.labels is not None:
            return ["sample", "class", "probability"]
        name = self.output.name
        if len(self.output.shape) < 2:
            return ["sample", name]
        count = self.output.shape[1]
        return ["sample", *([name] if count == 1 else [f"{name}_{i}" for i in range(count)])]

    def rows(self, values: NDArray[np.generic], start: int) -> Iterator[list[str]]:
        """The lines of samples `start` and on, of which `values` are the model's."""
        values = values.reshape(len(values), -1)
        if self.labels is None:
            for number, row in enumerate(values, start):
                yield [str(number), *map(str, row)]  # the fewest digits that tell a float32 from all others
            return
        # Logits of 1000 are no reason for an overflow; of NaN the greatest would be as right as any.
        logits = values.astype(np.float64)
        finite = np.logical_and.reduce(np.isfinite(logits), axis=1)
        greatest = np.where(finite[:, None], logits, 0.0).argmax(axis=1)
        with np.errstate(invalid="ignore"):
            shares = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        for number, (known, index, share) in enumerate(zip(finite, greatest, shares, strict=True), start):
            yield [str(number), self._name(int(index)), f"{share:.6g}"] if known else [str(number), "", "nan"]

    def _name(self, index: int) -> str:
        return self.labels[index] if self.labels and index < len(self.labels) else str(index)

    def text(self, values: NDArray[np.generic]) -> Iterator[str]:
        """The whole table, some lines at a time."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.header)
        for start in range(0, len(values), ROWS):
            writer.writerows(self.rows(values[start : start + ROWS], start))
            yield file.getvalue()
            file.seek(file.truncate(0))


def table_for(model: Path, info: ModelInfo, output: TensorInfo) -> Table:
    """The table of an output; of a classifier's its classes. Mistake for an output with more than one axis.

    A run says by its loss that it is one; a file of `weft export`, by the names of its classes.
    """
    if info.platform != Platform.CHECKPOINT:
        return Table(output, info.labels if info.labels and output == info.outputs[0] else None)
    folder = model.parent.parent if model.suffix == ".safetensors" else model
    classifies = load_job(str(RunFolder.open(folder).job)).model.loss == "softmax_cross_entropy"
    return Table(output, info.labels if classifies else None)
