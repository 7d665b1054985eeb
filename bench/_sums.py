"""Gradients of whole numbers, which all ranks know: sums are exact, in whatever order they are taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench._steps import Floats
from bench.harness import check

LARGEST = 8  # numbers are from -8 to 7


def gradient(rank: int, size: int) -> Floats:
    """A rank's gradient, known to all."""
    random = np.random.default_rng(rank)
    return random.integers(-LARGEST, LARGEST, size, np.int8).astype(np.float32)


def total(ranks: int, size: int) -> Floats:
    """The sum of all ranks' gradients, by NumPy."""
    found = np.zeros(size, np.float32)
    for rank in range(ranks):
        found += gradient(rank, size)
    return found


class Sums:
    """What `arrays` hold before and after an all-reduce over so many ranks; all ranks' are as long."""

    def __init__(self, rank: int, ranks: int, arrays: Sequence[Floats]) -> None:
        self._arrays, self._ranks = arrays, ranks
        self._own = gradient(rank, sum(array.size for array in arrays))

    def fill(self) -> None:
        """Put this rank's numbers there."""
        start = 0
        for array in self._arrays:
            array[:] = self._own[start : start + array.size]
            start += array.size

    def check(self, what: str) -> None:
        """WrongResultError unless the sums of all ranks are there."""
        expected, start = total(self._ranks, self._own.size), 0
        for array in self._arrays:
            right = np.array_equal(array, expected[start : start + array.size])
            check(right, f"{what}: a sum is wrong")
            start += array.size
