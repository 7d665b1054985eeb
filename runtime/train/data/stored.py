"""Arrays of samples as they lie in files: NumPy's own, or what gives NumPy the rows that it asks for.

files    ┌ a.npy ─┐┌ b.npy ───┐┌ c.npy ┐     each mapped, or read when it is asked
Joined   0 … 99    100 … 239   240 … 299     one array by its rows; only those asked for are copied
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import order

AnyArray = NDArray[Any]

BLOCK_BYTES = 64 << 20
"""How much of an array is read at once where all of it is looked at."""


class Stored(ABC):
    """Rows of a shape and a dtype, which are read as they are asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Axes, that of the samples among them."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Numbers in all."""
        return prod(self.shape)

    @abstractmethod
    def __getitem__(self, rows: slice | order.Indices) -> AnyArray:
        """These rows, copied; none is counted from the end."""

    @abstractmethod
    def reshaped(self, shape: Sequence[int]) -> Stored:
        """The same numbers, each row of this shape."""


Array = AnyArray | Stored


class Joined(Stored):
    """Arrays one behind the other, of which rows have one shape and dtype; `names` are what errors say."""

    def __init__(self, parts: Sequence[Array], names: Sequence[str]) -> None:
        self.names = names
        self.starts = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self.starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        self.parts = parts

    def __getitem__(self, rows: slice | order.Indices) -> AnyArray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        parts = self.part_of(rows)
        # Sorted once: of eight million rows in a thousand parts 1.5 s, where to look in all of them for those
        # of each part took 66 s.
        by_part = np.argsort(parts, kind="stable")
        for here in np.split(by_part, np.flatnonzero(np.diff(parts[by_part])) + 1) if len(rows) else ():
            part = int(parts[here[0]])
            found[here] = self.parts[part][rows[here] - self.starts[part]]
        return found

    def part_of(self, rows: order.Indices) -> NDArray[np.intp]:
        """The number of the part that each row lies in."""
        return (
            np.searchsorted(self.starts, rows, side="right") - 1
        )  # of empty parts the last that starts there

    def reshaped(self, shape: Sequence[int]) -> Joined:
        """As in Stored."""
        return Joined([reshaped(part, shape) for part in self.parts], self.names)


def reshaped(array: Array, shape: Sequence[int]) -> Array:
    """The same numbers, each row of this shape."""
    return array.reshaped(shape) if isinstance(array, Stored) else array.reshape(len(array), *shape)


def blocks(array: Array) -> Iterator[tuple[int, AnyArray]]:
    """All rows in turn, so many that they fit into memory; with each block the number of its first row."""
    step = max(1, BLOCK_BYTES // (array.dtype.itemsize * max(1, prod(array.shape[1:]))))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def number_at(array: Array, row: int, place: Sequence[int]) -> Any:
    """One number of one row."""
    return array[row : row + 1][(0, *place)]


def located(array: Array, row: int, name: str) -> tuple[int, str]:
    """A row's number in its own part, and what errors call that; of a whole array both are as given."""
    if isinstance(array, Joined):
        part = int(array.part_of(np.array([row]))[0])
        return row - int(array.starts[part]), array.names[part]
    return row, name


def probed(array: Array) -> Sequence[int]:
    """Rows that stand for all: 64 at even distances, and the first of each part."""
    rows = np.linspace(0, len(array) - 1, min(64, len(array))).astype(int)
    if isinstance(array, Joined):
        rows = np.union1d(rows, array.starts[:-1][array.starts[:-1] < array.starts[1:]])
    return [int(row) for row in rows]
