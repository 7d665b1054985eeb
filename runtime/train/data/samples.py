"""What a model is trained on: samples that are gathered by number into given buffers.

    Data ── train, validation, test: Samples ── rows of one pair of arrays, or windows of one text

Every rank opens the same files and takes from them the samples it is told to; `Data.digest` shows cheaply
that the ranks really hold the same. Inputs leave as float32 already normalised, or as int32 tokens.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.kernel import ArraySpec
from ...errors import DataError
from .. import order

AnyArray = NDArray[Any]


class Samples(ABC):
    """One split. `input_spec` and `target_spec` are of one sample, without the batch axis.

    `classes` is None where targets are numbers to be met, not chosen.
    """

    input_spec: ArraySpec
    target_spec: ArraySpec
    classes: int | None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def gather(self, indices: order.Indices, inputs: AnyArray, targets: AnyArray) -> None:
        """Write samples `indices` into the first len(indices) places of both buffers."""

    @abstractmethod
    def sampled(self) -> Sequence[AnyArray]:
        """Arrays that stand for the content, from which `Data.digest` takes some bytes."""


@dataclass(frozen=True, slots=True)
class Affine:
    """What normalising does: raw * scale + shift, with numbers or with arrays of one sample's shape."""

    scale: Any = 1.0
    shift: Any = 0.0


class Rows(Samples):
    """Chosen rows of a pair of arrays, which may be memory-mapped."""

    def __init__(
        self, inputs: AnyArray, targets: AnyArray, rows: order.Indices, classes: int | None, affine: Affine
    ) -> None:
        self._inputs = inputs
        self._targets = targets
        self._rows = rows
        self._affine = affine
        self.classes = classes
        self.input_spec = ArraySpec(inputs.shape[1:], "float32")
        self.target_spec = ArraySpec(targets.shape[1:], "int32" if targets.dtype.kind in "iub" else "float32")

    def __len__(self) -> int:
        return len(self._rows)

    def gather(self, indices: order.Indices, inputs: AnyArray, targets: AnyArray) -> None:
        """Rows by number, normalised; no loop over samples."""
        rows = self._rows[indices]
        into = inputs[: len(rows)]
        if self._inputs.dtype == into.dtype:
            # mode: with "raise" np.take writes to a copy of `out` first. The rows are checked just above.
            np.take(self._inputs, rows, axis=0, out=into, mode="clip")
            np.multiply(into, self._affine.scale, out=into)
        else:  # few bytes, so widen them on the way
            np.multiply(self._inputs[rows], self._affine.scale, out=into, dtype=into.dtype, casting="unsafe")
        np.add(into, self._affine.shift, out=into)
        targets[: len(rows)] = self._targets[rows]

    def sampled(self) -> Sequence[AnyArray]:
        """Both arrays and the split."""
        return (self._inputs, self._targets, self._rows)


@dataclass(frozen=True, slots=True)
class Data:
    """The three splits."""

    train: Samples
    validation: Samples
    test: Samples
    affine: Affine = Affine()
    """How inputs were normalised: to be kept with the model, which serves raw inputs later."""

    @property
    def classes(self) -> int | None:
        """Number of classes, None for a regression."""
        return self.train.classes

    @property
    def input_spec(self) -> ArraySpec:
        """One sample's input."""
        return self.train.input_spec

    @property
    def target_spec(self) -> ArraySpec:
        """One sample's target."""
        return self.train.target_spec

    def digest(self) -> str:
        """Equal on two ranks that hold the same data, as far as shapes and some thousand bytes show."""
        hashed = hashlib.blake2b(digest_size=16)
        for samples in (self.train, self.validation, self.test):
            hashed.update(f"{len(samples)} {self.classes}".encode())
            for array in samples.sampled():
                hashed.update(f"{array.shape} {array.dtype.str}".encode())
                for row in np.linspace(0, len(array) - 1, min(64, len(array))).astype(int):
                    hashed.update(np.ascontiguousarray(array[row]).tobytes()[:256])
        return hashed.hexdigest()


def split(n: int, seed: int, validation: float, test: float, what: str) -> list[order.Indices]:
    """Rows of the train, validation and test samples: one shuffle by seed, cut in three."""
    counts = split_counts(n, validation, test, what)
    shuffled = order.epoch_order(seed, SPLIT_EPOCH, n)
    ends = np.cumsum(counts)
    return [np.sort(shuffled[end - count : end]) for count, end in zip(counts, ends, strict=True)]


SPLIT_EPOCH = (1 << 64) - 1
"""The key of the split's shuffle: an epoch that no run reaches."""


def split_counts(n: int, validation: float, test: float, what: str) -> list[int]:
    """How many of n samples train, validate and test; a fraction above 0 that gives none is refused."""
    held_out = [round(n * validation), round(n * test)]
    for name, fraction, count in zip(("validation", "test"), (validation, test), held_out, strict=True):
        if fraction and not count:
            raise DataError(
                f"{what}: {n} samples leave none for [data] {name} = {fraction}; "
                f"give more data, a larger fraction, or {name} = 0"
            )
    training = n - sum(held_out)
    if training < 1:
        raise DataError(
            f"{what}: {n} samples leave none to train on beside validation = {validation} and test = {test}"
        )
    return [training, *held_out]
