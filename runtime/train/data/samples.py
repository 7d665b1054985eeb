"""What a model is trained on: samples that are gathered by number into given buffers.

    Data ── train, validation, test: Samples ── Rows of a pair of arrays, or Windows of one text

Every rank opens the same files and takes from them the samples it is told to; `Data.digest` shows cheaply
that the ranks really hold the same. Inputs leave as float32 already normalised, or as int32 tokens.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ....kernels.kernel import ArraySpec
from ...errors import DataError
from .. import order
from .stored import AnyArray, Array, Joined, located, number_at, probed

SPLIT_EPOCH = (1 << 64) - 1
"""The key of the split's shuffle: an epoch that no run reaches."""

COARSE = 0.01
"""Of a feature's deviation: what float32 may round away before somebody is told."""


class Samples(ABC):
    """One split. `input_spec` and `target_spec` are of one sample, without the batch axis.

    `classes` is None where targets are numbers to be met, not chosen.
    """

    input_spec: ArraySpec
    target_spec: ArraySpec
    classes: int | None
    files: int = 1  # in which they lie

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def gather(self, indices: order.Indices, inputs: AnyArray, targets: AnyArray) -> None:
        """Write samples `indices` into the first len(indices) places of both buffers."""

    def damage(self, indices: order.Indices) -> str:
        """The first of these samples whose input a float32 cannot hold, in words; empty if all are well."""
        return ""

    @abstractmethod
    def content(self) -> Sequence[Array]:
        """Arrays that stand for the content; `Data.digest` reads some rows of each."""


@dataclass(frozen=True, slots=True)
class Affine:
    """What normalising does: (raw - mean) * scale, with numbers or with arrays that broadcast to a sample.

    The mean is subtracted first and in the raw numbers' precision: a column of times near 1.7e9 has nothing
    left of its minutes once it is a float32.
    """

    mean: Any = 0.0
    scale: Any = 1.0
    of_wide: bool = False  # taken from numbers that a float32 rounds

    @property
    def changes(self) -> bool:
        """Whether it is more than nothing."""
        return bool(np.any(self.mean) or np.any(np.asarray(self.scale) != 1.0))

    @property
    def takes(self) -> str:
        """The dtype of raw samples from which a model sees what it saw in training."""
        return "float64" if self.of_wide and self.coarse() else "float32"

    def coarse(self) -> str:
        """What float32 keeps of samples, in words, where that is too little; where it is enough, nothing."""
        mean, scale = np.broadcast_arrays(np.abs(self.mean), np.asarray(self.scale, np.float64))
        steps = np.spacing(mean.astype(np.float32)).astype(np.float64)
        # Half a step of the sample, half a step of the mean. A column that was constant in training counts:
        # its test samples varied, and to a model that was served they were all alike.
        lost = steps * scale
        worst = int(np.argmax(lost))
        if lost.flat[worst] <= COARSE:
            return ""
        by = "no more than 1" if scale.flat[worst] == 1 else f"{1 / scale.flat[worst]:.3g}"  # 1: or constant
        return (
            f"float32, which near {mean.flat[worst]:.4g} have steps of {steps.flat[worst]:.3g}, and a "
            f"feature there deviates by {by}"
        )


def wide(dtype: np.dtype[Any]) -> bool:
    """Whether a float32 rounds such numbers."""
    return dtype.itemsize > (4 if dtype.kind == "f" else 2)


class Rows(Samples):
    """Chosen rows of a pair of arrays, mapped or in parts; `name` is what errors call the inputs.

    `affine` is how inputs are normalised, and `outcome` how targets are.
    """

    def __init__(
        self,
        inputs: Array,
        targets: Array,
        rows: order.Indices,
        classes: int | None,
        affine: Affine,
        name: str = "inputs",
        outcome: Affine = Affine(),
    ) -> None:
        self._name = name
        self.files = len(inputs.parts) if isinstance(inputs, Joined) else 1
        self._outcome = outcome if outcome.changes else None
        self._inputs = inputs
        self._targets = targets
        self._rows = rows
        self._mean = np.asarray(affine.mean, np.float64)
        self._scale = np.asarray(affine.scale, np.float32)
        self._wide = wide(inputs.dtype)
        self.input_spec = ArraySpec(inputs.shape[1:], "float32")
        self.target_spec = ArraySpec(targets.shape[1:], "float32" if classes is None else "int32")
        self.classes = classes

    def __len__(self) -> int:
        return len(self._rows)

    def gather(self, indices: order.Indices, inputs: AnyArray, targets: AnyArray) -> None:
        """Rows by number, normalised; no loop over samples."""
        rows = self._rows[indices]
        into = inputs[: len(rows)]
        if self._outcome is None:
            targets[: len(rows)] = self._targets[rows]
        else:
            away = self._targets[rows] - self._outcome.mean  # float64
            np.multiply(away, self._outcome.scale, out=targets[: len(rows)], casting="unsafe")
        if self._wide:
            np.multiply(self._inputs[rows] - self._mean, self._scale, out=into, casting="unsafe")
            return
        if isinstance(self._inputs, np.ndarray) and self._inputs.dtype == into.dtype:
            # mode: with "raise" np.take works in a copy of `out`; self._rows[indices] has checked the range.
            np.take(self._inputs, rows, axis=0, out=into, mode="clip")
        else:
            into[...] = self._inputs[rows]
        if self._mean.any():
            np.subtract(into, self._mean.astype(np.float32), out=into)
        np.multiply(into, self._scale, out=into)

    def damage(self, indices: order.Indices) -> str:
        """Of the first whose input is not finite: its row in the file, and the number found there."""
        inputs = np.empty((len(indices), *self.input_spec.shape), self.input_spec.dtype)
        with np.errstate(all="ignore"):
            self.gather(indices, inputs, np.empty((len(indices), *self.target_spec.shape)))
        if not len(odd := np.argwhere(~np.isfinite(inputs))):
            return ""
        sample, *place = odd[0].tolist()
        row = int(self._rows[indices[sample]])
        found = number_at(self._inputs, row, place)
        row, name = located(self._inputs, row, self._name)
        return f"sample {row} of {name} holds {found}"

    def content(self) -> Sequence[Array]:
        """Both arrays and the split."""
        return (self._inputs, self._targets, self._rows)


class Windows(Samples):
    """Consecutive windows of a text of bytes; the target of each byte is the next one.

    Window i is bytes i*context to (i+1)*context, and its last target the byte behind: windows share no input,
    and none reaches beyond the text it was made from.
    """

    classes = 256

    def __init__(self, text: AnyArray, context: int, files: int = 1) -> None:
        self.files = files
        count = max(0, (len(text) - 1) // context)
        shape, strides = (count, context + 1), (context * text.strides[0], text.strides[0])
        self._windows = np.lib.stride_tricks.as_strided(text, shape, strides, writeable=False)
        self.input_spec = self.target_spec = ArraySpec((context,), "int32")

    def __len__(self) -> int:
        return len(self._windows)

    def gather(self, indices: order.Indices, inputs: AnyArray, targets: AnyArray) -> None:
        """Windows by number."""
        windows = self._windows[indices]
        inputs[: len(windows)] = windows[:, :-1]
        targets[: len(windows)] = windows[:, 1:]

    def content(self) -> Sequence[Array]:
        """The windows."""
        return (self._windows,)


@dataclass(frozen=True)
class Data:
    """The three splits."""

    train: Samples
    validation: Samples
    test: Samples
    affine: Affine = Affine()
    """How inputs were normalised: to be kept with the model, which serves raw inputs later."""

    labels: tuple[str, ...] = ()
    """The classes' names where the source has names."""

    outcome: Affine = Affine()
    """How targets were normalised: what the model predicts is led back by it."""

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

    @property
    def count(self) -> int:
        """Samples in all."""
        return len(self.train) + len(self.validation) + len(self.test)

    def digest(self) -> str:
        """Equal on ranks that hold the same data, as far as shapes and some rows of each array show."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        hashed = hashlib.blake2b(digest_size=16)
        seen: dict[int, bytes] = {}  # by identity: the three are mostly rows of the same arrays
        for samples in (self.train, self.validation, self.test):
            hashed.update(f"{len(samples)} {self.classes} {self.labels}".encode())
            for array in samples.content():
                if id(array) not in seen:
                    seen[id(array)] = _told_by(array)
                hashed.update(seen[id(array)])
        return hashed.hexdigest()


def _told_by(array: Array) -> bytes:
    """Shape, dtype and the beginning of some rows."""
    rows = (np.ascontiguousarray(array[row : row + 1]).tobytes()[:4096] for row in probed(array))
    return b"".join((f"{array.shape} {array.dtype.str}".encode(), *rows))


def split(n: int, seed: int, validation: float, test: float, what: str) -> list[order.Indices]:
    """Rows of the train, validation and test samples: one shuffle by seed, cut in three."""
    counts = split_counts(n, validation, test, what)
    shuffled = order.epoch_order(seed, SPLIT_EPOCH, n)
    return [np.sort(part) for part in np.split(shuffled, np.cumsum(counts)[:-1])]


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
